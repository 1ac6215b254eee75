"""Link-time optimisation, each kind in a loop of its own: `lto.thin` and `lto.fat`. They share nothing."""

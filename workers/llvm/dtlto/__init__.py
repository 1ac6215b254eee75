"""Backend compiles that a linker has planned and hands out (LLVM's DTLTO, "integrated distributed ThinLTO").

* `job_file`: what the linker asks for. `driver`: what its compiler makes of the arguments. `checks`: whether a job is
  what it seems. `keys`: what results follow from. None of these needs trio: if everything was compiled before, there is
  nothing to wait for.
* `compile`: running one job.

See https://llvm.org/docs/DTLTO.html.
"""

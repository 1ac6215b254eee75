"""What items cost when they ran before, for better guesses than their size gives."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

__all__ = ["History"]

# Time only orders a queue, so the estimate should follow a change of the code within a few runs, and not jump
# for one run on a busy machine: half the old, half the new.
_TIME_WEIGHT = 0.5
# Peak memory admits: too low a guess gets a build killed, too high a guess costs some parallelism. So a
# measurement above the guess counts at once and in full, and one below it only pulls the guess down slowly:
# a peak that never comes back has lost half of its excess after seven runs.
_PEAK_DECAY = 0.9


class History:
    """Measured seconds and peak memory per key, for the `capacity` keys used last (LRU).

    Lives in memory and is owned by one thread. A full history of the default capacity with digests as keys
    takes about 25 MB.
    """

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def record(self, key: Hashable, seconds: float, peak_rss_bytes: int) -> None:
        """Blend one measurement into what is known about `key`."""
        known = self._entries.pop(key, None)
        if known is not None:
            known_seconds, known_peak = known
            seconds = known_seconds + _TIME_WEIGHT * (seconds - known_seconds)
            peak_rss_bytes = max(peak_rss_bytes, int(peak_rss_bytes + _PEAK_DECAY * (known_peak - peak_rss_bytes)))
        self._entries[key] = (seconds, peak_rss_bytes)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def estimate(self, key: Hashable) -> tuple[float, int] | None:
        """Expected seconds and peak bytes of `key`; `None` when it is not known (any more)."""
        known = self._entries.get(key)
        if known is not None:
            self._entries.move_to_end(key)
        return known

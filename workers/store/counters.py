"""What a store counts, in whichever thread it happens. Here belongs adding up, and nothing of what it means."""

from __future__ import annotations

import threading

from attrs import evolve

from workers.store.interface import Stats

__all__ = ["Counters"]

_TROUBLES = 8
"""A second tier has no more to complain about than that."""


class Counters:
    """The `Stats` of one store."""

    def __init__(self) -> None:
        self.stats = Stats()
        self._lock = threading.Lock()

    def count(self, **more: int) -> None:
        """Add to those counts of `Stats`."""
        with self._lock:
            stats = self.stats
            self.stats = evolve(stats, **{name: getattr(stats, name) + count for name, count in more.items()})

    def troubled(self, error: Exception) -> None:
        """The directory made trouble; only the first is kept."""
        with self._lock:
            self.stats = evolve(self.stats, trouble=self.stats.trouble or _words(error))

    def not_stored(self, error: Exception) -> None:
        """A result could not be kept."""
        self.count(not_stored=1)
        self.troubled(error)

    def remote_troubled(self, trouble: str) -> None:
        """The second tier made trouble."""
        with self._lock:
            troubles = self.stats.remote_troubles
            if trouble not in troubles and len(troubles) < _TROUBLES:
                self.stats = evolve(self.stats, remote_troubles=(*troubles, trouble))


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)

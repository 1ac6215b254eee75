"""Keeping the store below its limit while it is used.

Here belongs when to prune; how is told in `upkeep`. Nobody knows how large the store is without walking over all of
it, so every process leaves marks for what it writes, and whoever leaves the one too many has a look, in a thread that
nobody waits for.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from workers.store.layout import Layout
from workers.store.upkeep import prune

__all__ = ["Housekeeper"]

_FULL, _ROOMY = 0.95, 0.90
"""Shares of the limit: above the first, pruning begins, and it ends below the second."""

_MARKS = 256
_BLOCK_BYTES = 4096
"""No file takes less."""

_LOOK_AFTER_MARKS = 13
"""A mark stands for 1/256 of the limit; after 13 of them, 5 %, somebody looks at the whole."""


class Housekeeper:
    """Prunes `layout` when it grows beyond `limit_bytes`; `close` it in the end."""

    def __init__(self, layout: Layout, limit_bytes: int) -> None:
        self._layout = layout
        self._limit = limit_bytes
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closing = threading.Event()

    def stopped(self) -> bool:
        """Whether whoever walks over the store should end."""
        return self._closing.is_set()

    def wrote(self, digest: str, size: int) -> None:
        """A new file of `size` bytes was written, named by `digest`. For any thread: neither waits nor raises."""
        marks = self._marks(digest, size)
        if not marks or not self._leave(marks):
            return
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._prune, name="ltod-prune")
                with suppress(RuntimeError):
                    thread.start()
                    self._thread = thread

    def join(self) -> None:
        """Wait for the end of a pruning that runs."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Have everything end that walks over the store."""
        self._closing.set()
        self.join()

    def _marks(self, digest: str, size: int) -> int:
        # A part of a mark counts as one as often as the part is large; the digest is as good as a die.
        marks = max(size, _BLOCK_BYTES) * _MARKS / max(self._limit, 1) + int(digest[:8], 16) / 2**32
        return min(int(marks), _MARKS)

    def _leave(self, marks: int) -> bool:
        """Leave marks. Returns whether it is time to look at the whole."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self._layout.grown, flags, 0o644)
        except OSError:
            return True
        try:
            os.write(fd, b"." * marks)
            return os.fstat(fd).st_size >= _LOOK_AFTER_MARKS
        except OSError:
            return True
        finally:
            os.close(fd)

    def _prune(self) -> None:
        full, roomy = int(self._limit * _FULL), int(self._limit * _ROOMY)
        with suppress(OSError):
            prune(self._layout, down_to=roomy, if_above=full, stopped=self.stopped)

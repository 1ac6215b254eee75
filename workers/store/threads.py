"""What the event loop does itself with files, and what threads do for it.

Small things are done at once: a thread costs more than reading, checking and writing them, and the event loop waits
no longer for them than for anything else that it does. Large ones are done in a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

__all__ = ["perform"]

_T = TypeVar("_T")

_INLINE_BYTES = 256 * 1024
"""Up to this size together, files are read, checked and written by the event loop: a fraction of a millisecond."""


async def perform(size: int, work: Callable[[], _T]) -> _T:
    """Do something with `size` bytes of files: here if they are few, else in a thread."""
    return work() if size <= _INLINE_BYTES else await trio.to_thread.run_sync(work)

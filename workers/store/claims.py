"""The right to compute an action, and how to wait for who has it.

Here belong claims and nothing of what is computed. A claim is a locked FIFO. The lock says who has it: the kernel
gives it back when its holder dies. The FIFO tells those who wait: its holder has it open for writing, so a reader
that finds no writer knows that nobody holds it, and the kernel wakes a reader when the last writer is gone (after it
has released the lock, in Linux). So a wait needs no thread, no polling and no helper, and cancelling it is closing a
descriptor.

Where there are no FIFOs or no locks, claims hold within the process only: others compute the same once more.
"""

from __future__ import annotations

import fcntl
import os
import resource
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import trio

from workers.store.layout import Layout
from workers.store.leases import lock, still_there

__all__ = ["Claims"]

_ATTEMPTS = 16
"""How often a file may vanish between being made and being locked before claims are confined to this process."""

_SHARE = 8
"""One of so many descriptors that this process may have is for claims, and one for waiting: tools need some, too."""

_FAREWELL = bytes(64)
"""Wakes those who wait where a forked child of ours keeps the FIFO open. One byte is taken by each who looks now."""


class Claims:
    """The claims that one store has, and sees, in a layout."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._held: dict[str, trio.Event] = {}
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._room = 2**16 if limit == resource.RLIM_INFINITY else limit // _SHARE
        self._waiting = trio.Semaphore(max(self._room, 1))

    def claim(self, key: str) -> _Claim | None:
        """The right to compute `key`, `None` if somebody has it. Does not wait, never raises `OSError`.

        Of very many at once, only this process knows of the last ones.
        """
        if key in self._held:
            return None
        path = f"{self._layout.locks}/{key}"
        try:
            fd = self._take(path)
        except BlockingIOError:
            return None
        except OSError:
            fd = -1
        if fd >= 0 and not self._room:
            _give_back(fd, path)
            fd = -1
        self._room -= fd >= 0
        gone = self._held[key] = trio.Event()

        def close() -> None:
            del self._held[key]
            if fd >= 0:
                self._room += 1
                _give_back(fd, path)
            gone.set()

        return _Claim(close)

    def held(self, key: str) -> bool:
        """Whether a claim on `key` was granted here, and is not given back."""
        return key in self._held

    async def wait(self, key: str) -> None:
        """Return when nobody has `key` any more, at once if nobody has it."""
        if key in self._held:
            await self._held[key].wait()
            return
        async with self._waiting:
            try:
                fd = os.open(f"{self._layout.locks}/{key}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                return
            try:
                # Nothing is ever written while a claim is held: there is a writer, or there is the end of the file.
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    os.read(fd, 1)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(fd)
            finally:
                os.close(fd)

    def _take(self, path: str) -> int:
        """The locked FIFO at `path`. Raises `BlockingIOError` if somebody has it, `OSError` if there cannot be one."""
        for _ in range(_ATTEMPTS):
            try:
                os.mkfifo(path, 0o644)
            except FileExistsError:
                pass
            except FileNotFoundError:
                self._layout.make()
                continue
            try:
                fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                    # No holder makes anything else, so nobody relies on it.
                    Path(path).unlink()
                elif not lock(fd):
                    raise BlockingIOError
                elif still_there(fd, path):
                    kept, fd = fd, -1
                    return kept
            finally:
                if fd >= 0:
                    os.close(fd)
        raise OSError("it does not stay")


class _Claim:
    def __init__(self, close: Callable[[], None]) -> None:
        self._close: Callable[[], None] | None = close

    def close(self) -> None:
        """Give the right back; a second time does nothing."""
        close, self._close = self._close, None
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _give_back(fd: int, path: str) -> None:
    with suppress(OSError):
        if still_there(fd, path):
            Path(path).unlink()
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.write(fd, _FAREWELL)
    os.close(fd)

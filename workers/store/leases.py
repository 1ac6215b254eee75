"""Signs of life: a file or directory whose lock the kernel takes back when its owner dies, however that happens.

Here belongs what may be said of a lock without knowing what it is for. A lock counts only while its path leads to
what was locked: who removes a path locks it first, and who locked one looks whether it is still there.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

__all__ = ["Lease", "lock", "seize", "still_there"]

_ATTEMPTS = 8


class Lease:
    """A fresh file or directory in `parent` that is known to be ours until `close`. Raises `OSError`."""

    def __init__(self, parent: Path, *, directory: bool) -> None:
        for _ in range(_ATTEMPTS):
            self.path = parent / os.urandom(12).hex()
            if directory:
                self.path.mkdir()
                flags = os.O_RDONLY | os.O_DIRECTORY
            else:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            try:
                fd = os.open(self.path, flags | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                continue
            # Who sweeps may come between the making and the locking.
            if lock(fd) and still_there(fd, self.path):
                self._fd = fd
                return
            os.close(fd)
        raise OSError(errno.EAGAIN, "every lock is taken away", str(parent))

    def close(self) -> None:
        """Let go of it. What it stands for has to be removed before; a second time does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def lock(fd: int, *, shared: bool = False) -> bool:
    """Lock what is open as `fd`, unless somebody else has: does not wait. Raises `OSError` where locks do not work.

    Any number may have a `shared` lock, while nobody has the other.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def still_there(fd: int, path: str | Path) -> bool:
    """Whether `path` leads to what is open as `fd`."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except OSError:
        return False


def seize(path: str | Path) -> int | None:
    """A locked descriptor of what a dead owner left at `path`, for the caller to close; `None`: it lives, or is gone.

    Opening is harmless: it never waits, follows no link, and is no writer to a FIFO.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if lock(fd) and still_there(fd, path):
            return fd
    except OSError:
        pass
    os.close(fd)
    return None

"""Reading what cannot be trusted, and copying with one look at each byte.

Here belongs what is done with single files, whatever they are for. Descriptors and strings rather than `Path`s and
file objects: a hit of a small object is made of a dozen calls, and half its time would be theirs.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from contextlib import suppress

__all__ = ["Unusable", "copy_hashed", "discard", "hash_file", "open_file", "read_all", "write_all"]

_CHUNK = 1024 * 1024
_CLONE_BYTES = 64 * 1024
"""Smaller files are copied sooner than a file system shares their blocks."""
_FICLONE = 0x40049409

_DAMAGE = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EIO})
"""What opening says of links, sockets, devices and bad sectors: none of it will ever be the file that was meant."""


class Unusable(Exception):
    """A file cannot be used: it is not there (any more), or it is `damaged` and should not be there."""

    def __init__(self, path: str, *, damaged: bool) -> None:
        super().__init__(f"{path} is damaged" if damaged else f"{path} cannot be read")
        self.path = path
        self.damaged = damaged


def open_file(path: str) -> tuple[int, os.stat_result]:
    """A descriptor of the regular file at `path`, no link, with its status. Raises `Unusable`; never waits."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        # A file that may not be read is in the way for good; a directory that may not be searched is not its fault.
        denied = error.errno in (errno.EACCES, errno.EPERM) and os.path.lexists(path)
        raise Unusable(path, damaged=denied or error.errno in _DAMAGE) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise Unusable(path, damaged=True)
    return fd, status


def read_all(fd: int, size: int, path: str) -> bytes:
    """What follows in `fd`, expected to be `size` bytes: one more is asked for to see the end. Raises `Unusable`."""
    parts = []
    try:
        while part := os.read(fd, size + 1):
            parts.append(part)
            size -= len(part)
            if size < 0:
                break
    except OSError as error:
        raise Unusable(path, damaged=True) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_all(fd: int, content: bytes | memoryview) -> None:
    """Write all of `content`. Raises `OSError`."""
    written = os.write(fd, content)
    while written < len(content):
        content = memoryview(content)[written:]
        written = os.write(fd, content)


def hash_file(fd: int, path: str) -> tuple[str, int]:
    """SHA-256 and size of what follows in `fd`. Raises `Unusable`."""
    return _hash_to(fd, None, path)


def copy_hashed(source: int, target: int, size: int, path: str) -> tuple[str, int]:
    """Copy what follows in `source`, about `size` bytes, to the empty `target`, opened for reading as well.

    Returns SHA-256 and size of what was copied. Shares the disk blocks where the file system can. Raises `Unusable`
    of `path` where the source cannot be read, `OSError` where the target cannot be written.
    """
    if size >= _CLONE_BYTES:
        with suppress(OSError):
            fcntl.ioctl(target, _FICLONE, source)
            return hash_file(target, path)
    return _hash_to(source, target, path)


def _hash_to(source: int, target: int | None, path: str) -> tuple[str, int]:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    size = 0
    while True:
        try:
            count = os.readv(source, [buffer])
        except OSError as error:
            raise Unusable(path, damaged=True) from error
        if not count:
            return digest.hexdigest(), size
        digest.update(buffer[:count])
        if target is not None:
            write_all(target, buffer[:count])
        size += count


def discard(path: str) -> bool:
    """Remove whatever is at `path`, if that is possible. Returns whether there was something and it is gone."""
    try:
        os.unlink(path)  # noqa: PTH108
    except (IsADirectoryError, PermissionError):
        import shutil  # for directories only: a hit that has no need of it would be the later for it

        shutil.rmtree(path, ignore_errors=True)
        return not os.path.lexists(path)
    except OSError:
        return False
    return True

"""Bytes of input files, read on demand."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["ContentError", "FileView", "Source", "Stamp", "open_file", "stamp_of"]

_HEAD = 1 << 16


class ContentError(Exception):
    """A file cannot be read; the message says why and does not repeat the file's name."""


class FileView:
    """`size` bytes of an open file from `start` on. Parts are read when asked for.

    The file is not mapped: whoever truncated it meanwhile would kill this process with SIGBUS. Here a part
    that is gone comes back short. Reading raises `ContentError`.
    """

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self._descriptor = descriptor
        self._start = start
        self._size = size
        self._head = self._read(0, min(size, _HEAD))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        begin, end, _ = part.indices(self._size)
        if end <= len(self._head):
            return self._head[begin:end]
        return self._read(begin, end - begin)

    def part(self, offset: int, size: int) -> FileView:
        """`size` bytes from `offset` on, which lie inside of this view."""
        return FileView(self._descriptor, self._start + offset, size)

    def _read(self, begin: int, size: int) -> bytes:
        pieces = []
        try:
            while size > 0:
                piece = os.pread(self._descriptor, size, self._start + begin)
                if not piece:
                    break
                pieces.append(piece)
                begin += len(piece)
                size -= len(piece)
        except OSError as error:
            raise ContentError(_why(error)) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


Source = bytes | memoryview | FileView
"""Bytes that can be cut into parts."""

Stamp = tuple[int, int, int]
"""Size, time of the last change and number of a file."""


def stamp_of(path: str | Path) -> Stamp:
    """What changes with a file's content. Raises `OSError`."""
    found = os.stat(path)  # noqa: PTH116 (a `Path` for each of thousands takes longer than asking)
    return found.st_size, found.st_mtime_ns, found.st_ino


@contextmanager
def open_file(path: Path) -> Iterator[FileView]:
    """The bytes of a regular file; valid inside of the `with` block.

    Raises `ContentError` where there is none, or where it cannot be read.
    """
    try:
        # Not blocking: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ContentError(_why(error)) from error
    except ValueError as error:
        raise ContentError("cannot be the name of a file") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise ContentError("is a directory: name the files in it")
        if not stat.S_ISREG(status.st_mode):
            raise ContentError("is not a regular file: give its content on standard input, as '-'")
        yield FileView(descriptor, 0, status.st_size)
    finally:
        os.close(descriptor)


def _why(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return "no such file"
        case errno.EACCES | errno.EPERM:
            return "permission denied"
        case number:
            return f"cannot be read: {os.strerror(number).lower()}" if number else f"cannot be read: {error}"

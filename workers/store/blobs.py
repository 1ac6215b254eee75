"""Blobs on their way into the store, and those that are there already."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from workers.store.counters import Counters
from workers.store.files import Unusable, copy_hashed, discard, hash_file, open_file, read_all
from workers.store.interface import Output
from workers.store.layout import Layout, Writer, touch

__all__ = ["Blobs"]

_MEMORY_BYTES = 256 * 1024
"""Files up to this size are read at once: what is there already is not written again then."""


class Blobs:
    """The blobs of one store. Any thread may use it."""

    def __init__(self, layout: Layout, writer: Writer, counters: Counters) -> None:
        self._layout = layout
        self._writer = writer
        self._counters = counters

    def use(self, output: Output) -> bool:
        """Whether a blob seems to be there, which is a use of it; its content is looked at by who needs it."""
        path = self._layout.blob(output.digest)
        try:
            status = os.lstat(path)
        except OSError:
            return False
        if status.st_size != output.size or not stat.S_ISREG(status.st_mode):
            self.remove(Unusable(path, damaged=True))
            return False
        touch(path, status)
        return True

    def remove(self, error: Unusable) -> None:
        """Remove what `error` was raised of, and count it, if it is damaged."""
        if error.damaged:
            discard(error.path)
            self._counters.count(damaged=1)

    def keep(self, name: str, content: Path | bytes) -> tuple[Output, bool]:
        """Have one output in the store. Also says whether it was new. Raises `OSError`, and `Unusable` of `content`."""
        if isinstance(content, bytes):
            return self._keep_bytes(name, content, executable=False)
        # It never waits, should a tool have made a FIFO.
        fd = os.open(content, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise Unusable(str(content), damaged=True)
            executable = bool(status.st_mode & 0o111)
            if status.st_size <= _MEMORY_BYTES:
                return self._keep_bytes(name, read_all(fd, status.st_size, str(content)), executable=executable)
            return self._keep_file(name, fd, status.st_size, str(content), executable=executable)
        finally:
            os.close(fd)

    def accept(self, temporary: str, output: Output) -> None:
        """Let a file of the writer be the blob of `output`. Raises `Unusable` if it is something else, `OSError`."""
        fd, _ = open_file(temporary)
        try:
            os.fchmod(fd, 0o444)
            if hash_file(fd, temporary) != (output.digest, output.size):
                raise Unusable(temporary, damaged=True)
        finally:
            os.close(fd)
        self._writer.publish(temporary, self._layout.blob(output.digest))

    def _keep_bytes(self, name: str, content: bytes, *, executable: bool) -> tuple[Output, bool]:
        output = Output(name, hashlib.sha256(content).hexdigest(), len(content), executable)
        new = not self.use(output)
        if new:
            self._writer.write(content, self._layout.blob(output.digest))
        return output, new

    def _keep_file(self, name: str, source: int, size: int, path: str, *, executable: bool) -> tuple[Output, bool]:
        target, temporary = self._writer.create()
        try:
            try:
                digest, size = copy_hashed(source, target, size, path)
            finally:
                os.close(target)
            output = Output(name, digest, size, executable)
            new = not self.use(output)
            if new:
                self._writer.publish(temporary, self._layout.blob(digest))
            return output, new
        finally:
            discard(temporary)

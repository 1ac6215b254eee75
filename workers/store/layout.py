"""Where everything is in the store's directory, and how a file gets there.

Here belong paths, their meaning, and the one way to write: a temporary file, renamed when it is whole. Below a
directory named after the version of all this:

    cas/ab/<digest>    a blob, read-only, named by its SHA-256
    ac/ab/<key>        an entry: a SHA-256 of the key and the message, then the message (see `action_result`)
    facts/ab/<key>     what is remembered, with a SHA-256 before it as well
    locks/<key>        a claim (see `claims`)
    sessions/<name>    a running build: a locked file that is as old as the build
    tmp/<name>/        what one writer has not finished: a locked directory
    pruning            locked by who prunes
    grown              a byte for every so many bytes written since somebody last looked at the whole
    tally              hits and misses of the last weeks (see `tally`)

The time of modification of blobs, entries and facts is that of their last use.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from workers.store.files import Unusable, discard, open_file, read_all, write_all
from workers.store.leases import Lease

__all__ = ["FACT", "TOUCH_SECONDS", "Layout", "Writer", "seal", "touch", "unseal"]

_VERSION = "v1"

FACT = "fact "
"""So that no entry is taken for a fact."""

TOUCH_SECONDS = 60
"""A file that was touched this recently is not touched again: the last use is known to this precision."""

_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# What ltod built before; safe to delete at any time.\n"
"""The content by which backup programs know a cache (https://bford.info/cachedir/)."""

_SEAL_BYTES = 32
_MOST_BYTES = 64 * 1024 * 1024
"""A larger file is no entry and no fact."""


class Layout:
    """The paths of one store."""

    def __init__(self, directory: Path) -> None:
        self.base = directory.absolute()
        self.root = self.base / _VERSION
        self.cas = f"{self.root}/cas"
        self.ac = f"{self.root}/ac"
        self.facts = f"{self.root}/facts"
        self.locks = self.root / "locks"
        self.sessions = self.root / "sessions"
        self.tmp = self.root / "tmp"
        self.pruning = self.root / "pruning"
        self.grown = self.root / "grown"
        self.tally = self.root / "tally"

    def blob(self, digest: str) -> str:
        """Where a blob is."""
        return f"{self.cas}/{digest[:2]}/{digest}"

    def entry(self, key: str) -> str:
        """Where an entry is."""
        return f"{self.ac}/{key[:2]}/{key}"

    def fact(self, key: str) -> str:
        """Where a fact is."""
        return f"{self.facts}/{key[:2]}/{key}"

    def make(self) -> None:
        """Make the directories that are missing, for nobody else to read. Raises `OSError`."""
        self.base.mkdir(parents=True, mode=0o700, exist_ok=True)
        self.root.mkdir(exist_ok=True)
        # Not above: somebody may have given us a directory in which there is more.
        tag = self.root / "CACHEDIR.TAG"
        if not tag.exists():
            tag.write_bytes(_TAG)
        for directory in (self.cas, self.ac, self.facts, self.locks, self.sessions, self.tmp):
            Path(directory).mkdir(exist_ok=True)

    def read_entry(self, key: str) -> tuple[bytes, os.stat_result]:
        """The message of an entry, and its file's status. Raises `Unusable`."""
        return _read_sealed(self.entry(key), key)

    def read_fact(self, key: str) -> tuple[bytes, os.stat_result]:
        """A fact, and its file's status. Raises `Unusable`."""
        return _read_sealed(self.fact(key), FACT + key)


class Writer:
    """Writes files into a layout. Any thread may use it; it comes to life again when its directory was removed."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lease: Lease | None = None
        self._count = 0
        self._lock = threading.Lock()

    def name(self) -> str:
        """A path for a temporary file that nobody else uses. Raises `OSError` where there cannot be one."""
        with self._lock:
            if self._lease is None or not self._lease.path.is_dir():
                if self._lease is not None:
                    self._lease.close()
                    self._lease = None
                self._layout.make()
                self._lease = Lease(self._layout.tmp, directory=True)
            self._count += 1
            return f"{self._lease.path}/{self._count}"

    def create(self) -> tuple[int, str]:
        """A new temporary file, open for writing and reading and read-only for everybody else. Raises `OSError`."""
        path = self.name()
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444), path

    def publish(self, temporary: str, path: str) -> None:
        """Let `temporary` be the file at `path`, for whatever there was before. Raises `OSError`."""
        try:
            os.rename(temporary, path)  # noqa: PTH104
            return
        except FileNotFoundError:
            self._layout.make()
            Path(path).parent.mkdir(exist_ok=True)
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise
            discard(path)
        os.rename(temporary, path)  # noqa: PTH104

    def write(self, content: bytes, path: str) -> None:
        """Let there be a file at `path` with this content. Raises `OSError`, and leaves nothing then."""
        fd, temporary = self.create()
        try:
            try:
                write_all(fd, content)
            finally:
                os.close(fd)
            self.publish(temporary, path)
        except OSError:
            discard(temporary)
            raise

    def close(self) -> None:
        """Remove what was not finished."""
        with self._lock:
            if self._lease is not None:
                discard(str(self._lease.path))
                self._lease.close()
                self._lease = None


def touch(path: str, status: os.stat_result) -> None:
    """Note a use of the file at `path`."""
    if abs(time.time() - status.st_mtime) > TOUCH_SECONDS:
        with suppress(OSError):
            os.utime(path)


def seal(name: str, message: bytes) -> bytes:
    """The content of a file for `message`: an entry's `name` is its key, a fact's is its key after `FACT`.

    The name is part of what is signed: an entry under another key is damaged.
    """
    return _seal(name, message) + message


def unseal(name: str, content: bytes) -> bytes | None:
    """The message in such a file, `None` if it is damaged."""
    message = content[_SEAL_BYTES:]
    return message if content[:_SEAL_BYTES] == _seal(name, message) else None


def _seal(name: str, message: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + message).digest()


def _read_sealed(path: str, name: str) -> tuple[bytes, os.stat_result]:
    fd, status = open_file(path)
    try:
        if status.st_size > _MOST_BYTES:
            raise Unusable(path, damaged=True)
        message = unseal(name, read_all(fd, status.st_size, path))
    finally:
        os.close(fd)
    if message is None:
        raise Unusable(path, damaged=True)
    return message, status

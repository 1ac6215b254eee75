"""Digests of files, remembered as long as the files seem to stay as they are; of large ones beyond this process."""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from pathlib import Path

import trio
from attrs import frozen

from workers.llvm.content import Stamp, stamp_of
from workers.store import Store

__all__ = ["Digests", "Witness"]

_REMEMBERED = 100_000
_INLINE_BYTES = 256 * 1024
"""Larger files are read in a thread."""
_LARGE_BYTES = 4 * 2**20
"""Digests of larger files are worth being kept: compilers, and libraries with the code of others in them."""

_CHUNK = 1024 * 1024

_SETTLED_SECONDS = 0.1
"""A file that was changed later than this before it was read may be changed again with the same time of change."""


@frozen
class Witness:
    """What a file was when it was read: with a `stamp` of a file that was `settled`, nothing else needs to be seen."""

    path: str
    digest: str
    stamp: Stamp
    settled: bool

    def holds(self) -> bool:
        """Whether the file still is what it was."""
        try:
            if stamp_of(self.path) != self.stamp:
                return False
            return self.settled or _read(self.path) == self.digest
        except OSError:
            return False


class Digests:
    """SHA-256 of files, in hexadecimal. Belongs to one trio run. Those of large files are kept in `store`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[str, Witness] = OrderedDict()

    async def of(self, path: str | Path) -> Witness:
        """What a file is. Raises `OSError`."""
        name = str(path)
        stamp = stamp_of(name)
        known = self._known.get(name)
        if known is not None and known.stamp == stamp:
            self._known.move_to_end(name)
            return known
        if stamp[0] <= _INLINE_BYTES:
            digest = _read(name)
        else:
            digest = await self._of_large(name) if stamp[0] > _LARGE_BYTES else await _read_in_thread(name)
        if stamp_of(name) != stamp:
            raise OSError(0, "it changes while it is read", name)
        settled = time.time_ns() - stamp[1] > _SETTLED_SECONDS * 1e9
        witness = Witness(name, digest, stamp, settled)
        if settled:
            self._known[name] = witness
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return witness

    async def _of_large(self, path: str) -> str:
        found = os.stat(path)  # noqa: PTH116
        # The time at which its status changed is the one that nobody can set.
        about = f"{path}\0{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
        key = hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()
        known = await self._store.recall(key)
        if known is not None:
            return known.decode("ascii")
        digest = await _read_in_thread(path)
        if time.time_ns() - found.st_ctime_ns > _SETTLED_SECONDS * 1e9:
            await self._store.remember(key, digest.encode("ascii"))
        return digest


async def _read_in_thread(path: str) -> str:
    return await trio.to_thread.run_sync(_read, path)


def _read(path: str) -> str:
    digest = hashlib.sha256()
    # Not blocking: whoever opens a pipe that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        while piece := os.read(descriptor, _CHUNK):
            digest.update(piece)
    finally:
        os.close(descriptor)
    return digest.hexdigest()

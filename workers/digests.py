"""Digests of files, remembered as long as the files seem to stay as they are; of large ones beyond this process."""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from pathlib import Path

import trio
from attrs import frozen

from workers.store import Store

__all__ = ["Digests", "State", "Witness", "digest_of", "is_settled", "state_of"]

_REMEMBERED = 100_000
_INLINE_BYTES = 256 * 1024
"""Larger files are read in a thread."""
_LARGE_BYTES = 4 * 2**20
"""Digests of larger files are worth being kept: compilers, and libraries with the code of others in them."""

_CHUNK = 1024 * 1024

_SETTLED_SECONDS = 0.1
"""A file that was changed later than this before it was read may be changed again with the same time of change."""


State = tuple[int, int, int, int, int]


@frozen
class Witness:
    """What a file was when it was read. If it was `settled` then, it is the same as long as its `state` is."""

    path: str
    digest: str
    state: State
    settled: bool

    def holds(self) -> bool:
        """Whether the file still is what it was."""
        try:
            state = state_of(self.path)
            if state == self.state and self.settled:
                return True
            # Another link to it changes its status, but not what is in it.
            return state[:-1] == self.state[:-1] and digest_of(self.path) == self.digest
        except OSError:
            return False


class Digests:
    """SHA-256 of files, in hexadecimal. Belongs to one trio run. Those of large files are kept in `store`.

    Files below `own` are changed by nobody.
    """

    def __init__(self, store: Store, own: Path | None = None) -> None:
        self._store = store
        self._own = None if own is None else f"{own}/"
        self._known: OrderedDict[str, Witness] = OrderedDict()

    async def of(self, path: str | Path) -> Witness:
        """What a file is. Raises `OSError`."""
        name = str(path)
        state = state_of(name)
        known = self._known.get(name)
        if known is not None and known.state == state:
            self._known.move_to_end(name)
            return known
        size = state[0]
        if size <= _INLINE_BYTES:
            digest = digest_of(name)
        else:
            digest = await self._of_large(name, state) if size > _LARGE_BYTES else await _read_in_thread(name)
        if state_of(name) != state:
            raise OSError(0, "it changes while it is read", name)
        witness = Witness(name, digest, state, self._is_own(name) or is_settled(state))
        if witness.settled:
            self._known[name] = witness
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return witness

    def _is_own(self, name: str) -> bool:
        return self._own is not None and name.startswith(self._own)

    async def _of_large(self, path: str, state: State) -> str:
        key = hashlib.sha256(f"{path}\0{state}".encode(errors="surrogateescape")).hexdigest()
        known = await self._store.recall(key)
        if known is not None:
            return known.decode("ascii")
        digest = await _read_in_thread(path)
        if is_settled(state):
            await self._store.remember(key, digest.encode("ascii"))
        return digest


def state_of(path: str) -> State:
    """What changes with a file: size, times, and which file it is. The last time is one that nobody can set."""
    found = os.stat(path)  # noqa: PTH116 (a `Path` for each of thousands takes longer than asking)
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev, found.st_ctime_ns


def is_settled(state: State) -> bool:
    """Whether a file that is in this state now cannot be changed any more without leaving it."""
    return time.time_ns() - max(state[1], state[-1]) > _SETTLED_SECONDS * 1e9


async def _read_in_thread(path: str) -> str:
    return await trio.to_thread.run_sync(digest_of, path)


def digest_of(path: str) -> str:
    """SHA-256 of a file, in hexadecimal. Reads all of it; raises `OSError`."""
    digest = hashlib.sha256()
    # Not blocking: whoever opens a pipe that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        while piece := os.read(descriptor, _CHUNK):
            digest.update(piece)
    finally:
        os.close(descriptor)
    return digest.hexdigest()

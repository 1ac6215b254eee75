"""Digests of files, remembered as long as the files seem to stay as they are; of large ones beyond this process."""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from pathlib import Path

import trio
from attrs import evolve, frozen

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

_CLOCK_OF_FILES = 5
"""CLOCK_REALTIME_COARSE, for which Python has no name: where a file's times come from, a few milliseconds apart."""

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
        settled = is_settled(state)  # before it is read: that may take longer than it takes to settle
        kept = await self._store.recall(_key_of(name, state)) if state[0] > _LARGE_BYTES else None
        if kept is not None:
            digest = kept.decode("ascii")
        elif state[0] > _INLINE_BYTES:
            digest = await trio.to_thread.run_sync(digest_of, name)
        else:
            digest = digest_of(name)
        if state_of(name) != state:
            raise OSError(0, "it changes while it is read", name)
        witness = Witness(name, digest, state, settled or kept is not None or self._is_own(name))
        if settled and kept is None:
            await self._keep(witness)
        if witness.settled:
            self._known[name] = witness
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return witness

    async def renew(self, witness: Witness) -> None:
        """Give a file a new time. It is still known what is in it. Raises `OSError`, also where it has changed."""
        name = witness.path
        if state_of(name) != witness.state:
            raise OSError(0, "it changes while it is read", name)
        ticks = [time.clock_gettime_ns(_CLOCK_OF_FILES)]
        now = time.time_ns()
        os.utime(name, ns=(now, now))
        state = state_of(name)
        ticks.append(time.clock_gettime_ns(_CLOCK_OF_FILES))
        # What is written from now on gets the time of one of the clock's ticks, and this is none of them.
        if witness.settled and state[1] == now and now not in ticks:
            self._known[name] = evolve(witness, state=state)
            await self._keep(self._known[name])

    def _is_own(self, name: str) -> bool:
        return self._own is not None and name.startswith(self._own)

    async def _keep(self, witness: Witness) -> None:
        if witness.state[0] > _LARGE_BYTES:
            await self._store.remember(_key_of(witness.path, witness.state), witness.digest.encode("ascii"))


def state_of(path: str) -> State:
    """What changes with a file: size, times, and which file it is. The last time is one that nobody can set."""
    found = os.stat(path)  # noqa: PTH116 (a `Path` for each of thousands takes longer than asking)
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev, found.st_ctime_ns


def _key_of(path: str, state: State) -> str:
    return hashlib.sha256(f"{path}\0{state}".encode(errors="surrogateescape")).hexdigest()


def is_settled(state: State) -> bool:
    """Whether a file that is in this state now cannot be changed any more without leaving it."""
    return time.time_ns() - max(state[1], state[-1]) > _SETTLED_SECONDS * 1e9


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

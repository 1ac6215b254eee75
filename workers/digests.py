"""Digests of files, remembered as long as the files seem to stay as they are; of large ones beyond this process.

Whoever has no event loop can have them as well, so trio is not loaded before something is done in a thread.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from attrs import evolve, frozen

__all__ = ["Digests", "Facts", "State", "Witness", "digest_of", "is_settled", "state_of"]

_REMEMBERED = 100_000
_INLINE_BYTES = 256 * 1024
"""Larger files are read in a thread where there is an event loop."""
_LARGE_BYTES = 2**20
"""Digests of larger files are worth being kept, such as compilers and libraries: to read one takes a millisecond."""

_CHUNK = 8 * 1024 * 1024
"""After each, a thread waits for its turn to run Python; a compiler has 200 MB."""

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


@frozen
class _Reading:
    """A file that is about to be read, and whether it was settled then."""

    path: str
    state: State
    settled: bool


class Facts(Protocol):
    """What is remembered beyond this process, such as by a `Store`; a Protocol as no more of one is needed here."""

    def recall(self, key: str) -> bytes | None:
        """What was last remembered under `key`, if it is still there."""
        ...

    def remember(self, key: str, note: bytes) -> None:
        """Remember `note`, perhaps."""
        ...


class Digests:
    """SHA-256 of files, in hexadecimal, for one thread. Those of large files are remembered by `facts`.

    Files below `own` are changed by nobody.
    """

    def __init__(self, facts: Facts, own: Path | None = None) -> None:
        self._facts = facts
        self._own = None if own is None else f"{own}/"
        self._known: OrderedDict[str, Witness] = OrderedDict()

    async def of(self, path: str | Path) -> Witness:
        """What a file is. Raises `OSError`."""
        begun = self._begin(str(path))
        if isinstance(begun, Witness):
            return begun
        if begun.state[0] <= _INLINE_BYTES:
            return self._end(begun, digest_of(begun.path))
        import trio

        return self._end(begun, await trio.to_thread.run_sync(digest_of, begun.path))

    def now(self, path: str | Path) -> Witness:
        """As `of`, while the caller waits, however large the file is."""
        begun = self._begin(str(path))
        return begun if isinstance(begun, Witness) else self._end(begun, digest_of(begun.path))

    def _begin(self, path: str) -> Witness | _Reading:
        """What a file is if that is known, else what is to be said of it once it is read."""
        state = state_of(path)
        known = self._known.get(path)
        if known is not None and known.state == state:
            self._known.move_to_end(path)
            return known
        kept = self._facts.recall(_key_of(path, state)) if state[0] > _LARGE_BYTES else None
        if kept is not None:
            return self._learn(Witness(path, kept.decode("ascii"), state, settled=True))
        # Before it is read: that may take longer than it takes to settle.
        return _Reading(path, state, is_settled(state))

    def _end(self, begun: _Reading, digest: str) -> Witness:
        """What a file is that was read. Raises `OSError` if it was changed meanwhile."""
        path, state = begun.path, begun.state
        if state_of(path) != state:
            raise OSError(0, "it changes while it is read", path)
        witness = Witness(path, digest, state, begun.settled or self._is_own(path))
        if begun.settled:
            self._keep(witness)
        return self._learn(witness)

    def _learn(self, witness: Witness) -> Witness:
        if witness.settled:
            self._known[witness.path] = witness
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return witness

    def renew(self, witness: Witness) -> None:
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
            self._keep(self._known[name])

    def _is_own(self, name: str) -> bool:
        return self._own is not None and name.startswith(self._own)

    def _keep(self, witness: Witness) -> None:
        if witness.state[0] > _LARGE_BYTES:
            self._facts.remember(_key_of(witness.path, witness.state), witness.digest.encode("ascii"))


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
        size = os.fstat(descriptor).st_size
        buffer = memoryview(bytearray(min(size + 1, _CHUNK)))
        while count := os.readv(descriptor, [buffer]):
            digest.update(buffer[:count])
    finally:
        os.close(descriptor)
    return digest.hexdigest()

"""The store on the local disk as builds use it: `here`, without keeping the event loop, and with all that waits.

Here belongs how its parts go together: threads for large things, the second tier, claims, and the housekeeper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import trio

from workers.store import upkeep
from workers.store.claims import Claims
from workers.store.files import discard
from workers.store.here import Here
from workers.store.housekeeper import Housekeeper
from workers.store.interface import Claim, Entry, Output, Remote, Stats, check_key
from workers.store.layout import Layout
from workers.store.second_tier import SecondTier
from workers.store.threads import perform
from workers.store.upkeep import Pruned, Usage, Verified

__all__ = ["LocalStore", "open_store"]


@contextmanager
def open_store(directory: Path, *, limit_bytes: int, remote: Remote | None = None) -> Iterator[LocalStore]:
    """A store in `directory`, which is made when there is something to keep, and kept below `limit_bytes`.

    Never fails: where nothing can be kept, everything is a miss, and `stats.trouble` says why. Any number of processes
    may have the same directory open. On the way out, a pruning that runs is told to end and awaited.
    """
    store = LocalStore(directory, limit_bytes, remote)
    try:
        yield store
    finally:
        store.close()


class LocalStore:
    """See `Store`. Use `open_store` to get one."""

    def __init__(self, directory: Path, limit_bytes: int, remote: Remote | None) -> None:
        self._layout = Layout(directory)
        self._housekeeper = Housekeeper(self._layout, limit_bytes)
        self._here = Here(directory, self._housekeeper.wrote)
        self._claims = Claims(self._layout)
        self._second = SecondTier(remote, self._here) if remote is not None else None

    @property
    def stats(self) -> Stats:
        """What happened since the store was opened."""
        return self._here.stats

    async def find(self, key: str) -> Entry | None:
        """See `Store`."""
        check_key(key)
        await trio.lowlevel.checkpoint()
        entry = self._here.look(key)
        if entry is None and self._second is not None:
            entry = await self._second.find(key)
            if entry is not None:
                self._here.counters.count(hits=1, remote_hits=1)
                self._here.add_entry(key, entry)
        # Who has the claim has asked before, and comes back in case another build was done in the meantime.
        if entry is None and not self._claims.held(key):
            self._here.counters.count(misses=1)
        return entry

    async def fetch(self, entry: Entry, destinations: Mapping[str, Path]) -> bool:
        """See `Store`."""
        await trio.lowlevel.checkpoint()
        size = sum(output.size for output in entry.outputs if output.name in destinations)
        return await perform(size, lambda: self._here.fetch(entry, destinations))

    async def read(self, output: Output) -> bytes | None:
        """See `Store`."""
        await trio.lowlevel.checkpoint()
        return await perform(output.size, lambda: self._here.read(output))

    async def add(self, key: str, outputs: Mapping[str, Path | bytes], note: bytes = b"") -> Entry | None:
        """See `Store`."""
        check_key(key)
        await trio.lowlevel.checkpoint()
        entry = await perform(_size_of(outputs), lambda: self._here.add(key, outputs, note))
        if entry is not None and self._second is not None:
            await self._second.tell(key, entry)
        return entry

    def recall(self, key: str) -> bytes | None:
        """See `Store`."""
        return self._here.recall(key)

    def remember(self, key: str, note: bytes) -> None:
        """See `Store`. More than 1 MiB is forgotten at once."""
        self._here.remember(key, note)

    def uploading(self, drain_seconds: float = 5.0) -> AbstractAsyncContextManager[None]:
        """While in the block, `add` does not wait for the second tier: uploads have tasks of their own.

        At the end of the block, what waits is uploaded for at most `drain_seconds`. What is not uploaded then, or when
        the block is cancelled, is in the store all the same.
        """
        return self._second.uploading(drain_seconds) if self._second is not None else nullcontext()

    def claim(self, key: str) -> Claim | None:
        """See `Store`. Where the directory allows no claims, they hold within this store only."""
        check_key(key)
        return self._claims.claim(key)

    async def wait(self, key: str) -> None:
        """See `Store`."""
        check_key(key)
        await self._claims.wait(key)

    def session(self) -> AbstractContextManager[None]:
        """See `Store`. Where the directory allows no sessions, nothing is kept from pruning."""
        return self._here.session()

    def is_there(self) -> bool:
        """Whether anything was ever kept in the directory. Raises `OSError` where that cannot be seen."""
        return upkeep.is_there(self._layout)

    def prune(self, limit_bytes: int) -> Pruned:
        """Remove what was used least recently until at most `limit_bytes` are left. Blocks: call it in a thread.

        Never removes what was used since the oldest running session began, and does nothing while another process
        prunes; the result says both.
        """
        try:
            return upkeep.prune(self._layout, down_to=limit_bytes, stopped=self._housekeeper.stopped)
        except OSError as error:
            self._here.counters.troubled(error)
            return Pruned()

    def clear(self) -> Pruned:
        """Remove everything that is not in use right now. Blocks: call it in a thread."""
        pruned = self.prune(0)
        if not pruned.busy:
            discard(str(self._layout.tally))
        return pruned

    def verify(self) -> Verified:
        """Check everything as a reader would, and remove what is damaged. Blocks: call it in a thread."""
        return upkeep.verify(self._layout, self._housekeeper.stopped)

    def usage(self) -> Usage:
        """Count what is there. Blocks: call it in a thread."""
        return upkeep.usage(self._layout)

    def close(self) -> None:
        """End the pruning, and remove what was not finished."""
        self._housekeeper.close()
        self._here.close()


def _size_of(outputs: Mapping[str, Path | bytes]) -> int:
    """Bytes; of none where they cannot be told, for then nothing of it is read."""
    try:
        return sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in outputs.values())
    except OSError:
        return 0

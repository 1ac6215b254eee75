"""The store on the local disk.

Here belong `open_store` and what a build asks of it; where files are and how they are looked after is told elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import trio

from workers.store import upkeep
from workers.store.action_result import DecodeError, decode, encode
from workers.store.blobs import Blobs, perform, touch
from workers.store.claims import Claims
from workers.store.counters import Counters
from workers.store.delivery import deliver, read_blob
from workers.store.files import Unusable, discard
from workers.store.housekeeper import Housekeeper
from workers.store.interface import Claim, Entry, Output, Remote, Stats, is_digest
from workers.store.layout import FACT, Layout, Writer, seal
from workers.store.leases import Lease
from workers.store.second_tier import SecondTier
from workers.store.tally import tell
from workers.store.upkeep import Pruned, Usage, Verified

__all__ = ["LocalStore", "open_store"]

_MOST_FACT_BYTES = 1024 * 1024
"""More is not small: it is read and checked by the event loop, in a millisecond."""


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
        self._writer = Writer(self._layout)
        self._claims = Claims(self._layout)
        self._counters = Counters()
        self._blobs = Blobs(self._layout, self._writer, self._counters)
        self._housekeeper = Housekeeper(self._layout, limit_bytes)
        self._second = None
        if remote is not None:
            self._second = SecondTier(
                remote, self._layout, self._writer, self._blobs, self._housekeeper, self._counters
            )
        self._told_hits = self._told_misses = 0

    @property
    def stats(self) -> Stats:
        """What happened since the store was opened."""
        return self._counters.stats

    async def find(self, key: str) -> Entry | None:
        """See `Store`."""
        _check(key)
        await trio.lowlevel.checkpoint()
        entry = self._find_here(key)
        if entry is None and self._second is not None:
            entry = await self._second.find(key)
            if entry is not None:
                self._counters.count(remote_hits=1)
                self._keep_entry(key, entry)
        # Who has the claim has asked before, and comes back in case another build was done in the meantime.
        self._counters.count(hits=entry is not None, misses=entry is None and not self._claims.held(key))
        return entry

    async def fetch(self, entry: Entry, destinations: Mapping[str, Path], *, private: bool = False) -> bool:
        """See `Store`."""
        await trio.lowlevel.checkpoint()
        outputs = {output.name: output for output in entry.outputs}
        wanted = [(outputs[name], destination) for name, destination in destinations.items()]
        size = sum(output.size for output, _ in wanted)
        try:
            await perform(size, lambda: deliver(self._layout, wanted, private=private))
        except Unusable as error:
            self._blobs.remove(error)
            self._counters.count(lost=1)
            return False
        self._counters.count(bytes_read=size)
        return True

    async def read(self, output: Output) -> bytes | None:
        """See `Store`."""
        await trio.lowlevel.checkpoint()
        try:
            content = await perform(output.size, lambda: read_blob(self._layout, output))
        except Unusable as error:
            self._blobs.remove(error)
            self._counters.count(lost=1)
            return None
        self._counters.count(bytes_read=output.size)
        return content

    async def add(self, key: str, outputs: Mapping[str, Path | bytes], note: bytes = b"") -> Entry | None:
        """See `Store`."""
        _check(key)
        await trio.lowlevel.checkpoint()
        try:
            size = sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in outputs.values())
            entry, written = await perform(size, lambda: self._add(key, outputs, note))
        except (OSError, Unusable, UnicodeEncodeError) as error:
            self._counters.count(not_stored=1)
            self._counters.troubled(error)
            return None
        self._counters.count(bytes_written=sum(output.size for output in written))
        for output in written:
            self._housekeeper.wrote(output.digest, output.size)
        self._housekeeper.wrote(key, len(note))
        if self._second is not None:
            await self._second.tell(key, entry)
        return entry

    async def recall(self, key: str) -> bytes | None:
        """See `Store`."""
        _check(key)
        await trio.lowlevel.checkpoint()
        try:
            note, status = self._layout.read_fact(key)
        except Unusable as error:
            self._blobs.remove(error)
            return None
        touch(self._layout.fact(key), status)
        return note

    async def remember(self, key: str, note: bytes) -> None:
        """See `Store`. More than 1 MiB is forgotten at once."""
        _check(key)
        await trio.lowlevel.checkpoint()
        if len(note) <= _MOST_FACT_BYTES:
            with suppress(OSError):
                self._writer.write(seal(FACT + key, note), self._layout.fact(key))
                self._housekeeper.wrote(key, len(note))

    def uploading(self, drain_seconds: float = 5.0) -> AbstractAsyncContextManager[None]:
        """While in the block, `add` does not wait for the second tier: uploads have tasks of their own.

        At the end of the block, what waits is uploaded for at most `drain_seconds`. What is not uploaded then, or when
        the block is cancelled, is in the store all the same.
        """
        return self._second.uploading(drain_seconds) if self._second is not None else nullcontext()

    def claim(self, key: str) -> Claim | None:
        """See `Store`. Where the directory allows no claims, they hold within this store only."""
        _check(key)
        return self._claims.claim(key)

    async def wait(self, key: str) -> None:
        """See `Store`."""
        _check(key)
        await self._claims.wait(key)

    @contextmanager
    def session(self) -> Iterator[None]:
        """See `Store`. Where the directory allows no sessions, nothing is kept from pruning."""
        lease = None
        # A cache that may only be read is of use all the same, and is no trouble before there is something to keep.
        with suppress(OSError):
            self._layout.make()
            lease = Lease(self._layout.sessions, directory=False)
        try:
            yield
        finally:
            if lease is not None:
                discard(str(lease.path))
                lease.close()
            self._tell()

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
            self._counters.troubled(error)
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
        self._tell()
        self._housekeeper.close()
        self._writer.close()

    def _find_here(self, key: str) -> Entry | None:
        path = self._layout.entry(key)
        try:
            message, status = self._layout.read_entry(key)
            entry = decode(message)
        except Unusable as error:
            self._blobs.remove(error)
            return None
        except DecodeError:
            self._blobs.remove(Unusable(path, damaged=True))
            return None
        if not all(self._blobs.use(output) for output in entry.outputs):
            discard(path)
            return None
        touch(path, status)
        return entry

    def _keep_entry(self, key: str, entry: Entry) -> None:
        try:
            self._writer.write(seal(key, encode(entry)), self._layout.entry(key))
        except OSError as error:
            self._counters.count(not_stored=1)
            self._counters.troubled(error)

    def _add(self, key: str, outputs: Mapping[str, Path | bytes], note: bytes) -> tuple[Entry, list[Output]]:
        """Blobs first: an entry is there only after all that it names. Also returns the outputs that were new."""
        kept = [self._blobs.keep(name, outputs[name]) for name in sorted(outputs)]
        entry = Entry(tuple(output for output, _ in kept), note)
        self._writer.write(seal(key, encode(entry)), self._layout.entry(key))
        return entry, [output for output, new in kept if new]

    def _tell(self) -> None:
        """Tell what has happened since we did so last."""
        stats = self.stats
        hits, misses = stats.hits - self._told_hits, stats.misses - self._told_misses
        if hits or misses:
            self._told_hits, self._told_misses = stats.hits, stats.misses
            tell(self._layout, self._writer, hits=hits, misses=misses)


def _check(key: str) -> None:
    if not is_digest(key):
        raise ValueError(f"not a key: {key!r}")

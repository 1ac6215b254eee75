"""What the store on the local disk does at once: it waits for nobody, and whatever it does is done by the caller.

Here belongs everything that is asked of the files for one action; who else is asked, what goes into threads, claims
and the limit of the whole are told in `local`. A program that finds all it wants here needs nothing that is slow to
load: neither an event loop nor a client of anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from workers.store.action_result import DecodeError, decode, encode
from workers.store.blobs import Blobs
from workers.store.counters import Counters
from workers.store.delivery import deliver, read_blob
from workers.store.files import Unusable, discard
from workers.store.interface import Entry, Output, Stats, check_key
from workers.store.layout import FACT, Layout, Writer, seal, touch
from workers.store.leases import Lease
from workers.store.tally import tell

__all__ = ["Here"]

_MOST_FACT_BYTES = 1024 * 1024
"""More is not small: it is read and checked by the event loop, in a millisecond."""


class Here:
    """The store in `directory`, which is made when there is something to keep. Any thread may use it.

    Its methods are those of `Store`, and raise what those raise. `wrote` is told the name and the size of each new
    file. Its parts are there for the rest of the store. `close` it in the end.
    """

    def __init__(self, directory: Path, wrote: Callable[[str, int], None] = lambda name, size: None) -> None:
        self.layout = Layout(directory)
        self.writer = Writer(self.layout)
        self.counters = Counters()
        self.blobs = Blobs(self.layout, self.writer, self.counters)
        self.wrote = wrote
        self._told_hits = self._told_misses = 0

    @property
    def stats(self) -> Stats:
        """What happened since the store was opened."""
        return self.counters.stats

    def find(self, key: str) -> Entry | None:
        """See `Store`."""
        entry = self.look(key)
        if entry is None:
            self.counters.count(misses=1)
        return entry

    def look(self, key: str) -> Entry | None:
        """As `find`, but no miss is counted: for those who ask somebody else next."""
        check_key(key)
        path = self.layout.entry(key)
        try:
            message, status = self.layout.read_entry(key)
            entry = decode(message)
        except Unusable as error:
            self.blobs.remove(error)
            return None
        except DecodeError:
            self.blobs.remove(Unusable(path, damaged=True))
            return None
        if not all(self.blobs.use(output) for output in entry.outputs):
            discard(path)
            return None
        touch(path, status)
        self.counters.count(hits=1)
        return entry

    def fetch(self, entry: Entry, destinations: Mapping[str, Path]) -> bool:
        """See `Store`."""
        outputs = {output.name: output for output in entry.outputs}
        wanted = [(outputs[name], destination) for name, destination in destinations.items()]
        try:
            deliver(self.layout, wanted)
        except Unusable as error:
            self._lost(error)
            return False
        self.counters.count(bytes_read=sum(output.size for output, _ in wanted))
        return True

    def read(self, output: Output) -> bytes | None:
        """See `Store`."""
        try:
            content = read_blob(self.layout, output)
        except Unusable as error:
            self._lost(error)
            return None
        self.counters.count(bytes_read=output.size)
        return content

    def add(self, key: str, outputs: Mapping[str, Path | bytes], note: bytes = b"") -> Entry | None:
        """See `Store`."""
        check_key(key)
        try:
            # Blobs first: an entry is there only after all that it names.
            kept = [self.blobs.keep(name, outputs[name]) for name in sorted(outputs)]
            entry = Entry(tuple(output for output, _ in kept), note)
            self._write(key, entry)
        except (OSError, Unusable, UnicodeEncodeError) as error:
            self.counters.not_stored(error)
            return None
        for output in (output for output, new in kept if new):
            self.counters.count(bytes_written=output.size)
            self.wrote(output.digest, output.size)
        self.wrote(key, len(note))
        return entry

    def add_entry(self, key: str, entry: Entry) -> None:
        """Keep an entry of which all blobs are here already."""
        try:
            self._write(key, entry)
        except OSError as error:
            self.counters.not_stored(error)

    def recall(self, key: str) -> bytes | None:
        """See `Store`."""
        check_key(key)
        try:
            note, status = self.layout.read_fact(key)
        except Unusable as error:
            self.blobs.remove(error)
            return None
        touch(self.layout.fact(key), status)
        return note

    def remember(self, key: str, note: bytes) -> None:
        """See `Store`. More than 1 MiB is forgotten at once."""
        check_key(key)
        if len(note) <= _MOST_FACT_BYTES:
            with suppress(OSError):
                self.writer.write(seal(FACT + key, note), self.layout.fact(key))
                self.wrote(key, len(note))

    @contextmanager
    def session(self) -> Iterator[None]:
        """See `Store`. Where the directory allows no sessions, nothing is kept from pruning."""
        lease = None
        # A cache that may only be read is of use all the same, and is no trouble before there is something to keep.
        with suppress(OSError):
            self.layout.make()
            lease = Lease(self.layout.sessions, directory=False)
        try:
            yield
        finally:
            if lease is not None:
                discard(str(lease.path))
                lease.close()
            self._tell()

    def close(self) -> None:
        """Remove what was not finished, and tell what of it all is not yet told."""
        self._tell()
        self.writer.close()

    def _write(self, key: str, entry: Entry) -> None:
        self.writer.write(seal(key, encode(entry)), self.layout.entry(key))

    def _lost(self, error: Unusable) -> None:
        self.blobs.remove(error)
        self.counters.count(lost=1)

    def _tell(self) -> None:
        """Tell what has happened since we did so last."""
        stats = self.stats
        hits, misses = stats.hits - self._told_hits, stats.misses - self._told_misses
        if hits or misses:
            self._told_hits, self._told_misses = stats.hits, stats.misses
            tell(self.layout, self.writer, hits=hits, misses=misses)

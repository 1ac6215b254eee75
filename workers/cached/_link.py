"""The last link, unless what it would make is in its place already.

What is linked is not kept in the store, where it would push out what is dearer to make. Two small facts are: what the
link read, and, under the key made with that, what it made and said.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from typing import Any

import trio
from attrs import Factory, evolve, field, frozen

from workers.backend import Linker
from workers.cached._shelf import Shelf, note_of, off
from workers.digests import Digests
from workers.ingredients import Key, NoKey
from workers.keys import Keys
from workers.landing import landing
from workers.notes import seconds_in
from workers.work import CacheOutcome, CacheUse, Diagnostic, Engine, Failed, Link, Linked, Severity

__all__ = ["Linking"]


@frozen
class Linking:
    """Links with `inner`, and remembers what came of it."""

    inner: Linker
    keys: Keys
    shelf: Shelf
    _digests: Digests = field(default=Factory(lambda self: Digests(self.shelf.store), takes_self=True), init=False)

    async def link(self, item: Link) -> Linked | Failed:
        """Link, unless the output is what would come of it."""
        key = await self.keys.of_link(item)
        if isinstance(key, NoKey):
            return evolve(await self.inner.link(item), cache=off(key))
        found = await self._found(item, key)
        if found is not None:
            return found
        linked = await self.inner.link(item)
        return evolve(linked, cache=await self._remembered(item, key, linked))

    async def _found(self, item: Link, key: Key) -> Linked | None:
        """What an earlier link of the same has left, if it is as it was; it gets a new time then."""
        store, output = self.shelf.store, item.link.output
        reads = store.recall(key.digest)
        full = None if reads is None else await self.keys.with_reads(key, reads)
        known = None if full is None else store.recall(full.digest)
        if full is None or known is None:
            return None
        try:
            note: Mapping[str, Any] = json.loads(known)
            engine, size = Engine(note["engine"]), note["bytes"]
            diagnostics = tuple(Diagnostic(Severity(how), item.name, text) for how, text in note["diagnostics"])
            place = landing(output.absolute())
            if place is None:
                return None
            state = place.stat()
            if (state.st_size, stat.S_IMODE(state.st_mode), state.st_nlink) != (size, note["mode"], 1):
                return None
            witness = await self._digests.of(place)
            if witness.digest != note["digest"]:
                return None
            self._digests.renew(witness)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # gone, or written by another version
        use = CacheUse(CacheOutcome.HIT, full.digest, full.ingredients(), saved_seconds=seconds_in(note))
        return Linked(item.name, output, size, engine, 0.0, 0, diagnostics, reads, use)

    async def _remembered(self, item: Link, key: Key, linked: Linked | Failed) -> CacheUse:
        """Remember what was linked. Gives what is to be told of it."""
        name, store = item.name, self.shelf.store
        if isinstance(linked, Failed) or linked.reads is None:
            return self.shelf.made(name, key, ())
        full = await self.keys.with_reads(key, linked.reads)
        if full is None or not await trio.to_thread.run_sync(self.keys.unchanged, full):
            return self.shelf.made(name, key, ())
        use = self.shelf.made(name, full, full.ingredients())
        try:
            place = landing(linked.output.absolute())
            if place is not None and place.stat().st_size == linked.bytes:
                digest = (await self._digests.of(place)).digest
                # Notes are about how it went that time.
                said = [one for one in linked.diagnostics if one.severity is not Severity.NOTE]
                mode = stat.S_IMODE(place.stat().st_mode)
                note = note_of(linked.engine, said, linked.seconds, digest=digest, bytes=linked.bytes, mode=mode)
                store.remember(key.digest, linked.reads)
                store.remember(full.digest, json.dumps(note).encode("ascii"))
        except OSError:
            pass  # it is not there any more
        return use

"""The store as the cached backend sees it: results by key, and who is making what."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio
from attrs import define, field, frozen

from workers.digests import digest_of
from workers.ingredients import Ingredient, Key, NoKey, decode
from workers.notes import pack, seconds_in, unpack
from workers.store import Entry, Output, Store
from workers.work import CacheOutcome, CacheUse, Deferred, Diagnostic, Engine, Severity

__all__ = ["Kept", "Shelf", "note_of", "off"]

_INLINE_BYTES = 1024 * 1024
"""More is read in a thread."""

_T = TypeVar("_T")


@frozen
class Kept:
    """A result in the store: its outputs, and what was noted of it."""

    key: Key
    entry: Entry = field(repr=False)
    note: Mapping[str, Any] = field(repr=False)
    ingredients: tuple[Ingredient, ...] = field(repr=False)

    @property
    def engine(self) -> Engine:
        """What made it."""
        return Engine(self.note["engine"])

    def diagnostics(self, module: str) -> tuple[Diagnostic, ...]:
        """What was to be said when it was made, now of the namesake `module`."""
        return tuple(Diagnostic(Severity(severity), module, text) for severity, text in self.note["diagnostics"])

    def sizes(self) -> Mapping[str, int]:
        """Bytes of its outputs."""
        return {output.name: output.size for output in self.entry.outputs}


@define
class Shelf:
    """Finds and keeps results. Whatever is wrong with the store makes misses."""

    store: Store
    _awaited: set[tuple[str, str]] = field(factory=set, init=False)
    """Keys and names of items for which somebody else was waited for."""

    async def find(self, key: Key) -> Kept | None:
        """The result for a key, if it is there."""
        entry = await self.store.find(key.digest)
        if entry is None:
            return None
        try:
            note, made_of = unpack(entry.note)
            kept = Kept(key, entry, note, decode(made_of))
            _ = kept.engine, kept.diagnostics("")
        except (ValueError, KeyError, TypeError):
            return None  # of another version
        return kept

    async def is_there(self, kept: Kept, destinations: Mapping[str, Path]) -> bool:
        """Whether outputs are in their places already, as an earlier build has left them. They get a new time then."""
        outputs = {output.name: output for output in kept.entry.outputs}
        wanted = [(outputs[name], path) for name, path in destinations.items() if name in outputs]
        if len(wanted) < len(destinations):
            return False
        large = sum(output.size for output, _ in wanted) > _INLINE_BYTES
        return await trio.to_thread.run_sync(_are_there, wanted) if large else _are_there(wanted)

    async def copy(self, kept: Kept, destinations: Mapping[str, Path]) -> bool:
        """Put outputs into their places; False if they are gone. Raises `OSError` for a destination's fault."""
        try:
            return await self.store.fetch(kept.entry, destinations)
        except KeyError:
            return False

    async def keep(
        self, key: Key, outputs: Mapping[str, Path | bytes], note: Mapping[str, Any]
    ) -> tuple[Ingredient, ...]:
        """Keep a result. Gives what it was made of."""
        ingredients = key.ingredients()
        await self.store.add(key.digest, outputs, pack(note, ingredients))
        return ingredients

    async def reads(self, link: Key) -> bytes | None:
        """What the last link with this key read besides what it was given."""
        entry = await self.store.find(link.digest)
        return None if entry is None else entry.note

    async def keep_reads(self, link: Key, reads: bytes) -> None:
        """Keep what a link read, so that those who share the store need not do it to know."""
        await self.store.add(link.digest, {}, reads)

    async def take(
        self, name: str, key: Key, again: Callable[[], Awaitable[_T | None]], claims: ExitStack
    ) -> _T | Deferred | None:
        """Claim what `key` names for the item `name`; `None`: it is ours to make, until `claims` is closed.

        Else somebody else is making it, or it was made in the meantime: `again` looks for it once more.
        """
        claim = self.store.claim(key.digest)
        if claim is None:
            return Deferred(name, partial(self._wait, name, key))
        with ExitStack() as ours:
            ours.callback(claim.close)
            done = await again()
            if done is None:
                claims.push(ours.pop_all())
            return done

    async def _wait(self, name: str, key: Key) -> None:
        await self.store.wait(key.digest)
        self._awaited.add((key.digest, name))

    def use(self, name: str, kept: Kept, claimed: Key | None = None) -> CacheUse:
        """What is to be told of an item that was there; `claimed` is what was waited for, if not the result's key."""
        waited = ((claimed or kept.key).digest, name)
        outcome = CacheOutcome.SHARED if waited in self._awaited else CacheOutcome.HIT
        self._awaited.discard(waited)
        return CacheUse(outcome, kept.key.digest, kept.ingredients, saved_seconds=seconds_in(kept.note))

    def made(self, name: str, key: Key, ingredients: tuple[Ingredient, ...]) -> CacheUse:
        """What is to be told of an item that had to be made."""
        self._awaited.discard((key.digest, name))
        return CacheUse(CacheOutcome.MISS, key.digest, ingredients)


def _are_there(wanted: Sequence[tuple[Output, Path]]) -> bool:
    try:
        found = [path.stat() for _, path in wanted]
        if all(_is_as_placed(state, output) for state, (output, _) in zip(found, wanted, strict=True)) and all(
            digest_of(str(path)) == output.digest for output, path in wanted
        ):
            for _, path in wanted:
                os.utime(path)
            return True
    except OSError:
        pass
    return False


def _is_as_placed(state: os.stat_result, output: Output) -> bool:
    """Whether a file is by itself, as large as it should be, and with the rights of a new one, whatever the umask."""
    rights = stat.S_IMODE(state.st_mode) & ~0o066
    return state.st_size == output.size and state.st_nlink == 1 and rights == 0o600


def note_of(engine: Engine, diagnostics: Sequence[Diagnostic], seconds: float, **more: Any) -> dict[str, Any]:
    """What is noted of a result beside its outputs. `seconds` is how long making it took.

    Diagnostics are kept without the name of the module.
    """
    said = [(one.severity.value, one.message) for one in diagnostics]
    return {"engine": engine.value, "diagnostics": said, "seconds": round(seconds, 3), **more}


def off(key: NoKey) -> CacheUse:
    """What is to be told of an item that the cache was not asked for."""
    return CacheUse(note=key.reason, warn=key.warn)

"""ThinLTO: the plan of a link, and backend compiles, unless they were done before."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from workers.cached._shelf import Kept, Shelf, note_of, off
from workers.ingredients import Key, NoKey
from workers.keys import Keys
from workers.placing import place
from workers.thin import REGULAR_PART, ThinCompile, ThinLink, ThinLinked, ThinLtoBackend
from workers.work import (
    NOT_ASKED,
    Artifact,
    CacheUse,
    Deferred,
    Diagnostic,
    EmitKind,
    Engine,
    Estimate,
    Failed,
    Finished,
    NeedsThinLto,
    Severity,
    Step,
    artifact_path,
)

__all__ = ["Thin"]

_COPY = Estimate(0.0, 2**20, "copy")
"""What it costs to take a result from the store."""


@frozen
class _Linked:
    """What is known of a backend compile here; stands in `ThinCompile.link`.

    `inner` is the backend's own. `kept` is the compile's result in the store, `done` one that was taken from there
    already: then no thin link was done, and there is no `inner`.
    """

    item: ThinLink
    key: Key | NoKey
    inner: Any = None
    kept: Kept | None = None
    done: Finished | None = None


@frozen
class Thin:
    """Links and compiles with `inner`, and keeps what comes of it."""

    inner: ThinLtoBackend
    keys: Keys
    shelf: Shelf

    async def link(self, item: ThinLink) -> ThinLinked | Failed:
        """Plan the link, and see which compiles are done already; all, if nothing that the link is made of changed."""
        key = await self.keys.of_thin_link(item)
        if isinstance(key, Key):
            found = await self._found(item, key)
            if found is not None:
                return found
        linked = await self.inner.thin_link(evolve(item, out_dir=_made(item)))
        if isinstance(linked, Failed):
            return linked
        full = None
        if isinstance(key, Key) and linked.reads is not None and self.keys.unchanged(key):
            # At once: what it read may change.
            full = await self.keys.with_reads(key, linked.reads)
        compiles = [await self._known(item, one) for one in linked.compiles]
        use = off(key) if isinstance(key, NoKey) else await self._keep_plan(item, key, full, linked, compiles)
        try:
            regular = None if linked.regular is None else _placed(item, linked.regular)
        except OSError as error:
            return _failed(item.name, _why(error, item), Step.THIN_LINK)
        return evolve(linked, compiles=tuple(compiles), regular=regular, cache=use)

    async def compile(self, batch: Sequence[ThinCompile], *, keep_going: bool) -> list[Finished | Failed | Deferred]:
        """Compile what is not there."""
        results: dict[str, Finished | Failed | Deferred] = {}
        todo: list[ThinCompile] = []
        with ExitStack() as claims:
            for one in batch:
                done = await self._without_compiling(one, claims)
                if done is None:
                    todo.append(one)
                else:
                    results[one.name] = done
            if todo:
                inner = [evolve(one, link=one.link.inner) for one in todo]
                made = await self.inner.thin_compile(inner, keep_going=keep_going)
                for one, result in zip(todo, made, strict=False):
                    results[one.name] = await self._settled(one, result)
        # Behind a failure, there may be some that were not done.
        return [results[one.name] for one in itertools.takewhile(lambda one: one.name in results, batch)]

    async def _found(self, item: ThinLink, key: Key) -> ThinLinked | None:
        """The plan of an earlier link of the same, with all that is to be compiled done."""
        reads = await self.shelf.reads(key)
        full = await self.keys.with_reads(key, reads) if reads is not None else None
        plan = await self.shelf.find(full) if full is not None else None
        if plan is None:
            return None
        bitcode = {file.module: file.bitcode for file in item.files if isinstance(file, NeedsThinLto)}
        kinds = _kinds(item)
        compiles = []
        try:
            for name, digest in plan.note["compiles"]:
                kept = await self.shelf.find(Key(digest, tuple))
                done = None if kept is None else await self._fetched(item, name, kept, kinds, Step.THIN_BACKEND)
                if done is None or kept is None:
                    return None
                compiles.append(
                    ThinCompile(name, bitcode[name], Path(), _COPY, _Linked(item, kept.key, kept=kept, done=done))
                )
            regular = None
            if plan.note["regular"] is not None:
                part = evolve(plan, note={**plan.note, "diagnostics": plan.note["regular"]})
                regular = await self._fetched(item, REGULAR_PART, part, [EmitKind.OBJECT], Step.THIN_LINK)
                if regular is None:
                    return None
                regular = evolve(_placed(item, regular), cache=NOT_ASKED)
            return ThinLinked(
                item.name,
                tuple(compiles),
                tuple(plan.note["unneeded"]),
                regular,
                0.0,
                0,
                plan.diagnostics(item.name),
                cache=self.shelf.use(item.name, plan),
            )
        except (AttributeError, KeyError, OSError, TypeError, ValueError):
            return None  # gone, or not what one of us has written

    async def _keep_plan(
        self, item: ThinLink, key: Key, full: Key | None, linked: ThinLinked, compiles: Sequence[ThinCompile]
    ) -> CacheUse:
        """Keep what came of a link under its `full` key, if all that is to be compiled can be told by key."""
        keys = [(one.name, one.link.key) for one in compiles]
        if full is None or linked.reads is None or any(isinstance(one, NoKey) for _, one in keys):
            return self.shelf.made(item.name, key, key.ingredients())
        regular = linked.regular
        note = note_of(
            Engine.TOOLCHAIN,
            linked.diagnostics,
            linked.seconds,
            compiles=[(name, one.digest) for name, one in keys],
            unneeded=linked.unneeded,
            regular=None if regular is None else note_of(regular.engine, regular.diagnostics, 0.0)["diagnostics"],
        )
        outputs = {} if regular is None else {one.kind.value: one.path for one in regular.artifacts}
        await self.shelf.keep_reads(key, linked.reads)
        return self.shelf.made(item.name, full, await self.shelf.keep(full, outputs, note))

    async def _known(self, item: ThinLink, one: ThinCompile) -> ThinCompile:
        """A compile with its key, and its result if there is one."""
        key = await self.keys.of_thin_compile(one)
        kept = await self.shelf.find(key) if isinstance(key, Key) else None
        return evolve(one, link=_Linked(item, key, one.link, kept), estimate=one.estimate if kept is None else _COPY)

    async def _without_compiling(self, one: ThinCompile, claims: ExitStack) -> Finished | Failed | Deferred | None:
        """The result of a compile that needs no compiler. `None`: it does, and if it has a key, it is claimed."""
        linked: _Linked = one.link
        try:
            if linked.done is not None:
                return _placed(linked.item, linked.done)
            key = linked.key
            if isinstance(key, NoKey):
                return None
            if linked.kept is not None:
                done = await self._copied(one, linked.kept)
                if done is not None:
                    return done
            return await self.shelf.take(one.name, key, partial(self._looked_up, one, key), claims)
        except OSError as error:
            return _failed(one.name, _why(error, linked.item), Step.THIN_BACKEND)

    async def _looked_up(self, one: ThinCompile, key: Key) -> Finished | None:
        kept = await self.shelf.find(key)
        return None if kept is None else await self._copied(one, kept)

    async def _copied(self, one: ThinCompile, kept: Kept) -> Finished | None:
        """The result of a compile that is in the store, in its place; `None` if it is gone. Raises `OSError`."""
        item = one.link.item
        destinations = {kind.value: artifact_path(item.out_dir, one.name, kind) for kind in _kinds(item)}
        if not await self.shelf.is_there(kept, destinations) and not await self.shelf.copy(kept, destinations):
            return None
        return self._finished(one.name, kept, destinations, Step.THIN_BACKEND)

    async def _fetched(
        self, item: ThinLink, name: str, kept: Kept, kinds: Sequence[EmitKind], step: Step
    ) -> Finished | None:
        """A result in the store, its outputs in their places or in a directory of ours; `None` if it is gone.

        Raises `OSError`.
        """
        destinations = {kind.value: artifact_path(item.out_dir, name, kind) for kind in kinds}
        if not await self.shelf.is_there(kept, destinations):
            destinations = {kind.value: artifact_path(_made(item), name, kind) for kind in kinds}
            if not await self.shelf.copy(kept, destinations):
                return None
        return self._finished(name, kept, destinations, step)

    def _finished(self, name: str, kept: Kept, destinations: Mapping[str, Path], step: Step) -> Finished:
        sizes = kept.sizes()
        artifacts = tuple(Artifact(name, EmitKind(kind), path, sizes[kind]) for kind, path in destinations.items())
        use = self.shelf.use(name, kept)
        return Finished(name, artifacts, kept.engine, 0.0, 0, kept.diagnostics(name), step=step, cache=use)

    async def _settled(self, one: ThinCompile, result: Finished | Failed | Deferred) -> Finished | Failed | Deferred:
        """Keep what was made, and put it into its place."""
        if isinstance(result, Deferred):
            return result
        item, key = one.link.item, one.link.key
        if isinstance(key, NoKey):
            use = off(key)
        elif isinstance(result, Failed) or not self.keys.unchanged(key):
            use = self.shelf.made(one.name, key, ())
        else:
            outputs = {artifact.kind.value: artifact.path for artifact in result.artifacts}
            note = note_of(result.engine, result.diagnostics, result.seconds)
            use = self.shelf.made(one.name, key, await self.shelf.keep(key, outputs, note))
        if isinstance(result, Finished):
            try:
                result = _placed(item, result)
            except OSError as error:
                result = _failed(one.name, _why(error, item), Step.THIN_BACKEND)
        return evolve(result, cache=use)


def _made(item: ThinLink) -> Path:
    """Where outputs are before they get to their places, so that nobody can change one before it is kept."""
    return item.directory / "made"


def _kinds(item: ThinLink) -> list[EmitKind]:
    return sorted(item.options.emit, key=list(EmitKind).index)


def _placed(item: ThinLink, done: Finished) -> Finished:
    """With its artifacts where the link wants them. Raises `OSError`."""
    artifacts = []
    for artifact in done.artifacts:
        destination = artifact_path(item.out_dir, done.module, artifact.kind)
        if artifact.path != destination:
            place(artifact.path, destination)
        artifacts.append(evolve(artifact, path=destination))
    return evolve(done, artifacts=tuple(artifacts))


def _why(error: OSError, item: ThinLink) -> str:
    return f"cannot write {error.filename or item.out_dir}: {error.strerror or error}"


def _failed(name: str, message: str, step: Step) -> Failed:
    return Failed(name, Engine.TOOLCHAIN, 0.0, 0, (Diagnostic(Severity.ERROR, name, message),), step)

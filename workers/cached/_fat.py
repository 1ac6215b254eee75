"""Fat LTO: the merged program and its parts, unless they were made before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from attrs import define, evolve, field, frozen

from workers.cached._shelf import Shelf, note_of, off
from workers.fat import FatLink, FatLinked, FatLtoBackend, FatPartition, partition_name
from workers.ingredients import Key, NoKey
from workers.keys import Keys
from workers.placing import place
from workers.work import (
    Artifact,
    CacheUse,
    Deferred,
    Diagnostic,
    EmitKind,
    Engine,
    Estimate,
    Failed,
    Finished,
    Severity,
    Step,
    artifact_path,
)

__all__ = ["Fat"]

_COPY = Estimate(0.0, 2**20)
"""What it costs to take a result from the store."""


@define(eq=False)
class _Program:
    """A fat link whose parts are on their way; `claim` is held until they have ended.

    `full` and `note` are what to keep the program under when all is made, once that is known.
    """

    claim: ExitStack
    made: dict[str, Key] = field(factory=dict)
    ended: set[str] = field(factory=set)
    partitions: int | None = None
    full: Key | None = None
    note: Mapping[str, Any] = field(factory=dict)


@frozen
class _Part:
    """What is known of a partition here; stands in `FatPartition.link`.

    `inner` is the backend's own. `done` is the partition's result, in its place or in a directory of ours: then nothing
    was merged, and there is no `inner`.
    """

    item: FatLink
    inner: Any = None
    program: _Program | None = None
    done: Finished | None = None


@frozen
class Fat:
    """Merges and generates code with `inner`, and keeps what comes of it."""

    inner: FatLtoBackend
    keys: Keys
    shelf: Shelf

    async def link(
        self, item: FatLink, ready: Callable[[FatPartition], None], until_end: ExitStack
    ) -> FatLinked | Failed | Deferred:
        """Merge, unless nothing that goes into the program has changed. Claims last `until_end` at most."""
        key = await self.keys.of_fat_link(item)
        program = _Program(until_end.enter_context(ExitStack()))
        if isinstance(key, Key):
            taken = await self.shelf.take(item.name, key, partial(self._found, item, key, ready), program.claim)
            if taken is not None:
                return taken

        def told(partition: FatPartition) -> None:
            ready(evolve(partition, link=_Part(item, partition.link, program)))

        linked = await self.inner.fat_link(evolve(item, out_dir=_made(item)), told)
        if not isinstance(linked, FatLinked):
            program.claim.close()
            return linked
        if isinstance(key, NoKey):
            return evolve(linked, cache=off(key))
        if linked.reads is not None and self.keys.unchanged(key):
            program.full = await self.keys.with_reads(key, linked.reads)
            await self.shelf.keep_reads(key, linked.reads)
        if program.full is None:
            program.claim.close()  # there will be nothing for others to wait for
        program.note = note_of(
            Engine.TOOLCHAIN, linked.diagnostics, linked.seconds, unneeded=linked.unneeded, needs={**linked.needs}
        )
        program.partitions = linked.partitions
        named = program.full or key
        await self._complete(program)
        return evolve(linked, cache=self.shelf.made(item.name, named, named.ingredients()))

    async def codegen(self, partition: FatPartition) -> Finished | Failed | Deferred:
        """Generate code for a partition, unless that was done for an equal one."""
        part: _Part = partition.link
        try:
            if part.done is not None:
                return _landed(part.item, part.done)
            inner = evolve(partition, link=part.inner)
            key = await self.keys.of_partition(inner)
            with ExitStack() as claims:
                if isinstance(key, Key):
                    again = partial(self._looked_up, part.item, partition.name, key)
                    result = await self.shelf.take(partition.name, key, again, claims)
                    if isinstance(result, Deferred):
                        return result
                    if result is not None:
                        await self._ended(part, result, key)
                        return _landed(part.item, result)
                made = await self.inner.fat_codegen(inner)
                if isinstance(made, Deferred):
                    return made
                made = evolve(made, cache=await self._keep(key, made))
                await self._ended(part, made, key)
                return _landed(part.item, made) if isinstance(made, Finished) else made
        except OSError as error:
            return _failed(partition.name, error, part.item)

    async def _found(self, item: FatLink, key: Key, ready: Callable[[FatPartition], None]) -> FatLinked | None:
        """An earlier link of the same, with all of its parts."""
        reads = await self.shelf.reads(key)
        full = await self.keys.with_reads(key, reads) if reads is not None else None
        whole = await self.shelf.find(full) if full is not None else None
        if whole is None:
            return None
        parts = []
        try:
            for name, digest in whole.note["parts"]:
                done = await self._looked_up(item, name, Key(digest, tuple))
                if done is None:
                    return None
                parts.append(FatPartition(name, Path(), _COPY, _Part(item, done=done)))
            needs = {symbol: tuple(users) for symbol, users in whole.note["needs"].items()}
            linked = FatLinked(
                item.name,
                len(parts),
                tuple(whole.note["unneeded"]),
                0.0,
                0,
                whole.diagnostics(item.name),
                needs=needs,
                cache=self.shelf.use(item.name, whole, key),
            )
        except (AttributeError, KeyError, OSError, TypeError, ValueError):
            return None  # gone, or not what one of us has written
        for part in parts:
            ready(part)
        return linked

    async def _looked_up(self, item: FatLink, name: str, key: Key) -> Finished | None:
        """A partition's result, in its place or in a directory of ours; `None` if it is gone. Raises `OSError`."""
        kept = await self.shelf.find(key)
        if kept is None:
            return None
        kinds = sorted(item.options.emit, key=list(EmitKind).index)
        destinations = {kind.value: artifact_path(item.out_dir, name, kind) for kind in kinds}
        if not await self.shelf.is_there(kept, destinations):
            destinations = {kind.value: artifact_path(_made(item), name, kind) for kind in kinds}
            if not await self.shelf.copy(kept, destinations):
                return None
        sizes = kept.sizes()
        artifacts = tuple(Artifact(name, EmitKind(kind), path, sizes[kind]) for kind, path in destinations.items())
        use = self.shelf.use(name, kept)
        diagnostics = kept.diagnostics(name)
        return Finished(name, artifacts, kept.engine, 0.0, 0, diagnostics, step=Step.FAT_CODEGEN, cache=use)

    async def _keep(self, key: Key | NoKey, made: Finished | Failed) -> CacheUse:
        if isinstance(key, NoKey):
            return off(key)
        if isinstance(made, Failed) or not self.keys.unchanged(key):
            return self.shelf.made(made.module, key, ())
        outputs = {artifact.kind.value: artifact.path for artifact in made.artifacts}
        note = note_of(made.engine, made.diagnostics, made.seconds)
        return self.shelf.made(made.module, key, await self.shelf.keep(key, outputs, note))

    async def _ended(self, part: _Part, result: Finished | Failed, key: Key | NoKey) -> None:
        program = part.program
        if program is not None:
            program.ended.add(result.module)
            if isinstance(result, Finished) and isinstance(key, Key):
                program.made[result.module] = key
            await self._complete(program)

    async def _complete(self, program: _Program) -> None:
        """When all parts have ended, keep the program if all of them were made; and let others look for it."""
        if len(program.ended) != program.partitions:
            return
        if program.full is not None and len(program.made) == program.partitions:
            names = map(partition_name, range(program.partitions))
            note = {**program.note, "parts": [(name, program.made[name].digest) for name in names]}
            await self.shelf.keep(program.full, {}, note)
        program.claim.close()


def _made(item: FatLink) -> Path:
    """Where outputs are before they get to their places, so that nobody can change one before it is kept."""
    return item.directory / "made"


def _landed(item: FatLink, done: Finished) -> Finished | Failed:
    """With its artifacts where the link wants them."""
    artifacts = []
    try:
        for artifact in done.artifacts:
            destination = artifact_path(item.out_dir, done.module, artifact.kind)
            if artifact.path != destination:
                place(artifact.path, destination)
            artifacts.append(evolve(artifact, path=destination))
    except OSError as error:
        return evolve(_failed(done.module, error, item), cache=done.cache)
    return evolve(done, artifacts=tuple(artifacts))


def _failed(name: str, error: OSError, item: FatLink) -> Failed:
    why = f"cannot write {error.filename or item.out_dir}: {error.strerror or error}"
    problem = Diagnostic(Severity.ERROR, name, why)
    return Failed(name, Engine.TOOLCHAIN, 0.0, 0, (problem,), Step.FAT_CODEGEN)

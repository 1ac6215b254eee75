"""Modules by themselves: compiled, or taken through a pre-link pipeline, unless that was done before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from attrs import evolve, frozen

from workers.backend import CodegenBackend
from workers.cached._shelf import Kept, Shelf, note_of, off
from workers.errors import InternalError, ModuleError, bug_message
from workers.ingredients import Key, NoKey
from workers.keys import Keys
from workers.placing import check_destinations, place
from workers.work import (
    Artifact,
    CopyArtifacts,
    Deferred,
    Diagnostic,
    EmitKind,
    Failed,
    Finished,
    NeedsFatLto,
    NeedsThinLto,
    Optimize,
    PreLink,
    Severity,
    Step,
    artifact_path,
)

__all__ = ["Codegen"]

_Done = Finished | NeedsThinLto | NeedsFatLto | Failed

_BITCODE = "bitcode"
"""What the output of a pre-link pipeline is called in the store."""


@frozen
class _Todo:
    """An item of a batch that has to be made; `key` is what to keep its result under."""

    index: int
    item: Optimize
    key: Key | NoKey


@frozen
class Codegen:
    """Compiles modules with `inner`, and keeps what comes of it."""

    inner: CodegenBackend
    keys: Keys
    shelf: Shelf

    async def look_up(self, item: Optimize) -> Optimize | CopyArtifacts:
        """Say what is left to do: the item itself, or to copy what is there."""
        try:
            item = await self._with_key(item)
            if isinstance(item.key, Key):
                kept = await self.shelf.find(item.key)
                if kept is not None:
                    return CopyArtifacts(item, kept)
        except Exception as error:
            # A bug here costs time, no build.
            return evolve(item, key=NoKey(bug_message(error), warn=True))
        return item

    async def compile(self, batch: Sequence[Optimize | CopyArtifacts]) -> list[_Done | Deferred]:
        """Compile what is not there. The results' files are where the items want them."""
        results: dict[int, _Done | Deferred] = {}
        todo: list[_Todo] = []
        with ExitStack() as claims:
            for index, work in enumerate(batch):
                item, kept = (work.item, work.cached) if isinstance(work, CopyArtifacts) else (work, None)
                item = await self._with_key(item)
                done = await self._without_compiling(item, kept, claims)
                if done is None:
                    todo.append(_Todo(index, item, item.key or NoKey("")))
                else:
                    results[index] = done
            if todo:
                results |= await self._make(todo)
        return [results[index] for index in range(len(batch))]

    async def _with_key(self, item: Optimize) -> Optimize:
        return item if item.key is not None else evolve(item, key=await self.keys.of_module(item))

    async def _without_compiling(self, item: Optimize, kept: Kept | None, claims: ExitStack) -> _Done | Deferred | None:
        """The result of an item that needs no compiler. `None`: it does, and if it has a key, it is claimed."""
        if item.pre_link is None:  # else nothing of it goes into the output directory here
            try:
                check_destinations(item)
            except ModuleError as error:
                return _failed(item, error.message)
        if not isinstance(item.key, Key):
            return None
        if kept is not None:
            done = await self._copied(item, kept)
            if done is not None:
                return done
        return await self.shelf.take(item.name, item.key, partial(self._found, item, item.key), claims)

    async def _found(self, item: Optimize, key: Key) -> _Done | None:
        kept = await self.shelf.find(key)
        return None if kept is None else await self._copied(item, kept)

    async def _copied(self, item: Optimize, kept: Kept) -> _Done | None:
        """The result of an item that is in the store; `None` if it is gone."""
        destinations = _destinations(item)
        try:
            # Not even what only this build sees is a link to the store's own file, which may be damaged meanwhile.
            there = item.pre_link is None and await self.shelf.is_there(kept, destinations)
            if not there and not await self.shelf.copy(kept, destinations):
                return None
        except OSError as error:
            return _failed(item, f"cannot write {error.filename or item.out_dir}: {error.strerror or error}")
        use = self.shelf.use(item.name, kept)
        diagnostics = kept.diagnostics(item.name)
        if item.pre_link is None:
            sizes = kept.sizes()
            artifacts = tuple(
                Artifact(item.name, EmitKind(name), path, sizes[name]) for name, path in destinations.items()
            )
            return Finished(item.name, artifacts, kept.engine, 0.0, 0, diagnostics, cache=use)
        result = NeedsThinLto if item.pre_link is PreLink.THIN else NeedsFatLto
        module = item.module
        return result(
            item.name,
            destinations[_BITCODE],
            kept.note["code_bytes"],
            module.lazy,
            module.linker_name,
            kept.engine,
            0.0,
            0,
            diagnostics,
            cache=use,
        )

    async def _make(self, todo: Sequence[_Todo]) -> dict[int, _Done]:
        """Compile in a directory of ours, so that nobody can change an output before it is kept."""
        with ExitStack() as until_kept:
            inner = [one.item for one in todo]
            if any(item.pre_link is None for item in inner):  # the others' outputs are the build's own
                staging = until_kept.enter_context(self.inner.workspace())
                inner = [evolve(one.item, out_dir=staging / str(one.index)) for one in todo]
            made = await self.inner.compile(inner)
            return {one.index: await self._settled(one, result) for one, result in zip(todo, made, strict=True)}

    async def _settled(self, one: _Todo, result: _Done) -> _Done:
        """Keep what was made, and put it into its place."""
        item, key = one.item, one.key
        if isinstance(key, NoKey):
            use = off(key)
        elif isinstance(result, Failed) or not self.keys.unchanged(key):
            use = self.shelf.made(item.name, key, ())
        else:
            if isinstance(result, Finished):
                outputs = {artifact.kind.value: artifact.path for artifact in result.artifacts}
                note = note_of(result.engine, result.diagnostics, result.seconds)
            else:
                outputs = {_BITCODE: result.bitcode}
                note = note_of(result.engine, result.diagnostics, result.seconds, code_bytes=result.code_bytes)
            use = self.shelf.made(item.name, key, await self.shelf.keep(key, outputs, note))
        if isinstance(result, Finished):
            try:
                artifacts = tuple(_moved(item, artifact) for artifact in result.artifacts)
            except OSError as error:
                problem = f"cannot write {error.filename or item.out_dir}: {error.strerror or error}"
                return evolve(_failed(item, problem, result), cache=use)
            result = evolve(result, artifacts=artifacts)
        return evolve(result, cache=use)


def _destinations(item: Optimize) -> Mapping[str, Path]:
    """Where an item's outputs go, by their names in the store."""
    if item.pre_link is None:
        kinds = sorted(item.options.emit, key=list(EmitKind).index)
        return {kind.value: artifact_path(item.out_dir, item.name, kind) for kind in kinds}
    if item.bitcode is None:
        raise InternalError("a module is to be prepared for LTO, and nobody says where")
    return {_BITCODE: item.bitcode}


def _moved(item: Optimize, artifact: Artifact) -> Artifact:
    destination = artifact_path(item.out_dir, item.name, artifact.kind)
    place(artifact.path, destination)
    return evolve(artifact, path=destination)


def _failed(item: Optimize, message: str, result: Finished | None = None) -> Failed:
    step = Step.CODEGEN if item.pre_link is None else Step.PRE_LINK
    problem = Diagnostic(Severity.ERROR, item.name, message)
    if result is None:
        return Failed(item.name, item.options.engine, 0.0, 0, (problem,), step)
    return Failed(item.name, result.engine, result.seconds, result.peak_rss_bytes, (*result.diagnostics, problem), step)

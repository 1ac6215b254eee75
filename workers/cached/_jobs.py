"""Backend compiles that a linker has planned, unless they were done before."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from attrs import evolve, frozen

from workers.cached._shelf import Kept, Shelf, note_of, off
from workers.ingredients import Key, NoKey
from workers.placing import place
from workers.thin import PlannedCompile, ThinCompile, ThinLink, ThinLinked, ThinLtoBackend
from workers.work import (
    Artifact,
    Deferred,
    Diagnostic,
    EmitKind,
    Engine,
    Estimate,
    Failed,
    Finished,
    Severity,
    Step,
)

__all__ = ["CachedJobs"]

_OBJECT = EmitKind.OBJECT.value


@frozen
class CachedJobs:
    """Compiles with `inner`, whose items have a `PlannedCompile` each, and keeps what comes of it.

    What is being made is in `directory` until it is kept.
    """

    inner: ThinLtoBackend
    shelf: Shelf
    directory: Path

    def thin_estimate(self, item: ThinLink) -> Estimate:
        """As `inner`."""
        return self.inner.thin_estimate(item)

    async def thin_link(self, item: ThinLink) -> ThinLinked | Failed:
        """As `inner`."""
        return await self.inner.thin_link(item)

    async def thin_compile(
        self, batch: Sequence[ThinCompile], *, keep_going: bool = True
    ) -> list[Finished | Failed | Deferred]:
        """Compile what is not there."""
        results: list[Finished | Failed | Deferred] = []
        for one in batch:
            with ExitStack() as claims:
                results.append(await self._compile(one, claims))
            if isinstance(results[-1], Failed) and not keep_going:
                break
        return results

    async def _compile(self, one: ThinCompile, claims: ExitStack) -> Finished | Failed | Deferred:
        planned: PlannedCompile = one.link
        key = planned.key
        if isinstance(key, NoKey):
            (done,) = await self.inner.thin_compile([one])
            return done if isinstance(done, Deferred) else evolve(done, cache=off(key))
        try:
            found = await self._copied(one, key) or await self.shelf.take(
                one.name, key, partial(self._copied, one, key), claims
            )
            return await self._made(one, key) if found is None else found
        except OSError as error:
            message = f"cannot write {error.filename or planned.output}: {error.strerror or error}"
            diagnostic = Diagnostic(Severity.ERROR, one.name, message)
            return Failed(one.name, Engine.TOOLCHAIN, 0.0, 0, (diagnostic,), Step.THIN_BACKEND)

    async def _copied(self, one: ThinCompile, key: Key) -> Finished | None:
        """The result from the store, in its place; `None` if it is not there. Raises `OSError`."""
        kept = await self.shelf.find(key)
        if kept is None or not await self.shelf.copy(kept, {_OBJECT: one.link.output}):
            return None
        return self._finished(one, kept)

    def _finished(self, one: ThinCompile, kept: Kept) -> Finished:
        artifact = Artifact(one.name, EmitKind.OBJECT, one.link.output, kept.sizes()[_OBJECT])
        return Finished(
            one.name,
            (artifact,),
            kept.engine,
            0.0,
            0,
            kept.diagnostics(one.name),
            step=Step.THIN_BACKEND,
            cache=self.shelf.use(one.name, kept),
        )

    async def _made(self, one: ThinCompile, key: Key) -> Finished | Failed | Deferred:
        """Have it made, keep it, and put it into its place. Raises `OSError`."""
        output: Path = one.link.output
        made = self.directory / f"{key.digest}.o"
        (done,) = await self.inner.thin_compile([evolve(one, link=evolve(one.link, output=made))])
        if isinstance(done, Deferred):
            return done
        if isinstance(done, Failed) or not one.link.holds():
            use = self.shelf.made(one.name, key, ())
        else:
            note = note_of(done.engine, done.diagnostics, seconds=done.seconds)
            use = self.shelf.made(one.name, key, await self.shelf.keep(key, {_OBJECT: made}, note))
        if isinstance(done, Finished):
            place(made, output)
            done = evolve(done, artifacts=tuple(evolve(one, path=output) for one in done.artifacts))
        return evolve(done, cache=use)

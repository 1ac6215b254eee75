"""A backend that makes nothing twice: it asks the store first, and keeps what it had to make.

What the loops use is `CachedBackend`, a decorator over any backend that can tell its items' keys (`workers.keys`).
Compiling, ThinLTO, fat LTO and linking have a module each; what they share is `_shelf`, which is about results and not
about how they come about. `CachedJobs` is for backend compiles that a linker hands out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trio
from attrs import evolve

from workers.backend import Backend, Inspection
from workers.cached._codegen import Codegen
from workers.cached._fat import Fat
from workers.cached._jobs import CachedJobs
from workers.cached._link import Linking
from workers.cached._shelf import Shelf
from workers.cached._thin import Thin
from workers.fat import FatLink, FatLinked, FatPartition
from workers.keys import Keys
from workers.store import Store
from workers.thin import ThinCompile, ThinLink, ThinLinked
from workers.work import (
    CacheUse,
    CodegenOptions,
    CopyArtifacts,
    Deferred,
    Estimate,
    Failed,
    Finished,
    Link,
    Linked,
    LinkOptions,
    Module,
    NeedsFatLto,
    NeedsThinLto,
    Optimize,
    PreLink,
    Target,
)

__all__ = ["CachedBackend", "CachedJobs", "Shelf"]

_TAKEN = CacheUse(note="it is prepared for LTO, and taken as it is")


class CachedBackend:
    """`inner` with a memory: `store`, by the keys that `keys` gives. Without these, it is `inner` and nothing else.

    Keeps the contracts of `workers.thin` and `workers.fat`, and that of `workers.backend` but for what is said here.
    """

    def __init__(self, inner: Backend, keys: Keys | None = None, store: Store | None = None) -> None:
        self._inner = inner
        self._store = store
        self._claims: dict[Path, ExitStack] = {}
        self._codegen: Codegen | None = None
        if keys is not None and store is not None:
            shelf = Shelf(store)
            self._codegen = Codegen(inner, keys, shelf)
            self._thin = Thin(inner, keys, shelf)
            self._fat = Fat(inner, keys, shelf)
            self._linking = Linking(inner, keys, shelf)

    @contextmanager
    def session(self) -> Iterator[None]:
        """A build: what it uses of the store stays there until the context is left."""
        if self._store is None:
            yield
        else:
            with self._store.session():
                yield

    def check(self, options: CodegenOptions) -> None:
        """As `inner`."""
        self._inner.check(options)

    def check_lto(self, options: CodegenOptions, target: Target) -> None:
        """As `inner`."""
        self._inner.check_lto(options, target)

    async def prepare(self, target: Target, options: CodegenOptions) -> None:
        """As `inner`."""
        await self._inner.prepare(target, options)

    def check_link(self, link: LinkOptions, target: Target) -> None:
        """As `inner`."""
        self._inner.check_link(link, target)

    def inspect(self, module: Module, options: CodegenOptions, pre_link: PreLink | None = None) -> Inspection:
        """As `inner`."""
        return self._inner.inspect(module, options, pre_link)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """As `inner`. What is being made for others to wait for, is given up when the context is left."""
        with self._inner.workspace() as path, ExitStack() as claims:
            if self._codegen is not None:
                self._claims[path] = claims
                claims.callback(self._claims.pop, path)
            yield path

    async def look_up(self, item: Optimize) -> Optimize | CopyArtifacts | NeedsThinLto | NeedsFatLto:
        """What is left to do for an item: itself, to copy what was made of it before, or nothing: then its result.

        Starts no process.
        """
        done = self._inner.at_once(item)
        if done is not None:
            await trio.lowlevel.checkpoint()
            return done if self._codegen is None else evolve(done, cache=_TAKEN)
        return item if self._codegen is None else await self._codegen.look_up(item)

    async def compile(
        self, batch: Sequence[Optimize | CopyArtifacts]
    ) -> Sequence[Finished | NeedsThinLto | NeedsFatLto | Failed | Deferred]:
        """As `inner`, for items that `look_up` gave; one that somebody else is making is `Deferred`."""
        if self._codegen is None:
            return await self._inner.compile([item for item in batch if isinstance(item, Optimize)])
        return await self._codegen.compile(batch)

    async def link(self, item: Link) -> Linked | Failed:
        """As `inner`; what is linked already, and still in its place, is left there, with a new time."""
        return await (self._inner.link(item) if self._codegen is None else self._linking.link(item))

    def thin_estimate(self, item: ThinLink) -> Estimate:
        """As `inner`."""
        return self._inner.thin_estimate(item)

    async def thin_link(self, item: ThinLink) -> ThinLinked | Failed:
        """As `inner`; what is done already costs next to nothing in the plan."""
        return await (self._inner.thin_link(item) if self._codegen is None else self._thin.link(item))

    async def thin_compile(
        self, batch: Sequence[ThinCompile], *, keep_going: bool = True
    ) -> Sequence[Finished | Failed | Deferred]:
        """As `inner`."""
        if self._codegen is None:
            return await self._inner.thin_compile(batch, keep_going=keep_going)
        return await self._thin.compile(batch, keep_going=keep_going)

    def fat_estimate(self, item: FatLink) -> Estimate:
        """As `inner`."""
        return self._inner.fat_estimate(item)

    async def fat_link(self, item: FatLink, ready: Callable[[FatPartition], None]) -> FatLinked | Failed | Deferred:
        """As `inner`."""
        if self._codegen is None:
            return await self._inner.fat_link(item, ready)
        with ExitStack() as here:
            return await self._fat.link(item, ready, self._claims.get(item.directory, here))

    async def fat_codegen(self, partition: FatPartition) -> Finished | Failed | Deferred:
        """As `inner`."""
        return await (self._inner.fat_codegen(partition) if self._codegen is None else self._fat.codegen(partition))

"""The coordinator: one main loop, one backend, one set of tokens, one memory budget; many builds."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from coordinator._build import Build
from coordinator._cache import Cache, OpenCache, open_cache
from coordinator._config import BuildConfig
from coordinator._history import History
from coordinator._loop import MainLoop
from coordinator._machine import Machine
from coordinator._memory import memory_limit
from coordinator._tokens import token_source
from workers.backend import Backend
from workers.cached import CachedBackend
from workers.errors import RequestError
from workers.keys import HasKeys

__all__ = ["Coordinator", "open_coordinator"]

# What the rest of the machine keeps of the memory: LLVM's peaks are predicted, not known.
_MEMORY_SHARE = 0.8

_DEFAULT_CACHE = Cache()


class Coordinator:
    """Runs builds side by side on one pool of workers; from `open_coordinator`."""

    def __init__(
        self,
        loop: MainLoop,
        backend: CachedBackend,
        nursery: trio.Nursery,
        warning: str | None,
        cache: OpenCache | None,
    ) -> None:
        self._loop = loop
        self._backend = backend
        self._nursery = nursery
        self._history = History()
        self._cache = cache
        self.warning = warning
        """What the user should know about where the tokens come from, if anything."""

    def build(self, config: BuildConfig) -> Build:
        """A new build, to be entered with `async with`. Raises `RequestError` for options nobody can honour."""
        return Build(config, self._loop, self._backend, self._history, self._nursery, self._cache)

    @property
    def cache_warning(self) -> str | None:
        """What the user should know about the cache, if it is of no use, or only of some: it shows as builds go on."""
        return None if self._cache is None else self._cache.warning

    @property
    def jobs(self) -> int:
        """The most work items that run at once."""
        return self._loop.tokens.limit


@asynccontextmanager
async def open_coordinator(
    *,
    jobs: int | None = None,
    memory_budget: int | None = None,
    toolchain: Path | None = None,
    backend: Backend | None = None,
    short_lived: bool = False,
    cache: Cache | None = _DEFAULT_CACHE,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[Coordinator]:
    """Open a coordinator in the running trio program; leaving the context stops what still runs.

    `jobs` is the most work items at once (default: the jobserver in `MAKEFLAGS`, else the CPUs that this process
    may use). `memory_budget` is in bytes (default: most of the smaller of RAM and the control group's limit).
    A `short_lived` coordinator, as for a single build, does not start llvmlite's children, for which it takes dozens
    of the smallest modules to repay their start, unless a build asks for that engine.
    `toolchain` is a directory with clang and lld (default: `LTOD_TOOLCHAIN`, else the wheel's). `backend` replaces
    the LLVM backend. `cache` is where results are kept for later builds; `None`: nowhere. What a backend makes that
    cannot tell its keys (`workers.keys`) is not kept.
    `environ` is read instead of the process environment.

    Exceptions of the body pass through as they are, never in a group. Raises `RequestError` for a setting that is
    wrong, such as a toolchain that is not there.
    """
    for name, value, kind in (
        ("jobs", jobs, int),
        ("memory_budget", memory_budget, int),
        ("toolchain", toolchain, Path),
        ("cache", cache, Cache),
    ):
        if value is not None and not isinstance(value, kind):
            raise RequestError(f"{name} is {value!r}: give {kind.__name__} or None")
    if environ is None:
        environ = os.environ
    if memory_budget is None:
        memory_budget = int(memory_limit() * _MEMORY_SHARE)
    elif memory_budget <= 0:
        raise RequestError(f"a memory budget of {memory_budget} bytes: it must be positive")
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        tokens = stack.enter_context(token_source(jobs, environ))
        if backend is None:
            from workers.llvm.choice import LLVMLITE_BYTES
            from workers.llvm.codegen import open_llvm_backend  # an embedder with a backend of its own needs no LLVM

            backend = await stack.enter_async_context(
                open_llvm_backend(
                    toolchain=toolchain,
                    environ=environ,
                    limit=tokens.limit,
                    llvmlite_bytes=0 if short_lived else LLVMLITE_BYTES,
                )
            )
        opened: OpenCache | None = None
        workers = CachedBackend(backend)
        if cache is not None and isinstance(backend, HasKeys):
            opened = await stack.enter_async_context(open_cache(cache, environ))
            workers = CachedBackend(backend, backend.keys(opened.store), opened.store)
        loop = MainLoop(tokens, Machine(tokens.limit, memory_budget), workers)
        async with trio.open_nursery() as nursery:
            await nursery.start(loop.run)
            try:
                yield Coordinator(loop, workers, nursery, tokens.warning, opened)
            except Exception as error:
                # Raised again outside: a nursery would wrap it in a group, which no embedder expects.
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure

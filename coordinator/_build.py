"""One build: modules in, artifacts and diagnostics out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import trio
from attrs import evolve

from coordinator._cache import OpenCache
from coordinator._config import BuildConfig, check_config
from coordinator._events import (
    BuildEvent,
    BuildFailed,
    BuildResult,
    ModuleQueued,
    ModuleStarted,
)
from coordinator._history import History
from coordinator._join import Joined, Joining, join
from coordinator._ledger import Ledger
from coordinator._line import BuildLine
from coordinator._log import log_build
from coordinator._loop import MainLoop, Stage
from coordinator._messages import QueuedItem
from coordinator._past import Past
from coordinator._paths import BuildPaths
from coordinator._records import Thing
from lto.fat import FatLto
from lto.thin import ThinLto
from workers.cached import CachedBackend
from workers.errors import ModuleError, RequestError
from workers.target import same_target
from workers.work import (
    Diagnostic,
    Estimate,
    Failed,
    Link,
    LinkOptions,
    Module,
    NeedsFatLto,
    NeedsThinLto,
    Optimize,
    PreLink,
    Severity,
    Step,
    Target,
    WorkResult,
    artifact_path,
)

__all__ = ["Build"]

_COPY = Estimate(0.0, 2**20, "copy")
"""What it costs to put into its place what is made already. Copies may share a worker."""


class Build:
    """A build in the making; from `Coordinator.build`, as an async context manager.

    Leaving the context without `finish` cancels the build: nothing of it runs afterwards.
    """

    def __init__(
        self,
        config: BuildConfig,
        loop: MainLoop,
        backend: CachedBackend,
        history: History,
        nursery: trio.Nursery,
        cache: OpenCache | None = None,
    ) -> None:
        backend.check(config.codegen)
        check_config(config)
        self._config = config
        self._out_dir = config.out_dir.absolute()
        self._reproducer_dir = (config.reproducer_dir or self._out_dir / "reproducers").absolute()
        self._loop = loop
        self._backend = backend
        self._nursery = nursery
        self._ledger = Ledger(self._out_dir, config.codegen, history, _past(config, cache))
        self._stage: Stage | None = None
        self._line = BuildLine()
        self._first: tuple[str, Target] | None = None
        self._paths = BuildPaths()
        if config.link is not None:
            self._paths.add(config.link.inputs, [config.link.output])
        self._held = ExitStack()
        self._workspace: Path | None = None
        self._closed = False
        self._ending: trio.Event | None = None
        self._error: Exception | None = None

    async def __aenter__(self) -> Self:
        if self._stage is not None:
            raise RequestError("the build has been entered before: make another one")
        self._ledger.opened = trio.current_time()
        self._stage = await self._open_stage(self._codegen_step)
        self._held.enter_context(self._backend.session())
        if self._config.lto is not None:
            self._workspace = self._held.enter_context(self._backend.workspace())
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._ledger.result is None:
            with trio.CancelScope(shield=True):
                await self.cancel()
                if self._ending is not None:
                    await self._ending.wait()
            self._end()

    def watch(self) -> trio.MemoryReceiveChannel[BuildEvent]:
        """The events of this build from now on; the channel ends with the build.

        A slow watcher never holds the build up: its events wait for it, at most a handful for each module, which
        is what the result holds as well. Close the channel to stop watching.
        """
        return self._ledger.watch()

    async def submit(self, module: Module) -> bool:
        """Hand over a module; waits while enough others are queued (back-pressure).

        Returns False when the build has been aborted or cancelled and takes no more modules. A module that
        cannot be built is no error here: it fails the build, as one that does not compile does. Raises
        `RequestError` for a name that is unusable or taken, after `finish`, and with the first module for options
        that its target does not have.
        """
        stage = self._entered()
        if self._closed and not self._ledger.cancelled:
            raise RequestError(f"module {module.name!r} comes too late: the build has been finished")
        self._line.add(module, self._pre_link)
        if self._aborted:
            self._ledger.skip([module.name])
            await trio.lowlevel.checkpoint()
            return False
        with stage.producing():
            try:
                await self._hand_over(module, stage)
            except BaseException:
                self._line.drop(module.name)  # as if it had never been submitted
                raise
        return not self._aborted

    def add_native(self, path: Path, *, lazy: bool = False) -> None:
        """Hand over what has no bitcode and is to be linked: an object, an archive or a shared library.

        It comes behind the modules and files that were handed over before; `LinkOptions.inputs` come behind all of
        them. A `lazy` object is linked only if something needs a symbol of it, as a module that is lazy. Members of
        archives are lazy in any case; shared libraries, and what becomes part of a static library, never are. The file
        need not be there before `finish`.

        Raises `RequestError` where nothing is linked, where the build would overwrite the file, and after `finish`.
        """
        if not isinstance(path, Path) or not isinstance(lazy, bool):
            raise RequestError(f"a native file is given as {path!r}, lazy={lazy!r}: give a Path and a bool")
        self._entered()
        if self._config.link is None:
            raise RequestError(f"{path} can only be linked, and this build links nothing: give it LinkOptions")
        if self._closed and not self._ledger.cancelled:
            raise RequestError(f"{path} comes too late: the build has been finished")
        path = path.absolute()
        self._paths.add([path], [])
        self._line.add_native(path, lazy=lazy)

    async def finish(self) -> BuildResult:
        """Wait until everything submitted is done, optimised across modules and linked if asked to; gives the result.

        Raises `BuildFailed`, with the result in it, unless everything was built. May be called again, also after
        having been cancelled: meanwhile the work goes on.
        """
        stage = self._entered()
        if self._ledger.result is None and self._ending is None:
            if stage.lost:
                self._end()
            else:
                self._ending = trio.Event()
                self._nursery.start_soon(self._run_to_end, stage, self._ending)
        if self._ending is not None:
            await self._ending.wait()
        if self._error is not None:
            raise self._error
        result = self._end()
        if not result.ok:
            raise BuildFailed(result)
        return result

    async def cancel(self) -> None:
        """Stop the build: what runs is stopped, what waits is dropped. `finish` then raises `BuildFailed`."""
        if self._ledger.result is None and self._stage is not None:
            self._closed = True
            self._ledger.cancelled = True
            await self._stage.cancel()

    @property
    def result(self) -> BuildResult | None:
        """The result, once the build has ended."""
        return self._ledger.result

    @property
    def _aborted(self) -> bool:
        return self._ledger.cancelled or (self._ledger.failed and not self._config.keep_going)

    # Taking modules in

    async def _prepare(self, module: Module, target: Target) -> None:
        """With the first module it is known for which target the options must make sense."""
        if self._first is None:
            self._first = (module.name, target)
            if self._config.link is not None:
                self._backend.check_link(self._config.link, target)
            if self._config.lto is not None:
                self._backend.check_lto(self._config.codegen, target)
            await self._backend.prepare(target, self._config.codegen)

    def _check_target(self, module: Module, target: Target) -> None:
        """All modules of a build become one program, so they must be for one target."""
        first, expected = self._first or (module.name, target)
        if target == expected:
            return
        if not same_target(target.triple, expected.triple):
            raise ModuleError(
                module.name,
                f"its target triple is {target.triple!r}, but that of {first} is {expected.triple!r} (a module that "
                "names none is for this machine): build them separately, or say for which target to compile",
            )
        if expected.data_layout in ("", target.data_layout):
            self._first = (first if expected.data_layout else module.name, target)
        elif target.data_layout:  # a module that names none takes its target's, as in LLVM
            raise ModuleError(
                module.name,
                f"its data layout is {target.data_layout!r}, but that of {first} is {expected.data_layout!r}: "
                "build them separately, or compile them for one target",
            )

    def _entered(self) -> Stage:
        if self._stage is None:
            raise RequestError("the build is not open: enter it with 'async with' first")
        return self._stage

    async def _hand_over(self, module: Module, stage: Stage) -> None:
        codegen = self._config.codegen
        step = self._step_of(module.name)
        pre_link = self._pre_link if step is Step.PRE_LINK else None
        # What comes of fat LTO is not called after modules.
        kinds = codegen.emit if pre_link is not PreLink.FAT else ()
        try:
            inspection = self._backend.inspect(module, codegen, pre_link)
            await self._prepare(module, inspection.target)
            self._check_target(module, inspection.target)
            self._paths.add(
                [module.content] if isinstance(module.content, Path) else [],
                [artifact_path(self._out_dir, module.name, kind) for kind in kinds],
            )
        except ModuleError as error:
            diagnostic = Diagnostic(Severity.ERROR, module.name, error.message)
            self._ledger.add([Failed(module.name, codegen.engine, 0.0, 0, (diagnostic,), step)])
            await stage.fail()
            return
        work = Optimize(
            module,
            codegen,
            self._out_dir,
            self._reproducer_dir,
            inspection.target,
            inspection.size,
            pre_link,
            self._workspace / f"{len(self._line.modules)}.bc" if self._workspace is not None else None,
            inspection.pre_linked,
        )
        todo = await self._backend.look_up(work)
        if isinstance(todo, NeedsThinLto | NeedsFatLto):
            self._ledger.tell(ModuleQueued(module.name, step))
            self._ledger.tell(ModuleStarted(module.name, step))
            self._ledger.add([todo])
            return
        held = len(module.content) if isinstance(module.content, bytes) else 0
        estimate = _COPY
        if isinstance(todo, Optimize):
            estimate = self._ledger.predict(module.name, step, inspection.estimate)
        self._ledger.tell(ModuleQueued(module.name, step))
        await stage.queue(QueuedItem(module.name, todo, estimate, held))

    @property
    def _pre_link(self) -> PreLink | None:
        """Up to where the modules that take part in LTO go by themselves."""
        match self._config.lto:
            case None:
                return None
            case ThinLto():
                return PreLink.THIN
            case FatLto():
                return PreLink.FAT

    @property
    def _codegen_step(self) -> Step:
        return Step.CODEGEN if self._config.lto is None else Step.PRE_LINK

    def _step_of(self, name: str) -> Step:
        """Which step the main loop's work on a module is."""
        return self._codegen_step if self._line.modules[name].takes_part_in_lto else Step.CODEGEN

    async def _open_stage(self, step: Step) -> Stage:
        """A stage whose items are modules, or one link."""

        def step_of(name: str) -> Step:
            return step if step is Step.LINK else self._step_of(name)

        def on_started(items: Sequence[QueuedItem]) -> None:
            for item in items:
                self._ledger.tell(ModuleStarted(item.name, step_of(item.name)))

        def on_results(results: Sequence[WorkResult]) -> None:
            self._ledger.add(
                evolve(result, step=step_of(result.module)) if isinstance(result, Failed) else result
                for result in results
            )

        return await self._loop.open_stage(
            keep_going=self._config.keep_going, on_started=on_started, on_results=on_results
        )

    # Where the modules meet

    async def _run_to_end(self, stage: Stage, ended: trio.Event) -> None:
        """What is left when all modules are submitted; in the coordinator's nursery, as `finish` may be cancelled."""
        try:
            if not self._closed:
                self._closed = True
                await stage.close()
            await self._until_ended(stage)
            joined = await self._optimize_across()
            if self._config.link is not None and self._ledger.goes_on:
                await self._link(self._config.link, joined)
        except Exception as error:
            self._error = error
            self._ledger.cancelled = True
        except BaseException:  # cancelled, perhaps in a group
            self._ledger.cancelled = True
            raise
        finally:
            try:
                self._end()
            finally:
                ended.set()  # whatever happens: others wait for it, shielded

    async def _until_ended(self, stage: Stage) -> None:
        await stage.ended.wait()
        self._ledger.skip(stage.skipped)
        # A coordinator that was closed meanwhile has dropped what it did not get to.
        self._ledger.cancelled |= stage.lost

    async def _optimize_across(self) -> Joined:
        """LTO, where the modules' results ask for it, and what there is to link then."""
        joining = Joining(
            # Symbols are resolved, and constructors run, in the order in which the caller handed everything over.
            line=self._line.filled(self._ledger.results),
            lazy=self._line.lazy(),
            lto=self._config.lto,
            link=self._config.link,
            exports=self._config.exports,
            options=self._config.codegen,
            target=self._target,
            directory=self._workspace or self._out_dir,
            out_dir=self._out_dir,
            reproducer_dir=self._reproducer_dir,
            keep_going=self._config.keep_going,
        )

        return await join(joining, self._loop, self._backend, self._enter, self._ledger)

    def _enter(self, stage: Stage) -> bool:
        """From now on `cancel` means this stage. Says whether the build was cancelled before it could."""
        self._stage = stage
        return not self._ledger.cancelled

    async def _link(self, link: LinkOptions, joined: Joined) -> None:
        """The last stage: one item, on a token and within memory like any other."""
        if self._first is None:
            raise RequestError(f"nothing to link into {link.output}: no module was submitted")
        size = sum(map(_size, (file.path for file in joined.objects)))
        codegen, exports = self._config.codegen, self._config.exports
        work = Link(
            link,
            joined.objects,
            codegen,
            self._target,
            self._reproducer_dir,
            exports,
            joined.needs,
            joined.modules,
            joined.from_lto,
        )
        stage = await self._open_stage(Step.LINK)
        if not self._enter(stage):
            await stage.cancel()
            return
        self._ledger.tell(ModuleQueued(work.name, Step.LINK))
        await stage.queue(QueuedItem(work.name, work, Estimate(0.05, 64 * 2**20 + 4 * size)))
        await stage.close()
        await self._until_ended(stage)

    @property
    def _target(self) -> Target:
        return self._first[1] if self._first is not None else Target("", "")

    def _end(self) -> BuildResult:
        if self._ledger.result is not None:
            return self._ledger.result
        if self._ending is None and self._stage is not None:
            self._ledger.skip(self._stage.skipped)
            self._ledger.cancelled |= self._stage.lost
        self._held.close()
        result = self._ledger.close()
        log_build(self._config.name, result)
        return result


def _past(config: BuildConfig, cache: OpenCache | None) -> Past | None:
    if cache is None or cache.records is None:
        return None
    lto = {ThinLto: "thin LTO", FatLto: "fat LTO", type(None): "no LTO"}[type(config.lto)]
    if config.link is None:
        thing = Thing(config.out_dir.absolute(), f"modules, {lto}")
    else:
        thing = Thing(config.link.output.absolute(), f"{config.link.kind.value}, {lto}")
    return Past(cache.records, thing)


def _size(path: Path) -> int:
    """Bytes of a file; one that is not there is the linker's to complain about."""
    try:
        return path.stat().st_size
    except OSError:
        return 0

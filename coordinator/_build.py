"""One build: modules in, artifacts and diagnostics out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import trio
from attrs import field, frozen

from coordinator._events import (
    BuildEvent,
    BuildFailed,
    BuildResult,
    DiagnosticReported,
    ModuleFinished,
    ModuleQueued,
    ModuleStarted,
)
from coordinator._history import History
from coordinator._log import log_build
from coordinator._loop import MainLoop, Stage
from coordinator._messages import QueuedItem
from workers.errors import ModuleError, RequestError
from workers.target import same_target
from workers.work import (
    CodegenOptions,
    Diagnostic,
    EmitKind,
    Estimate,
    Failed,
    Finished,
    Link,
    LinkOptions,
    Module,
    Optimize,
    Severity,
    Target,
    WorkResult,
    artifact_path,
    typed,
)

__all__ = ["Build", "BuildConfig"]


_DEFAULTS = CodegenOptions()


@frozen(kw_only=True)
class BuildConfig:
    """What to build.

    `out_dir` is made when it is missing. `name` is for logs. With `keep_going` a failure does not stop the other
    modules. `reproducer_dir` is where failures that need one leave a reproducer; `None` is `reproducers` in
    `out_dir`.
    """

    out_dir: Path = field(validator=typed(Path))
    codegen: CodegenOptions = field(default=_DEFAULTS, validator=typed(CodegenOptions))
    link: LinkOptions | None = field(default=None, validator=typed(LinkOptions, None))
    keep_going: bool = False
    reproducer_dir: Path | None = field(default=None, validator=typed(Path, None))
    name: str = "build"


class Build:
    """A build in the making; from `Coordinator.build`, as an async context manager.

    Leaving the context without `finish` cancels the build: nothing of it runs afterwards.
    """

    def __init__(self, config: BuildConfig, loop: MainLoop, history: History) -> None:
        loop.backend.check(config.codegen)
        if config.link is not None and EmitKind.OBJECT not in config.codegen.emit:
            raise RequestError("linking needs objects: add 'obj' to what is emitted")
        self._config = config
        self._out_dir = config.out_dir.absolute()
        self._reproducer_dir = (config.reproducer_dir or self._out_dir / "reproducers").absolute()
        self._loop = loop
        self._history = history
        self._stage: Stage | None = None
        self._names: dict[str, None] = {}  # in the order of submission
        self._first: tuple[str, Target] | None = None
        self._real_dirs: dict[str, str] = {}
        self._sources: set[str] = set()
        self._outputs: set[str] = set()
        if config.link is not None:
            self._check_overwrite(config.link.inputs, [config.link.output])
        self._results: list[WorkResult] = []
        self._watchers: list[trio.MemorySendChannel[BuildEvent]] = []
        self._opened = math.nan
        self._skipped: tuple[str, ...] = ()
        self._failed = False
        self._finishing = trio.Lock()
        self._closed = False
        self._cancelled = False
        self._result: BuildResult | None = None

    async def __aenter__(self) -> Self:
        if self._stage is not None:
            raise RequestError("the build has been entered before: make another one")
        self._opened = trio.current_time()
        self._stage = await self._open_stage()
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._result is None:
            with trio.CancelScope(shield=True):
                await self.cancel()
            if self._result is None:
                self._end()

    def watch(self) -> trio.MemoryReceiveChannel[BuildEvent]:
        """The events of this build from now on; the channel ends with the build.

        A slow watcher never holds the build up: its events wait for it, at most a handful for each module, which
        is what the result holds as well. Close the channel to stop watching.
        """
        send, receive = trio.open_memory_channel[BuildEvent](math.inf)
        self._watchers.append(send)
        if self._result is not None:
            send.close()
        return receive

    async def submit(self, module: Module) -> bool:
        """Hand over a module; waits while enough others are queued (back-pressure).

        Returns False when the build has been aborted or cancelled and takes no more modules. A module that
        cannot be built is no error here: it fails the build, as one that does not compile does. Raises
        `RequestError` for a name that is unusable or taken, after `finish`, and with the first module for options
        that its target does not have.
        """
        stage = self._entered()
        if self._closed and not self._cancelled:
            raise RequestError(f"module {module.name!r} comes too late: the build has been finished")
        self._take_name(module)
        if self._aborted:
            self._skipped += (module.name,)
            await trio.lowlevel.checkpoint()
            return False
        with stage.producing():
            try:
                await self._hand_over(module, stage)
            except BaseException:
                del self._names[module.name]  # as if it had never been submitted
                raise
        return not self._aborted

    async def finish(self) -> BuildResult:
        """Wait until everything submitted is done, link if asked to, and return the result.

        Raises `BuildFailed`, with the result in it, unless everything was built. May be called again.
        """
        async with self._finishing:
            result = self._result or await self._run_to_end()
        if not result.ok:
            raise BuildFailed(result)
        return result

    async def cancel(self) -> None:
        """Stop the build: what runs is stopped, what waits is dropped. `finish` then raises `BuildFailed`."""
        if self._result is None and self._stage is not None:
            self._closed = True
            self._cancelled = True
            await self._stage.cancel()

    @property
    def result(self) -> BuildResult | None:
        """The result, once the build has ended."""
        return self._result

    @property
    def _aborted(self) -> bool:
        return self._cancelled or (self._failed and not self._config.keep_going)

    def _take_name(self, module: Module) -> None:
        name = module.name
        if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise RequestError(f"module name {name!r} cannot name a file below the output directory: choose another")
        if name in self._names:
            raise RequestError(f"duplicate module name {name!r}: each module of a build needs a name of its own")
        self._names[name] = None

    async def _prepare(self, module: Module, target: Target) -> None:
        """With the first module it is known for which target the options must make sense."""
        if self._first is None:
            self._first = (module.name, target)
            if self._config.link is not None:
                self._loop.backend.check_link(self._config.link, target)
            await self._loop.backend.prepare(target, self._config.codegen)

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

    def _check_overwrite(self, sources: Iterable[Path], outputs: Iterable[Path]) -> None:
        """What the build writes must not replace what it reads, nor anything else that it writes."""
        for source in map(self._real, sources):
            if source in self._outputs:
                raise RequestError(f"the build would overwrite its input {source}: write somewhere else")
            self._sources.add(source)
        for output in map(self._real, outputs):
            if output in self._sources:
                raise RequestError(f"the build would overwrite its input {output}: write somewhere else")
            if output in self._outputs:
                raise RequestError(f"the build would write {output} twice: choose other names")
            self._outputs.add(output)

    def _real(self, path: Path) -> str:
        """`os.path.realpath`, with a memory for directories: a build has many files in few."""
        directory, name = os.path.split(path)
        if path.is_symlink():
            return os.path.realpath(path)
        if directory not in self._real_dirs:
            self._real_dirs[directory] = os.path.realpath(directory)
        return f"{self._real_dirs[directory]}/{name}"

    def _estimate(self, module: Module, estimate: Estimate) -> Estimate:
        measured = self._history.estimate(self._history_key(module.name))
        if measured is None:
            return estimate
        seconds, peak = measured
        return Estimate(seconds, peak, estimate.batch)

    def _history_key(self, module: str) -> tuple[str, CodegenOptions]:
        return module, self._config.codegen

    def _entered(self) -> Stage:
        if self._stage is None:
            raise RequestError("the build is not open: enter it with 'async with' first")
        return self._stage

    async def _run_to_end(self) -> BuildResult:
        stage = self._entered()
        if not self._closed:
            self._closed = True
            await stage.close()
        await stage.ended.wait()
        # A coordinator that was closed meanwhile has dropped what it did not get to.
        self._cancelled |= stage.lost
        link = self._config.link
        if link is not None and not (self._failed or self._cancelled or self._skipped or stage.skipped):
            await self._link(link)
        return self._end()

    async def _hand_over(self, module: Module, stage: Stage) -> None:
        codegen = self._config.codegen
        try:
            inspection = self._loop.backend.inspect(module, codegen)
            await self._prepare(module, inspection.target)
            self._check_target(module, inspection.target)
            self._check_overwrite(
                [module.content] if isinstance(module.content, Path) else [],
                [artifact_path(self._out_dir, module.name, kind) for kind in codegen.emit],
            )
        except ModuleError as error:
            diagnostic = Diagnostic(Severity.ERROR, module.name, error.message)
            self._on_results([Failed(module.name, codegen.engine, 0.0, 0, (diagnostic,))])
            await stage.fail()
            return
        work = Optimize(module, codegen, self._out_dir, self._reproducer_dir, inspection.target, inspection.size)
        held = len(module.content) if isinstance(module.content, bytes) else 0
        self._tell(ModuleQueued(module.name))
        await stage.queue(QueuedItem(module.name, work, self._estimate(module, inspection.estimate), held))

    # What the main loop tells

    async def _open_stage(self) -> Stage:
        return await self._loop.open_stage(
            keep_going=self._config.keep_going, on_started=self._on_started, on_results=self._on_results
        )

    def _on_started(self, items: Sequence[QueuedItem]) -> None:
        if self._watchers:
            for item in items:
                self._tell(ModuleStarted(item.name))

    def _on_results(self, results: Sequence[WorkResult]) -> None:
        for result in results:
            self._results.append(result)
            self._failed |= isinstance(result, Failed)
            if isinstance(result, Finished):
                self._history.record(self._history_key(result.module), result.seconds, result.peak_rss_bytes)
            if self._watchers:
                for diagnostic in result.diagnostics:
                    self._tell(DiagnosticReported(diagnostic))
                self._tell(ModuleFinished(result.module, result))

    def _tell(self, event: BuildEvent) -> None:
        for watcher in tuple(self._watchers):
            try:
                watcher.send_nowait(event)
            except trio.BrokenResourceError:
                self._watchers.remove(watcher)

    async def _link(self, link: LinkOptions) -> None:
        """The last stage: one item, on a token and within memory like any other."""
        # Symbols are resolved, and constructors run, in the order in which the caller submitted the modules.
        finished = {result.module: result for result in self._results if isinstance(result, Finished)}
        objects = [
            artifact
            for name in self._names
            if (result := finished.get(name)) is not None
            for artifact in result.artifacts
            if artifact.kind is EmitKind.OBJECT
        ]
        if self._first is None:
            raise RequestError(f"nothing to link into {link.output}: no module was submitted")
        size = sum(artifact.bytes for artifact in objects)
        named = tuple((artifact.module, artifact.path) for artifact in objects)
        work = Link(link, named, self._config.codegen, self._first[1], self._reproducer_dir)
        self._stage = await self._open_stage()
        if self._cancelled:  # while the stage was opened, when there was nothing yet to cancel
            await self._stage.cancel()
            return
        self._tell(ModuleQueued(work.name))
        await self._stage.queue(QueuedItem(work.name, work, Estimate(0.05, 64 * 2**20 + 4 * size)))
        await self._stage.close()
        await self._stage.ended.wait()
        self._cancelled |= self._stage.lost

    def _end(self) -> BuildResult:
        if self._result is not None:
            return self._result  # ended by somebody else while we waited
        if self._stage is not None:
            self._skipped += self._stage.skipped
        results = tuple(sorted(self._results, key=lambda result: result.module))
        self._result = BuildResult(
            results,
            tuple(diagnostic for result in results for diagnostic in result.diagnostics),
            tuple(sorted(self._skipped)),
            self._cancelled,
            trio.current_time() - self._opened,
        )
        for watcher in self._watchers:
            watcher.close()
        log_build(self._config.name, self._result)
        return self._result

"""The toolchain engine: modules through `clang -cc1` (and `ld.lld` for extra passes), as hermetic actions.

Several modules with equal options go through one process, which saves the start of a process per module. A batch
that is not perfectly clean (status, silence, every output there) is thrown away and its modules are compiled one by
one, so that every message has its module and one bad module harms no other. Whatever the batch, a module's bytes are
the same: each lies under a name that follows from its content, for that name can get into outputs (`ModuleID`, and
the source file's name where a module has none), and only kinds that do not see their neighbours are batched.

With extra passes there are three runs: cc1 to bitcode (with the ordinary passes or without), `ld.lld -r` for the
named pipeline, cc1 without passes for each kind asked for. lld must know the architecture (not WebAssembly, BPF).

Passes are reported of one run per step: those of the optimiser (`Running pass: SROAPass on f`) in the pass
manager's own words, and those of code generation (`Running codegen pass: Greedy Register Allocator on f`), which are
about as many. Analyses are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio
from attrs import define, evolve, field, frozen

from workers.action import Action, ActionResult, run
from workers.errors import InternalError, RequestError
from workers.llvm.cc1 import BATCHABLE, PROFILE, SUFFIX, Plan, cc1_arguments, lld_arguments
from workers.llvm.failures import Message, foreign_output, judge, of_another_target
from workers.llvm.oom import OomWatch
from workers.llvm.passes import PassReader
from workers.llvm.planner import Planner, tool_name
from workers.llvm.reproducer import Reproducer, reproduced
from workers.llvm.toolchain import Toolchain
from workers.work import CodegenOptions, Diagnostic, EmitKind, Optimize, Severity

__all__ = ["Report", "Task", "ToolchainEngine"]

_BATCH_SECONDS = 30.0
"""The least a batch may take. Beyond this and twenty times what is expected of it, some module in it hangs, and
finding that out must not cost more than that module's own time limit does."""

_BATCH_SLACK = 20.0


@frozen
class Task:
    """One module to compile: `item` says how, `content` is what LLVM's tools read, `outputs` is where to.

    `stem` is the module's file name for tools, without its suffix. `seconds` is what it is expected to take.
    """

    item: Optimize
    content: Path | bytes = field(repr=False)
    stem: str
    triple: str
    outputs: Mapping[EmitKind, Path]
    seconds: float


@frozen
class Report:
    """How a task ended: all its outputs are there, or it `failed` and at least one diagnostic is an error."""

    failed: bool
    seconds: float
    peak_rss_bytes: int
    diagnostics: tuple[Diagnostic, ...] = ()
    passes: tuple[str, ...] = field(default=(), repr=lambda passes: f"<{len(passes)} lines>")


class ToolchainEngine:
    """Runs the toolchain's programs in directories below `scratch`. Any number of tasks may use it at once."""

    def __init__(
        self, toolchain: Toolchain, planner: Planner, scratch: Path, versions: Callable[[], str], oom: OomWatch
    ) -> None:
        self._toolchain = toolchain
        self._scratch = scratch
        self._versions = versions
        self._oom = oom
        self._planner = planner

    async def compile_batch(self, tasks: Sequence[Task]) -> list[Report]:
        """Compile tasks that have equal triples and options. A report for each, in the order of `tasks`."""
        options = tasks[0].item.options
        started = trio.current_time()
        try:
            plan = await self._planner.plan(tasks[0].triple, options)
        except RequestError as error:
            seconds = (trio.current_time() - started) / len(tasks)
            return [Report(True, seconds, 0, (_error(task.item, str(error)),)) for task in tasks]
        # Of modules with equal content one is in the batch: they would have one name.
        batch = {task.stem: number for number, task in enumerate(tasks)}
        together = [tasks[number] for number in batch.values()]
        done: frozenset[EmitKind] = frozenset()
        seconds, peak = 0.0, 0
        if len(together) > 1 and not options.extra_passes and not options.print_passes:
            for kind in sorted(options.emit & BATCHABLE, key=list(EmitKind).index):
                result = await self._together(together, plan, kind)
                seconds += result.seconds
                peak = max(peak, result.peak_rss_bytes)
                if not result.succeeded:
                    break
                done |= {kind}
        weight = sum(task.seconds for task in together) or 1.0
        reports = []
        for number, task in enumerate(tasks):
            batched = batch[task.stem] == number
            single = _Single(self, task, plan, done if batched else frozenset())
            await single.compile()
            reports.append(single.report(seconds * task.seconds / weight, peak) if batched else single.report(0.0, 0))
        return reports

    async def _together(self, tasks: Sequence[Task], plan: Plan, kind: EmitKind) -> ActionResult:
        """Make one kind of output of all tasks in one process. Unless it succeeded, nothing of it is used."""
        options = tasks[0].item.options
        inputs = [f"{task.stem}.ir" for task in tasks]
        outputs = [task.stem + SUFFIX[kind] for task in tasks]
        expected = _BATCH_SECONDS + _BATCH_SLACK * sum(task.seconds for task in tasks)
        action = Action(
            argv=(*self._toolchain.clang, *cc1_arguments(plan, kind, inputs)),
            inputs={
                **{name: task.content for name, task in zip(inputs, tasks, strict=True)},
                **_profile(options),
            },
            outputs=tuple(outputs),
            time_limit=min(options.time_limit, expected),
            memory_limit=options.memory_limit,
        )
        async with run(action, self._scratch) as result:
            written = [result.directory / name for name in outputs]
            if not result.succeeded or result.stderr or any(_is_foreign(kind, path) for path in written):
                return evolve(result, status=None)
            for path, task in zip(written, tasks, strict=True):
                path.rename(task.outputs[kind])
            return result


@define
class _Single:
    """One module through all its runs, one after the other; stops at the first that fails."""

    _engine: ToolchainEngine
    _task: Task
    _plan: Plan
    _done: frozenset[EmitKind]
    _seconds: float = 0.0
    _peak: int = 0
    _failed: bool = False
    _diagnostics: list[Diagnostic] = field(factory=list)
    _passes: list[str] = field(factory=list)

    def report(self, seconds: float, peak: int) -> Report:
        """The sum of it all; `seconds` and `peak` are of what was done together with others."""
        return Report(
            self._failed,
            self._seconds + seconds,
            max(self._peak, peak),
            tuple(dict.fromkeys(self._diagnostics)),
            tuple(self._passes),
        )

    @property
    def _input(self) -> str:
        return f"{self._task.stem}.ir"

    async def compile(self) -> None:
        """Make every kind of output that is asked for and not done."""
        options = self._task.item.options
        kinds = [kind for kind in EmitKind if kind in options.emit and kind not in self._done]
        content: Path | bytes = self._task.content
        run_passes = options.prepopulate_passes
        if options.extra_passes:
            prepared = next(iter(self._task.outputs.values()))
            content = prepared.with_suffix(".optimized")
            extended = prepared.with_suffix(".extended")
            await self._cc1(EmitKind.BITCODE, self._task.content, content, run_passes, options.print_passes)
            await self._lld(content, extended)
            content = extended
            run_passes = False
        for kind in kinds:
            with_passes = options.print_passes and kind is kinds[0]
            await self._cc1(kind, content, self._task.outputs[kind], run_passes, with_passes)

    async def _cc1(
        self, kind: EmitKind, content: Path | bytes, destination: Path, run_passes: bool, print_passes: bool
    ) -> None:
        output = self._task.stem + SUFFIX[kind]
        arguments = cc1_arguments(
            self._plan,
            kind,
            [self._input],
            output=output,
            run_passes=run_passes,
            print_passes=print_passes,
        )
        inputs = {self._input: content, **(_profile(self._task.item.options) if run_passes else {})}
        await self._run((*self._engine._toolchain.clang, *arguments), inputs, kind, output, destination, print_passes)

    async def _lld(self, content: Path, destination: Path) -> None:
        options = self._task.item.options
        lld = self._engine._toolchain.lld
        if lld is None:
            raise InternalError("extra passes without ld.lld: the plan was tried out with it")
        output = "extended.bc"
        argv = (*lld, *lld_arguments(self._plan, options, self._input, output))
        await self._run(argv, {self._input: content}, EmitKind.BITCODE, output, destination, options.print_passes)

    async def _run(
        self,
        argv: tuple[str, ...],
        inputs: Mapping[str, Path | bytes],
        kind: EmitKind,
        output: str,
        destination: Path,
        print_passes: bool,
    ) -> None:
        if self._failed:
            return
        options = self._task.item.options
        action = Action(
            argv=argv,
            inputs=inputs,
            outputs=(output,),
            time_limit=options.time_limit - self._seconds,
            memory_limit=options.memory_limit,
        )
        reader = PassReader()
        async with run(action, self._engine._scratch, stderr_to=reader.read if print_passes else None) as result:
            if print_passes:
                result = evolve(result, stderr=reader.diagnostics())
            self._seconds += result.seconds
            self._peak = max(self._peak, result.peak_rss_bytes)
            self._passes += reader.passes
            written = result.directory / output
            if result.succeeded and _is_foreign(kind, written):
                result = evolve(result, missing=(output,))
            await self._judge(action, result)
            if not self._failed:
                written.rename(destination)

    async def _judge(self, action: Action, result: ActionResult) -> None:
        item = self._task.item
        verdict = judge(
            result,
            tool=tool_name(action.argv),
            names={self._input: item.name},
            time_limit=item.options.time_limit,
            memory_limit=action.memory_limit,
            out_of_memory=result.signal is not None and self._engine._oom.killed_again(),
        )
        self._failed = verdict.failed
        if verdict.fault:
            self._diagnostics.append(await self._reproduce(action, result, verdict.messages[0]))
        else:
            self._diagnostics += [
                Diagnostic(one.severity, item.name, one.text) for one in of_another_target(verdict.messages)
            ]

    async def _reproduce(self, action: Action, result: ActionResult, message: Message) -> Diagnostic:
        item = self._task.item
        reproducer = Reproducer(
            module=item.name,
            message=message.text,
            argv=action.argv,
            inputs={name: result.directory / name for name in action.inputs},
            stderr=result.stderr,
            versions=self._engine._versions(),
            hang=item.options.time_limit if result.timed_out else None,
            memory_limit=action.memory_limit,
        )
        return await reproduced(item, message.text, reproducer)


def _profile(options: CodegenOptions) -> dict[str, Path | bytes]:
    return {} if options.profile_use is None else {PROFILE: options.profile_use}


def _is_foreign(kind: EmitKind, path: Path) -> bool:
    with path.open("rb") as file:
        return foreign_output(kind, file.read(4096))


def _error(item: Optimize, message: str) -> Diagnostic:
    return Diagnostic(Severity.ERROR, item.name, message)

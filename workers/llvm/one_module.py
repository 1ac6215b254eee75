"""One module through the toolchain: which programs it goes through for what is asked for, one after the other.

With extra passes there are three runs: cc1 to bitcode (with the ordinary passes or without), `ld.lld -r` for the
named pipeline, cc1 without passes for each kind asked for. lld must know the architecture (not WebAssembly, BPF).
It loses a module's summary; so in front of LTO the third run is the one that adds a summary, of what the extra passes
left.

Objects that carry bitcode are made in one run or in two: see `workers.llvm.embedding`.

Passes are reported of one run per step: those of the optimiser (`Running pass: SROAPass on f`) in the pass
manager's own words, and those of code generation (`Running codegen pass: Greedy Register Allocator on f`), which are
about as many. Analyses are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import define, evolve, field, frozen

from workers.action import Action, ActionResult, run
from workers.errors import InternalError, RequestError
from workers.llvm.bitcode import BitcodeError
from workers.llvm.cc1 import NO_INDEX, PROFILE, SUFFIX, Plan, cc1_arguments, embed_arguments, lld_arguments
from workers.llvm.content import ContentError
from workers.llvm.embedding import in_one_run, knows_fat_lto, mark_for_lto, why_not_embedded
from workers.llvm.failures import Message, foreign_output, judge, of_another_target
from workers.llvm.form import Form
from workers.llvm.lto_flags import without_lto_flags
from workers.llvm.objectfile import ObjectError
from workers.llvm.oom import OomWatch
from workers.llvm.passes import PassReader
from workers.llvm.planner import Planner, tool_name
from workers.llvm.reproducer import Reproducer, reproduced
from workers.llvm.toolchain import Toolchain
from workers.work import CodegenOptions, Diagnostic, EmitKind, Optimize, Severity

__all__ = ["OneModule", "Report", "Task", "Tools", "is_foreign", "profile_input"]


@frozen
class Tools:
    """What runs need: programs, how to ask them, where to run them, and what to tell of a fault."""

    toolchain: Toolchain
    planner: Planner
    scratch: Path
    versions: Callable[[], str]
    oom: OomWatch


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


@define
class OneModule:
    """One module through all its runs, one after the other; stops at the first that fails."""

    _tools: Tools
    _task: Task
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
        """Make every kind of output that is asked for and not done, or what its pre-link pipeline ends with."""
        item, options = self._task.item, self._task.item.options
        if item.pre_link is not None:
            (destination,) = self._task.outputs.values()
            await self._pre_link(Form.of(item.pre_link), self._task.content, destination, options.print_passes)
            return
        kinds = [kind for kind in EmitKind if kind in options.emit and kind not in self._done]
        content: Path | bytes = self._task.content
        run_passes = options.prepopulate_passes
        if options.extra_passes and kinds != [EmitKind.FATOBJ]:
            content = await self._extended(Form.CODE, content, run_passes)
            run_passes = False
        for kind in kinds:
            print_passes = options.print_passes and kind is kinds[0]
            if kind is EmitKind.FATOBJ:
                await self._fat_object(self._task.outputs[kind], print_passes)
            else:
                await self._cc1(kind, content, self._task.outputs[kind], run_passes, print_passes)

    async def _pre_link(self, form: Form, content: Path | bytes, destination: Path, print_passes: bool) -> None:
        """Make bitcode for LTO: pre-link pipeline, extra passes, summary."""
        options = self._task.item.options
        run_passes = options.prepopulate_passes and not self._task.item.pre_linked
        if options.extra_passes:
            content = await self._extended(form, content, run_passes)
            run_passes = False
        await self._cc1(EmitKind.BITCODE, content, destination, run_passes, print_passes, form)

    async def _extended(self, form: Form, content: Path | bytes, run_passes: bool) -> Path:
        """The module after the ordinary passes and the extra ones."""
        staging = next(iter(self._task.outputs.values()))
        optimized, extended = (staging.with_suffix(f".{form.name}.{what}") for what in ("optimized", "extended"))
        print_passes = self._task.item.options.print_passes
        await self._cc1(EmitKind.BITCODE, content, optimized, run_passes, print_passes, form)
        await self._lld(optimized, extended)
        return extended

    async def _cc1(
        self,
        kind: EmitKind,
        content: Path | bytes,
        destination: Path,
        run_passes: bool,
        print_passes: bool,
        form: Form = Form.CODE,
    ) -> None:
        plan = await self._plan(form)
        if plan is None:
            return
        output = self._task.stem + SUFFIX[kind]
        arguments = cc1_arguments(
            plan,
            kind,
            [self._input],
            output=output,
            run_passes=run_passes,
            print_passes=print_passes,
        )
        inputs = {self._input: content, **(profile_input(self._task.item.options) if run_passes else {})}
        await self._run((*self._tools.toolchain.clang, *arguments), inputs, kind, output, destination, print_passes)

    async def _lld(self, content: Path, destination: Path) -> None:
        plan = await self._plan(Form.CODE)
        if plan is None:
            return
        options = self._task.item.options
        lld = self._tools.toolchain.lld
        if lld is None:
            raise InternalError("extra passes without ld.lld: the plan was tried out with it")
        output = "extended.bc"
        argv = (*lld, *lld_arguments(plan, options, self._input, output))
        await self._run(argv, {self._input: content}, EmitKind.BITCODE, output, destination, options.print_passes)

    async def _plan(self, form: Form) -> Plan | None:
        """The plan for a form; `None` where the task has failed, be it because there is no such plan."""
        if self._failed:
            return None
        try:
            return await self._tools.planner.plan(self._task.triple, self._task.item.options, form)
        except RequestError as error:
            self._fail(str(error))
            return None

    async def _fat_object(self, destination: Path, print_passes: bool) -> None:
        """Make an object that carries bitcode for either kind of LTO."""
        try:
            content = without_lto_flags(self._task.content)
        except (BitcodeError, ContentError) as error:
            self._fail(f"the bitcode cannot be used: {error}")
            return
        if in_one_run(self._task.item, self._task.triple):
            await self._cc1(EmitKind.FATOBJ, content, destination, True, print_passes, Form.FAT_OBJECT)
        else:
            bitcode = destination.with_suffix(".prepared")
            # FatLTO says what LLVM cannot do, if it is FatLTO's business.
            if not knows_fat_lto(self._task.triple) or await self._plan(Form.FAT_OBJECT) is not None:
                await self._pre_link(Form.UNIFIED, content, bitcode, print_passes)
                await self._embed(bitcode, destination, print_passes)
        if not self._failed:
            try:
                mark_for_lto(destination)
            except (ObjectError, ContentError, OSError) as error:
                self._fail(f"no object for LTO can be made of it: clang wrote {error}")

    async def _embed(self, bitcode: Path, destination: Path, print_passes: bool) -> None:
        """Make an object of bitcode for LTO, with that bitcode in it."""
        plan = await self._plan(Form.CODE)
        if plan is None:
            return
        reason = why_not_embedded(bitcode)
        if reason is not None:
            self._fail(reason)
            return
        output = self._task.stem + SUFFIX[EmitKind.FATOBJ]
        run_passes = self._task.item.options.prepopulate_passes
        arguments = embed_arguments(plan, self._input, output, run_passes=run_passes, print_passes=print_passes)
        argv = (*self._tools.toolchain.clang, *arguments)
        inputs: dict[str, Path | bytes] = {self._input: bitcode, NO_INDEX: b""}
        await self._run(argv, inputs, EmitKind.FATOBJ, output, destination, print_passes)

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
        async with run(action, self._tools.scratch, stderr_to=reader.read if print_passes else None) as result:
            if print_passes:
                result = evolve(result, stderr=reader.diagnostics())
            self._seconds += result.seconds
            self._peak = max(self._peak, result.peak_rss_bytes)
            self._passes += reader.passes
            written = result.directory / output
            if result.succeeded and is_foreign(kind, written):
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
            out_of_memory=result.signal is not None and self._tools.oom.killed_again(),
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
            versions=self._tools.versions(),
            hang=item.options.time_limit if result.timed_out else None,
            memory_limit=action.memory_limit,
        )
        return await reproduced(item, message.text, reproducer)

    def _fail(self, message: str) -> None:
        self._failed = True
        self._diagnostics.append(Diagnostic(Severity.ERROR, self._task.item.name, message))


def profile_input(options: CodegenOptions) -> dict[str, Path | bytes]:
    """The profile that actions get, under the name that plans know it by."""
    return {} if options.profile_use is None else {PROFILE: options.profile_use}


def is_foreign(kind: EmitKind, path: Path) -> bool:
    """Whether a tool's output cannot be what was asked for."""
    with path.open("rb") as file:
        return foreign_output(kind, file.read(4096))

"""Backend compiles: modules with what they import become objects, in one of two ways that give the same bytes.

* One run of lld for several modules. It does the thin link again, which pays as soon as starting a process for each
  module would take longer. Its command is the thin link's, so its objects are what lld makes of the link in one go.
* One run of clang for one module, as a hermetic action: the module, what it imports from, and its shard. It is the
  quicker way for one module, the only one for outputs other than objects, and the way to find out which module is to
  blame.

Where clang's objects are not lld's (`equals_lld`), or the index is very large, lld makes every object, and clang only
finds out what is wrong.
A batch that is not perfectly clean is thrown away, and its modules are compiled one by one.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import trio
from attrs import define, evolve, field, frozen

from workers.action import Action, ActionResult, run
from workers.errors import ModuleError, RequestError
from workers.llvm.bitcode import BitcodeError, read_header
from workers.llvm.cc1 import SUFFIX, cc1_arguments
from workers.llvm.content import ContentError, open_file
from workers.llvm.failures import Message, Verdict, foreign_output, judge, of_another_target
from workers.llvm.oom import OomWatch
from workers.llvm.passes import PassReader
from workers.llvm.planner import Planner
from workers.llvm.reproducer import Reproducer, write_reproducer
from workers.llvm.thin_lld import Share, run_lld, together
from workers.llvm.thin_options import backend_plan
from workers.llvm.thin_plan import ThinPlan, shard_for, uses_pic
from workers.llvm.toolchain import Toolchain
from workers.placing import place
from workers.thin import ThinCompile
from workers.work import (
    Artifact,
    Diagnostic,
    EmitKind,
    Engine,
    Failed,
    Finished,
    Severity,
    Step,
    artifact_path,
)

__all__ = ["Tools", "thin_compile"]

_SHARD = "shard.thinlto.bc"

_LATE_ERROR = re.compile(rb"^Error (?=(?:loading|running) )", re.MULTILINE)
"""How clang begins what it says about a backend compile that failed, before it ends with status 0."""

_OTHER_TRIPLE = "Linking two modules of different target triples"
"""lld warns of this where vendors differ, as those of clang and rustc do. Nothing follows from it."""


@frozen
class Tools:
    """What backend compiles run, and where: in directories below `scratch`. `versions` is for reproducers."""

    toolchain: Toolchain
    planner: Planner
    scratch: Path
    versions: Callable[[], str]
    oom: OomWatch


async def thin_compile(batch: Sequence[ThinCompile], tools: Tools, *, keep_going: bool) -> list[Finished | Failed]:
    """Compile the items; the contract is `workers.thin.ThinLtoBackend`'s."""
    try:
        staging = Path(tempfile.mkdtemp(prefix="thin-", dir=tools.scratch)).absolute()
    except OSError as error:
        message = f"cannot make temporary files in {tools.scratch}: {error.strerror}"
        return [_Single(tools, item, tools.scratch).refused(message) for item in batch]
    try:
        shares = await together(batch, tools.scratch, staging)
        results: list[Finished | Failed] = []
        for number, item in enumerate(batch):
            single = _Single(tools, item, staging / str(number))
            share = shares.get(item.name)
            if share is not None:
                single.take(share)
            results.append(await single.compile())
            if isinstance(results[-1], Failed) and not keep_going:
                break
        return results
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@define
class _Single:
    """One module through all its runs, one after the other; stops at the first that fails."""

    _tools: Tools
    _item: ThinCompile
    _staging: Path
    _seconds: float = 0.0
    _peak: int = 0
    _failed: bool = False
    _outputs: dict[EmitKind, Path] = field(factory=dict)
    _diagnostics: list[Diagnostic] = field(factory=list)
    _passes: list[str] = field(factory=list)

    @property
    def _plan(self) -> ThinPlan:
        plan: ThinPlan = self._item.link
        return plan

    def refused(self, message: str) -> Failed:
        """The result of a module that cannot even be begun."""
        self._error(message)
        return self._failure()

    def take(self, share: Share) -> None:
        """Take over what was made together with others."""
        self._seconds += share.seconds
        self._peak = share.peak_rss_bytes
        self._outputs[EmitKind.OBJECT] = share.output
        self._warn(share.messages)

    async def compile(self) -> Finished | Failed:
        """Make every kind of output that is asked for and not there, and put all of them to their places."""
        options = self._plan.item.options
        kinds = [kind for kind in EmitKind if kind in options.emit and kind not in self._outputs]
        try:
            if kinds:
                self._staging.mkdir()
            for kind in kinds:
                print_passes = options.print_passes and kind is kinds[0]
                if kind is EmitKind.OBJECT and not self._plan.by_clang:
                    await self._lld(print_passes)
                else:
                    self._outputs[kind] = await self._clang(kind, print_passes)
                if self._failed:
                    return self._failure()
            return self._place()
        except ModuleError as error:
            self._error(error.message)
        except RequestError as error:
            self._error(str(error))
        except OSError as error:
            self._error(f"{error.filename or self._staging}: {error.strerror or error}")
        return self._failure()

    async def _lld(self, print_passes: bool) -> None:
        """Make the object with lld. Whatever goes wrong with it, clang is asked what, for it can show it again."""
        plan, options = self._plan, self._plan.item.options
        changed = plan.changed()
        if changed is not None:
            raise ModuleError(self._item.name, f"the file of {changed} was changed or removed after the thin link")
        outputs, result = await run_lld(plan, [self._item], self._tools.scratch, self._staging, options.time_limit)
        self._seconds += result.seconds
        self._peak = max(self._peak, result.peak_rss_bytes)
        killed = result.signal is not None and self._tools.oom.killed_again()
        verdict = _judge(result, "ld.lld", plan.names, options.time_limit, options.memory_limit, oom=killed)
        if outputs is not None and not verdict.failed:
            self._outputs[EmitKind.OBJECT] = outputs[self._item.name]
            self._warn([message for message in verdict.messages if message.text not in plan.warned])
            if print_passes:
                await self._clang(EmitKind.OBJECT, True)
            return
        with suppress(ModuleError):
            await self._clang(EmitKind.OBJECT, False)
        if not self._failed:
            self._failed = True
            self._warn(verdict.messages)

    async def _clang(self, kind: EmitKind, print_passes: bool) -> Path:
        """Make one output with clang, and say where it is, unless that failed. Raises `ModuleError`, `RequestError`."""
        options = self._plan.item.options
        action = await self._action(kind, print_passes)
        output = action.outputs[0]
        destination = self._staging / output
        reader = PassReader()
        async with run(action, self._tools.scratch, stderr_to=reader.read if print_passes else None) as result:
            if print_passes:
                result = evolve(result, stderr=reader.diagnostics())
            result = evolve(result, stderr=_LATE_ERROR.sub(b"error: ", result.stderr))
            self._seconds += result.seconds
            self._peak = max(self._peak, result.peak_rss_bytes)
            self._passes += reader.passes
            if result.succeeded and _is_foreign(kind, result.directory / output):
                result = evolve(result, missing=(output,))
            killed = result.signal is not None and self._tools.oom.killed_again()
            paths = {name: content for name, content in action.inputs.items() if isinstance(content, Path)}
            names = {name: self._plan.names[str(path)] for name, path in paths.items()}
            verdict = _judge(result, "clang", names, options.time_limit, options.memory_limit, oom=killed)
            self._failed |= verdict.failed
            if verdict.fault:
                await self._reproduce(action, result, verdict.messages[0].text)
            else:
                self._warn(verdict.messages)
            if not verdict.failed:
                (result.directory / output).rename(destination)
        return destination

    async def _action(self, kind: EmitKind, print_passes: bool) -> Action:
        """One run of clang. Raises `ModuleError` where something that it needs is not there, `RequestError`."""
        plan, options = self._plan, self._plan.item.options
        index = await plan.index()
        shard, imports = await trio.to_thread.run_sync(shard_for, self._item, plan, index)
        own = plan.paths[self._item.name]
        try:
            with open_file(own) as view:
                triple = read_header(view).triple
            relocation = plan.relocation or ("pic" if uses_pic(own) else "static")
        except (ContentError, BitcodeError) as error:
            raise ModuleError(self._item.name, f"its bitcode cannot be used: {error}") from error
        base = await self._tools.planner.plan(triple, options)
        arguments = cc1_arguments(
            backend_plan(base, options, relocation, _SHARD),
            kind,
            [plan.labels[str(own)]],
            output=f"output{SUFFIX[kind]}",
            print_passes=print_passes,
        )
        return Action(
            argv=(*self._tools.toolchain.clang, *arguments),
            inputs={_SHARD: shard, **{plan.labels[str(path)]: path for path in (own, *imports)}},
            outputs=(f"output{SUFFIX[kind]}",),
            time_limit=options.time_limit,
            memory_limit=options.memory_limit,
        )

    async def _reproduce(self, action: Action, result: ActionResult, message: str) -> None:
        options, parent = self._plan.item.options, self._plan.item.reproducer_dir
        reproducer = Reproducer(
            module=self._item.name,
            message=message,
            argv=action.argv,
            inputs={name: result.directory / name for name in action.inputs},
            stderr=result.stderr,
            versions=self._tools.versions(),
            hang=options.time_limit if result.timed_out else None,
            memory_limit=action.memory_limit,
        )
        try:
            where = await trio.to_thread.run_sync(write_reproducer, parent, reproducer)
        except OSError as error:
            self._error(f"{message}\n(no reproducer: {error.strerror or error}, {parent})")
        else:
            self._diagnostics.append(Diagnostic(Severity.ERROR, self._item.name, message, where))

    def _warn(self, messages: Sequence[Message]) -> None:
        for one in of_another_target(messages):
            if _OTHER_TRIPLE not in one.text:
                self._diagnostics.append(Diagnostic(one.severity, self._item.name, one.text))

    def _error(self, message: str) -> None:
        self._failed = True
        self._diagnostics.append(Diagnostic(Severity.ERROR, self._item.name, message))

    def _failure(self) -> Failed:
        return Failed(
            self._item.name,
            Engine.TOOLCHAIN,
            self._seconds,
            self._peak,
            tuple(dict.fromkeys(self._diagnostics)),
            Step.THIN_BACKEND,
        )

    def _place(self) -> Finished | Failed:
        artifacts = []
        for kind in sorted(self._outputs, key=list(EmitKind).index):
            destination = artifact_path(self._plan.item.out_dir, self._item.name, kind)
            try:
                size = place(self._outputs[kind], destination)
            except OSError as error:
                self._error(f"cannot write {destination}: {error.strerror or error}")
                return self._failure()
            artifacts.append(Artifact(self._item.name, kind, destination, size))
        return Finished(
            self._item.name,
            tuple(artifacts),
            Engine.TOOLCHAIN,
            self._seconds,
            self._peak,
            tuple(dict.fromkeys(self._diagnostics)),
            tuple(self._passes),
            Step.THIN_BACKEND,
        )


def _judge(
    result: ActionResult, tool: str, names: Mapping[str, str], limit: float, memory_limit: int | None, *, oom: bool
) -> Verdict:
    return judge(result, tool=tool, names=names, time_limit=limit, memory_limit=memory_limit, out_of_memory=oom)


def _is_foreign(kind: EmitKind, path: Path) -> bool:
    with path.open("rb") as file:
        return foreign_output(kind, file.read(4096))

"""The toolchain engine: modules through `clang -cc1` (and `ld.lld` for extra passes), as hermetic actions.

Several modules with equal options go through one process, which saves the start of a process per module. A batch
that is not perfectly clean (status, silence, every output there) is thrown away and its modules are compiled one by
one, so that every message has its module and one bad module harms no other. Whatever the batch, a module's bytes are
the same: each lies under a name that follows from its content, for that name can get into outputs (`ModuleID`, and
the source file's name where a module has none), and only kinds that do not see their neighbours are batched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import evolve

from workers.action import Action, ActionResult, run
from workers.errors import RequestError
from workers.llvm.cc1 import BATCHABLE, SUFFIX, cc1_arguments
from workers.llvm.embedding import knows_fat_lto
from workers.llvm.form import Form
from workers.llvm.one_module import OneModule, Report, Task, Tools, is_foreign, profile_input
from workers.llvm.oom import OomWatch
from workers.llvm.planner import Planner
from workers.llvm.toolchain import Toolchain
from workers.work import CodegenOptions, EmitKind, PreLink

__all__ = ["Report", "Task", "ToolchainEngine", "forms_of"]

_BATCH_SECONDS = 30.0
"""The least a batch may take. Beyond this and twenty times what is expected of it, some module in it hangs, and
finding that out must not cost more than that module's own time limit does."""

_BATCH_SLACK = 20.0


class ToolchainEngine:
    """Runs the toolchain's programs in directories below `scratch`. Any number of tasks may use it at once."""

    def __init__(
        self, toolchain: Toolchain, planner: Planner, scratch: Path, versions: Callable[[], str], oom: OomWatch
    ) -> None:
        self._tools = Tools(toolchain, planner, scratch, versions, oom)

    async def prepare(self, triple: str, options: CodegenOptions, pre_link: PreLink | None = None) -> None:
        """Ask the driver all that modules of `triple` need. Raises `RequestError` for what it does not have."""
        for form in forms_of(triple, options, pre_link):
            await self._tools.planner.plan(triple, options, form)

    async def compile_batch(self, tasks: Sequence[Task]) -> list[Report]:
        """Compile tasks that have equal triples, options and `pre_link`. A report for each, in the order of `tasks`.

        A task with `pre_link` makes one file, bitcode for LTO, whatever its options want to be emitted.
        """
        options = tasks[0].item.options
        # Of modules with equal content one is in the batch: they would have one name.
        batch = {task.stem: number for number, task in enumerate(tasks)}
        together = [tasks[number] for number in batch.values()]
        done: frozenset[EmitKind] = frozenset()
        seconds, peak = 0.0, 0
        one_run = tasks[0].item.pre_link is None and not options.extra_passes and not options.print_passes
        if len(together) > 1 and one_run:
            for kind in sorted(options.emit & BATCHABLE, key=list(EmitKind).index):
                result = await self._together(together, kind)
                if result is None:
                    break
                seconds += result.seconds
                peak = max(peak, result.peak_rss_bytes)
                if not result.succeeded:
                    break
                done |= {kind}
        weight = sum(task.seconds for task in together) or 1.0
        reports = []
        for number, task in enumerate(tasks):
            batched = batch[task.stem] == number
            single = OneModule(self._tools, task, done if batched else frozenset())
            await single.compile()
            reports.append(single.report(seconds * task.seconds / weight, peak) if batched else single.report(0.0, 0))
        return reports

    async def _together(self, tasks: Sequence[Task], kind: EmitKind) -> ActionResult | None:
        """Make one kind of output of all tasks in one process. Unless it succeeded, nothing of it is used.

        `None`: it cannot be asked for at all, which each module is to be told.
        """
        options = tasks[0].item.options
        try:
            plan = await self._tools.planner.plan(tasks[0].triple, options)
        except RequestError:
            return None
        inputs = [f"{task.stem}.ir" for task in tasks]
        outputs = [task.stem + SUFFIX[kind] for task in tasks]
        expected = _BATCH_SECONDS + _BATCH_SLACK * sum(task.seconds for task in tasks)
        action = Action(
            argv=(*self._tools.toolchain.clang, *cc1_arguments(plan, kind, inputs)),
            inputs={
                **{name: task.content for name, task in zip(inputs, tasks, strict=True)},
                **profile_input(options),
            },
            outputs=tuple(outputs),
            time_limit=min(options.time_limit, expected),
            memory_limit=options.memory_limit,
        )
        async with run(action, self._tools.scratch) as result:
            written = [result.directory / name for name in outputs]
            if not result.succeeded or result.stderr or any(is_foreign(kind, path) for path in written):
                return evolve(result, status=None)
            for path, task in zip(written, tasks, strict=True):
                path.rename(task.outputs[kind])
            return result


def forms_of(triple: str, options: CodegenOptions, pre_link: PreLink | None) -> list[Form]:
    """The forms that modules of `triple` may go through on their way."""
    forms = {Form.CODE}
    if pre_link is not None:
        forms.add(Form.of(pre_link))
    if EmitKind.FATOBJ in options.emit:
        forms.add(Form.FAT_OBJECT if knows_fat_lto(triple) else Form.UNIFIED)
    return sorted(forms, key=list(Form).index)

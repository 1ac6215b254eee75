"""The llvmlite engine: modules through the pool's children, told in the toolchain engine's words."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from workers.llvm.cc1 import SUFFIX
from workers.llvm.failures import describe_signal, of_another_target, parse_messages
from workers.llvm.llvmlite_pool import Compiled, Died, LlvmlitePool, Outcome, Rejected, Unsuitable
from workers.llvm.llvmlite_request import Job, reproduce_argv
from workers.llvm.oom import OomWatch
from workers.llvm.reproducer import Reproducer, reproduced
from workers.llvm.toolchain_engine import Report, Task
from workers.work import Diagnostic, Optimize, Severity

__all__ = ["LlvmliteEngine"]


class LlvmliteEngine:
    """Compiles batches in `pool`. Any number of tasks may use it at once."""

    def __init__(self, pool: LlvmlitePool, versions: Callable[[], str], oom: OomWatch) -> None:
        self._pool = pool
        self._versions = versions
        self._oom = oom

    async def compile_batch(self, tasks: Sequence[Task]) -> list[Report | Unsuitable]:
        """Compile tasks that have equal triples and options; one answer each, in the order of `tasks`.

        `Unsuitable` is a module that llvmlite turned out not to be made for.
        """
        jobs = [Job(task.item.name, task.content, task.triple, task.item.options, task.outputs) for task in tasks]
        outcomes = await self._pool.compile_batch(jobs)
        return [await self._report(task, outcome) for task, outcome in zip(tasks, outcomes, strict=True)]

    async def _report(self, task: Task, outcome: Outcome) -> Report | Unsuitable:
        item = task.item
        match outcome:
            case Compiled():
                messages = of_another_target(parse_messages(outcome.stderr, {}))
                warnings = tuple(Diagnostic(one.severity, item.name, one.text) for one in messages)
                failed = any(one.severity is Severity.ERROR for one in messages)
                return Report(failed, outcome.seconds, outcome.peak_rss_bytes, warnings)
            case Rejected():
                return Report(True, outcome.seconds, outcome.peak_rss_bytes, (_error(item, outcome.message),))
            case Unsuitable():
                return outcome
            case Died():
                return Report(True, outcome.seconds, 0, (await self._post_mortem(task, outcome),))

    async def _post_mortem(self, task: Task, died: Died) -> Diagnostic:
        item = task.item
        message = f"llvmlite: {died.description}"
        if died.returncode == -signal.SIGKILL and not died.timed_out:
            killed = describe_signal(signal.SIGKILL, out_of_memory=self._oom.killed_again(), peak_rss_bytes=0)
            message = f"llvmlite {killed}"
        errors = [one.text for one in parse_messages(died.stderr, {}) if one.severity is Severity.ERROR]
        if errors and errors[0] not in message:
            message += f": {errors[0]}"
        if died.returncode is None and not died.timed_out:
            return _error(item, message)
        outputs = {kind: f"output{SUFFIX[kind]}" for kind in task.outputs}
        try:
            argv = reproduce_argv(item.options, task.triple, "module.ir", outputs)
        except OSError as error:
            return _error(item, f"{message}\n(no reproducer: {error})")
        reproducer = Reproducer(
            module=item.name,
            message=message,
            argv=argv,
            inputs={"module.ir": task.content},
            stderr=died.stderr.encode(errors="replace"),
            versions=self._versions(),
            hang=item.options.time_limit if died.timed_out else None,
        )
        return await reproduced(item, message, reproducer)


def _error(item: Optimize, message: str) -> Diagnostic:
    return Diagnostic(Severity.ERROR, item.name, message)

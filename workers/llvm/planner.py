"""Asking the toolchain how modules are compiled, once for every distinct triple and options.

The questions are actions like all other runs; what is asked and how answers are read is in `workers.llvm.cc1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import trio
from attrs import evolve

from workers.action import Action, ActionResult, run
from workers.errors import RequestError
from workers.llvm.cc1 import (
    PROFILE,
    Plan,
    cc1_arguments,
    check_triple,
    driver_arguments,
    lld_arguments,
    make_plan,
    options_key,
    parse_driver,
)
from workers.llvm.failures import judge
from workers.llvm.form import Form
from workers.llvm.toolchain import Toolchain
from workers.work import CodegenOptions, EmitKind, Severity

__all__ = ["Planner", "tool_name"]

_PLANS = 256
"""Plans that are remembered: a long-lived service meets many triples and options."""

_QUESTION_SECONDS = 60.0

_TRIAL = "trial.ir"

_NEXT_TO_NOTHING = b"define void @f() {\n  ret void\n}\n"
"""lld runs no passes where there is no symbol."""


class NotNowError(RequestError):
    """A question could not be asked (no memory, no space, no process): it may be asked again."""


class Planner:
    """Remembers the toolchain's answers. Any number of tasks may use it at once."""

    def __init__(self, toolchain: Toolchain, scratch: Path) -> None:
        self._toolchain = toolchain
        self._scratch = scratch
        self._plans: dict[tuple[str, str, Form], Plan | RequestError] = {}
        self._planning = trio.Lock()

    async def plan(self, triple: str, options: CodegenOptions, form: Form = Form.CODE) -> Plan:
        """How modules of `triple` are brought into `form`; asks the driver once for each distinct question.

        Raises `RequestError` in clang's words for what clang or the target does not have.
        """
        key = (triple, options_key(evolve(options, emit=frozenset())), form)
        if key not in self._plans:
            async with self._planning:
                if key not in self._plans:
                    plan = await self._ask(triple, options, form)
                    if len(self._plans) >= _PLANS:
                        del self._plans[next(iter(self._plans))]
                    self._plans[key] = plan
        found = self._plans[key]
        if isinstance(found, RequestError):
            raise RequestError(str(found))
        return found

    async def _ask(self, triple: str, options: CodegenOptions, form: Form) -> Plan | RequestError:
        try:
            check_triple(triple)
            try:
                result = await self._question((*self._toolchain.clang, *driver_arguments(triple, options, form)), {})
            except RequestError as error:
                if form is not Form.FAT_OBJECT or "-ffat-lto-objects" not in str(error):
                    raise
                raise RequestError(
                    f"LLVM cannot put bitcode into objects for {triple}: emit obj or bc instead of fatobj"
                ) from error
            plan = make_plan(triple, options, parse_driver(result.stderr.decode(errors="replace")), form)
            if options.target_cpu is not None or options.target_features or options.extra_passes:
                await self._try_out(plan, triple, options)
        except NotNowError:
            raise
        except RequestError as error:
            if options.profile_use is not None:
                raise  # the file may be another by the next time
            return error
        return plan

    async def _try_out(self, plan: Plan, triple: str, options: CodegenOptions) -> None:
        """Compile a module with next to nothing in it: names of CPUs, features and passes are known to LLVM alone."""
        plan = evolve(plan, arguments=tuple(word for word in plan.arguments if PROFILE not in word))
        argv = (*self._toolchain.clang, *cc1_arguments(plan, EmitKind.BITCODE, [_TRIAL], output="out.bc"))
        base = await self._question(argv, {_TRIAL: _NEXT_TO_NOTHING}, output="out.bc")
        if options.extra_passes:
            if self._toolchain.lld is None:
                raise RequestError(f"extra passes need ld.lld, and {self._toolchain.origin} has none")
            argv = (*self._toolchain.lld, *lld_arguments(plan, options, "in.bc", "out.bc"))
            try:
                await self._question(argv, {"in.bc": base.stdout})
            except RequestError as error:
                if "could not infer e_machine" not in str(error):
                    raise
                raise RequestError(
                    f"extra passes run in ld.lld, which does not know the architecture of {triple}"
                ) from error

    async def _question(
        self, argv: tuple[str, ...], inputs: Mapping[str, Path | bytes], *, output: str | None = None
    ) -> ActionResult:
        """Run something short about no module in particular; what it complains about is wrong with the request.

        With `output`, the result's standard output is that file's content.
        """
        outputs = () if output is None else (output,)
        action = Action(argv=argv, inputs=inputs, outputs=outputs, time_limit=_QUESTION_SECONDS)
        async with run(action, self._scratch) as result:
            verdict = judge(
                result,
                tool=tool_name(argv),
                names={_TRIAL: "a trial module"},
                time_limit=_QUESTION_SECONDS,
                memory_limit=None,
                out_of_memory=False,
            )
            if verdict.failed:
                errors = "; ".join(one.text for one in verdict.messages if one.severity is Severity.ERROR)
                raise NotNowError(errors) if verdict.fault or verdict.passing else RequestError(errors)
            if output is not None:
                return evolve(result, stdout=(result.directory / output).read_bytes())
            return result


def tool_name(argv: Sequence[str]) -> str:
    """`clang` or `ld.lld`, also where a zig is both."""
    return argv[1] if argv[1] in ("clang", "ld.lld") else Path(argv[0]).name

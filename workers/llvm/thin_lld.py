"""Backend compiles by lld: one run makes the objects of some of a link's modules, after doing the thin link again.

Its command is the thin link's, so its objects are what lld makes of the whole link in one go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import evolve, frozen

from workers.action import Action, ActionResult, run
from workers.llvm.failures import Message, foreign_output, judge
from workers.llvm.lld_line import in_directory
from workers.llvm.thin_plan import ThinPlan
from workers.thin import ThinCompile
from workers.work import EmitKind

__all__ = ["Share", "run_lld", "together"]

_BATCH_SECONDS = 30.0
"""The least a batch may take. Beyond this and twenty times what is expected of it, some module in it hangs, and
finding that out must not cost more than that module's own time limit does."""

_BATCH_SLACK = 20.0

_CLANG_SECONDS = 0.012
"""What it takes to start clang, and to read and rewrite a shard for it."""

_CLANG_VERIFIES = 0.03
"""How much longer clang takes for a module: it verifies what it reads, and cannot be told not to."""


@frozen
class Share:
    """What a run for several modules has done for one."""

    output: Path
    seconds: float
    peak_rss_bytes: int
    messages: tuple[Message, ...]


async def together(batch: Sequence[ThinCompile], scratch: Path, staging: Path) -> dict[str, Share]:
    """Make the objects of a batch in one process, if that is quicker; nothing of it is used unless all went well."""
    plan: ThinPlan = batch[0].link
    options = plan.item.options
    if EmitKind.OBJECT not in options.emit or options.print_passes or plan.changed() is not None:
        return {}
    work = sum(item.estimate.seconds for item in batch) or 1.0
    by_clang = len(batch) * _CLANG_SECONDS + work * _CLANG_VERIFIES
    if by_clang < plan.again_seconds if plan.by_clang else len(batch) < 2:
        return {}
    limit = min(options.time_limit, _BATCH_SECONDS + _BATCH_SLACK * (work + plan.again_seconds))
    outputs, result = await run_lld(plan, batch, scratch, staging, limit)
    verdict = judge(
        result,
        tool="ld.lld",
        names=plan.names,
        time_limit=limit,
        memory_limit=options.memory_limit,
        out_of_memory=False,
    )
    if verdict.failed or outputs is None:
        return {}
    messages: dict[str, list[Message]] = {item.name: [] for item in batch}
    for message in verdict.messages:
        if message.text not in plan.warned:
            messages[_subject(message.text, batch)].append(message)
    return {
        item.name: Share(
            outputs[item.name],
            result.seconds * item.estimate.seconds / work,
            result.peak_rss_bytes,
            tuple(messages[item.name]),
        )
        for item in batch
    }


def _subject(text: str, batch: Sequence[ThinCompile]) -> str:
    """The module that a message about a batch names; the first one where it names none."""
    for item in batch:
        if re.search(rf"(?<![\w./-]){re.escape(item.name)}(?![\w./-])", text):
            return item.name
    return batch[0].name


async def run_lld(
    plan: ThinPlan, batch: Sequence[ThinCompile], scratch: Path, staging: Path, limit: float
) -> tuple[Mapping[str, Path] | None, ActionResult]:
    """Have lld make the objects of some modules. No outputs are given unless there is exactly one for each."""
    output = staging / "object"
    argv = (
        *plan.argv,
        *("-o", str(staging / "unused"), f"--lto-obj-path={output}", "--disable-verify"),
        *(f"--thinlto-single-module={plan.paths[item.name]}" for item in batch),
    )
    action = Action(
        argv=in_directory(plan.line.directory, argv),
        inputs={},
        environment={**plan.line.environment, "TMPDIR": str(staging)},
        time_limit=limit,
        memory_limit=plan.item.options.memory_limit,
    )
    async with run(action, scratch) as result:
        pass
    # lld numbers those that it compiles, in the order of the link, from 1.
    ordered = sorted(batch, key=lambda item: plan.order[item.name])
    outputs = {item.name: staging / f"object{number}" for number, item in enumerate(ordered, 1)}
    expected = {*outputs.values(), output}
    found = set(staging.glob("object*"))
    if result.status != 0 or found != expected or any(_is_no_object(path) for path in expected):
        return None, evolve(result, missing=("object",))
    return outputs, result


def _is_no_object(path: Path) -> bool:
    with path.open("rb") as file:
        return foreign_output(EmitKind.OBJECT, file.read(64))

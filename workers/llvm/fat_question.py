"""Asking lld for its LTO pipeline, once for every distinct set of options.

Where lld has no answer, the pipeline is run as it is. Where it could not be asked, the build fails: it must not depend
on the moment whether the pipeline is cut, for the bytes do.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from workers.action import Action, ActionResult, run
from workers.errors import RequestError
from workers.llvm.fat_pipeline import Halves, cut, printed_pipeline
from workers.llvm.toolchain import Toolchain

__all__ = ["Pipelines"]

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_ANSWERS = 256
_SECONDS = 60.0

_TRIAL = "trial.ll"
_NEXT_TO_NOTHING = b"define void @f() {\n  ret void\n}\n"


class Pipelines:
    """Remembers the answers. Any number of tasks may use it at once."""

    def __init__(self, toolchain: Toolchain, scratch: Path) -> None:
        self._toolchain = toolchain
        self._scratch = scratch
        self._trials: dict[str, bytes | None] = {}
        self._answers: dict[tuple[str, ...], Halves | None] = {}

    async def prepare(self, triple: str) -> None:
        """Make what questions for `triple` need: there is time for it while others are asked."""
        with suppress(RequestError, OSError):  # `halves` tries again
            await self._trial(triple)

    async def _trial(self, triple: str) -> bytes | None:
        if triple in self._trials:
            return self._trials[triple]
        trial = ("-cc1", "-triple", triple, "-x", "ir", _TRIAL, "-emit-llvm-bc", "-disable-llvm-passes", "-o", "t.bc")
        argv = (*self._toolchain.clang, *trial)
        action = Action(argv=argv, inputs={_TRIAL: _NEXT_TO_NOTHING}, outputs=("t.bc",), time_limit=_SECONDS)
        async with run(action, self._scratch) as made:
            _check_asked(made)
            answer = (made.directory / "t.bc").read_bytes() if made.succeeded else None
            _remember(self._trials, triple, answer)
            return answer

    async def halves(self, triple: str, arguments: tuple[str, ...]) -> Halves | None:
        """The halves of the pipeline that lld runs for `arguments`; `None` where it cannot be cut.

        Raises `RequestError` where that cannot be found out now.
        """
        key = (triple, *arguments)
        if key not in self._answers:
            bitcode, lld = await self._trial(triple), self._toolchain.lld
            if bitcode is None or lld is None:
                return None
            question = ("-r", "t.bc", "-o", "out.bc", "--lto-emit-llvm", "--mllvm=-print-pipeline-passes", *arguments)
            action = Action(argv=(*lld, *question), inputs={"t.bc": bitcode}, time_limit=_SECONDS)
            async with run(action, self._scratch) as answer:
                _check_asked(answer)
                text = printed_pipeline(answer.stdout + b"\n" + answer.stderr) if answer.status == 0 else None
                _remember(self._answers, key, None if text is None else cut(text))
        return self._answers[key]


def _check_asked(result: ActionResult) -> None:
    if result.status is None or result.disk_full:
        how = result.not_started or ("it took too long" if result.timed_out else f"signal {result.signal} ended it")
        raise RequestError(f"ld.lld could not be asked for its pipeline: {how}; try again")


def _remember(answers: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    while len(answers) >= _ANSWERS:
        del answers[next(iter(answers))]
    answers[key] = value

"""Where in a program LLVM was when it crashed: a part of a program has code of many modules, its name says nothing.

Some builds of LLVM print what they were doing when they die. Where that is not so, the run is done once more with the
pass managers' own account, whose last line tells.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from attrs import define, evolve, frozen

from workers.action import Action, ActionResult, run

__all__ = ["Place", "place_of_crash"]

_AGAIN_SECONDS = 60.0
"""What took longer is not done once more: with the account it takes several times as long, and much disk."""
_SLOWER = 10.0
"""How many times as long it may take then."""

_ACCOUNT = ("--lto-debug-pass-manager", "--mllvm=-debug-pass=Executions")
_TAIL_BYTES = 256 * 1024

_FATAL_STATUS = 70
"""What some programs of LLVM end with after `report_fatal_error`."""

# What counts is a stack's last entry, the innermost, and of an account the pass that began last. Names hold anything.
_STACK = re.compile(r"^\d+\.\s+Running pass (['\"])(?P<step>.*?)\1 on (?P<unit>.*)$", re.MULTILINE)
_STARTED = re.compile(r"^Running pass: (?P<step>\S+) on (?P<unit>.*)$", re.MULTILINE)
_EXECUTING = re.compile(r"Executing Pass '(?P<step>.*?)' on (?P<unit>\w+ '.*')\.\.\.$", re.MULTILINE)
_FUNCTION = (
    re.compile(r"(?:.* in )?[Ff]unction (['\"])@?(?P<name>.*)\1\.?"),
    re.compile(r"loop .* in function (?P<name>.*)"),
    re.compile(r"(?P<name>.*) \(\d+ instructions?\)"),
    re.compile(r"\((?P<name>[^,]*)\) \(1 node\)"),
)
_STEP_CHARACTERS = 60


@frozen
class Place:
    """A pass, and the function that it worked on, if it was one."""

    step: str
    function: str | None

    def described(self, owners: Mapping[str, str]) -> str:
        """As a part of a sentence; `owners` says of symbols which module defines them."""
        if self.function is None:
            return f"in {self.step}"
        # LLVM puts suffixes behind the names of functions that it makes of others.
        owner = owners.get(self.function) or owners.get(self.function.partition(".")[0])
        of = f" of module {owner}" if owner is not None else ""
        return f"in {self.step}, on function {self.function}{of}"


async def place_of_crash(action: Action, result: ActionResult, scratch: Path) -> Place | None:
    """Where the run of lld that ended with `result` was; `None` where that is not known.

    `action` is what is run once more for that, if need be.
    """
    crashed = result.signal in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
    if not crashed and result.status != _FATAL_STATUS:
        return None
    told = _in_stack(result.stderr.decode(errors="replace"))
    if told is not None or result.seconds > _AGAIN_SECONDS:
        return told
    account = _Account()
    again = evolve(action, argv=(*action.argv, *_ACCOUNT), time_limit=_SLOWER * (result.seconds + 1.0))
    async with run(again, scratch, stderr_to=account.read) as second:
        same = (second.signal, second.status) == (result.signal, result.status)
    return account.place if same else None


def _in_stack(text: str) -> Place | None:
    return _last([*_STACK.finditer(text)])


@define
class _Account:
    """Reads the end of what the pass managers print."""

    place: Place | None = None

    def read(self, file: IO[bytes]) -> None:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
        self.place = _last([*_STARTED.finditer(text), *_EXECUTING.finditer(text)])


def _last(found: Sequence[re.Match[str]]) -> Place | None:
    if not found:
        return None
    last = max(found, key=re.Match.start)
    functions = [match["name"] for form in _FUNCTION if (match := form.fullmatch(last["unit"])) is not None]
    return Place(last["step"][:_STEP_CHARACTERS], next(iter(functions), None))

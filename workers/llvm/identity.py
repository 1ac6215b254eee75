"""What makes things here, for keys: the toolchain's programs with their libraries, llvmlite, and ltod itself.

A version says too little: distributions patch, and people build their own. So it is digests.

Each question can be asked with an event loop and without one; neither loads what only the other needs.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from attrs import field, frozen

from workers.digests import Digests, Witness

__all__ = [
    "Identity",
    "IdentityError",
    "is_loaded",
    "llvmlite_identity",
    "ltod_identity",
    "program_identity",
    "program_identity_now",
]

_ELF = b"\x7fELF"
_PT_INTERP = 3
_LIBRARY = re.compile(rb"^\s+(?:\S+ => )?(/.*) \(0x[0-9a-f]+\)$", re.MULTILINE)
_QUESTION_SECONDS = 60.0


class IdentityError(Exception):
    """There is no telling what a program is; the message says why."""


@frozen
class Identity:
    """What changes with a tool: `digest`. It holds as long as the `witnesses` do."""

    digest: str
    witnesses: tuple[Witness, ...] = field(repr=False)


def is_loaded(program: str) -> bool:
    """Whether the system loads a program with libraries: it is no script, and not static."""
    try:
        return _question(Path(program)) is not None
    except (OSError, IdentityError, struct.error):
        return False


async def program_identity(program: Path, scratch: Path, digests: Digests) -> Identity:
    """What changes with a program and with the libraries that it is loaded with. Raises `IdentityError`."""
    from workers.action import Action, run

    try:
        files = [program]
        question = _question(program)
        if question is not None:
            async with run(Action(argv=question, inputs={}, time_limit=_QUESTION_SECONDS), scratch) as result:
                files += _libraries(question, result.status, result.stdout)
        return _combined([await digests.of(path) for path in files])
    except (OSError, ValueError, struct.error) as error:
        raise IdentityError(f"{program} cannot be read: {error}") from error


def program_identity_now(program: Path, digests: Digests) -> Identity:
    """As `program_identity`, while the caller waits."""
    try:
        files = [program]
        question = _question(program)
        if question is not None:
            files += _libraries(question, *_asked(question))
        return _combined(digests.now(path) for path in files)
    except (OSError, ValueError, struct.error) as error:
        raise IdentityError(f"{program} cannot be read: {error}") from error


async def llvmlite_identity(digests: Digests) -> Identity:
    """What changes with llvmlite. Raises `IdentityError`."""
    import importlib.util

    spec = importlib.util.find_spec("llvmlite")
    folders = spec.submodule_search_locations if spec is not None else None
    libraries = [path for folder in folders or () for path in Path(folder, "binding").glob("*llvmlite.*")]
    found = [path for path in libraries if path.suffix in (".so", ".dylib", ".dll")]
    try:
        if not found:
            raise IdentityError("llvmlite's library is not where it should be")
        return _combined([await digests.of(path) for path in found])
    except OSError as error:
        raise IdentityError(f"llvmlite cannot be read: {error}") from error


@cache
def ltod_identity() -> str:
    """What changes with how ltod itself goes about things: its own source."""
    digest = hashlib.sha256()
    home = Path(__file__).parent
    for path in sorted(home.rglob("*.py")):
        content = path.read_bytes()
        digest.update(b"%s %d\n" % (os.fsencode(path.relative_to(home)), len(content)))
        digest.update(content)
    return digest.hexdigest()


def _question(program: Path) -> tuple[str, ...] | None:
    """What to run to be told what the system loads with a program; `None`: nothing. Raises as `program_identity`."""
    with program.open("rb") as file:
        head = file.read(4096)
    if not head.startswith(_ELF):
        raise IdentityError(f"{program} is no ELF program, so that there is no telling what it runs")
    loader = _loader(head)
    return None if loader is None else (loader, "--list", str(program.absolute()))


def _libraries(question: tuple[str, ...], status: int | None, said: bytes) -> list[Path]:
    """The libraries that an answer names. Raises `IdentityError`."""
    if status != 0:
        loader, _, program = question
        raise IdentityError(f"{loader} does not say which libraries {program} is loaded with")
    return [Path(os.fsdecode(path)) for path in _LIBRARY.findall(said)]


def _asked(question: tuple[str, ...]) -> tuple[int, bytes]:
    """The answer to a question: status and standard output. Raises `OSError`, and `IdentityError` for too slow a one.

    It runs with as little as an action does, save for a directory of its own: loaders write nothing.
    """
    import signal
    import subprocess

    with subprocess.Popen(
        question,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={},
        process_group=0,
    ) as process:
        try:
            said, _ = process.communicate(timeout=_QUESTION_SECONDS)
        except subprocess.TimeoutExpired:
            raise IdentityError(f"{question[0]} takes too long to say what {question[-1]} is loaded with") from None
        finally:
            if process.returncode is None:  # it is not reaped, so its number is its own
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def _loader(head: bytes) -> str | None:
    """The program that loads a dynamic one. Raises `struct.error` where the file is not what it seems."""
    order = "<" if head[5] == 1 else ">"
    if head[4] == 2:
        table, entry, count = struct.unpack_from(order + "Q14xHH", head, 32)
        form = order + "I4xQ16xQ"
    else:
        table, entry, count = struct.unpack_from(order + "I10xHH", head, 28)
        form = order + "II8xI"
    for number in range(count):
        kind, offset, size = struct.unpack_from(form, head, table + number * entry)
        if kind == _PT_INTERP:
            return os.fsdecode(head[offset : offset + size].partition(b"\0")[0])
    return None


def _combined(witnesses: Iterable[Witness]) -> Identity:
    """One for several files, in whichever order."""
    found = tuple(witnesses)
    text = "\n".join(sorted(witness.digest for witness in found))
    return Identity(hashlib.sha256(text.encode()).hexdigest(), found)

"""What makes things here, for keys: the toolchain's programs with their libraries, llvmlite, and ltod itself.

A version says too little: distributions patch, and people build their own. So it is digests.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from attrs import field, frozen

from workers.action import Action, run
from workers.digests import Digests, Witness

__all__ = ["Identity", "IdentityError", "llvmlite_identity", "ltod_identity", "program_identity"]

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


async def program_identity(program: Path, scratch: Path, digests: Digests) -> Identity:
    """What changes with a program and with the libraries that it is loaded with. Raises `IdentityError`."""
    try:
        return await _combined([program, *await _libraries(program, scratch)], digests)
    except (OSError, struct.error) as error:
        raise IdentityError(f"{program} cannot be read: {error}") from error


async def llvmlite_identity(digests: Digests) -> Identity:
    """What changes with llvmlite. Raises `IdentityError`."""
    spec = importlib.util.find_spec("llvmlite")
    folders = spec.submodule_search_locations if spec is not None else None
    libraries = [path for folder in folders or () for path in Path(folder, "binding").glob("*llvmlite.*")]
    found = [path for path in libraries if path.suffix in (".so", ".dylib", ".dll")]
    try:
        if not found:
            raise IdentityError("llvmlite's library is not where it should be")
        return await _combined(found, digests)
    except OSError as error:
        raise IdentityError(f"llvmlite cannot be read: {error}") from error


@cache
def ltod_identity() -> str:
    """What changes with how ltod itself goes about things: its own source."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        content = path.read_bytes()
        digest.update(b"%s %d\n" % (path.name.encode(), len(content)))
        digest.update(content)
    return digest.hexdigest()


async def _libraries(program: Path, scratch: Path) -> list[Path]:
    """The libraries that the system loads with a program. Raises `IdentityError`, `OSError`."""
    with program.open("rb") as file:
        head = file.read(4096)
    if not head.startswith(_ELF):
        raise IdentityError(f"{program} is no ELF program, so that there is no telling what it runs")
    loader = _loader(head)
    if loader is None:
        return []
    question = Action(argv=(loader, "--list", str(program)), inputs={}, time_limit=_QUESTION_SECONDS)
    async with run(question, scratch) as result:
        if result.status != 0:
            raise IdentityError(f"{loader} does not say which libraries {program} is loaded with")
        return [Path(os.fsdecode(path)) for path in _LIBRARY.findall(result.stdout)]


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
            return os.fsdecode(head[offset : offset + size].rstrip(b"\0"))
    return None


async def _combined(files: Iterable[Path], digests: Digests) -> Identity:
    """One for several files, in whichever order. Raises `OSError`."""
    witnesses = [await digests.of(path) for path in files]
    text = "\n".join(sorted(witness.digest for witness in witnesses))
    return Identity(hashlib.sha256(text.encode()).hexdigest(), tuple(witnesses))

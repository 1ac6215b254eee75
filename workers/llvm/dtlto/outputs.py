"""Whether what a compiler has made is what was asked for: a whole object, for the machine that is linked for.

Linkers do not ask: lld takes an empty object for none, and links code for another machine into a program.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from workers.llvm.content import ContentError, Source, open_file
from workers.llvm.elf import sections
from workers.llvm.failures import foreign_output
from workers.llvm.objectfile import object_type
from workers.llvm.sections import ObjectError, ObjectType
from workers.target import TargetFlags, parse_triple
from workers.work import EmitKind

__all__ = ["lacking"]

_HEAD_BYTES = 4096
_ELF = b"\x7fELF"
_BIG_ENDIAN = b"\2"
_SYMBOL_TABLE = frozenset({b".symtab"})

_TARGET = "--target="
# By how LLVM's names of architectures begin, the more special ones first: `e_machine` of ELF.
_MACHINES = {
    "x86_64": 62,
    "amd64": 62,
    "i386": 3,
    "i486": 3,
    "i586": 3,
    "i686": 3,
    "aarch64": 183,
    "arm64": 183,
    "arm": 40,
    "thumb": 40,
    "riscv": 243,
    "loongarch": 258,
    "powerpc64": 21,
    "ppc64": 21,
    "powerpc": 20,
    "ppc": 20,
    "s390x": 22,
    "sparcv9": 43,
    "sparc64": 43,
    "mips": 8,
}


def lacking(path: Path, command: Sequence[str]) -> str | None:
    """Why a file is not the object that `command` was to make, as what follows `its output`; `None`: it is."""
    try:
        with open_file(path) as view:
            if foreign_output(EmitKind.OBJECT, view[:_HEAD_BYTES]):
                return "is no object"
            if object_type(view) is not ObjectType.RELOCATABLE:
                return "is not a relocatable object"
            triple = next((word.removeprefix(_TARGET) for word in reversed(command) if word.startswith(_TARGET)), "")
            if not _is_for(triple, view):
                return f"is not for {triple}"
            if view[: len(_ELF)] == _ELF:
                for _ in sections(view, _SYMBOL_TABLE):  # which raises where the file has no end
                    pass
    except (ContentError, ObjectError) as error:
        return f"cannot be used: {error}"
    return None


def _is_for(triple: str, view: Source) -> bool:
    """Whether an object is for a target. Said of those that have ELF, and that we know; others may be anything."""
    machine = next((number for name, number in _MACHINES.items() if triple.startswith(name)), None)
    flags = TargetFlags.from_triple(triple)
    elsewhere = flags.is_like_darwin or flags.is_like_windows or flags.is_like_aix
    if machine is None or elsewhere or parse_triple(triple).environment in ("macho", "coff"):
        return True
    head = bytes(view[:20])
    order: Literal["big", "little"] = "big" if head[5:6] == _BIG_ENDIAN else "little"
    return head.startswith(_ELF) and int.from_bytes(head[18:], order) == machine

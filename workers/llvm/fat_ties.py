"""What holds a program together, so that it cannot be split into parts that are assembled by themselves. Pure.

LLVM splits by functions and variables. It looks neither into assembly, which names local symbols as it likes, beside
the functions of a module and within them; nor at sections, whose begin and end linkers know (`__start_x`), and in which
the order of variables may be that of registration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import define, field

from workers.llvm.bitcode import MODULE_BLOCK, blocks
from workers.llvm.bitstream import Record
from workers.llvm.irsymtab import Symbol

__all__ = ["Ties"]

_ASSEMBLY, _SECTION_NAME, _VARIABLE, _FUNCTION = 4, 5, 7, 8
_SECTION = {_VARIABLE: 7, _FUNCTION: 8}
"""Where records say which section it is in, counted from 1; 0 is none."""
_RECORDS = frozenset({_ASSEMBLY, _SECTION_NAME, *_SECTION})

_BOUNDED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WITHOUT_ORDER = (".bss", ".data", ".llvm", ".rodata", ".tbss", ".tdata", "llvm.")


@define
class Ties:
    """Takes in one module after the other."""

    _why: str | None = field(default=None, init=False)
    _seen: dict[str, str] = field(factory=dict, init=False)
    """Sections with one variable in them so far, and whose it is."""

    def add(self, module: str, bitcode: bytes, symbols: Iterable[Symbol]) -> None:
        """Look at one more module, which has these symbols. Raises `BitcodeError`."""
        for symbol in symbols:
            if symbol.local and symbol.called_by_name:
                self._tied(f"assembly in {module} may call {symbol.name}")
        for cursor, block in blocks(bitcode):
            if block.id != MODULE_BLOCK:
                continue
            names: list[str] = []
            for item in cursor.items(block, _RECORDS):
                if not isinstance(item, Record):
                    continue
                if item.code == _ASSEMBLY and item.values:
                    self._tied(f"{module} has assembly beside its functions")
                elif item.code == _SECTION_NAME:
                    names.append(bytes(value & 0xFF for value in item.values).decode(errors="replace"))
                elif (place := _SECTION.get(item.code, 0)) and place < len(item.values):
                    number = item.values[place]
                    if 0 < number <= len(names):
                        self._member(module, names[number - 1], is_variable=item.code == _VARIABLE)

    def _member(self, module: str, section: str, *, is_variable: bool) -> None:
        if _BOUNDED.fullmatch(section):
            self._tied(f"{module} puts something into the section {section}, whose bounds have names")
        elif is_variable and not section.startswith(_WITHOUT_ORDER):
            if section in self._seen:
                who = " and ".join(dict.fromkeys((self._seen[section], module)))
                self._tied(f"the order of variables in the section {section} may matter, of {who}")
            self._seen[section] = module

    def _tied(self, why: str) -> None:
        self._why = self._why or why

    def why(self) -> str | None:
        """What the first tie is, in words; `None` if there is none."""
        return self._why

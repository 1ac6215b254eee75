"""The summaries of an index shard, said without the numbers and the order that they happen to be written with.

Here belongs what each record of a shard means, as far as it names something by a number. `workers.llvm.shard_form`
makes one text of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from workers.llvm.bitstream import BitcodeError, Block
from workers.llvm.index_shard import FIELDS_OF_FUNCTION, SUMMARY_VERSION
from workers.llvm.record_reader import block_records
from workers.llvm.written_numbers import number, written

__all__ = ["Definition", "Summaries"]

# Record codes of llvm/Bitcode/LLVMBitCodes.h.
_FUNCTION, _FUNCTION_WITH_PROFILE, _VARIABLE, _ALIAS, _VERSION = 4, 5, 6, 8, 10
_TYPE_TESTS, _ASSUME_VCALLS, _CHECKED_VCALLS, _ASSUME_CONST_VCALL, _CHECKED_CONST_VCALL = 11, 12, 13, 14, 15
_VALUE_GUID, _CFI_DEFINITIONS, _CFI_DECLARATIONS, _FLAGS, _TYPE_ID, _BLOCK_COUNT = 16, 17, 18, 20, 21, 24
_PARAM_ACCESS, _CALLSITE, _ALLOCATION, _STACK_IDS, _RADIX_TREE, _ALLOCATION_WITHOUT_CONTEXT = 25, 28, 29, 30, 32, 33
_OF_TYPES = frozenset({_TYPE_TESTS, _ASSUME_VCALLS, _CHECKED_VCALLS, _ASSUME_CONST_VCALL, _CHECKED_CONST_VCALL})

_COUNTS = struct.Struct("<8Q").pack

_LIVE = 0x20
_READ_ONLY, _WRITE_ONLY, _CONSTANT = 1, 2, 4


class Definition(NamedTuple):
    """What a shard says of one definition. A shard has one for each module and GUID.

    `flags` are those that every definition has, `nature` is more of the kind: a variable's flags, a function's 0. The
    rest of what is said is `details`, in which GUIDs have eight bytes.
    """

    place: int
    """Of the module, in the order that `Summaries` was given."""
    guid: bytes
    code: int
    flags: int
    nature: int
    details: bytes

    @property
    def linkage(self) -> int:
        """As `llvm::GlobalValue::LinkageTypes` counts."""
        return self.flags & 0xF

    @property
    def is_live(self) -> bool:
        """Something in the program may reach it."""
        return bool(self.flags & _LIVE)

    @property
    def is_variable(self) -> bool:
        """It is neither a function nor an alias."""
        return self.code == _VARIABLE

    @property
    def is_constant(self) -> bool:
        """A variable that was made to be one, whatever a link finds out."""
        return self.is_variable and bool(self.nature & _CONSTANT)

    @property
    def is_never_written(self) -> bool:
        """A variable, no constant, that the whole program only reads."""
        return self.is_variable and self.nature & (_READ_ONLY | _CONSTANT) == _READ_ONLY

    @property
    def is_never_read(self) -> bool:
        """A variable, no constant, that the whole program only writes."""
        return self.is_variable and self.nature & (_WRITE_ONLY | _CONSTANT) == _WRITE_ONLY

    def text(self) -> bytes:
        """All of it as bytes, which no other definition has."""
        return b"%d %b %d %d %d:%b" % (self.place, self.guid, self.code, self.flags, self.nature, self.details)


class Summaries:
    """The summaries of a shard; what is said without numbers is the same, however they were numbered.

    Rows begin with what they are, then have numbers and how many of what follows, then that. What belongs to one
    definition is with it.
    """

    def __init__(self, modules: Sequence[int], strings: bytes) -> None:
        """`modules` are the numbers of the shard's modules, in an order that means something."""
        self.definitions: list[Definition] = []
        self.settings: list[bytes] = []
        """Of the whole index, in any order."""
        self.types: dict[bytes, bytes] = {}
        """What is known of type identifiers, by name."""
        self._guids: dict[bytes, bytes] = {}
        """Of the values, by number, both as they are written."""
        self._places = {module: place for place, module in enumerate(modules)}
        self._strings = strings
        self._about_next: list[bytes] = []
        self._stack_ids: list[int] = []
        self._radix_tree: list[int] = []
        self._version: int | None = None

    @property
    def values(self) -> frozenset[bytes]:
        """The GUIDs of all that is defined or used."""
        return frozenset(self._guids.values())

    def read(self, shard: bytes, block: Block) -> None:
        """Read all of the block, once. Raises `BitcodeError` where it is damaged, or has what is not known."""
        try:
            self._read(shard, block)
        except BitcodeError:
            raise
        except (IndexError, KeyError, struct.error, TypeError, ValueError, OverflowError, RuntimeError, StopIteration):
            raise BitcodeError("its summaries are damaged") from None
        if self._version is None:
            raise BitcodeError("its summaries do not say their version")
        if self._about_next:
            raise BitcodeError("its last summary is missing")
        if len({(row.place, row.guid) for row in self.definitions}) != len(self.definitions):
            raise BitcodeError("it has two summaries of one definition")

    def _read(self, shard: bytes, block: Block) -> None:
        for code, values, rest in block_records(shard, block):
            if code == _VALUE_GUID:
                value, high, low = values
                self._guids[written(value)] = (high << 32 | low).to_bytes(8, "little")
            elif code in (_FUNCTION_WITH_PROFILE, _FUNCTION):
                self._function(code, values, rest)
            elif code == _VARIABLE:
                self._variable(values, rest)
            elif code == _ALIAS:
                self._alias(*values, *map(number, rest))
            else:
                self._other(code, values + [number(chunks) for chunks in rest])

    def _function(self, code: int, values: list[int], rest: list[bytes]) -> None:
        references = values[6]
        named = [*map(written, values[FIELDS_OF_FUNCTION:]), *rest]
        calls = named[references:]
        if references > len(named):
            raise BitcodeError("a summary refers to more than it has")
        counts = b""
        if code == _FUNCTION_WITH_PROFILE:
            # Each callee is followed by how often it is called.
            counts = b"".join(calls[1::2])
            if len(calls) & 1:
                raise BitcodeError("a summary has a call without a count")
            calls = calls[::2]
        guids = self._guids
        uses = b"".join([guids[chunks] for chunks in named[:references] + calls])
        details = _COUNTS(*values[3:FIELDS_OF_FUNCTION], len(calls), len(self._about_next)) + uses + counts
        if self._about_next:
            details += b"".join([b"%d:%b" % (len(about), about) for about in self._about_next])
            self._about_next = []
        self._define(code, values, 0, details)

    def _variable(self, values: list[int], rest: list[bytes]) -> None:
        named = [*map(written, values[3:]), *rest]
        # What it is like stands before what it refers to, in the same array.
        self._define(_VARIABLE, values, number(named[0]), b"".join([self._guids[chunks] for chunks in named[1:]]))

    def _alias(self, value: int, module: int, flags: int, aliasee: int) -> None:
        self._define(_ALIAS, [value, module, flags], 0, self._guid(aliasee))

    def _define(self, code: int, values: list[int], nature: int, details: bytes) -> None:
        value, module, flags = values[:3]
        self.definitions.append(
            Definition(self._places[module], self._guids[written(value)], code, flags, nature, details)
        )

    def _other(self, code: int, values: list[int]) -> None:
        if code == _VERSION:
            if values != [SUMMARY_VERSION] or self._version is not None:
                raise BitcodeError(f"its summaries are of version {values}, not {SUMMARY_VERSION}")
            self._version = values[0]
        elif code == _FLAGS:
            (flags,) = values
            self.settings.append(b"flags %d" % flags)
        elif code == _BLOCK_COUNT:
            self.settings.append(b"blocks %d" % values[0])
        elif code in _OF_TYPES:
            # These have the GUIDs themselves.
            self._about_next.append(_row(code, values))
        elif code == _PARAM_ACCESS:
            self._about_next.append(self._accesses(values))
        elif code == _STACK_IDS:
            pairs = zip(values[::2], values[1::2], strict=True)
            self._stack_ids = [high << 32 | low for high, low in pairs]
        elif code == _RADIX_TREE:
            self._radix_tree = values
        elif code == _CALLSITE:
            callee, stack, _, *more = values
            text = [self._stack_ids[index] for index in more[:stack]]
            self._about_next.append(self._guid(callee) + _row(code, [values[1], values[2], *text, *more[stack:]]))
        elif code in (_ALLOCATION, _ALLOCATION_WITHOUT_CONTEXT):
            self._about_next.append(self._allocation(code, values))
        elif code in (_CFI_DEFINITIONS, _CFI_DECLARATIONS):
            found = sorted(self._string(begin, size) for begin, size in zip(values[::2], values[1::2], strict=True))
            self.settings.append(b"cfi %d %b" % (code, b"".join(b"%d:%b" % (len(name), name) for name in found)))
        elif code == _TYPE_ID:
            name = self._string(*values[:2])
            if name in self.types:
                raise BitcodeError("it describes a type twice")
            self.types[name] = self._type(values[2:])
        else:
            raise BitcodeError(f"it has the record {code}, which is unknown in shards")

    def _guid(self, value: int) -> bytes:
        """The GUID of a value that may be unknown."""
        return self._guids[written(value)] if value else b""

    def _string(self, begin: int, size: int) -> bytes:
        if begin + size > len(self._strings):
            raise BitcodeError("it has a name behind the end of its string table")
        return self._strings[begin : begin + size]

    def _accesses(self, values: list[int]) -> bytes:
        """How the pointers among a function's parameters are used: by itself, and by what it passes them to."""
        text: list[bytes] = []
        at = 0
        while at < len(values):
            calls = values[at + 3]
            text.append(_row(_PARAM_ACCESS, values[at : at + 4]))
            at += 4
            for _ in range(calls):
                parameter, callee, lower, upper = values[at : at + 4]
                text.append(_row(_PARAM_ACCESS, [parameter, lower, upper]) + self._guids[written(callee)])
                at += 4
        return b"".join(text)

    def _allocation(self, code: int, values: list[int]) -> bytes:
        """The contexts of an allocation, and what each version of it is to be; stacks by the ids of their frames."""
        contexts, versions, *more = values
        text = [contexts, versions]
        rest = iter(more)
        for _ in range(contexts):
            text.append(next(rest))
            if code == _ALLOCATION:
                frames = self._stack(next(rest)) if self._radix_tree else [next(rest) for _ in range(next(rest))]
                text += [len(frames), *(self._stack_ids[frame] for frame in frames)]
        text += rest
        return _row(code, text)

    def _stack(self, at: int) -> list[int]:
        """The frames at an index of the radix tree: their number, then each, or how far to go to the next."""
        tree = self._radix_tree
        frames: list[int] = []
        count = tree[at]
        if count > len(tree):
            raise BitcodeError("its tree of call stacks is damaged")
        while len(frames) < count:
            at += 1
            if tree[at] >> 31:
                at += (1 << 32) - tree[at]
            frames.append(tree[at])
        return frames

    def _type(self, values: list[int]) -> bytes:
        """What the whole program knows of a type, and of the virtual calls by it."""
        if len(values) < 6:
            raise BitcodeError("it says too little of a type")
        rest = iter(values[6:])
        text = [_row(_TYPE_ID, values[:6])]
        for offset in rest:
            kind, begin, size, answers = next(rest), next(rest), next(rest), next(rest)
            name = self._string(begin, size)
            text.append(_row(_TYPE_ID, [offset, kind, size, answers]) + name)
            for _ in range(answers):
                arguments = [next(rest) for _ in range(next(rest))]
                text.append(_row(_TYPE_ID, [*arguments, *(next(rest) for _ in range(4))]))
        return b"".join(text)


def _row(code: int, values: Iterable[int]) -> bytes:
    text = list(values)
    return b"%d/%d %b:" % (code, len(text), b" ".join([b"%d" % value for value in text]))

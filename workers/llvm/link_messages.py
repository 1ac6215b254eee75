"""What ld.lld says about a link, in terms of modules.

lld names files, and after LTO files that nobody has heard of. Paths become the names of modules; who needs an undefined
symbol is looked up in the symbol tables of the modules that went in. That is told in place of what lld says of objects
that LTO made: code of any module may be in them by then. All other words stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from attrs import define, field, frozen

from workers.llvm.bitcode import BitcodeError
from workers.llvm.content import ContentError, open_file
from workers.llvm.irsymtab import read_symbols

__all__ = ["explain_link"]

_MAX_MESSAGE = 16_000
_MAX_USERS = 5

_HEAD = re.compile(r"(\S*: )?(error|warning): ")
_ERROR = re.compile(r"(\S*: )?error: ")
_UNDEFINED = re.compile(r"undefined (?:hidden |internal |protected )?symbol: (.+)")
_REFERENCE = ">>> referenced by "
_CONTINUATION = ">>>  "
_POSITION = re.compile(rf"{_REFERENCE}.*:\d+")
_MORE = re.compile(rf"{_REFERENCE.removesuffix('by ')}\d+ more times?")
_LEFT_OUT = re.compile(r"\[\.\.\. \d+ bytes left out \.\.\.\]")
_NOT_EXPORTED = re.compile(r"version script assignment of 'global' to symbol '(.*)' failed: symbol not defined", re.S)

_TEMPLATE_ARGUMENTS = re.compile(r"<[^<>]*>")
_SPECIAL = {
    "vtable for ": "_ZTV",
    "VTT for ": "_ZTT",
    "typeinfo for ": "_ZTI",
    "typeinfo name for ": "_ZTS",
    "guard variable for ": "_ZGV",
    "non-virtual thunk to ": "_ZTh",
    "virtual thunk to ": "_ZTv",
    "thread-local wrapper routine for ": "_ZTW",
    "thread-local initialization routine for ": "_ZTH",
}


def explain_link(
    stderr: bytes,
    names: Mapping[str, str],
    modules: Mapping[str, Path] = {},
    *,
    needs: Mapping[str, Sequence[str]] = {},
    made: Collection[str] = (),
) -> str:
    """`stderr` of a link for people, '' if it says nothing; long ones are cut, and end with how many errors follow.

    `names` maps paths as lld was given them to the names of modules. `modules` are the bitcode files that went into
    LTO, by name; they are read only if a symbol is undefined. One that cannot be read is passed over. Where the modules
    are gone, `needs` says of symbols that none of them defines which of them need it. `made` are the names of objects
    that LTO made.
    """
    if not stderr.strip():
        return ""
    messages = _messages(stderr.decode(errors="surrogateescape"), names)
    wanted = {message.undefined for message in messages if message.undefined is not None}
    users = _users(wanted, modules, needs) if wanted else {}
    shown: list[str] = []
    size = 0
    for index, message in enumerate(messages):
        text = "\n".join(message.shown(users.get(message.undefined or "", ()), made, modules))
        size += len(text) + 1
        if size > _MAX_MESSAGE and shown:
            shown.append(_rest(messages[index:]))
            break
        shown.append(text[:_MAX_MESSAGE])
    return "\n".join(shown).encode(errors="surrogateescape").decode(errors="replace")


@frozen
class _Line:
    """`named` are the modules and objects in it."""

    text: str
    named: frozenset[str]


@define
class _Message:
    """One message."""

    lines: list[_Line] = field(factory=list)

    @property
    def error(self) -> bool:
        return _ERROR.match(self.lines[0].text) is not None

    @property
    def undefined(self) -> str | None:
        """The symbol, if the message is about an undefined one; demangled if lld could."""
        found = _UNDEFINED.search(self.lines[0].text)
        return found[1] if found else None

    def shown(self, users: Sequence[str], made: Collection[str], modules: Collection[str]) -> list[str]:
        """The lines for people. Where `users` of the symbol are known, they stand for what LTO made."""
        if not users:
            return [line.text for line in self.lines]
        blocks: list[list[str]] = []
        told: set[str] = set()
        for block in self._blocks():
            texts = [line.text for line in block]
            named = frozenset().union(*(line.named for line in block))
            refers = texts[0].startswith(_REFERENCE)
            if named and named.issubset(made) and named.isdisjoint(users if refers else modules):
                texts = [text for text in texts if refers and _POSITION.match(text)]
            else:
                told |= named
            if not made or (texts not in blocks and not _MORE.fullmatch(texts[0] if texts else "")):
                blocks.append(texts)
        others = [name for name in users if name not in told]
        return [*(text for texts in blocks for text in texts), *_used_by(others)]

    def _blocks(self) -> list[list[_Line]]:
        """The lines, each reference with those that belong to it."""
        blocks: list[list[_Line]] = []
        for line in self.lines:
            if blocks and line.text.startswith(_CONTINUATION):
                blocks[-1].append(line)
            else:
                blocks.append([line])
        return blocks


def _messages(text: str, names: Mapping[str, str]) -> list[_Message]:
    alternatives = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    paths = re.compile(rf"(?:{alternatives})(?![\w/])" if names else "(?!)")
    messages: list[_Message] = []
    for line in filter(str.strip, text.splitlines()):
        if not messages or _HEAD.match(line):
            messages.append(_Message())
        named = frozenset(names[found[0]] for found in paths.finditer(line))
        messages[-1].lines.append(_Line(paths.sub(lambda found: names[found[0]], line), named))
    for message in messages:
        head = message.lines[0]
        said = _NOT_EXPORTED.sub(r"symbol '\1' is to be exported, but nothing defines it", head.text)
        message.lines[0] = _Line(said, head.named)
    return messages


def _rest(messages: Sequence[_Message]) -> str:
    left = sum(message.error for message in messages)
    if any(_LEFT_OUT.fullmatch(line.text) for message in messages for line in message.lines):
        return f"... and more than {left} other errors"
    return f"... and {left} more error{'' if left == 1 else 's'}"


def _used_by(others: Sequence[str]) -> list[str]:
    """Lines with the modules that need what is undefined."""
    lines = [f">>> used by module {name}" for name in others[:_MAX_USERS]]
    if len(others) > _MAX_USERS:
        lines.append(f">>> used by {len(others) - _MAX_USERS} more modules")
    return lines


def _users(
    wanted: Iterable[str], modules: Mapping[str, Path], needs: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """The modules that need each of the wanted symbols, sorted by name."""
    needed = {symbol: list(users) for symbol, users in needs.items()}
    defined: set[str] = set()
    for module in sorted(modules):
        try:
            with open_file(modules[module]) as data:
                symbols = read_symbols(data) or ()
        except (ContentError, BitcodeError):
            continue
        for symbol in symbols:
            if symbol.undefined:
                needed.setdefault(symbol.name, []).append(module)
            else:
                defined.add(symbol.name)
    undefined = [name for name in needed if name not in defined]
    return {symbol: needed[name] for symbol in wanted if (name := _mangled(symbol, undefined)) is not None}


def _mangled(symbol: str, undefined: Sequence[str]) -> str | None:
    """Which of the undefined symbols lld has demangled to `symbol`; `None` unless it is clear.

    Both manglings write each part of a qualified name behind its length.
    """
    if symbol in undefined:
        return symbol
    prefix = next((prefix for prefix in _SPECIAL if symbol.startswith(prefix)), "")
    name = symbol[len(prefix) :]
    while (without := _TEMPLATE_ARGUMENTS.sub("", name)) != name:
        name = without
    # A template's name comes behind the type that it returns.
    name = name.partition("(")[0].rpartition(" ")[2]
    parts = [part for part in name.split("::") if part not in ("", "std")]
    if not parts or not all(part.isidentifier() for part in parts):
        return None
    pattern = re.compile(".*?".join(f"(?<!\\d){len(part.encode())}_?{re.escape(part)}" for part in parts))
    head = _SPECIAL.get(prefix, ("_Z", "_R"))
    found = [name for name in undefined if name.startswith(head) and pattern.search(name)]
    return found[0] if len(found) == 1 else None

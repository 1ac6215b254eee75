"""Members of static libraries: GNU, BSD, Darwin and COFF archives, and thin ones, read without their contents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from attrs import evolve, frozen

from workers.llvm.content import ContentError, Source, open_file

__all__ = ["ArchiveError", "Member", "read_members"]

_MAGIC = b"!<arch>\n"
_THIN_MAGIC = b"!<thin>\n"
_HEADER_SIZE = 60
_NUMBER = re.compile(rb"\d+")
_LONG_NAME = re.compile(rb"/(\d+)(?::(\d+))?")  # with the second number: of a member of another archive
_BSD_NAME = re.compile(rb"#1/(\d+)")
_TABLE_ENTRY = re.compile(rb"[^\n\0]*")


class ArchiveError(ValueError):
    """The archive is damaged; the message says how and at which byte."""


@frozen
class Member:
    """One member: the bytes `extent` (offset and size) of `path`, or all of that file where `extent` is `None`.

    `name` is what the archive calls it: in a thin archive a path, and never to be trusted as one elsewhere. `header`
    is where it begins in the archive that was read.
    """

    name: str
    path: Path
    extent: tuple[int, int] | None
    header: int


@frozen
class _Entry:
    """A member's header: its offset, the raw name, the offset and the size of its data."""

    header: int
    name: bytes
    offset: int
    size: int


def read_members(source: Source, path: Path) -> tuple[Member, ...]:
    """The members of the archive `source`, which was read from `path`, in file order; tables are left out.

    Of members elsewhere (thin archives) only the path is given; they may be missing. Equal names are as many
    members. Raises `ArchiveError` for damage.
    """
    try:
        return tuple(_Reader.of(source, path, proxies=True).members())
    except ContentError as error:
        raise ArchiveError(f"it {error}") from error


@frozen
class _Reader:
    source: Source
    path: Path
    thin: bool
    proxies: bool
    """Follow references into other archives: one step, so that archives that refer to each other end."""

    @classmethod
    def of(cls, source: Source, path: Path, *, proxies: bool) -> _Reader:
        magic = bytes(source[:8])
        if magic not in (_MAGIC, _THIN_MAGIC):
            raise ArchiveError("there is no archive magic at byte 0")
        return cls(source, path, magic == _THIN_MAGIC, proxies)

    def members(self) -> Iterator[Member]:
        names = b""
        others: dict[Path, dict[int, Member]] = {}
        for entry in self._entries():
            if entry.name == b"//":
                names = bytes(self.source[entry.offset : entry.offset + entry.size])
                continue
            if _is_table(entry.name):
                continue
            long = _LONG_NAME.fullmatch(entry.name)
            if long is None:
                yield self._member(entry, entry.name.removesuffix(b"/"))
                continue
            if int(long[1]) >= len(names):
                raise ArchiveError(f"the member at byte {entry.header} has a name outside of the name table")
            text = _TABLE_ENTRY.match(names, int(long[1]))
            name = text[0].removesuffix(b"/") if text else b""
            if long[2] is None:
                yield self._member(entry, name)
                continue
            other = self._elsewhere(name)
            if other not in others:
                others[other] = self._members_of(other, entry)
            if int(long[2]) not in others[other]:
                raise ArchiveError(
                    f"the member at byte {entry.header} refers to byte {int(long[2])} of {other}: no member"
                )
            yield evolve(others[other][int(long[2])], header=entry.header)

    def _member(self, entry: _Entry, name: bytes) -> Member:
        if not name or b"\0" in name:
            raise ArchiveError(f"the member at byte {entry.header} has no usable name")
        if self.thin:
            return Member(_text(name), self._elsewhere(name), None, entry.header)
        return Member(_text(name), self.path, (entry.offset, entry.size), entry.header)

    def _elsewhere(self, name: bytes) -> Path:
        return self.path.parent / _text(name)

    def _members_of(self, other: Path, entry: _Entry) -> dict[int, Member]:
        if not self.proxies:
            raise ArchiveError(f"the member at byte {entry.header} is in an archive that refers to {other} itself")
        try:
            with open_file(other) as source:
                return {member.header: member for member in _Reader.of(source, other, proxies=False).members()}
        except ContentError as error:
            raise ArchiveError(f"it refers to {other}, which {error}") from error
        except ArchiveError as error:
            raise ArchiveError(f"it refers to {other}, which is damaged: {error}") from error

    def _entries(self) -> Iterator[_Entry]:
        end = len(self.source)
        at = len(_MAGIC)
        while at < end:
            header = bytes(self.source[at : at + _HEADER_SIZE])
            if len(header) < _HEADER_SIZE:
                if not header.strip(b"\n\0"):
                    return
                raise ArchiveError(f"it is cut off in the member header at byte {at}")
            digits = header[48:58].rstrip(b" ")
            if header[58:] != b"`\n" or not _NUMBER.fullmatch(digits):
                raise ArchiveError(f"there is no member header at byte {at}")
            name, offset, size = header[:16].rstrip(b" "), at + _HEADER_SIZE, int(digits)
            # The members of a thin archive are elsewhere; its tables are not.
            stored = 0 if self.thin and not _is_table(name) and name != b"//" else size
            if offset + stored > end:
                raise ArchiveError(
                    f"it is cut off: the member at byte {at} takes {size} bytes, but only {end - offset} are left"
                )
            entry = _Entry(at, name, offset, size)
            if bsd := _BSD_NAME.fullmatch(name):
                entry = self._with_bsd_name(entry, int(bsd[1]))
            yield entry
            at = offset + stored + (stored & 1)

    def _with_bsd_name(self, entry: _Entry, length: int) -> _Entry:
        """A name too long for the header stands before the data, filled up with NULs, and counts as data."""
        if self.thin or length > entry.size:
            raise ArchiveError(f"the name of the member at byte {entry.header} takes {length} bytes, more than it has")
        name = bytes(self.source[entry.offset : entry.offset + length]).rstrip(b"\0")
        return _Entry(entry.header, name, entry.offset + length, entry.size - length)


def _is_table(name: bytes) -> bool:
    """Symbol tables and the like: `/`, `/SYM64/`, `/<ECSYMBOLS>/`, `__.SYMDEF SORTED` and their kin."""
    return name in (b"/", b"/SYM64/") or name.startswith((b"/<", b"__.SYMDEF"))


def _text(name: bytes) -> str:
    """As file names are decoded, so that a thin member's file is found whatever its bytes."""
    return name.decode("utf-8", "surrogateescape")

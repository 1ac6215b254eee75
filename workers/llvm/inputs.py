"""From what a user names to modules: bitcode, textual IR, FatLTO objects, archives of all of them, standard input."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

from attrs import Factory, define, frozen

from workers.errors import ModuleError, RequestError
from workers.llvm.archive import ArchiveError, Member, read_members
from workers.llvm.bitcode import BitcodeError, Header, check_whole, producer_major, read_header
from workers.llvm.content import ContentError, FileView, Source, open_file
from workers.llvm.kind import OBJECTS, ContentKind, sniff
from workers.llvm.naming import Origin, module_names
from workers.llvm.objectfile import ObjectError, ObjectType, find_bitcode, object_type
from workers.llvm.textir import read_text_header
from workers.work import Module

__all__ = ["Inputs", "NativeMember", "inspect_content", "llvm_content", "read_inputs"]

_T = TypeVar("_T")

_SOURCES = {
    "c": "C source: compile it to bitcode first, with clang -c -emit-llvm",
    "cc cpp cxx c++": "C++ source: compile it to bitcode first, with clang++ -c -emit-llvm",
    "m mm": "Objective-C source: compile it to bitcode first, with clang -c -emit-llvm",
    "rs": "Rust source: compile it to bitcode first, with rustc --emit=llvm-bc",
    "swift": "Swift source: compile it to bitcode first, with swiftc -emit-bc",
    "zig": "Zig source: compile it to bitcode first, with zig build-obj -femit-llvm-bc",
    "f f90 f95 f03 f08": "Fortran source: compile it to bitcode first, with flang -c -emit-llvm",
    "s": "assembly source: assemble it first, with clang -c",
}
_HINTS = {extension: hint for extensions, hint in _SOURCES.items() for extension in extensions.split()}


@frozen
class NativeMember:
    """An object without bitcode out of an archive that has bitcode in it, too, called `name` there.

    Its content is `size` bytes at `offset` of `archive` (of a thin archive: the member's file). As all that is in an
    archive, it belongs into a link only if something needs a symbol of it. `origin` is what a linker would call it.
    """

    archive: Path
    name: str
    offset: int
    size: int
    origin: str


@frozen
class Inputs:
    """What was found in a request's inputs, in the order they were named."""

    files: tuple[Module | Path | NativeMember, ...]
    """Modules, and what has no bitcode and matters when linking only: native objects, shared libraries, and archives.
    An archive with bitcode in it is taken apart, into lazy modules and members, others stay whole. Either way the
    linker takes what it needs."""
    problems: tuple[ModuleError, ...]
    """Inputs that are of no use, each under the name it was given by."""

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules alone."""
        return tuple(file for file in self.files if isinstance(file, Module))

    @property
    def link_inputs(self) -> tuple[Path | NativeMember, ...]:
        """All others."""
        return tuple(file for file in self.files if not isinstance(file, Module))


def read_inputs(arguments: Sequence[str | Path], stdin: Callable[[], bytes]) -> Inputs:
    """Find the modules in files; `-` is what `stdin` returns. An input of no use is a problem and stops no other.

    Raises `RequestError` where an input is named twice or cannot be a file name at all.
    """
    found = _Found()
    for argument, path in _distinct(arguments):
        try:
            if path is None:
                found.add_stdin(stdin)
            else:
                with open_file(path) as view:
                    found.add_file(argument, path, view)
        except (_UselessError, ContentError) as error:
            found.problems.append(ModuleError(argument, str(error)))
    names = iter(module_names([file.origin for file in found.files if isinstance(file, _FoundModule)]))
    files = tuple(
        Module(next(names), file.content, lazy=file.origin.member is not None, origin=file.label)
        if isinstance(file, _FoundModule)
        else file
        for file in found.files
    )
    return Inputs(files, tuple(found.problems))


def inspect_content(module: Module, *, max_major: int) -> Header:
    """The header of a module's bitcode or textual IR, also inside of a FatLTO object.

    Raises `ModuleError` where there is none to compile, where it is truncated or damaged, or where LLVM
    `max_major` is too old for it.
    """
    with _opened(module) as source:
        kind, part = _ir_part(source)
        header = read_text_header(part) if kind is ContentKind.TEXT else _checked(read_header, part)
        why = _unusable(header, max_major)
        if why is not None:
            raise _UselessError(why)
    return header


def llvm_content(module: Module) -> Path | bytes:
    """A module's content in a form that LLVM's own tools read: a FatLTO object's bitcode alone, all else as it is.

    Raises `ModuleError` where there is nothing to compile.
    """
    with _opened(module) as source:
        _, part = _ir_part(source)
        return module.content if part is source else bytes(part[:])


class _UselessError(Exception):
    """An input is of no use; the message says why, as it would go on behind the input's name and a colon."""


@frozen
class _FoundModule:
    """A module without a name, for that depends on all others; `label` is what a linker would call it."""

    origin: Origin
    content: Path | bytes
    label: str


@define
class _Found:
    files: list[_FoundModule | Path | NativeMember] = Factory(list)
    problems: list[ModuleError] = Factory(list)

    def add_stdin(self, stdin: Callable[[], bytes]) -> None:
        try:
            content = stdin()
        except OSError as error:
            raise _UselessError(f"cannot be read: {error}") from error
        kind, part = _ir_part(content)
        if kind is ContentKind.BITCODE:
            _checked(check_whole, part)
        self.files.append(_FoundModule(Origin(None), bytes(part[:]), ""))

    def add_file(self, argument: str, path: Path, view: FileView) -> None:
        match sniff(view):
            case ContentKind.BITCODE:
                _checked(check_whole, view)
                self.files.append(_FoundModule(Origin(path), path, argument))
            case ContentKind.TEXT:
                self.files.append(_FoundModule(Origin(path), path, argument))
            case ContentKind.ARCHIVE | ContentKind.THIN_ARCHIVE:
                self._add_archive(argument, path, view)
            case kind if kind in OBJECTS:
                content = _embedded(view)
                self.files.append(path if content is None else _FoundModule(Origin(path), content, argument))
            case kind:
                raise _UselessError(_what_else(kind, view, path.suffix))

    def _add_archive(self, argument: str, path: Path, view: FileView) -> None:
        try:
            members = read_members(view, path)
        except ArchiveError as error:
            raise _UselessError(f"the archive is truncated or damaged: {error}; make it again") from error
        files: list[_FoundModule | NativeMember] = []
        problems: list[ModuleError] = []
        for member in members:
            label = f"{argument}({_printable(PurePosixPath(member.name).name)} at {member.header})"
            try:
                with _member_view(member, path, view) as part:
                    content = _member_content(member, part, label)
            except (_UselessError, ContentError) as error:
                where = f" ({member.path})" if member.extent is None else ""
                problems.append(ModuleError(f"{argument}({_printable(member.name)})", f"{error}{where}"))
                continue
            if isinstance(content, NativeMember):
                files.append(content)
            elif content is not None:
                files.append(_FoundModule(Origin(path, member.name), content, label))
        self.problems += problems
        self.files += files if problems or any(isinstance(file, _FoundModule) for file in files) else [path]


def _distinct(arguments: Sequence[str | Path]) -> list[tuple[str, Path | None]]:
    """Each input as it was named and as a path; `None` is standard input."""
    seen: dict[str, str] = {}
    distinct: list[tuple[str, Path | None]] = []
    for argument in arguments:
        text = str(argument)
        if not text or "\0" in text:
            raise RequestError(f"{text!r} cannot be the name of an input: give the path of a file")
        path = None if argument == "-" else Path(argument)
        try:
            resolved = "-" if path is None else os.path.realpath(path)
            distinct.append((text, None if path is None else path.absolute()))
        except FileNotFoundError as error:
            raise RequestError(
                f"there is no {text}: the current directory has been removed, change to another"
            ) from error
        except (OSError, UnicodeEncodeError) as error:
            raise RequestError(f"{text!r} cannot be found: {error}") from error
        if resolved in seen:
            also = "" if seen[resolved] == text else f" (as {seen[resolved]} before)"
            label = "standard input" if path is None else text
            raise RequestError(f"{label} is given twice{also}: name each input once")
        seen[resolved] = text
    return distinct


@contextmanager
def _opened(module: Module) -> Iterator[Source]:
    """A module's content; what goes wrong with it inside of the `with` block becomes a `ModuleError`."""
    where = ""
    if isinstance(module.content, Path) and module.content.stem != PurePosixPath(module.name).name:
        where = f"{module.content}: "  # which file that is does not show in the name
    try:
        if isinstance(module.content, Path):
            with open_file(module.content) as view:
                yield view
        else:
            yield module.content
    except (_UselessError, ContentError) as error:
        raise ModuleError(module.name, f"{where}{error}") from error


def _ir_part(source: Source) -> tuple[ContentKind, Source]:
    """The bitcode or textual IR of one module: `source` itself, or what is inside of a FatLTO object."""
    match sniff(source):
        case ContentKind.BITCODE | ContentKind.TEXT as kind:
            return kind, source
        case ContentKind.ARCHIVE | ContentKind.THIN_ARCHIVE:
            raise _UselessError("is an archive and no single module: name its file as an input")
        case kind if kind in OBJECTS:
            place = _bitcode_place(source)
            if place is None:
                raise _UselessError("is an object without bitcode, there is nothing to compile: link it, by its path")
            return ContentKind.BITCODE, bytes(source[place[0] : place[0] + place[1]])
        case kind:
            raise _UselessError(_what_else(kind, source, ""))


def _embedded(view: FileView) -> bytes | None:
    """The bitcode inside of an object file, whole; `None` where it has none and is for the linker."""
    place = _bitcode_place(view)
    if place is None:
        return None
    content = view[place[0] : place[0] + place[1]]
    _checked(check_whole, content)
    return content


def _bitcode_place(source: Source) -> tuple[int, int] | None:
    try:
        match object_type(source):
            case ObjectType.RELOCATABLE:
                return find_bitcode(source)
            case ObjectType.SHARED:
                return None
            case ObjectType.EXECUTABLE:
                raise _UselessError("is a linked program: give the bitcode or objects it was made of")
            case ObjectType.CORE:
                raise _UselessError("is a core dump")
    except ObjectError as error:
        raise _UselessError(f"is {error}") from error


@contextmanager
def _member_view(member: Member, archive: Path, view: FileView) -> Iterator[FileView]:
    if member.extent is not None and member.path == archive:
        yield view.part(*member.extent)
        return
    with open_file(member.path) as file:
        yield file if member.extent is None else file.part(*member.extent)


def _member_content(member: Member, view: FileView, label: str) -> bytes | NativeMember | None:
    """A member's module, or where it is for the linker, or `None` where it is neither (metadata, notes)."""
    if member.name.startswith("lib.rmeta"):
        return None  # rustc wraps its metadata in objects, so that linkers do not mind them
    match sniff(view):
        case ContentKind.BITCODE:
            _checked(check_whole, view)
            return view[:]
        case ContentKind.TEXT:
            return view[:]
        case ContentKind.ARCHIVE | ContentKind.THIN_ARCHIVE:
            raise _UselessError("is an archive inside of an archive: take it out and name it as an input")
        case kind if kind in OBJECTS:
            content = _embedded(view)
            offset, size = member.extent or (0, len(view))
            return content if content is not None else NativeMember(member.path, member.name, offset, size, label)
        case ContentKind.UNIVERSAL as kind:
            raise _UselessError(_what_else(kind, view, ""))
        case _:
            return None


def _checked(read: Callable[[Source], _T], source: Source) -> _T:
    try:
        return read(source)
    except BitcodeError as error:
        raise _UselessError(f"the bitcode cannot be used: {error}") from error


def _what_else(kind: ContentKind, source: Source, extension: str) -> str:
    if not len(source):
        return "is empty"
    if kind is ContentKind.UNIVERSAL:
        return "is a universal file, with code for several architectures: take one out first, with lipo -thin"
    what = _HINTS.get(extension.removeprefix(".").lower())
    return f"is {what}" if what else "is not LLVM bitcode, textual IR, an archive or an object file"


def _unusable(header: Header, max_major: int) -> str | None:
    """Why a whole module cannot be compiled; `None` if it can."""
    major = producer_major(header.producer)
    producer = _printable(header.producer)
    if major is not None and major > max_major:
        return (
            f"the bitcode was made by LLVM {major} ({producer}), and LLVM {max_major} cannot be trusted to read "
            f"it: compile with LLVM {major} or newer (LTOD_TOOLCHAIN names one), or make the bitcode with an older one"
        )
    if header.epoch:
        return f"the bitcode is of epoch {header.epoch} ({producer}), which no released LLVM reads"
    if header.is_index:
        return "is a ThinLTO index, which only names modules: give the modules themselves"
    for what, text in (("target triple", header.triple), ("data layout", header.data_layout)):
        if not (text.isascii() and text.isprintable()):
            return f"the {what} {text!r} is no text that LLVM makes: the module is damaged"
    return None


def _printable(text: str) -> str:
    """`text` out of a file, with escapes for what could pass as more than a part of one line."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)

"""Object files of all formats: what kind of file it is, and where bitcode is inside.

What LLVM calls the section depends on the format. `.llvm.lto` holds bitcode that was prepared for LTO (FatLTO); the
other one is what `-fembed-bitcode`, rustc and swiftc leave, and what stands for it where LLVM has no FatLTO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set

from attrs import frozen

from workers.llvm import coff, elf, macho, wasm
from workers.llvm.content import Source
from workers.llvm.kind import ContentKind, sniff
from workers.llvm.sections import ObjectError, ObjectType, Section

__all__ = ["EMBEDDED", "FAT_LTO", "ObjectError", "ObjectType", "find_bitcode", "find_embedded", "object_type"]

FAT_LTO = b".llvm.lto"
EMBEDDED = b".llvmbc"

_BITCODE_MAGICS = (b"BC\xc0\xde", b"\xde\xc0\x17\x0b")


@frozen
class _Format:
    """How to read a format; `wanted` are its sections with bitcode, the best one first."""

    name: str
    object_type: Callable[[Source], ObjectType]
    sections: Callable[[Source, Set[bytes]], Iterator[Section]]
    wanted: tuple[bytes, ...]


_FORMATS = {
    ContentKind.ELF: _Format("an ELF object", elf.object_type, elf.sections, (FAT_LTO, EMBEDDED)),
    ContentKind.COFF: _Format("a COFF object", coff.object_type, coff.sections, (FAT_LTO, EMBEDDED)),
    ContentKind.MACH_O: _Format("a Mach-O object", macho.object_type, macho.sections, (b"__LLVM,__bitcode",)),
    ContentKind.WASM: _Format("a WebAssembly object", wasm.object_type, wasm.sections, (EMBEDDED,)),
}


def object_type(source: Source) -> ObjectType:
    """What kind of object file this is. Raises `ObjectError` where it is damaged or none."""
    return _format(source).object_type(source)


def find_bitcode(source: Source) -> tuple[int, int] | None:
    """Offset and size of the bitcode in a relocatable object; `None` where there is none.

    A section that is only a marker (`-fembed-bitcode=marker`) is none. Raises `ObjectError` where the file is damaged,
    or has several sections with bitcode of one name.
    """
    found = find_embedded(source)
    return None if found is None else (found.offset, found.size)


def find_embedded(source: Source) -> Section | None:
    """As `find_bitcode`: the section."""
    form = _format(source)
    found = list(form.sections(source, frozenset(form.wanted)))
    for wanted in form.wanted:
        label = wanted.decode()
        places = [section for section in found if section.name == wanted]
        if len(places) > 1:
            raise ObjectError(f"{form.name} with {len(places)} sections {label}: give the modules one by one")
        for section in places:
            if section.offset + section.size > len(source):
                raise ObjectError(f"{form.name} that is cut off in its section {label}")
            if bytes(source[section.offset : section.offset + min(section.size, 4)]) in _BITCODE_MAGICS:
                return section
            if wanted == FAT_LTO:
                raise ObjectError(f"{form.name} whose section {label} holds no bitcode")
    return None


def _format(source: Source) -> _Format:
    form = _FORMATS.get(sniff(source))
    if form is None:
        raise ObjectError("not an object file")
    return form

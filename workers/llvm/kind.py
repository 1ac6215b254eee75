"""What kind of content an input is: judged by its bytes, never by its name."""

from __future__ import annotations

import enum

from workers.llvm.coff import looks_like_coff
from workers.llvm.content import Source
from workers.llvm.textir import looks_like_ir

__all__ = ["OBJECTS", "ContentKind", "sniff"]


class ContentKind(enum.Enum):
    """The kinds of content that an input can have."""

    BITCODE = "bitcode"
    TEXT = "textual IR"
    ARCHIVE = "archive"
    THIN_ARCHIVE = "thin archive"
    ELF = "ELF"
    COFF = "COFF"
    MACH_O = "Mach-O"
    UNIVERSAL = "universal Mach-O"
    WASM = "WebAssembly"
    UNKNOWN = "unknown"


OBJECTS = frozenset({ContentKind.ELF, ContentKind.COFF, ContentKind.MACH_O, ContentKind.WASM})
"""The formats of objects, programs and shared libraries."""

_MAGIC = {
    b"BC\xc0\xde": ContentKind.BITCODE,
    b"\xde\xc0\x17\x0b": ContentKind.BITCODE,  # the wrapper of Darwin's tools
    b"!<arch>\n": ContentKind.ARCHIVE,
    b"!<thin>\n": ContentKind.THIN_ARCHIVE,
    b"\x7fELF": ContentKind.ELF,
    b"\xcf\xfa\xed\xfe": ContentKind.MACH_O,
    b"\xce\xfa\xed\xfe": ContentKind.MACH_O,
    b"\xfe\xed\xfa\xcf": ContentKind.MACH_O,
    b"\xfe\xed\xfa\xce": ContentKind.MACH_O,
    b"\0asm": ContentKind.WASM,
}
_UNIVERSAL_MAGICS = (b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf")
_MOST_ARCHITECTURES = 42
"""Java's classes have the same magic, and a version above this where a universal file has a number."""


def sniff(source: Source) -> ContentKind:
    """What `source` is, by its first bytes."""
    head = bytes(source[:20])
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head.startswith(_UNIVERSAL_MAGICS) and int.from_bytes(head[4:8], "big") <= _MOST_ARCHITECTURES:
        return ContentKind.UNIVERSAL
    if looks_like_coff(head):
        return ContentKind.COFF
    return ContentKind.TEXT if looks_like_ir(source) else ContentKind.UNKNOWN

"""What kind of content an input is: judged by its bytes, never by its name."""

from __future__ import annotations

import enum

from workers.llvm.content import Source
from workers.llvm.textir import looks_like_ir

__all__ = ["ContentKind", "sniff"]


class ContentKind(enum.Enum):
    """The kinds of content that an input can have."""

    BITCODE = "bitcode"
    TEXT = "textual IR"
    ARCHIVE = "archive"
    THIN_ARCHIVE = "thin archive"
    ELF = "ELF"
    UNKNOWN = "unknown"


_MAGIC = {
    b"BC\xc0\xde": ContentKind.BITCODE,
    b"\xde\xc0\x17\x0b": ContentKind.BITCODE,  # the wrapper of Darwin's tools
    b"!<arch>\n": ContentKind.ARCHIVE,
    b"!<thin>\n": ContentKind.THIN_ARCHIVE,
    b"\x7fELF": ContentKind.ELF,
}


def sniff(source: Source) -> ContentKind:
    """What `source` is, by its first bytes."""
    head = bytes(source[:8])
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    return ContentKind.TEXT if looks_like_ir(source) else ContentKind.UNKNOWN

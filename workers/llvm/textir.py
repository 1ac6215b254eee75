"""Textual IR: telling it from other text, and its header, without parsing the rest.

LLVM takes `target` and `source_filename` lines before everything else only, so the header ends at the first
other entity.
"""

from __future__ import annotations

import re

from workers.llvm.bitcode import Header
from workers.llvm.content import Source

__all__ = ["looks_like_ir", "read_text_header"]

_WINDOW = 1 << 16
_MAX_WINDOW = 1 << 24  # comments longer than this hide the header

# White space and comments, never given back: retrying shorter ones would take exponential time. A comment that
# the examined bytes cut off counts as complete.
_BLANK = re.compile(rb"(?:[ \t\r\n]+|;[^\n]*|/\*.*?(?:\*/|\Z))*+", re.DOTALL)

_DEFINITION = re.compile(
    rb'(target{b}triple|target{b}datalayout|source_filename){b}={b}"([^"]*)"'.replace(b"{b}", _BLANK.pattern), re.DOTALL
)

# How the first entity of a module can begin, in LLVM's language reference.
_ENTITY = re.compile(
    rb"""source_filename\s*=|target\s+(?:triple|datalayout)\s*=|module\s+asm\s*"|(?:define|declare)\s+[^\s=]
    |attributes\s*\#\d|uselistorder|[@%$](?:[-a-zA-Z$._0-9]+|"[^"\n]*")\s*=|![-a-zA-Z$._0-9\\]+\s*=|\^\d+\s*=""",
    re.VERBOSE,
)
_ESCAPE = re.compile(rb"\\(\\|[0-9a-fA-F]{2})")


def looks_like_ir(source: Source) -> bool:
    """Whether text is LLVM's textual IR, judged by its first entity; LLVM's comments alone are an empty module."""
    head = bytes(source[:_WINDOW])
    start = _blank_end(head, 0)
    if start < len(head):
        return _ENTITY.match(head, start) is not None
    return head.lstrip().startswith(b";") and b"\0" not in head


def read_text_header(source: Source) -> Header:
    """The header of textual IR. Nothing is judged here: what LLVM will not parse gives an empty header or a part."""
    window = _WINDOW
    while True:
        head = bytes(source[:window])
        found, end = _definitions(head)
        # Close to the end of the window, a definition may be cut off.
        if len(head) == len(source) or end < window // 2 or window >= _MAX_WINDOW:
            return Header(
                triple=found.get(b"triple", ""),
                data_layout=found.get(b"datalayout", ""),
                source_filename=found.get(b"source_filename", ""),
                size=len(source),
            )
        window *= 2


def _definitions(head: bytes) -> tuple[dict[bytes, str], int]:
    """The definitions that `head` begins with, the last of each kind, and where the first other thing stands."""
    found: dict[bytes, str] = {}
    position = _blank_end(head, 0)
    while definition := _DEFINITION.match(head, position):
        key = definition[1]
        name = next((kind for kind in (b"triple", b"datalayout") if key.endswith(kind)), b"source_filename")
        found[name] = _ESCAPE.sub(_unescape, definition[2]).decode("utf-8", "backslashreplace")
        position = _blank_end(head, definition.end())
    return found, position


def _blank_end(head: bytes, position: int) -> int:
    blank = _BLANK.match(head, position)
    return blank.end() if blank else position


def _unescape(escape: re.Match[bytes]) -> bytes:
    return b"\\" if escape[1] == b"\\" else bytes.fromhex(escape[1].decode())

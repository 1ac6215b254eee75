"""Writing to standard output and standard error, whatever has become of them."""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

__all__ = ["OutputError", "is_fancy", "open_missing_descriptors", "printable", "put", "say"]


class OutputError(Exception):
    """Standard output cannot be written: the message says why."""


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def open_missing_descriptors() -> None:
    """Put /dev/null where a standard descriptor is closed, so that no file of ours takes its number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)


def printable(text: str) -> str:
    """`text` without control characters: names and messages come out of files that anyone may have made."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def say(text: str) -> None:
    """Write a line to standard error; nobody listening is no error."""
    try:
        _write(sys.stderr, printable(text))
    except OSError:
        _silence(sys.stderr)


def put(text: str) -> None:
    """Write a line to standard output. A reader that has left is no error. Raises `OutputError`."""
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    try:
        _write(sys.stdout, text)
    except BrokenPipeError:
        _silence(sys.stdout)
    except OSError as error:
        _silence(sys.stdout)
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


def is_fancy() -> bool:
    """Whether standard error is a terminal that can redraw lines."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _write(stream: TextIO | None, text: str) -> None:
    if stream is not None:
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()


def _silence(stream: TextIO) -> None:
    """Let what is still buffered, and all that follows, go nowhere: Python would complain about it at exit."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123  # not a path of anybody's choosing
        os.dup2(nowhere.fileno(), stream.fileno())

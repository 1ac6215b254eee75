"""The passes that ran, read from what LLVM's two pass managers print to standard error."""

from __future__ import annotations

import re
from typing import IO

__all__ = ["PassReader"]

_EXECUTING = re.compile(rb"Executing Pass '(.*?)' on \w+ '(.*)'\.\.\.\s*$")
_DIAGNOSTIC = re.compile(rb"(?:^|: )(?:(?:fatal )?error|warning|note|remark|LLVM ERROR): |is not a recognized ")


class PassReader:
    """Takes a standard error apart into the passes that ran and the diagnostics.

    The optimiser's lines stay in its own words (`Running pass: SROAPass on f (12 instructions)`); code generation's
    lose a time stamp and an address (`Running codegen pass: Greedy Register Allocator on f`). Everything else that
    the pass managers print (analyses, invalidations, the pipeline's structure) is left out.
    """

    def __init__(self) -> None:
        self.passes: list[str] = []
        self._diagnostics: list[bytes] = []

    def read(self, file: IO[bytes]) -> None:
        """Read all of a file."""
        for line in file.read().splitlines(keepends=True):
            if line.startswith(b"Running pass: "):
                self.passes.append(line.rstrip().decode(errors="replace"))
            elif (executing := _EXECUTING.search(line)) is not None:
                name, unit = (part.decode(errors="replace") for part in executing.groups())
                self.passes.append(f"Running codegen pass: {name} on {unit}")
            elif _DIAGNOSTIC.search(line):
                self._diagnostics.append(line)

    def diagnostics(self) -> bytes:
        """The lines that are diagnostics. Code that they quote is lost among the passes."""
        return b"".join(self._diagnostics)

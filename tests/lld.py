"""ld.lld by itself, as what ltod's results are compared with: its line for a link, and what is in what it makes."""

from __future__ import annotations

import os
import shlex
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import field, frozen

from tests.samples import zig
from workers.work import count

__all__ = ["DEBIAN_LLD", "LldCommand", "lld_command", "text_size", "wheel_lld"]

DEBIAN_LLD = shutil.which("ld.lld-22")
_EXECUTABLE = 4  # SHF_EXECINSTR
_PROGBITS = 1


def wheel_lld() -> list[str]:
    """The lld of the wheel."""
    return [zig(), "ld.lld"]


@frozen
class LldCommand:
    """What a compiler driver tells ld.lld about one link, with a gap where the modules go."""

    head: tuple[str, ...] = field(repr=count)
    tail: tuple[str, ...] = field(repr=count)

    def argv(
        self, lld: Sequence[str], files: Sequence[Path], output: Path, options: Sequence[str] = ()
    ) -> list[str | Path]:
        """The command that links `files` in this order."""
        return [*lld, *self.head, "-o", output, *files, *self.tail, *options]


def lld_command(
    objects: Sequence[Path],
    output: Path,
    arguments: Sequence[str] = (),
    *,
    cplusplus: bool = False,
    shared: bool = False,
) -> LldCommand:
    """Link native `objects` to `output` with the system's compiler (zig for C++, or where there is none) and the
    wheel's lld; returns the lld command that did it."""
    kind = "-shared" if shared else "-pie"
    with _recorder(output.parent) as (directory, record):
        cc = None if cplusplus else shutil.which("cc")
        command = [cc, "-fuse-ld=lld", f"-B{directory}"] if cc is not None else _zig_driver(cplusplus)
        command += [kind, *map(str, objects), *arguments, "-o", str(output)]
        environ = os.environ | {"ZIG_VERBOSE_LINK": "1"}
        said = subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stderr
        if cc is not None:
            words = record.read_text().split("\0")[:-1]
        else:
            (line,) = (line for line in said.splitlines() if line.startswith("ld.lld ") and str(objects[0]) in line)
            words = line.split(" ")[1:]
    first = words.index(str(objects[0]))
    assert words[first : first + len(objects)] == list(map(str, objects)), "the objects are not all together"
    at = words.index("-o")
    assert at < first
    return LldCommand((*words[:at], *words[at + 2 : first]), tuple(words[first + len(objects) :]))


def _zig_driver(cplusplus: bool) -> list[str]:
    return [zig(), "c++" if cplusplus else "cc", "-target", "x86_64-linux-gnu", "-O2", "-fno-sanitize=undefined"]


@contextmanager
def _recorder(place: Path) -> Iterator[tuple[Path, Path]]:
    """A directory with an `ld.lld` that writes its arguments down before it links, and where it writes them."""
    directory = place / "recorder"
    directory.mkdir()
    record = directory / "arguments"
    program = directory / "ld.lld"
    program.write_text(f'#!/bin/sh\nprintf \'%s\\0\' "$@" >{record}\nexec {shlex.join(wheel_lld())} "$@"\n')
    program.chmod(0o755)
    try:
        yield directory, record
    finally:
        shutil.rmtree(directory)


def text_size(path: Path) -> int:
    """Bytes of machine code in an ELF file."""
    data = path.read_bytes()
    (table,) = struct.unpack_from("<Q", data, 0x28)
    entry, count = struct.unpack_from("<HH", data, 0x3A)
    total = 0
    for number in range(count):
        kind, flags = struct.unpack_from("<IQ", data, table + number * entry + 4)
        if kind == _PROGBITS and flags & _EXECUTABLE:
            (size,) = struct.unpack_from("<Q", data, table + number * entry + 32)
            total += size
    return total

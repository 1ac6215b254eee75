"""Reproducers: a directory with a failed run's input, command, versions and standard error.

`sh DIRECTORY/repro.sh` runs the command again from any working directory, and ends as it ended. A directory is
complete or absent.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio
from attrs import frozen

from workers.keeper import unused_name, watched
from workers.work import Diagnostic, Optimize, Severity

__all__ = ["Reproducer", "reproduced", "taken_along", "write_reproducer"]

_NAME_CHARACTERS = 80


@frozen(kw_only=True)
class Reproducer:
    """What goes into the directory.

    `argv` begins with an absolute path; all other paths in it, and the keys of `inputs`, are relative to the
    directory. `hang` is a time limit in seconds, given when the run did not end by itself; `memory_limit` is in
    bytes of address space.
    """

    module: str
    message: str
    argv: Sequence[str]
    inputs: Mapping[str, Path | bytes]
    stderr: bytes
    versions: str
    hang: float | None = None
    memory_limit: int | None = None


def write_reproducer(parent: Path, reproducer: Reproducer) -> Path:
    """Write it below `parent`, under a name made of the module's and not taken yet. Raises `OSError`."""
    parent.mkdir(parents=True, exist_ok=True)
    growing = unused_name(parent, ".ltod-")
    with watched(growing):
        try:
            growing.mkdir()
            _fill(growing, reproducer)
            return _settle(growing, parent, reproducer.module)
        except OSError:
            shutil.rmtree(growing, ignore_errors=True)
            raise


def _fill(directory: Path, reproducer: Reproducer) -> None:
    for name, content in reproducer.inputs.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)
    (directory / "stderr.txt").write_bytes(reproducer.stderr)
    (directory / "versions.txt").write_text(reproducer.versions, errors="replace")
    (directory / "repro.sh").write_text(_script(reproducer), errors="surrogateescape")


def taken_along(argv: Sequence[str], directory: Path) -> tuple[tuple[str, ...], dict[str, Path]]:
    """`argv` with relative paths for the files below `directory` that it names, and these files as inputs."""
    inputs: dict[str, Path] = {}
    words: list[str] = []
    for word in argv:
        begin, middle, end = word.partition(f"{directory}/")
        path = Path(middle + end)
        if middle and path.is_file():
            name = f"given/{path.name}"
            inputs[name] = path
            word = begin + name
        words.append(word)
    return tuple(words), inputs


async def reproduced(item: Optimize, message: str, reproducer: Reproducer) -> Diagnostic:
    """The diagnostic of a fault, with its reproducer, or with the reason why there is none."""
    try:
        where = await trio.to_thread.run_sync(write_reproducer, item.reproducer_dir, reproducer)
    except OSError as error:
        reason = f"{message}\n(no reproducer: {error.strerror or error}, {item.reproducer_dir})"
        return Diagnostic(Severity.ERROR, item.name, reason)
    return Diagnostic(Severity.ERROR, item.name, message, where)


def _settle(growing: Path, parent: Path, module: str) -> Path:
    stem = re.sub(r"[^A-Za-z0-9._+-]+", "_", module).lstrip(".-")[:_NAME_CHARACTERS] or "module"
    final, number = parent / stem, 1
    while True:
        try:
            # rename() would replace an empty directory, which may be someone's.
            if not final.exists() and not final.is_symlink():
                return growing.rename(final)
        except OSError:
            # Someone took the name in this very moment, unless the trouble is another.
            if not final.exists():
                raise
        number += 1
        final = parent / f"{stem}-{number}"


def _script(reproducer: Reproducer) -> str:
    lines = [
        "#!/bin/sh",
        f"# {_one_line(reproducer.module)}: {_one_line(reproducer.message)}",
        "# Runs here what ltod ran, and ends as it ended.",
        'cd -- "$(dirname -- "$0")" || exit 2',
        "ulimit -c 0",
    ]
    if reproducer.memory_limit is not None:
        lines.append(f"ulimit -v {max(1, reproducer.memory_limit // 1024)} || exit 2")
    command = ["env", "-i", *reproducer.argv]
    if reproducer.hang is not None:
        command = ["timeout", "-s", "KILL", _plain_seconds(reproducer.hang), *command]
    lines.append(f"exec {shlex.join(command)} </dev/null")
    return "\n".join(lines) + "\n"


def _plain_seconds(seconds: float) -> str:
    """Without an exponent, which not every `timeout` reads, and never 0, which means no limit to it."""
    return f"{max(seconds, 1e-6):.6f}".rstrip("0").rstrip(".")


def _one_line(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)[:500]

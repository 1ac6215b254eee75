"""Runs `ltod` as a user does, and holds what `--json` prints to its contract. Shared by the end-to-end tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.samples import LAYOUT, TRIPLE, zig

__all__ = [
    "LTOD",
    "alive",
    "checked",
    "files",
    "function",
    "jobserver",
    "ltod",
    "ltod_json",
    "sleepers",
    "sleeping_toolchain",
    "write",
]

LTOD = [sys.executable, "-m", "coordinator"]
# What scripts may rely on, and of what type it is.
KEYS = {
    "ok": bool,
    "cancelled": bool,
    "seconds": float,
    "output": (dict, type(None)),
    "artifacts": list,
    "items": list,
    "skipped": list,
    "diagnostics": list,
}
ARTIFACT = {"module": str, "kind": str, "path": str, "bytes": int}
ITEM = {
    "module": str,
    "stage": str,
    "engine": str,
    "cache": str,
    "reason": str,
    "seconds": float,
    "peak_rss_bytes": int,
    "ok": bool,
}
DIAGNOSTIC = {"severity": str, "module": (str, type(None)), "message": str, "reproducer": (str, type(None))}


def ltod(*arguments: str | bytes | Path, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[str]:
    process = subprocess.run([*LTOD, *arguments], input=stdin, capture_output=True, timeout=120, **options)
    return subprocess.CompletedProcess(
        process.args, process.returncode, process.stdout.decode(), process.stderr.decode()
    )


def ltod_json(*arguments: str | bytes | Path, code: int = 0, **options: Any) -> dict[str, Any]:
    """The object of `ltod build --json`, checked for what it must always be."""
    process = ltod("build", "--json", *arguments, **options)
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    return checked(process.stdout)


def checked(text: str) -> dict[str, Any]:
    assert text.endswith("}\n")
    assert text.count("\n") == 1
    assert text.isascii()
    answer: dict[str, Any] = json.loads(text)
    expect(answer, KEYS)
    for artifact in answer["artifacts"]:
        expect(artifact, ARTIFACT)
        assert os.stat(os.fsencode(artifact["path"])).st_size == artifact["bytes"]  # noqa: PTH116
    for item in answer["items"]:
        expect({key: value for key, value in item.items() if key != "passes"}, ITEM)
    for diagnostic in answer["diagnostics"]:
        expect(diagnostic, DIAGNOSTIC)
    errors = [each for each in answer["diagnostics"] if each["severity"] == "error"]
    assert answer["ok"] == (not errors)
    return answer


def expect(answer: dict[str, Any], types: dict[str, Any]) -> None:
    assert list(answer) == list(types)
    for key, value in answer.items():
        assert isinstance(value, types[key]), (key, value)


def write(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def function(name: str, *, triple: str = TRIPLE, layout: str = LAYOUT) -> str:
    head = f'target datalayout = "{layout}"\n' if layout else ""
    return f'{head}target triple = "{triple}"\ndefine i32 @{name}(i32 %x) {{\n  %y = mul i32 %x, 3\n  ret i32 %y\n}}\n'


def files(directory: str) -> set[str]:
    return {str(path.relative_to(directory)) for path in Path(directory).rglob("*") if path.is_file()}


def sleeping_toolchain(place: Path) -> None:
    """A toolchain whose clang sleeps instead of compiling, and notes who it is."""
    (place / "pids").mkdir()
    binary = place / "sleepy"
    binary.mkdir()
    (binary / "clang").write_text(
        f"""#!/bin/sh
for argument; do
    case $argument in -emit-*) sleeps=yes ;; '-###') sleeps=; break ;; esac
done
if [ "$sleeps" ]; then : >{place}/pids/$$; exec /bin/sleep 1000; fi
exec {zig()} clang "$@"
"""
    )
    (binary / "ld.lld").write_text(f'#!/bin/sh\nexec {zig()} ld.lld "$@"\n')
    for tool in binary.iterdir():
        tool.chmod(0o755)


def sleepers(place: Path) -> list[int]:
    return [int(path.name) for path in (place / "pids").iterdir()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Jobserver:
    def __init__(self, path: Path, descriptor: int, tokens: bytes) -> None:
        self._descriptor = descriptor
        self.environ = {"MAKEFLAGS": f" -j{len(tokens) + 1} --jobserver-auth=fifo:{path}"}

    def tokens(self) -> bytes:
        """What is in it, whatever the order."""
        try:
            return bytes(sorted(os.read(self._descriptor, 100)))
        except BlockingIOError:
            return b""


@contextmanager
def jobserver(place: Path, tokens: bytes) -> Iterator[Jobserver]:
    path = place / "jobserver"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(descriptor, tokens)
        yield Jobserver(path, descriptor, tokens)
    finally:
        os.close(descriptor)

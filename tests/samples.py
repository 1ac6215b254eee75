"""Modules for tests and benchmarks: made by rule, so that nothing binary is committed."""

from __future__ import annotations

import importlib.util
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["ABORTING_IR", "GOOD_IR", "LAYOUT", "TRIPLE", "UNPARSABLE_IR", "compile_c", "small_c", "zig"]

TRIPLE = "x86_64-unknown-linux-gnu"
LAYOUT = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128"
_HEAD = f'target datalayout = "{LAYOUT}"\ntarget triple = "{TRIPLE}"\n'

GOOD_IR = _HEAD + "define i32 @good(i32 %x) {\n  %y = mul i32 %x, 3\n  ret i32 %y\n}\n"
UNPARSABLE_IR = _HEAD + "define i32 @broken( {\n"
# An intrinsic of another target: instruction selection ends in `LLVM ERROR: Cannot select` and aborts.
ABORTING_IR = (
    _HEAD
    + "declare i32 @llvm.amdgcn.workitem.id.x()\n"
    + "define i32 @f() {\n  %x = call i32 @llvm.amdgcn.workitem.id.x()\n  ret i32 %x\n}\n"
)


def zig() -> str:
    """The wheel's binary."""
    spec = importlib.util.find_spec("ziglang")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "zig")


def small_c(number: int, count: int) -> str:
    """One of `count` small translation units: three functions that call each other across modules."""
    after = (number + 1) % count
    return f"""
struct pair{number % 7} {{ int x, y; }};
extern int walk{after}(int);
int mix{number}(int a, int b) {{ return a * {number + 3} + b; }}
int walk{number}(int n) {{ int s = 0; for (int k = 0; k < n; k++) s += mix{number}(k, n) ^ k; return s; }}
int pick{number}(struct pair{number % 7} *p, int n) {{ return n > {number} ? p->x : walk{after}(p->y); }}
"""


def compile_c(sources: dict[str, str], directory: Path) -> list[Path]:
    """Compile freestanding C to raw bitcode, one file a source, sorted by name."""

    def one(name: str) -> Path:
        source, output = directory / f"{name}.c", directory / f"{name}.bc"
        source.write_text(sources[name])
        flags = ["-triple", TRIPLE, "-O2", "-disable-llvm-passes", "-emit-llvm-bc", str(source), "-o", str(output)]
        subprocess.run([zig(), "clang", "-cc1", *flags], check=True)
        source.unlink()
        return output

    directory.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, sorted(sources)))

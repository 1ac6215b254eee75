"""Bitcode to objects at -O2 with two jobs: ltod against make and xargs running clang.

    python -m tests.bench.codegen [--rounds N] [--modules 400]

Two sets: small modules made by rule, and the C sources of brotli, fetched from PyPI the first time. Every contestant
but `ltod, embedded` is a whole process (start-up included) on the same bitcode; contestants take turns within a round,
so a machine that changes its speed changes it for all. Prints medians, and the ratio to the best peer.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from coordinator import BuildConfig, Coordinator, Module, open_coordinator
from tests.bench.contestants import JOBS, ltod_environ
from tests.projects import Form, cache_dir, compile_project, fetch
from tests.recipes import PROJECTS
from tests.samples import TRIPLE, compile_c, small_c, zig


def _contestants(inputs: list[Path], out: Path) -> dict[str, Callable[[], float | None]]:
    """What to run; each fills `out` with one object for each input. One that measures itself returns seconds."""
    clang22 = shutil.which("clang-22")
    compilers = {"zig clang": [zig(), "clang", f"--target={TRIPLE}"]}
    if clang22 is not None:
        compilers["clang-22"] = [clang22]

    def xargs(compiler: list[str]) -> None:
        line = " ".join([*compiler, "-O2", "-Wno-override-module", "-c", "-x", "ir", '"$1"', "-o", f'"{out}/$2.o"'])
        names = "".join(f"{path}\n{path.stem}\n" for path in inputs)
        command = ["xargs", f"-P{JOBS}", "-n2", "sh", "-c", f"exec {line}", "sh"]
        subprocess.run(command, input=names, text=True, check=True)

    def make(compiler: list[str]) -> None:
        line = " ".join([*compiler, "-O2", "-Wno-override-module", "-c", "-x", "ir"])
        rules = "".join(f"{out}/{path.stem}.o: {path}\n\t@{line} $< -o $@\n" for path in inputs)
        makefile = f"all: {' '.join(f'{out}/{path.stem}.o' for path in inputs)}\n" + rules
        subprocess.run(["make", f"-j{JOBS}", "-s", "-f", "-"], input=makefile, text=True, check=True)

    def ltod() -> None:
        command = [sys.executable, "-m", "coordinator", "build", "-q", "--no-cache", "-O2", f"-j{JOBS}"]
        subprocess.run([*command, "--out-dir", out, *inputs], check=True, env=ltod_environ())

    def embedded() -> float:
        return trio.run(_embedded, inputs, out)

    made: dict[str, Callable[[], float | None]] = {"ltod": ltod, "ltod, embedded": embedded}
    for name, compiler in compilers.items():
        made[f"xargs -P2 {name}"] = partial(xargs, compiler)
        if shutil.which("make") is not None:
            made[f"make -j2 {name}"] = partial(make, compiler)
    return made


async def _embedded(inputs: list[Path], out: Path) -> float:
    """Seconds of a build in a coordinator that is open already, as in a daemon."""
    async with open_coordinator(jobs=JOBS, cache=None, environ={}) as coordinator:
        with tempfile.TemporaryDirectory() as elsewhere:
            await _build(coordinator, inputs[:1], Path(elsewhere))
        started = time.perf_counter()
        await _build(coordinator, inputs, out)
        return time.perf_counter() - started


async def _build(coordinator: Coordinator, inputs: list[Path], out: Path) -> None:
    async with coordinator.build(BuildConfig(out_dir=out)) as build:
        for path in inputs:
            await build.submit(Module(path.stem, path))
        await build.finish()


def _measure(title: str, inputs: list[Path], rounds: int, root: Path) -> None:
    out = root / "out"
    seconds: dict[str, list[float]] = {}
    for round_ in range(rounds + 1):
        contestants = list(_contestants(inputs, out).items())
        for name, run in contestants[round_ % len(contestants) :] + contestants[: round_ % len(contestants)]:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            started = time.perf_counter()
            elapsed = run() or time.perf_counter() - started
            assert {path.stem for path in out.iterdir()} == {path.stem for path in inputs}, name
            if round_:  # the first is to warm up
                seconds.setdefault(name, []).append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min((name for name in medians if not name.startswith("ltod")), key=medians.__getitem__)
    print(f"\n{title}: {len(inputs)} modules, {sum(path.stat().st_size for path in inputs)} bytes, {rounds} rounds")
    print(f"{'':<22} {'median s':>9} {'min..max':>15} {'to best peer':>13}")
    for name, median in sorted(medians.items(), key=lambda pair: pair[1]):
        spread = f"{min(seconds[name]):.2f}..{max(seconds[name]):.2f}"
        print(f"{name:<22} {median:>9.2f} {spread:>15} {median / medians[best]:>13.2f}")
    for name in ("ltod", "ltod, embedded"):
        ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds[name], seconds[best], strict=True))
        print(f"{name} / {best}, round by round: median {ratio:.2f}")


def main() -> None:
    """Measure both sets and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--modules", type=int, default=400)
    parser.add_argument("--only", choices=["small", "real"], help="measure one set")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ltod-bench-") as directory:
        root = Path(directory)
        if arguments.only != "real":
            sources = {f"m{n:03}": small_c(n, arguments.modules) for n in range(arguments.modules)}
            _measure("small modules", compile_c(sources, root / "small"), arguments.rounds, root)
        if arguments.only != "small":
            brotli = PROJECTS["brotli"]
            inputs = compile_project(brotli, fetch(brotli, cache_dir()), root / "real", Form.RAW)
            _measure("brotli", inputs, arguments.rounds, root)


if __name__ == "__main__":
    main()

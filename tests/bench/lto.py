"""Whole links with ThinLTO and fat LTO, two jobs: ltod against ld.lld doing LTO in its own process.

    python -m tests.bench.lto [--rounds N] [--modules 400] [--only SET]

Inputs have been through the pre-link pipeline, as clang leaves them; everything ends with a linked program, which is
run. Every contestant but `ltod, embedded` is a whole process, start-up included; contestants take turns within a
round, so a machine that changes its speed changes it for all. Debian's LLVM takes part where it is installed, as lld
doing it alone and as what ltod runs: that tells what is the coordinator's share and what the compiler's.

Prints, for each set, medians and ratios to the best peer of each mode, sizes of code, peak memory of the whole process
tree (measured in runs of their own), and where ltod's time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import trio
from attrs import frozen

from coordinator import BuildConfig, Coordinator, FatLto, LinkKind, LinkOptions, Module, ThinLto, open_coordinator
from tests.bench.memory import peak_memory
from tests.lld import DEBIAN_LLD, LldCommand, lld_command, text_size, wheel_lld
from tests.projects import Form, cache_dir, compile_project, fetch
from tests.recipes import PROJECTS
from tests.samples import TRIPLE, compile_c, small_c, zig

_JOBS = 2
_EMBEDDED = "ltod, embedded"
_WITH_DEBIAN = "ltod (Debian)"
_REAL = ("brotli", "zstd")


@frozen
class _Set:
    """What is built, and what must hold of the program."""

    title: str
    lto: ThinLto | FatLto
    inputs: tuple[Path, ...]
    arguments: tuple[str, ...]
    check: Callable[[Path], object]

    @property
    def modes(self) -> dict[str, tuple[str, ...]]:
        """The ways in which lld does it, and their options."""
        if isinstance(self.lto, ThinLto):
            return {"ld.lld": (f"--thinlto-jobs={_JOBS}",)}
        return {"ld.lld": (), "ld.lld, 2 partitions": ("--lto-partitions=2",)}

    @property
    def name(self) -> str:
        """As `--lto` takes it."""
        return "thin" if isinstance(self.lto, ThinLto) else "fat"


@frozen
class _Contestant:
    """`mode` is that of `_Set.modes` for peers. Without a command it is the embedded build."""

    name: str
    mode: str | None
    command: tuple[str | Path, ...] = ()
    toolchain: Path | None = None

    def environ(self) -> dict[str, str]:
        """What its process sees."""
        environ = os.environ | {"PYTHONPATH": str(Path.cwd())}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed ltod has its bytecode
        if self.toolchain is not None:
            environ["LTOD_TOOLCHAIN"] = str(self.toolchain)
        return environ


def _contestants(one: _Set, lld: LldCommand, out: Path) -> list[_Contestant]:
    program = out / "program"
    ltod: list[str | Path] = [
        sys.executable,
        "-m",
        "coordinator",
        "build",
        f"--lto={one.name}",
        f"-j{_JOBS}",
        "--out-dir",
        out / "obj",
    ]
    ltod += ["--link=exe", "-o", program, *(f"--link-arg={argument}" for argument in one.arguments)]
    found = [_Contestant("ltod", None, (*ltod, *one.inputs)), _Contestant(_EMBEDDED, None)]
    directory = Path(DEBIAN_LLD or ".").resolve().parent
    if DEBIAN_LLD is not None and (directory / "clang").exists():
        found.append(_Contestant(_WITH_DEBIAN, None, (*ltod, *one.inputs), directory))
    builds = {"wheel": wheel_lld()} | ({"Debian": [DEBIAN_LLD]} if DEBIAN_LLD is not None else {})
    for mode, options in one.modes.items():
        for build, binary in builds.items():
            command = lld.argv(binary, one.inputs, program, ("--lto-O2", *options))
            found.append(_Contestant(f"{mode} ({build})", mode, tuple(command)))
    return found


def _run(contestant: _Contestant, one: _Set, out: Path) -> float:
    """Seconds of one build."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()  # what others left to be written is not this one's to wait for
    if not contestant.command:
        return trio.run(_embedded, one, out)
    quiet = ["-q"] if contestant.mode is None else []
    started = time.perf_counter()
    subprocess.run([*contestant.command, *quiet], check=True, env=contestant.environ())
    return time.perf_counter() - started


async def _embedded(one: _Set, out: Path) -> float:
    """Seconds of a build in a coordinator that is open already, as in a daemon, and has linked before."""
    async with open_coordinator(jobs=_JOBS, environ={"PATH": os.environ["PATH"], "HOME": str(Path.home())}) as opened:
        with tempfile.TemporaryDirectory() as elsewhere:
            main = compile_c({"main": "int main(void) { return 0; }"}, Path(elsewhere))
            await _build(opened, one, main, Path(elsewhere))
        started = time.perf_counter()
        await _build(opened, one, one.inputs, out)
        return time.perf_counter() - started


async def _build(coordinator: Coordinator, one: _Set, inputs: Sequence[Path], out: Path) -> None:
    link = LinkOptions(LinkKind.EXECUTABLE, out / "program", arguments=one.arguments)
    async with coordinator.build(BuildConfig(out_dir=out / "obj", lto=one.lto, link=link)) as build:
        for path in inputs:
            await build.submit(Module(path.stem, path))
        await build.finish()


def _measure(one: _Set, rounds: int, root: Path) -> None:
    out = root / "out"
    main = root / "main.c"
    main.write_text("int main(void) { return 0; }\n")
    native = main.with_suffix(".o")
    subprocess.run([zig(), "cc", "-target", "x86_64-linux-gnu", "-O2", "-c", main, "-o", native], check=True)
    lld = lld_command([native], root / "main", one.arguments)
    contestants = _contestants(one, lld, out)
    seconds: dict[str, list[float]] = {each.name: [] for each in contestants}
    sizes: dict[str, int] = {}
    for round_ in range(rounds + 1):
        turn = round_ % len(contestants)
        for each in contestants[turn:] + contestants[:turn]:
            elapsed = _run(each, one, out)
            if round_:  # the first is to warm up, and to see that it works
                seconds[each.name].append(elapsed)
            else:
                one.check(out / "program")
                sizes[each.name] = text_size(out / "program")
    peaks: dict[str, int] = {}
    for each in contestants:
        if each.command:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            peaks[each.name] = peak_memory([*each.command, *(["-q"] if each.mode is None else [])], each.environ())
    _print_table(one, contestants, seconds, sizes, peaks)
    _print_parts(contestants[0], out)


def _print_table(
    one: _Set,
    contestants: Sequence[_Contestant],
    seconds: dict[str, list[float]],
    sizes: dict[str, int],
    peaks: dict[str, int],
) -> None:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = {
        mode: min((each.name for each in contestants if each.mode == mode), key=medians.__getitem__)
        for mode in one.modes
    }
    size = sum(path.stat().st_size for path in one.inputs)
    rounds = len(seconds[contestants[0].name])
    print(f"\n{one.title}, {one.name}: {len(one.inputs)} modules, {size} bytes, {rounds} rounds")
    ratios = "".join(f" {'to ' + mode:>24}" for mode in best)
    print(f"{'':<30} {'median s':>9} {'min..max':>14} {'text':>9} {'peak MiB':>9}{ratios}")
    for name, median in sorted(medians.items(), key=lambda pair: pair[1]):
        spread = f"{min(seconds[name]):.2f}..{max(seconds[name]):.2f}"
        peak = f"{peaks[name] / 2**20:.0f}" if name in peaks else "-"
        ratios = "".join(f" {median / medians[peer]:>24.2f}" for peer in best.values())
        print(f"{name:<30} {median:>9.2f} {spread:>14} {sizes[name]:>9} {peak:>9}{ratios}")
    for name in (each.name for each in contestants if each.mode is None):
        for peer in best.values():
            ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds[name], seconds[peer], strict=True))
            print(f"{name} / {peer}, round by round: median {ratio:.2f}")


def _print_parts(ltod: _Contestant, out: Path) -> None:
    """Where the time of one more run goes."""
    shutil.rmtree(out)
    out.mkdir()
    started = time.perf_counter()
    done = subprocess.run([*ltod.command, "-q", "--json"], check=True, env=ltod.environ(), stdout=subprocess.PIPE)
    whole = time.perf_counter() - started
    answer = json.loads(done.stdout)
    print(f"ltod once more: {whole:.2f} s, of which {whole - answer['seconds']:.2f} s before and after the build")
    stages: dict[str, list[float]] = {}
    for item in answer["items"]:
        stages.setdefault(item["stage"], []).append(item["seconds"])
    for stage, values in stages.items():
        print(f"  {stage:<14} {len(values):>4} items, {sum(values):>6.2f} s in all, the longest {max(values):.2f} s")


def _small(count: int, root: Path) -> _Set:
    """Small modules that call each other, and a program that needs all of them."""
    sources = {f"m{n:04}": small_c(n, count) for n in range(count)}
    names = [f"pick{n}" for n in range(count)]
    declared = "".join(f"extern int {name}(int *, int);\n" for name in names)
    called = " + ".join(f"{name}(pair, {n})" for n, name in enumerate(names))
    sources["main"] = f"{declared}int main(void) {{ int pair[2] = {{1, 2}}; return ({called}) & 0; }}\n"
    pre_link = [zig(), "clang", "-cc1", "-triple", TRIPLE, "-x", "ir", "-O2", "-flto=thin", "-flto-unit"]
    inputs = []
    for raw in compile_c(sources, root / "raw"):
        inputs.append(root / raw.name)
        subprocess.run([*pre_link, "-emit-llvm-bc", raw, "-o", inputs[-1]], check=True)
    title = f"{count} small modules"
    return _Set(title, ThinLto(), tuple(inputs), (), lambda program: subprocess.run([program], check=True))


def _real(name: str, lto: ThinLto | FatLto, root: Path) -> _Set:
    project = PROJECTS[name]
    sources = fetch(project, cache_dir())
    form = Form.THIN if isinstance(lto, ThinLto) else Form.FAT
    inputs = compile_project(project, sources, root / f"{name}-{form.name}", form)

    def check(program: Path) -> str:
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            return project.check(program, sources, Path(scratch))

    return _Set(name, lto, tuple(inputs), project.link_arguments, check)


def main() -> None:
    """Measure every set, and print the tables."""
    sets: dict[str, Callable[[Path], _Set]] = {"small-thin": lambda root: _small(arguments.modules, root)}
    for name in _REAL:
        sets[f"{name}-thin"] = partial(_real, name, ThinLto())
        sets[f"{name}-fat"] = partial(_real, name, FatLto())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--modules", type=int, default=400)
    parser.add_argument("--only", choices=sorted(sets), action="append", help="measure this set (repeatable)")
    arguments = parser.parse_args()
    if DEBIAN_LLD is None:
        print("ld.lld-22 is not installed: the wheel's lld is the only peer")
    for name in arguments.only or sorted(sets):
        with tempfile.TemporaryDirectory(prefix="ltod-bench-") as directory:
            (root := Path(directory) / "set").mkdir()
            _measure(sets[name](root), arguments.rounds, Path(directory))


if __name__ == "__main__":
    main()

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
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import trio
from attrs import frozen

from coordinator import FatLto, ThinLto
from tests.bench.contestants import (
    EMBEDDED,
    LtoSet,
    build_set,
    lld_builds,
    lld_line,
    ltod_command,
    ltod_environ,
    opened_before,
    real_set,
    small_set,
    small_sources,
)
from tests.bench.memory import peak_memory
from tests.lld import DEBIAN_LLD, LldCommand, text_size
from tests.projects import cache_dir, fetch
from tests.recipes import PROJECTS

_WITH_DEBIAN = "ltod (Debian)"
_REAL = ("brotli", "zstd")


@frozen
class _Contestant:
    """`mode` is that of `LtoSet.modes` for peers. Without a command it is the embedded build."""

    name: str
    mode: str | None
    command: tuple[str | Path, ...] = ()
    toolchain: Path | None = None

    def environ(self) -> dict[str, str]:
        """What its process sees."""
        chosen = {} if self.toolchain is None else {"LTOD_TOOLCHAIN": str(self.toolchain)}
        return ltod_environ() | chosen


def _contestants(one: LtoSet, lld: LldCommand, out: Path) -> list[_Contestant]:
    ltod = tuple(ltod_command(one, one.inputs, out, "-q", "--no-cache"))
    found = [_Contestant("ltod", None, ltod), _Contestant(EMBEDDED, None)]
    directory = Path(DEBIAN_LLD or ".").resolve().parent
    if DEBIAN_LLD is not None and (directory / "clang").exists():
        found.append(_Contestant(_WITH_DEBIAN, None, ltod, directory))
    for mode, options in one.modes.items():
        for build, binary in lld_builds().items():
            command = lld.argv(binary, one.inputs, out / "program", ("--lto-O2", *options))
            found.append(_Contestant(f"{mode} ({build})", mode, tuple(command)))
    return found


def _run(contestant: _Contestant, one: LtoSet, out: Path) -> float:
    """Seconds of one build."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()  # what others left to be written is not this one's to wait for
    if not contestant.command:
        return trio.run(_embedded, one, out)
    started = time.perf_counter()
    subprocess.run(contestant.command, check=True, env=contestant.environ())
    return time.perf_counter() - started


async def _embedded(one: LtoSet, out: Path) -> float:
    """Seconds of a build in a coordinator that is open already, as in a daemon, and has linked before."""
    async with opened_before(one, None) as opened:
        started = time.perf_counter()
        await build_set(opened, one, one.inputs, out)
        return time.perf_counter() - started


def _measure(one: LtoSet, rounds: int, root: Path) -> None:
    out = root / "out"
    lld = lld_line(one, root)
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
            peaks[each.name] = peak_memory(each.command, each.environ())
    _print_table(one, contestants, seconds, sizes, peaks)
    _print_parts(contestants[0], out)


def _print_table(
    one: LtoSet,
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
    done = subprocess.run([*ltod.command, "--json"], check=True, env=ltod.environ(), stdout=subprocess.PIPE)
    whole = time.perf_counter() - started
    answer = json.loads(done.stdout)
    print(f"ltod once more: {whole:.2f} s, of which {whole - answer['seconds']:.2f} s before and after the build")
    stages: dict[str, list[float]] = {}
    for item in answer["items"]:
        stages.setdefault(item["stage"], []).append(item["seconds"])
    for stage, values in stages.items():
        print(f"  {stage:<14} {len(values):>4} items, {sum(values):>6.2f} s in all, the longest {max(values):.2f} s")


def _real(name: str, lto: ThinLto | FatLto, root: Path) -> LtoSet:
    return real_set(name, fetch(PROJECTS[name], cache_dir()), lto, root)


def main() -> None:
    """Measure every set, and print the tables."""
    sets: dict[str, Callable[[Path], LtoSet]] = {
        "small-thin": lambda root: small_set(small_sources(arguments.modules), root)
    }
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

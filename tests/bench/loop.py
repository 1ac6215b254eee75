"""What the main loop costs per item: no-op items through coordinator and fake workers.

    python -m tests.bench.loop [--rounds N]

Prints a table of items per second and peak memory at 2,000 and 20,000 items, in one run, and how the cost per
item grows between the two. Every size runs in a process of its own, so that peak memory is its own.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import trio

from coordinator import BuildConfig, Module, open_coordinator
from workers.fake import FakeBackend

SIZES = (2_000, 20_000)


async def _run(items: int) -> float:
    async with (
        open_coordinator(jobs=2, backend=FakeBackend(write=False), environ={}) as coordinator,
        coordinator.build(BuildConfig(out_dir=Path("unused"))) as build,
    ):
        started = time.perf_counter()
        for number in range(items):
            await build.submit(Module(f"m{number}", b""))
        result = await build.finish()
        assert len(result.results) == items
        return time.perf_counter() - started


def _one(items: int) -> None:
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = trio.run(_run, items)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(seconds, base, peak)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        _one(arguments.one)
        return
    measured: dict[int, list[tuple[float, int, int]]] = {size: [] for size in SIZES}
    for _ in range(arguments.rounds):
        for size in SIZES:
            command = [sys.executable, "-m", "tests.bench.loop", "--one", str(size)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            measured[size].append((float(printed[0]), int(printed[1]), int(printed[2])))
    print(f"{'items':>7} {'items/s':>9} {'us/item':>8} {'min..max':>15} {'peak MiB':>9} {'KiB/item':>9}")
    cost = {}
    for size, rows in measured.items():
        rates = sorted(size / seconds for seconds, _, _ in rows)
        cost[size] = statistics.median(seconds / size for seconds, _, _ in rows)
        peak = statistics.median(peak for _, _, peak in rows) / 1024
        grown = statistics.median((peak - base) / size for _, base, peak in rows)
        spread = f"{rates[0]:.0f}..{rates[-1]:.0f}"
        print(f"{size:>7} {1 / cost[size]:>9.0f} {cost[size] * 1e6:>8.1f} {spread:>15} {peak:>9.1f} {grown:>9.2f}")
    small, large = SIZES
    print(f"cost per item, {large} against {small}: {cost[large] / cost[small]:.2f}")


if __name__ == "__main__":
    main()

"""A program that is edited at random, and built with a cache and without: both builds are the same, byte for byte.

    python -m tests.stress.incremental [--rounds 200] [--modules 30] [--lto thin|fat|none] [--seed N]

After each edit, what the cache made again is compared with all that there is, so that keys that are too narrow (wrong
bytes) and too wide (everything is made again) both show. The same seed makes the same edits.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import trio

from coordinator import FatLto, Step, ThinLto
from tests.edited_program import Program
from tests.incremental_lab import Lab

_LTO: dict[str, ThinLto | FatLto | None] = {"thin": ThinLto(), "fat": FatLto(partitions=6), "none": None}
_STEP = {"thin": Step.THIN_BACKEND, "fat": Step.FAT_CODEGEN, "none": Step.CODEGEN}


async def stress(root: Path, rounds: int, modules: int, lto: str, seed: int) -> list[str]:
    """Run it in `root`; what went wrong, in words."""
    program = Program(random.Random(seed), modules)
    lab = Lab(root, _LTO[lto])
    step = _STEP[lto]
    wrong: list[str] = []
    again = total = 0
    edit = "nothing yet"
    for number in range(rounds):
        built = await lab.build(program.sources())
        cold = await lab.build(program.sources(), "cold", cached=False)
        different = sorted(name for name in cold.files if built.files.get(name) != cold.files[name])
        if different or built.files.keys() != cold.files.keys():
            wrong.append(f"round {number}, {edit}: not as in a cold build: {', '.join(different)}")
        if number:
            again += len(built.made(step))
            total += sum(one.step is step for one in built.result.results)
        edit = program.edit()
    print(f"seed {seed}, {lto}: {rounds} rounds, {again} of {total} made again, {len(wrong)} wrong")
    if rounds > 5 and again > total * 0.7:
        wrong.append("next to everything is made again")
    return wrong


def main() -> None:
    """Run the stress from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--modules", type=int, default=30)
    parser.add_argument("--lto", choices=list(_LTO), default="thin")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ltod-stress-") as root:
        wrong = trio.run(stress, Path(root), arguments.rounds, arguments.modules, arguments.lto, arguments.seed)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()

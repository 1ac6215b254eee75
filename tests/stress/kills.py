"""Builds that share a cache are killed at random moments, again and again; the next build is right all the same.

    python -m tests.stress.kills [--rounds 100] [--builds 3] [--seed N]

In each round several `ltod build` of the same program run at once, some are killed (SIGKILL), and it is edited. At the
end of a round a build must give what one without a cache gives, and `ltod cache verify` must find nothing.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.edited_program import Program
from tests.incremental_lab import Lab

_KINDS: tuple[list[str], ...] = (["--lto", "thin"], ["--lto", "fat"], [])


def stress(root: Path, rounds: int, builds: int, seed: int) -> list[str]:
    """Run it in `root`; what went wrong, in words."""
    dice = random.Random(seed)
    program = Program(random.Random(seed), modules=10)
    lab = Lab(root, None)
    wrong: list[str] = []
    kills = 0
    for number in range(rounds):
        modules = [str(path) for path in _named(root, lab, program)]
        kind = dice.choice(_KINDS)

        def command(out: str, *more: str, kind: list[str] = kind, modules: list[str] = modules) -> list[str]:
            output = ["--out-dir", str(root / out), "--link", "exe", "-o", str(root / out / "program")]
            return [sys.executable, "-m", "coordinator", "build", *modules, *kind, *output, "-q", *more]

        cache = ["--cache-dir", str(root / "cache")]
        running = [
            subprocess.Popen(command(f"out{one}", *cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for one in range(builds)
        ]
        for process in running:
            if dice.random() < 0.7:
                time.sleep(dice.random() * 0.7)
                if process.poll() is None:
                    process.kill()
                    kills += 1
        wrong += [f"round {number}: a build failed that was not killed" for one in running if one.wait(120) > 0]
        subprocess.run(command("out", *cache), check=True)
        subprocess.run(command("cold", "--no-cache"), check=True)
        wrong += [
            f"round {number}, {kind}: {path.name} is not what it is without a cache"
            for path in sorted((root / "cold").iterdir())
            if path.is_file() and path.read_bytes() != (root / "out" / path.name).read_bytes()
        ]
        verify = [sys.executable, "-m", "coordinator", "cache", "verify", *cache]
        verified = subprocess.run(verify, capture_output=True, text=True, check=False)
        if verified.returncode:
            wrong.append(f"round {number}: {verified.stdout}{verified.stderr}")
        program.edit()
    print(f"seed {seed}: {rounds} rounds, {kills} builds killed, {len(wrong)} things wrong")
    return wrong


def _named(root: Path, lab: Lab, program: Program) -> list[Path]:
    """The program's modules, each under its own name."""
    directory = root / "modules"
    directory.mkdir(exist_ok=True)
    paths = []
    for name, path in lab.bitcode(program.sources()).items():
        link = directory / f"{name}.bc"
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        paths.append(link)
    return paths


def main() -> None:
    """Run the stress from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--builds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ltod-stress-") as root:
        wrong = stress(Path(root), arguments.rounds, arguments.builds, arguments.seed)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()

"""Several writers on one store, killed at random moments, again and again.

    python -m tests.stress.store [--rounds 100] [--writers 3] [--seed N]

After each round nothing that a reader would believe may be wrong, `verify` may find nothing, and nothing of the dead
may be left. The same seed makes the same writers; what they are doing when they are killed is up to the clock.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import trio

from tests.store_samples import ROOMY, WRITTEN, child, key_of, names_in, result_of, said
from workers.store import LocalStore, open_store


async def stress(root: Path, rounds: int, writers: int, seed: int) -> list[str]:
    """Run it in `root`; what went wrong, in words."""
    dice = random.Random(seed)
    directory = root / "cache"
    store_root = directory / "v1"
    (root / "scratch").mkdir()
    wrong: list[str] = []
    believed = 0
    for number in range(rounds):
        with ExitStack() as stack:
            running = [
                stack.enter_context(
                    child("write", directory, str(dice.randrange(10**9)), environ={"TMPDIR": str(root / "scratch")})
                )
                for _ in range(writers)
            ]
            started = [await trio.to_thread.run_sync(said, writer) for writer in running]
            if started != ["going"] * writers:
                wrong.append(f"round {number}: writers did not start: {started}")
            for writer in running:
                await trio.sleep(dice.random() * 0.1)
                if writer.poll() is not None:
                    wrong.append(f"round {number}: a writer ended by itself, with {writer.returncode}")
                writer.kill()
        with open_store(directory, limit_bytes=ROOMY) as store:
            believed += await _read_all(store, wrong, number)
            if store.stats.damaged or (damaged := store.verify().damaged):
                wrong.append(f"round {number}: damaged: {store.stats.damaged or damaged}")
            store.prune(ROOMY)
            left = [
                f"{place}/{name}" for place in ("tmp", "locks", "sessions") for name in names_in(store_root / place)
            ]
            if left:
                wrong.append(f"round {number}: left by the dead: {left}")
    if not believed:
        wrong.append("nothing was ever found")
    print(f"{rounds} rounds (seed {seed}): {writers} writers each, {believed} entries read, {len(wrong)} things wrong")
    return wrong


async def _read_all(store: LocalStore, wrong: list[str], number: int) -> int:
    """How many entries are there, each looked at."""
    found = 0
    for action in range(WRITTEN):
        fact = store.recall(key_of(action))
        if fact not in (None, f"fact {action}".encode()):
            wrong.append(f"round {number}: action {action}: not its fact: {fact!r}")
        entry = await store.find(key_of(action))
        if entry is None:
            continue
        found += 1
        contents = {output.name: await store.read(output) for output in entry.outputs}
        if contents != result_of(action) or entry.note != f"{action}".encode():
            wrong.append(f"round {number}: action {action} has not its own result")
    return found


def main() -> None:
    """Run the stress from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ltod-stress-") as root:
        wrong = trio.run(stress, Path(root), arguments.rounds, arguments.writers, arguments.seed)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()

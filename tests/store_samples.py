"""What the tests of the store share: keys, contents, a second tier in memory, and a child process that uses a store.

python -m tests.store_samples claim DIRECTORY KEY     hold a claim until killed or the input ends
python -m tests.store_samples write DIRECTORY SEED    use the store without end, as a build would
python -m tests.store_samples turns DIRECTORY KEY     take a claim and give it back, many times
python -m tests.store_samples unreadable DIRECTORY USER    become that user, take away a right, heal
python -m tests.store_samples tell DIRECTORY HITS MISSES    tell of that many, one by one
python -m tests.store_samples session DIRECTORY KEY...    be a build that uses these, until the input ends
python -m tests.store_samples pruning DIRECTORY    be who prunes, until the input ends
python -m tests.store_samples poor DIRECTORY USER     become that user, try everything, print what came of it
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trio

from workers.store import LocalStore, open_store
from workers.store.layout import Layout, Writer
from workers.store.tally import tell

ROOMY = 1 << 30


def key_of(name: str | int) -> str:
    return hashlib.sha256(f"key {name}".encode()).hexdigest()


def content_of(name: str | int, size: int = 1000) -> bytes:
    return random.Random(f"{name}").randbytes(size)


class MemoryRemote:
    """A second tier that a test can look into and break."""

    def __init__(self) -> None:
        self.actions: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.broken = False
        self.asked = 0

    async def get_action(self, key: str) -> bytes | None:
        await self._answer()
        return self.actions.get(key)

    async def put_action(self, key: str, message: bytes) -> None:
        await self._answer()
        self.actions[key] = message

    async def get_blob(self, digest: str, size: int, into: Path) -> bool:
        await self._answer()
        if digest not in self.blobs:
            return False
        into.write_bytes(self.blobs[digest])
        return True

    async def put_blob(self, digest: str, source: Path) -> None:
        await self._answer()
        self.blobs[digest] = source.read_bytes()

    async def _answer(self) -> None:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise ConnectionResetError("the cable is cut")


def names_in(directory: str | Path) -> list[str]:
    return sorted(path.name for path in Path(directory).iterdir())


@contextmanager
def child(*arguments: str | Path, environ: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """This module as a process of its own, killed when the block is left."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(environ or {})}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.store_samples", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    """The next line that a child says; empty when it is dead."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _claim(directory: Path, key: str) -> None:
    with open_store(directory, limit_bytes=ROOMY) as store:
        claim = store.claim(key)
        print("none" if claim is None else "held", flush=True)
        sys.stdin.read()
        if claim is not None:
            claim.close()


TURNS = 200


async def _turns(directory: Path, key: str) -> None:
    """Fails if somebody else has the claim as well: the file is only there while one has it."""
    alone = directory.with_name("alone")
    with open_store(directory, limit_bytes=ROOMY) as store:
        for turn in range(TURNS):
            while (claim := store.claim(key)) is None:
                # Half of them do not wait, for most can go wrong where one comes while another leaves.
                if turn % 2:
                    await store.wait(key)
            with claim:
                alone.touch(exist_ok=False)
                os.sched_yield()
                alone.unlink()
            if turn % 10 == 0:
                store.prune(ROOMY)
    print("done", flush=True)


def _tell(directory: Path, hits: int, misses: int) -> None:
    layout = Layout(directory)
    layout.make()
    writer = Writer(layout)
    for number in range(hits):
        tell(layout, writer, hits=1, misses=int(number < misses))
    writer.close()
    print("done", flush=True)


async def _session(directory: Path, keys: Iterable[str]) -> None:
    with open_store(directory, limit_bytes=ROOMY) as store, store.session():
        for key in keys:
            assert await store.find(key)
        print("going", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


def _pruning(directory: Path) -> None:
    with Layout(directory).pruning.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        print("going", flush=True)
        sys.stdin.read()


SIZES = (0, 10, 3_000, 300_000, 1_500_000)
WRITTEN = 40


def result_of(number: int) -> dict[str, bytes]:
    """What action `number` gives: some of it shared with others."""
    return {
        "o": content_of(number, SIZES[number % len(SIZES)]),
        "shared": content_of(number % 7, SIZES[number % 4]),
    }


async def _write(store: LocalStore, seed: int, scratch: Path) -> None:
    dice = random.Random(seed)
    print("going", flush=True)
    while True:
        number = dice.randrange(WRITTEN)
        key, result = key_of(number), result_of(number)
        with store.session():
            claim = store.claim(key)
            if claim is None:
                with trio.move_on_after(1):
                    await store.wait(key)
                continue
            with claim:
                entry = await store.find(key)
                if entry is None:
                    (scratch / "o").write_bytes(result["o"])
                    await store.add(key, {**result, "o": scratch / "o"}, f"{number}".encode())
                    store.remember(key, f"fact {number}".encode())
                else:
                    places = {output.name: scratch / "out" / output.name for output in entry.outputs}
                    if await store.fetch(entry, places):
                        assert {name: path.read_bytes() for name, path in places.items()} == result
                        for path in places.values():
                            path.unlink()
        # Whoever sees something half done counts it as damaged.
        assert store.stats.damaged == 0
        if dice.random() < 0.05:
            await trio.to_thread.run_sync(store.prune, 3_000_000)


async def _poor(directory: Path, user: int) -> None:
    # Not before: Python itself may be where only root may look.
    os.setresuid(user, user, user)
    with open_store(directory, limit_bytes=ROOMY) as store, store.session():
        entry = await store.find(key_of("before"))
        there = entry is not None and await store.read(entry.outputs[0]) == content_of("before")
        added = await store.add(key_of("new"), {"o": content_of("new")})
        claim = store.claim(key_of("new"))
        pruned = store.prune(0).files
        print(f"found={there} added={added is not None} claim={claim is not None} pruned={pruned}", flush=True)
        assert store.stats.trouble
        if claim is not None:
            claim.close()


async def _unreadable(directory: Path, user: int) -> None:
    os.setresuid(user, user, user)
    with open_store(directory, limit_bytes=ROOMY) as store:
        for _ in range(2):
            entry = await store.add(key_of(1), {"o": b"object"})
            assert entry is not None
            if store.stats.damaged:
                assert await store.read(entry.outputs[0]) == b"object"
                print(f"healed, damaged={store.stats.damaged}", flush=True)
            else:
                (blob,) = directory.glob("v1/cas/*/*")
                blob.chmod(0)
                assert await store.read(entry.outputs[0]) is None


def _main(what: str, directory: str, *rest: str) -> None:
    if what == "claim":
        _claim(Path(directory), *rest)
    elif what == "tell":
        _tell(Path(directory), *map(int, rest))
    elif what == "session":
        trio.run(_session, Path(directory), rest)
    elif what == "pruning":
        _pruning(Path(directory))
    elif what == "turns":
        trio.run(_turns, Path(directory), rest[0])
    elif what == "unreadable":
        trio.run(_unreadable, Path(directory), int(rest[0]))
    elif what == "poor":
        trio.run(_poor, Path(directory), int(rest[0]))
    else:
        with open_store(Path(directory), limit_bytes=4_000_000) as store, tempfile.TemporaryDirectory() as scratch:
            trio.run(_write, store, int(rest[0]), Path(scratch))


if __name__ == "__main__":
    _main(*sys.argv[1:])

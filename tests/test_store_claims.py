"""Process layer: claims between processes, and how a waiter learns that the holder was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.store_samples import ROOMY, child, key_of, names_in, said
from workers.store import LocalStore, open_store

pytestmark = pytest.mark.process

KEY = key_of(1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with open_store(tmp_path / "cache", limit_bytes=ROOMY) as opened:
        yield opened


def locks(tmp_path: Path) -> list[str]:
    return names_in(tmp_path / "cache/v1/locks")


@pytest.mark.parametrize("end", ["kill", "close"])
async def test_a_holder_in_another_process(store: LocalStore, tmp_path: Path, end: str) -> None:
    with trio.fail_after(60), child("claim", tmp_path / "cache", KEY) as holder:
        assert said(holder) == "held"
        assert store.claim(KEY) is None
        with trio.move_on_after(0.1) as scope:
            await store.wait(KEY)
        assert scope.cancelled_caught

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(store.wait, KEY)
            await trio.testing.wait_all_tasks_blocked()
            if end == "kill":
                holder.send_signal(signal.SIGKILL)
            else:
                assert holder.stdin is not None
                holder.stdin.close()
        with store.claim(KEY) or pytest.fail("it is held"):
            assert store.claim(KEY) is None
    assert locks(tmp_path) == []


async def test_a_dead_holders_file_holds_nobody_up(store: LocalStore, tmp_path: Path) -> None:
    with child("claim", tmp_path / "cache", KEY) as holder:
        assert said(holder) == "held"
    assert locks(tmp_path) == [KEY]
    with trio.fail_after(10):
        await store.wait(KEY)
    with store.claim(KEY) or pytest.fail("it is held"):
        pass
    assert locks(tmp_path) == []


async def test_two_stores_on_one_directory(store: LocalStore, tmp_path: Path) -> None:
    with open_store(tmp_path / "cache", limit_bytes=ROOMY) as other, trio.fail_after(10):
        claim = other.claim(KEY)
        assert claim is not None
        assert store.claim(KEY) is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.wait, KEY)
            await trio.testing.wait_all_tasks_blocked()
            claim.close()
        claim.close()
        assert store.claim(KEY) is not None


async def test_waiting_and_cancelling_leaves_no_descriptor_and_no_thread(store: LocalStore, tmp_path: Path) -> None:
    with child("claim", tmp_path / "cache", KEY) as holder:
        assert said(holder) == "held"
        before = len(names_in("/proc/self/fd")), len(names_in("/proc/self/task"))
        for _ in range(20):
            with trio.move_on_after(0.002):
                await store.wait(KEY)
            assert store.claim(KEY) is None
        assert (len(names_in("/proc/self/fd")), len(names_in("/proc/self/task"))) == before


def _heir(held: list[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=held)


async def test_a_forked_child_that_lives_on_does_not_keep_a_claim(store: LocalStore, tmp_path: Path) -> None:
    claim = store.claim(KEY)
    assert claim is not None
    (fifo,) = (tmp_path / "cache/v1/locks").iterdir()
    held = [
        int(name)
        for name in names_in("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{name}") == str(fifo.resolve())
    ]
    with (
        open_store(tmp_path / "cache", limit_bytes=ROOMY) as other,
        _heir(held) as heir,
    ):
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(other.wait, KEY)
                await trio.testing.wait_all_tasks_blocked()
                claim.close()
        assert other.claim(KEY) is not None
        heir.kill()


async def test_processes_take_turns(tmp_path: Path) -> None:
    with ExitStack() as stack:
        racers = [stack.enter_context(child("turns", tmp_path / "cache", KEY)) for _ in range(4)]
        for racer in racers:
            assert await trio.to_thread.run_sync(said, racer) == "done"
    assert locks(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
async def test_what_is_not_ours_in_the_way(store: LocalStore, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cache/v1/locks" / KEY
    path.parent.mkdir(parents=True)
    if kind == "file":
        path.touch()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
    with trio.fail_after(10):
        await store.wait(KEY)
        with store.claim(KEY) or pytest.fail("it is held"):
            assert store.claim(KEY) is None
        await store.wait(KEY)
    assert not (tmp_path / "elsewhere").exists()


async def test_one_of_many_has_it_at_any_time(store: LocalStore, tmp_path: Path) -> None:
    """Six builds in two stores pass a claim around while a sweeper removes what looks dead."""
    holders = most = turns = 0

    async def build(mine: LocalStore) -> None:
        nonlocal holders, most, turns
        for _ in range(25):
            while (claim := mine.claim(KEY)) is None:
                await mine.wait(KEY)
            holders += 1
            turns += 1
            most = max(most, holders)
            await trio.lowlevel.checkpoint()
            holders -= 1
            claim.close()

    async def sweep(mine: LocalStore) -> None:
        while True:
            await trio.to_thread.run_sync(mine.prune, ROOMY)

    with open_store(tmp_path / "cache", limit_bytes=ROOMY) as other, trio.fail_after(60):
        async with trio.open_nursery() as outer:
            outer.start_soon(sweep, store)
            async with trio.open_nursery() as inner:
                for mine in (store, other) * 3:
                    inner.start_soon(build, mine)
            outer.cancel_scope.cancel()
    assert (most, turns) == (1, 150)
    assert locks(tmp_path) == []

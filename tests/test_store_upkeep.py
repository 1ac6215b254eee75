"""Process layer: pruning beside running builds, verifying, clearing, and what killed processes leave."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from tests.store_samples import ROOMY, child, content_of, key_of, names_in, said
from workers.store import LocalStore, open_store, upkeep
from workers.store.layout import Layout

pytestmark = pytest.mark.process

SIZE = 8192
ENTRY = 4096
"""What one action takes: a blob of two disk blocks, and an entry of one."""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def store(cache: Path) -> Iterator[LocalStore]:
    with open_store(cache, limit_bytes=ROOMY) as opened:
        yield opened


async def fill(store: LocalStore, numbers: range) -> None:
    for number in numbers:
        assert await store.add(key_of(number), {"o": content_of(number, SIZE)})


def age(cache: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in (*cache.glob("v1/[ac]*/*/*"), *cache.glob("v1/facts/*/*")):
        os.utime(path, (then, then))


async def present(store: LocalStore, numbers: range) -> list[int]:
    return [number for number in numbers if await store.find(key_of(number))]


async def test_what_was_used_least_recently_goes_first(store: LocalStore, cache: Path) -> None:
    await fill(store, range(6))
    for number in range(6):
        entry = await store.find(key_of(number))
        assert entry is not None
        then = time.time() - 1000 + number
        for name in (key_of(number), entry.outputs[0].digest):
            (path,) = cache.glob(f"v1/*/*/{name}")
            os.utime(path, (then, then))
    assert await store.find(key_of(0))
    pruned = store.prune(3 * (SIZE + ENTRY))
    assert await present(store, range(6)) == [0, 4, 5]
    assert pruned.files == 6
    assert pruned.left_bytes == store.usage().bytes <= 3 * (SIZE + ENTRY)
    assert pruned.freed_bytes == 3 * (SIZE + ENTRY)
    assert not pruned.busy
    assert pruned.in_use_bytes == 0


async def test_the_limit_is_kept_by_itself(cache: Path) -> None:
    limit = 400_000
    for start in range(0, 100, 20):
        # Several short-lived processes' worth of stores, none of which writes much.
        with open_store(cache, limit_bytes=limit) as store:
            for number in range(start, start + 20):
                age(cache, 100)
                await fill(store, range(number, number + 1))
                store._housekeeper.join()
    with open_store(cache, limit_bytes=limit) as store:
        assert limit * 0.6 < store.usage().bytes <= limit
        assert await present(store, range(100)) == list(range(100))[-len(await present(store, range(100))) :]


@pytest.mark.parametrize("where", ["here", "another process"])
async def test_what_a_running_build_uses_is_kept(store: LocalStore, cache: Path, where: str) -> None:
    await fill(store, range(6))
    age(cache, 1000)
    with store.session():
        assert await present(store, range(2)) == [0, 1]
        await fill(store, range(6, 8))
        if where == "here":
            pruned = store.prune(0)
        else:
            with open_store(cache, limit_bytes=1) as other:
                pruned = other.clear()
        assert await present(store, range(8)) == [0, 1, 6, 7]
        assert pruned.in_use_bytes == pruned.left_bytes == 4 * (SIZE + ENTRY)
        assert store.usage().sessions == 1
    assert store.usage().sessions == 0
    assert store.clear().left_bytes == 0
    assert await present(store, range(8)) == []


async def test_a_killed_build_keeps_nothing(store: LocalStore, cache: Path) -> None:
    await fill(store, range(3))
    with child("write", cache, "1") as process:
        assert said(process) == "going"
    (cache / "v1/tmp/foreign").mkdir()
    (cache / "v1/sessions/dead").touch()
    assert store.clear().left_bytes == 0
    assert names_in(cache / "v1/sessions") == []
    assert names_in(cache / "v1/locks") == []
    # Only that of the living: this store, which has written.
    assert len(names_in(cache / "v1/tmp")) == 1


async def test_a_living_writers_files_stay(store: LocalStore, cache: Path) -> None:
    fd, temporary = store._here.writer.create()
    os.close(fd)
    age(cache, 100_000)
    os.utime(temporary, (1, 1))
    with open_store(cache, limit_bytes=ROOMY) as other:
        other.clear()
    assert Path(temporary).exists()
    store._here.writer.publish(temporary, str(cache / "v1/cas/here"))
    store.close()
    assert names_in(cache / "v1/tmp") == []


async def test_what_is_used_while_pruning_stays(store: LocalStore, cache: Path) -> None:
    await fill(store, range(3))
    age(cache, 1000)

    def used_meanwhile() -> bool:
        age(cache, 0)
        return False

    assert upkeep.prune(Layout(cache), down_to=0, stopped=used_meanwhile).files == 0
    assert await present(store, range(3)) == [0, 1, 2]


async def test_one_process_prunes(store: LocalStore, cache: Path) -> None:
    await fill(store, range(2))
    store.prune(ROOMY)
    with (cache / "v1/pruning").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert store.prune(0).busy
    assert await present(store, range(2)) == [0, 1]


async def test_verify_tells_and_removes(store: LocalStore, cache: Path) -> None:
    await fill(store, range(6))
    blobs = sorted(cache.glob("v1/cas/*/*"))
    blobs[0].chmod(0o644)
    blobs[0].write_bytes(b"\0" * SIZE)
    entry = cache / "v1/ac" / key_of(5)[:2] / key_of(5)
    entry.chmod(0o644)
    entry.write_bytes(b"")
    (cache / "v1/cas/ab").mkdir(exist_ok=True)
    (cache / "v1/cas/ab/notes.txt").write_text("mine")
    found = await trio.to_thread.run_sync(store.verify)
    assert found.damaged == tuple(
        sorted(["v1/cas/ab/notes.txt", str(blobs[0].relative_to(cache)), str(entry.relative_to(cache))])
    )
    assert found.blobs == 5
    assert found.entries + found.incomplete == 5
    assert found.incomplete <= 1
    again = store.verify()
    assert (again.damaged, again.incomplete, again.entries) == ((), 0, found.entries)
    assert len(await present(store, range(6))) == found.entries


async def test_facts_are_looked_after_as_well(store: LocalStore, cache: Path) -> None:
    for number in range(3):
        store.remember(key_of(number), f"{number}".encode())
    store.remember(key_of("large"), bytes(2_000_000))
    age(cache, 1000)
    assert (store.usage().facts, store.usage().bytes) == (3, 3 * ENTRY)
    (oldest,) = cache.glob(f"v1/facts/*/{key_of(1)}")
    os.utime(oldest, (1, 1))
    assert store.recall(key_of(1)) == b"1"
    assert store.prune(ENTRY).files == 2
    assert [store.recall(key_of(number)) for number in range(3)] == [None, b"1", None]
    assert (store.verify().facts, store.verify().damaged) == (1, ())
    (path,) = cache.glob("v1/facts/*/*")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"2")
    assert store.verify().damaged == (str(path.relative_to(cache)),)
    assert store.usage().facts == 0


def test_many_may_make_it_at_once(tmp_path: Path) -> None:
    """Who fails to would go on without the claims of the others."""

    def make(layout: Layout, start: threading.Barrier) -> None:
        start.wait()
        layout.make()

    with ThreadPoolExecutor(6) as pool:
        for number in range(50):
            start = threading.Barrier(6)
            layout = Layout(tmp_path / f"{number}" / "cache")
            for making in [pool.submit(make, layout, start) for _ in range(6)]:
                making.result()


async def test_facts_alone_keep_the_limit_too(cache: Path) -> None:
    limit = 400_000
    with open_store(cache, limit_bytes=limit) as store:
        for number in range(200):
            store.remember(key_of(number), b"fact")
            store._housekeeper.join()
        assert limit * 0.6 < store.usage().bytes <= limit


async def test_uses_are_noted_but_not_each(store: LocalStore, cache: Path) -> None:
    await fill(store, range(1))
    paths = sorted(cache.glob("v1/[ac]*/*/*"))
    age(cache, 30)
    before = [path.stat().st_mtime for path in paths]
    assert await store.find(key_of(0))
    assert [path.stat().st_mtime for path in paths] == before
    for seconds in (90, -10_000):
        age(cache, seconds)
        assert await store.find(key_of(0))
        assert all(abs(path.stat().st_mtime - time.time()) < 50 for path in paths)


async def test_a_cache_is_marked_as_one_and_private(store: LocalStore, cache: Path) -> None:
    assert not cache.exists()
    await fill(store, range(1))
    assert (cache / "v1/CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    assert cache.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o222 == 0 for path in cache.glob("v1/[ac]*/*/*"))


async def test_pruning_beside_readers_makes_only_misses(store: LocalStore, cache: Path, tmp_path: Path) -> None:
    done = False

    async def prune() -> None:
        with open_store(cache, limit_bytes=ROOMY) as other:
            while not done:
                await trio.to_thread.run_sync(other.clear)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prune)
            for number in range(200):
                await fill(store, range(number % 5, number % 5 + 1))
                await trio.lowlevel.checkpoint()
                entry = await store.find(key_of(number % 5))
                place = tmp_path / "o"
                if entry and await store.fetch(entry, {"o": place}):
                    assert place.read_bytes() == content_of(number % 5, SIZE)
            done = True
    assert store.stats.damaged == 0
    assert store.verify().damaged == ()

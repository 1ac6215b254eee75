"""Process layer: hits and misses of all processes, added up in one file."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.store_samples import ROOMY, child, key_of, said
from workers.store import LocalStore, Told, open_store
from workers.store.layout import Layout, Writer
from workers.store.tally import read_tally, tell

pytestmark = pytest.mark.process

DAY = 24 * 3600


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path)
    made.make()
    return made


async def use(store: LocalStore, *, hits: int, misses: int) -> None:
    assert await store.add(key_of("hit"), {"o": b"object"})
    for _ in range(hits):
        assert await store.find(key_of("hit"))
    for _ in range(misses):
        assert await store.find(key_of("miss")) is None


async def test_every_session_and_every_store_adds_to_it(tmp_path: Path) -> None:
    before = int(time.time())
    with open_store(tmp_path / "cache", limit_bytes=ROOMY) as store:
        assert store.usage().told == Told()
        with store.session():
            await use(store, hits=2, misses=1)
        told = store.usage().told
        assert (told.hits, told.misses) == (2, 1)
        await use(store, hits=1, misses=0)
    with open_store(tmp_path / "cache", limit_bytes=ROOMY) as store:
        with store.session(), store.session():
            await use(store, hits=0, misses=4)
        told = store.usage().told
        assert (told.hits, told.misses) == (3, 5)
        assert told.since is not None
        assert before <= told.since <= time.time()
        store.clear()
        assert store.usage().told == Told()


async def test_nothing_is_lost_between_processes(tmp_path: Path, layout: Layout) -> None:
    """Long enough that it is written anew several times while the others append."""
    with ExitStack() as stack:
        tellers = [stack.enter_context(child("tell", tmp_path, "1500", "500")) for _ in range(3)]
        for teller in tellers:
            assert await trio.to_thread.run_sync(said, teller) == "done"
    told = read_tally(layout)
    assert (told.hits, told.misses) == (4500, 1500)
    assert layout.tally.stat().st_size < 3 * 16 * 1024
    assert list(layout.tmp.iterdir()) == []


def test_what_is_old_is_forgotten_and_days_become_one_line(layout: Layout) -> None:
    now = int(time.time())
    today = now // DAY * DAY
    lines = [f"{today - days * DAY + second} 1 2\n" for days in (0, 1, 29, 40) for second in range(5)]
    layout.tally.write_text("".join(lines) * 60 + f"{now + 90 * DAY} 5 5\n")
    expected = Told(hits=900, misses=1800, since=today - 29 * DAY)
    assert read_tally(layout) == expected
    tell(layout, Writer(layout), hits=0, misses=0)
    assert read_tally(layout) == expected
    assert len(layout.tally.read_text().splitlines()) == 3


def test_what_makes_no_sense_is_left_out(layout: Layout) -> None:
    now = int(time.time())
    layout.tally.write_bytes(b"\0\xff\n\n1 2\n-1 2 3\n%d 1 x\n%d 9%b 1\n%d 3 4\n%d 1" % (now, now, b"9" * 20, now, now))
    assert read_tally(layout) == Told(hits=3, misses=4, since=now)


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "huge", "unwritable"])
async def test_what_is_in_the_way_costs_only_the_tally(tmp_path: Path, layout: Layout, kind: str) -> None:
    if kind == "directory":
        layout.tally.mkdir()
    elif kind == "fifo":
        os.mkfifo(layout.tally)
    elif kind == "link":
        layout.tally.symlink_to(tmp_path / "elsewhere")
    elif kind == "huge":
        layout.tally.touch()
        os.truncate(layout.tally, 1 << 40)
    else:
        layout.tally.touch()
        layout.tally.chmod(0)
    with trio.fail_after(10):
        for _ in range(2):
            with open_store(tmp_path, limit_bytes=ROOMY) as store, store.session():
                await use(store, hits=1, misses=1)
                store.usage()
    assert not (tmp_path / "elsewhere").exists()
    assert store.stats.trouble == ""

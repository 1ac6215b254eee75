"""Contract layer: what every store does, with a disk, with a second tier, and without anything."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
import trio

from tests.store_samples import ROOMY, MemoryRemote, content_of, key_of
from workers.store import Entry, NoStore, Output, Stats, Store, open_store
from workers.store.here import Here

pytestmark = pytest.mark.contract

CLAIMING = ["local", "remote"]
KEEPING = [*CLAIMING, "here"]
SIZES = [0, 1, 20_000, 300_000, 3_000_000]


class HereAlone(NoStore):
    """`Here` as if it were a store; anybody may have any claim."""

    def __init__(self, directory: Path) -> None:
        self.here = Here(directory)

    @property
    def stats(self) -> Stats:
        return self.here.stats

    async def find(self, key: str) -> Entry | None:
        return self.here.find(key)

    async def fetch(self, entry: Entry, destinations: Mapping[str, Path]) -> bool:
        return self.here.fetch(entry, destinations)

    async def read(self, output: Output) -> bytes | None:
        return self.here.read(output)

    async def add(self, key: str, outputs: Mapping[str, Path | bytes], note: bytes = b"") -> Entry | None:
        return self.here.add(key, outputs, note)

    def recall(self, key: str) -> bytes | None:
        return self.here.recall(key)

    def remember(self, key: str, note: bytes) -> None:
        self.here.remember(key, note)

    def session(self) -> AbstractContextManager[None]:
        return self.here.session()


@pytest.fixture(params=[*KEEPING, "none"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "none":
        yield NoStore()
        return
    if request.param == "here":
        alone = HereAlone(tmp_path / "cache")
        with closing(alone.here):
            yield alone
        assert not list(tmp_path.glob("cache/v1/tmp/*"))
        return
    remote = MemoryRemote() if request.param == "remote" else None
    with open_store(tmp_path / "cache", limit_bytes=ROOMY, remote=remote) as opened:
        yield opened


claiming = pytest.mark.parametrize("store", CLAIMING, indirect=True)
keeping = pytest.mark.parametrize("store", KEEPING, indirect=True)


async def test_what_was_never_added_is_a_miss(store: Store) -> None:
    assert await store.find(key_of(1)) is None
    assert store.stats.misses == 1
    assert store.stats.hits == 0
    assert store.stats.damaged == 0


async def test_an_add_is_kept_whole_or_not_at_all(store: Store) -> None:
    entry = await store.add(key_of(1), {"o": b"object"}, b"note")
    found = await store.find(key_of(1))
    assert found == entry
    assert (store.stats.hits, store.stats.misses) == ((1, 0) if entry else (0, 1))


async def test_an_output_that_is_nowhere_is_not_given(store: Store, tmp_path: Path) -> None:
    output = Output("o", hashlib.sha256(b"x").hexdigest(), 1)
    assert await store.read(output) is None
    assert not await store.fetch(Entry((output,)), {"o": tmp_path / "out"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["", "../../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
async def test_what_is_no_key_is_a_mistake(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        await store.find(key)
    with pytest.raises(ValueError, match="not a key"):
        await store.add(key, {})
    with pytest.raises(ValueError, match="not a key"):
        store.recall(key)
    with pytest.raises(ValueError, match="not a key"):
        store.remember(key, b"")
    with pytest.raises(ValueError, match="not a key"):
        store.claim(key)
    with pytest.raises(ValueError, match="not a key"):
        await store.wait(key)


async def test_nobody_waits_for_nobody(store: Store) -> None:
    with trio.fail_after(10):
        await store.wait(key_of(1))


async def test_a_claim_given_back_can_be_had_again(store: Store) -> None:
    for _ in range(3):
        with store.claim(key_of(1)) or pytest.fail("it is held") as claim:
            claim.close()


async def test_a_session_is_a_block(store: Store) -> None:
    with store.session(), store.session():
        await store.add(key_of(1), {"o": b"object"})


async def test_a_fact_is_recalled_or_not_and_nobody_counts(store: Store) -> None:
    assert store.recall(key_of(1)) is None
    store.remember(key_of(1), b"fact")
    assert store.recall(key_of(1)) in (b"fact", None)
    assert (store.stats.hits, store.stats.misses, store.stats.not_stored) == (0, 0, 0)


@keeping
async def test_facts_and_entries_are_apart(store: Store) -> None:
    store.remember(key_of(1), b"first")
    assert await store.find(key_of(1)) is None
    entry = await store.add(key_of(1), {"o": b"object"}, b"note")
    for fact in (b"", b"last"):
        store.remember(key_of(1), fact)
        assert store.recall(key_of(1)) == fact
    assert await store.find(key_of(1)) == entry
    assert store.recall(key_of(2)) is None


@claiming
async def test_a_miss_is_counted_once(store: Store) -> None:
    assert await store.find(key_of(1)) is None
    with store.claim(key_of(1)) or pytest.fail("it is held"):
        assert await store.find(key_of(1)) is None
        assert await store.find(key_of(2)) is None
        await store.add(key_of(1), {"o": b"object"})
        assert await store.find(key_of(1)) is not None
    assert (store.stats.hits, store.stats.misses) == (1, 2)


@keeping
@pytest.mark.parametrize("size", SIZES)
async def test_outputs_come_back_as_they_were(store: Store, tmp_path: Path, size: int) -> None:
    content = content_of("x", size)
    source = tmp_path / "tool"
    source.write_bytes(content)
    source.chmod(0o755)
    entry = await store.add(key_of(1), {"tool": source, "data": content + b"!"}, b"note")
    source.write_bytes(b"changed afterwards")
    found = await store.find(key_of(1))
    assert found is not None
    assert found == entry
    assert [output.name for output in found.outputs] == ["data", "tool"]
    assert found.note == b"note"

    places = {"tool": tmp_path / "a" / "b" / "tool", "data": tmp_path / "data"}
    assert await store.fetch(found, places)
    assert places["tool"].read_bytes() == content
    assert places["data"].read_bytes() == content + b"!"
    assert os.access(places["tool"], os.X_OK)
    assert not places["data"].stat().st_mode & 0o111
    assert await store.read(found.outputs[1]) == content
    assert store.stats.bytes_read == 3 * size + 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["a", "data", "tool"]
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["tool"]


@keeping
@pytest.mark.parametrize("size", SIZES)
async def test_a_user_may_do_anything_to_an_output(store: Store, tmp_path: Path, size: int) -> None:
    content = content_of("x", size)
    entry = await store.add(key_of(1), {"o": content})
    assert entry is not None
    place = tmp_path / "out.o"
    assert await store.fetch(entry, {"o": place})
    assert place.stat().st_nlink == 1
    with place.open("r+b") as file:
        file.write(b"scribble")
    place.chmod(0o000)
    assert await store.read(entry.outputs[0]) == content
    assert await store.fetch(entry, {"o": place})
    assert place.read_bytes() == content
    assert store.stats.damaged == 0


@keeping
async def test_fetching_twice_replaces(store: Store, tmp_path: Path) -> None:
    entry = await store.add(key_of(1), {"o": b"object"})
    assert entry is not None
    place = tmp_path / "place" / "out.o"
    for _ in range(2):
        assert await store.fetch(entry, {"o": place})
    assert place.read_bytes() == b"object"
    assert list(place.parent.iterdir()) == [place]


@keeping
async def test_links_of_a_user_stay_and_devices_are_written_to(store: Store, tmp_path: Path) -> None:
    entry = await store.add(key_of(1), {"o": b"object", "p": b"more"})
    assert entry is not None
    (tmp_path / "link").symlink_to("target")
    assert await store.fetch(entry, {"o": tmp_path / "link", "p": Path("/dev/null")})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"object"
    assert Path("/dev/null").is_char_device()


@keeping
async def test_a_destination_that_cannot_be_written_is_the_callers_business(store: Store, tmp_path: Path) -> None:
    entry = await store.add(key_of(1), {"o": b"object", "p": b"more"})
    assert entry is not None
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="directory"):
        await store.fetch(entry, {"o": tmp_path / "directory"})
    with pytest.raises(OSError, match="file"):
        await store.fetch(entry, {"p": tmp_path / "p", "o": tmp_path / "file" / "o"})
    with pytest.raises(KeyError):
        await store.fetch(entry, {"q": tmp_path / "q"})
    assert not (tmp_path / "p").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert await store.find(key_of(1)) == entry


@keeping
async def test_what_cannot_be_read_is_not_stored(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with trio.fail_after(10):
        for bad in (tmp_path / "missing", tmp_path, tmp_path / "fifo"):
            assert await store.add(key_of(1), {"o": b"fine", "p": bad}) is None
    assert await store.add(key_of(1), {"\udcff": b"a name that is not Unicode"}) is None
    assert store.stats.not_stored == 4
    assert "missing" in store.stats.trouble
    assert await store.find(key_of(1)) is None


@keeping
async def test_the_last_add_counts(store: Store) -> None:
    await store.add(key_of(1), {"o": b"first"})
    second = await store.add(key_of(1), {"o": b"second"})
    assert await store.find(key_of(1)) == second


@keeping
async def test_equal_contents_are_kept_once(store: Store) -> None:
    for number in range(3):
        assert await store.add(key_of(number), {"a": b"same" * 100, "b": b"same" * 100})
    assert store.stats.bytes_written == 400


@claiming
async def test_a_claim_is_had_by_one_and_awaited_by_others(store: Store) -> None:
    claim = store.claim(key_of(1))
    assert claim is not None
    assert store.claim(key_of(1)) is None
    assert store.claim(key_of(2)) is not None
    with trio.move_on_after(0.05) as scope:
        await store.wait(key_of(1))
    assert scope.cancelled_caught
    order: list[str] = []

    async def waiter() -> None:
        await store.wait(key_of(1))
        order.append("waited")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(waiter)
            await trio.testing.wait_all_tasks_blocked()
            order.append("closing")
            claim.close()
    assert order == ["closing", "waited", "waited", "waited"]
    assert store.claim(key_of(1)) is not None

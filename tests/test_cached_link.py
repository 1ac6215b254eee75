"""Layer: contract. What is linked already and still in its place is not linked again; with the fake backend."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from attrs import evolve, frozen

from tests.cached_samples import TARGET, Desk, opened
from workers.cached import CachedBackend
from workers.fake import FakeBackend
from workers.fake_keys import FakeKeys
from workers.ingredients import Key
from workers.store import LocalStore
from workers.work import (
    CacheOutcome,
    CacheUse,
    Diagnostic,
    Failed,
    Link,
    Linked,
    LinkFile,
    LinkKind,
    LinkOptions,
    Severity,
    Step,
)

pytestmark = pytest.mark.contract

HIT, MISS, OFF = CacheOutcome.HIT, CacheOutcome.MISS, CacheOutcome.OFF


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with opened(tmp_path / "cache") as store:
        yield store


@pytest.fixture
def desk(store: LocalStore, tmp_path: Path) -> Desk:
    return Desk(store, tmp_path / "desk")


def link_of(desk: Desk, *contents: bytes, output: str = "program", arguments: tuple[str, ...] = ()) -> Link:
    """A link of objects with these contents."""
    files = []
    for number, content in enumerate(contents):
        path = desk.place / f"{number}.o"
        path.write_bytes(content)
        files.append(LinkFile(f"m{number}", path))
    desk.out.mkdir(exist_ok=True)
    options = LinkOptions(LinkKind.EXECUTABLE, desk.out / output, arguments=arguments)
    return Link(options, tuple(files), desk.options, TARGET, desk.place / "repro")


async def linked(desk: Desk, item: Link) -> CacheUse:
    """What the cache did for a link, which must succeed; what the backend did must agree."""
    result = await desk.cached.link(item)
    assert isinstance(result, Linked), result
    assert result.output == item.link.output
    assert result.bytes == item.link.output.stat().st_size
    assert item.link.output.read_bytes() == b"".join(file.path.read_bytes() for file in item.objects)
    assert desk.made(Step.LINK) == ([] if result.cache.outcome is HIT else [item.name])
    return result.cache


async def outcome(desk: Desk, item: Link) -> CacheOutcome:
    return (await linked(desk, item)).outcome


async def test_what_is_in_its_place_is_not_linked_again(desk: Desk) -> None:
    item = link_of(desk, b"one", b"two")
    first = await linked(desk, item)
    assert first.outcome is MISS
    output = item.link.output
    os.utime(output, (0, 0))
    before = output.stat()
    again = await linked(desk, item)
    assert again.outcome is HIT
    assert (again.key, again.ingredients) == (first.key, first.ingredients)
    assert [one.name for one in again.ingredients] == ["m0", "m1"]
    after = output.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert after.st_mtime > before.st_mtime + 1  # make sees it as new


@pytest.mark.parametrize("change", ["edited", "longer", "removed", "rights", "another file", "broken link"])
async def test_what_is_not_as_it_was_is_linked_again(desk: Desk, change: str) -> None:
    item = link_of(desk, b"one", b"two")
    assert await outcome(desk, item) is MISS
    output = item.link.output
    if change == "rights":
        output.chmod(0o4750)
    elif change == "edited":
        output.write_bytes(b"onetwO")
    elif change == "longer":
        output.write_bytes(b"onetwo!")
    else:
        output.unlink()
    if change == "another file":
        (desk.place / "other").write_bytes(b"other")
        output.symlink_to("../other")
    if change == "broken link":
        output.symlink_to("nowhere")
    assert await outcome(desk, item) is MISS
    assert await outcome(desk, item) is HIT


async def test_a_link_that_leads_to_the_same_content_will_do(desk: Desk) -> None:
    item = link_of(desk, b"one")
    assert await outcome(desk, item) is MISS
    item.link.output.rename(desk.place / "elsewhere")
    item.link.output.symlink_to("../elsewhere")
    os.utime(desk.place / "elsewhere", (0, 0))
    assert await outcome(desk, item) is HIT
    assert item.link.output.is_symlink()
    assert (desk.place / "elsewhere").stat().st_mtime > 1


async def test_what_is_no_file_is_the_linkers_business(desk: Desk) -> None:
    item = link_of(desk, b"one")
    assert await outcome(desk, item) is MISS
    item.link.output.unlink()
    item.link.output.mkdir()
    with pytest.raises(IsADirectoryError):  # the fake linker's
        await desk.cached.link(item)
    item.link.output.rmdir()
    item.link.output.symlink_to("/dev/null")
    desk.made(Step.LINK)
    for _ in range(2):
        result = await desk.cached.link(item)
        assert isinstance(result, Linked)
        assert result.cache.outcome is MISS
        assert desk.made(Step.LINK) == ["program"]


async def test_what_goes_in_counts(desk: Desk) -> None:
    assert await outcome(desk, link_of(desk, b"one", b"two")) is MISS
    assert await outcome(desk, link_of(desk, b"two", b"one")) is MISS
    assert await outcome(desk, link_of(desk, b"two", b"one", arguments=("-s",))) is MISS
    item = evolve(link_of(desk, b"two", b"one", arguments=("-s",)), exports=("f",))
    assert [await outcome(desk, item) for _ in range(2)] == [MISS, HIT]
    # The output is what came of other objects.
    item = link_of(desk, b"one", b"two")
    assert await outcome(desk, item) is MISS
    item.link.output.write_bytes(b"twoone")
    assert await outcome(desk, item) is MISS


async def test_each_place_is_looked_at_by_itself(desk: Desk) -> None:
    one, two = (link_of(desk, b"x", output=name) for name in ("one", "two"))
    assert [await outcome(desk, item) for item in (one, two, one, two)] == [MISS, MISS, HIT, HIT]


async def test_other_runs_and_users_know_it_too(desk: Desk, store: LocalStore, tmp_path: Path) -> None:
    item = link_of(desk, b"x")
    assert await outcome(desk, item) is MISS
    other = Desk(store, tmp_path / "other")
    assert await outcome(other, item) is HIT


async def test_what_a_link_reads_counts(desk: Desk) -> None:
    library = desk.place / "library"
    library.write_bytes(b"1")
    item = link_of(desk, b"x reads=%b" % bytes(library))
    assert await outcome(desk, item) is MISS
    use = await linked(desk, item)
    assert use.outcome is HIT
    assert str(library) in [one.name for one in use.ingredients]
    library.write_bytes(b"2")
    assert await outcome(desk, item) is MISS
    assert await outcome(desk, item) is HIT


async def test_warnings_are_told_again(desk: Desk) -> None:
    item = link_of(desk, b"x warn=careful")
    first, second = await desk.cached.link(item), await desk.cached.link(item)
    assert isinstance(first, Linked)
    assert isinstance(second, Linked)
    assert second.cache.outcome is HIT
    assert second.diagnostics == first.diagnostics == (Diagnostic(Severity.WARNING, "program", "careful"),)
    assert (second.engine, second.bytes, second.reads) == (first.engine, first.bytes, first.reads)


class Slow(FakeBackend):
    """Says how it went."""

    async def link(self, item: Link) -> Linked | Failed:
        note = Diagnostic(Severity.NOTE, item.name, "it took long")
        return evolve(await super().link(item), diagnostics=(note,))


async def test_how_a_link_went_is_not_told_again(desk: Desk) -> None:
    desk.cached = CachedBackend(Slow(), FakeKeys(desk.fake), desk.store)
    item = link_of(desk, b"x")
    first, second = await desk.cached.link(item), await desk.cached.link(item)
    assert [len(one.diagnostics) for one in (first, second)] == [1, 0]
    assert second.cache.outcome is HIT


async def test_a_failure_is_not_remembered(desk: Desk) -> None:
    good = link_of(desk, b"x")
    assert await outcome(desk, good) is MISS
    bad = link_of(desk, b"x link-fail")
    for _ in range(2):
        result = await desk.cached.link(bad)
        assert isinstance(result, Failed)
        assert result.cache.outcome is MISS
        assert desk.made(Step.LINK) == ["program"]
    good = link_of(desk, b"x")
    assert await outcome(desk, good) is HIT  # what failed has left it as it was


async def test_without_a_key_it_is_linked_each_time(desk: Desk) -> None:
    item = link_of(desk, b"x nolinkkey")
    for _ in range(2):
        use = await linked(desk, item)
        assert (use.outcome, use.note) == (OFF, "an object says so")


class Secretive(FakeBackend):
    """Does not say what it read."""

    async def link(self, item: Link) -> Linked | Failed:
        linked = await super().link(item)
        assert isinstance(linked, Linked)
        return evolve(linked, reads=None)


async def test_where_nobody_knows_what_was_read_nothing_is_remembered(desk: Desk) -> None:
    fake = desk.fake = Secretive()
    desk.cached = CachedBackend(fake, FakeKeys(fake), desk.store)
    item = link_of(desk, b"x")
    assert [await outcome(desk, item) for _ in range(2)] == [MISS, MISS]


class Moving(FakeKeys):
    """Keys of files that are changed while they are in use."""

    def unchanged(self, key: Key) -> bool:
        return False


async def test_what_changed_meanwhile_is_not_remembered(desk: Desk) -> None:
    desk.cached = CachedBackend(desk.fake, Moving(desk.fake), desk.store)
    item = link_of(desk, b"x")
    assert [await outcome(desk, item) for _ in range(2)] == [MISS, MISS]


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"null",
        b'{"engine": "toolchain", "bytes": 1, "diagnostics": [[]]}',
        b'{"engine": "toolchain", "bytes": 1, "diagnostics": [["loud", "x"]]}',
        b'{"engine": "abacus", "bytes": 1, "diagnostics": []}',
        b'{"engine": "toolchain", "bytes": "1", "diagnostics": []}',
        b'{"engine": "toolchain", "bytes": 1, "diagnostics": []}',
        b'{"engine": "toolchain", "bytes": 1, "digest": null, "diagnostics": []}',
    ],
)
async def test_facts_that_make_no_sense(desk: Desk, note: bytes) -> None:
    item = link_of(desk, b"x")
    use = await linked(desk, item)
    os.utime(item.link.output, (0, 0))
    assert json.loads(desk.store.recall(use.key) or b"")["bytes"] == 1
    desk.store.remember(use.key, note)
    assert await outcome(desk, item) is MISS
    assert await outcome(desk, item) is HIT


def bytes_read() -> int:
    """By this process so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


async def test_large_outputs_are_read_once(desk: Desk, store: LocalStore) -> None:
    item = link_of(desk, b"x")
    size = 20_000_000
    desk.fake = Padding(size=size)

    def again() -> None:
        desk.cached = CachedBackend(desk.fake, FakeKeys(desk.fake), store)

    again()
    result = await desk.cached.link(item)
    assert isinstance(result, Linked)
    assert result.bytes == size
    await trio.sleep(0.15)  # until then it may be in the making
    read = []
    for _ in range(3):
        before = bytes_read()
        assert (await desk.cached.link(item)).cache.outcome is HIT
        read.append(bytes_read() - before)
        again()  # as in another run
    assert read[0] >= size
    assert max(read[1:]) < size // 10
    with item.link.output.open("r+b") as file:
        file.seek(size - 1)
        file.write(b"z")
    assert (await desk.cached.link(item)).cache.outcome is MISS


@frozen
class Padding(FakeBackend):
    """Makes large programs."""

    size: int = 0

    async def link(self, item: Link) -> Linked | Failed:
        linked = await super().link(item)
        assert isinstance(linked, Linked)
        os.truncate(linked.output, self.size)
        return evolve(linked, bytes=self.size)

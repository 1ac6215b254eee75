"""Layer: contract. How long results took to make, as those learn who find them: a fake compiler, and a real store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.cached_samples import MODULES, TARGET, Desk, checked, note_of, opened
from workers.fake import FakeBackend
from workers.fat import FatLinked, FatPartition
from workers.store import LocalStore
from workers.thin import ThinLinked
from workers.work import (
    CacheOutcome,
    Deferred,
    Failed,
    Finished,
    Link,
    Linked,
    LinkFile,
    LinkKind,
    LinkOptions,
    NeedsFatLto,
    NeedsThinLto,
    PreLink,
)

pytestmark = pytest.mark.contract

HIT, MISS, SHARED = CacheOutcome.HIT, CacheOutcome.MISS, CacheOutcome.SHARED
SLOW = b"seconds=0.02"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with opened(tmp_path / "cache") as store:
        yield store


class SlowLinker(FakeBackend):
    """Says that it took its time."""

    async def link(self, item: Link) -> Linked | Failed:
        return evolve(await super().link(item), seconds=1.5)


@pytest.fixture
def desk(store: LocalStore, tmp_path: Path) -> Desk:
    return Desk(store, tmp_path / "desk", SlowLinker())


@pytest.fixture
def other(store: LocalStore, tmp_path: Path) -> Desk:
    """Another build in the same process."""
    return Desk(store, tmp_path / "other")


def cost(result: object) -> float:
    """What was noted of something that had to be made."""
    assert isinstance(result, Finished | NeedsThinLto | NeedsFatLto | ThinLinked | FatLinked | Linked)
    assert (result.cache.outcome, result.cache.saved_seconds) == (MISS, 0.0)
    assert result.seconds > 0.0
    return round(result.seconds, 3)


def saved(result: object, outcome: CacheOutcome = HIT) -> float:
    """What is told of something that was there."""
    assert isinstance(result, Finished | NeedsThinLto | NeedsFatLto | ThinLinked | FatLinked | Linked)
    assert (result.cache.outcome, result.seconds) == (outcome, 0.0)
    return result.cache.saved_seconds


async def test_a_module(desk: Desk, other: Desk) -> None:
    made = await desk.one("m", SLOW)
    assert saved(await other.one("n", SLOW)) == cost(made)
    assert saved(await desk.one("m", SLOW)) == cost(made)


@pytest.mark.parametrize("pre_link", PreLink)
async def test_a_module_on_its_way_to_lto(desk: Desk, other: Desk, pre_link: PreLink) -> None:
    (made,) = await desk.compile(desk.item("m", SLOW, pre_link))
    (found,) = await other.compile(other.item("m", SLOW, pre_link))
    assert saved(found) == cost(made)


async def test_what_was_waited_for(desk: Desk) -> None:
    made, waiting = await desk.compile(desk.item("a", SLOW), desk.item("b", SLOW))
    assert isinstance(waiting, Deferred)
    await waiting.released()
    assert saved(await desk.one("b", SLOW), SHARED) == cost(made)


async def test_a_thin_link(desk: Desk, other: Desk) -> None:
    modules = {name: content + b" " + SLOW for name, content in MODULES.items()}
    first = await desk.thin_linked(modules)
    made = checked(await desk.cached.thin_compile(first.compiles))
    second = await other.thin_linked(modules)
    found = checked(await other.cached.thin_compile(second.compiles))
    assert saved(second) == cost(first)
    assert [saved(one) for one in found] == [cost(one) for one in made]


async def test_a_fat_link(desk: Desk, other: Desk) -> None:
    modules = {name: content + b" " + SLOW for name, content in MODULES.items()}

    async def program(user: Desk) -> tuple[FatLinked, list[Finished]]:
        parts: list[FatPartition] = []
        linked = await user.cached.fat_link(await user.fat_link(modules), parts.append)
        assert isinstance(linked, FatLinked)
        return linked, checked([await user.cached.fat_codegen(part) for part in parts])

    first, made = await program(desk)
    second, found = await program(other)
    assert saved(second) == cost(first)
    assert [saved(one) for one in found] == [cost(one) for one in made]


async def test_the_last_link(desk: Desk) -> None:
    (desk.place / "m.o").write_bytes(b"m")
    desk.out.mkdir()
    options = LinkOptions(LinkKind.EXECUTABLE, desk.out / "program")
    item = Link(options, (LinkFile("m", desk.place / "m.o"),), desk.options, TARGET, desk.place / "repro")
    assert cost(await desk.cached.link(item)) == 1.5
    assert saved(await desk.cached.link(item)) == 1.5


@pytest.mark.parametrize(
    ("note", "told"),
    [
        ({"seconds": 2}, 2.0),
        ({}, 0.0),
        ({"seconds": None}, 0.0),
        ({"seconds": "5"}, 0.0),
        ({"seconds": [1.0]}, 0.0),
        ({"seconds": -1.0}, 0.0),
        ({"seconds": 1e300}, 0.0),
        ({"seconds": 10**400}, 0.0),
        ({"seconds": float("inf")}, 0.0),
        ({"seconds": float("nan")}, 0.0),
    ],
)
async def test_what_a_note_says_may_be_anything(
    desk: Desk, store: LocalStore, note: dict[str, object], told: float
) -> None:
    made = await desk.one("m", b"x")
    assert isinstance(made, Finished)
    assert await store.add(made.cache.key, {"obj": made.artifacts[0].path}, note_of(**note))
    assert saved(await desk.one("m", b"x")) == told

"""Layer: contract. What several builds want at a time is made once; over a fake compiler, and a real store."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from tests.cached_samples import Desk, opened, use
from tests.leftovers import descriptors
from workers.fake import FakeBackend
from workers.store import LocalStore
from workers.work import (
    CacheOutcome,
    Deferred,
    Failed,
    Step,
)

pytestmark = pytest.mark.contract

HIT, MISS, SHARED, OFF = CacheOutcome.HIT, CacheOutcome.MISS, CacheOutcome.SHARED, CacheOutcome.OFF


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with opened(tmp_path / "cache") as store:
        yield store


@pytest.fixture
def desk(store: LocalStore, tmp_path: Path) -> Desk:
    return Desk(store, tmp_path / "desk")


@pytest.fixture
def other(store: LocalStore, tmp_path: Path) -> Desk:
    """Another build in the same process."""
    return Desk(store, tmp_path / "other")


async def test_equal_content_in_one_batch_is_made_once(desk: Desk) -> None:
    results = await desk.compile(desk.item("a", b"x"), desk.item("b", b"x"), desk.item("c", b"x"))
    first, second, third = results
    assert use(first) is MISS
    for name, result in (("b", second), ("c", third)):
        assert isinstance(result, Deferred)
        assert result.module == name
        with trio.fail_after(5):
            await result.released()
        assert use(await desk.one(name, b"x")) is SHARED
    assert desk.made(Step.CODEGEN) == ["a"]
    # It was waited for once, and not for ever.
    assert use(await desk.one("b", b"x")) is HIT


async def test_equal_content_that_fails_is_tried_by_each(desk: Desk) -> None:
    _, second = await desk.compile(desk.item("a", b"fail"), desk.item("b", b"fail"))
    assert isinstance(second, Deferred)
    await second.released()
    assert isinstance(await desk.one("b", b"fail"), Failed)
    assert desk.made(Step.CODEGEN) == ["a", "b"]


async def finish(gate: Path, *waiting: Deferred) -> None:
    """Nobody is released before the one that they wait for has ended."""
    for one in waiting:
        with trio.move_on_after(0.05) as early:
            await one.released()
        assert early.cancelled_caught
    gate.touch()


@pytest.mark.parametrize("users", ["one store", "two stores"])
async def test_what_another_build_makes_is_waited_for(
    desk: Desk, tmp_path: Path, users: str, store: LocalStore
) -> None:
    gate = tmp_path / "gate"
    content = f"until={gate}".encode()
    with opened(tmp_path / "cache") as second, trio.fail_after(10):
        other = Desk(store if users == "one store" else second, tmp_path / "other")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.one, "m", content)
            await trio.testing.wait_all_tasks_blocked()
            waiting = await other.one("n", content)
            assert isinstance(waiting, Deferred)
            # What is not being made goes on meanwhile.
            assert use(await other.one("o", b"x")) is MISS
            await finish(gate, waiting)
            await waiting.released()
        result = await other.one("n", content)
    assert use(result) is SHARED
    assert other.made(Step.CODEGEN) == ["o"]
    assert (other.out / "n.o").read_bytes() == (desk.out / "m.o").read_bytes()


@pytest.mark.parametrize("end", ["cancelled", "fails", "cannot keep it"])
async def test_who_waited_takes_over(desk: Desk, other: Desk, tmp_path: Path, end: str) -> None:
    gate = tmp_path / "gate"
    source = tmp_path / "source"
    source.write_bytes(f"until={gate} {'fail' if end == 'fails' else ''}".encode())
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.one, "m", source)
            await trio.testing.wait_all_tasks_blocked()
            copy = tmp_path / "copy"
            copy.write_bytes(source.read_bytes())
            waiting = await other.one("n", copy)
            assert isinstance(waiting, Deferred)
            if end == "cancelled":
                nursery.cancel_scope.cancel()
            elif end == "cannot keep it":
                source.write_bytes(b"it is another module now")
                gate.touch()
            else:
                gate.touch()
            await waiting.released()
        gate.touch()
        result = await other.one("n", copy)
    assert use(result) is MISS
    assert isinstance(result, Failed) == (end == "fails")
    assert other.made(Step.CODEGEN) == ["n"]


async def test_giving_up_waiting_leaves_no_trace(desk: Desk, other: Desk, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    content = f"until={gate}".encode()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.one, "m", content)
        await trio.testing.wait_all_tasks_blocked()
        waiting = await other.one("n", content)
        assert isinstance(waiting, Deferred)
        await finish(gate, waiting)
    # It is simply there.
    assert use(await other.one("n", content)) is HIT


async def test_claims_end_whatever_happens(desk: Desk, other: Desk, tmp_path: Path) -> None:
    class Buggy(FakeBackend):
        async def compile(self, batch: Any) -> Any:
            raise KeyError("oops")

    buggy = evolve(desk, fake=Buggy())
    with pytest.raises(KeyError):
        await buggy.one("m", b"x")
    with trio.move_on_after(0.05):
        await desk.one("m", f"until={tmp_path / 'never'}".encode())
    (tmp_path / "never").touch()
    for content in (b"x", f"until={tmp_path / 'never'}".encode()):
        assert use(await other.one("m", content)) is MISS
    assert list((tmp_path / "cache").glob("v1/locks/*")) == []


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    yield 256
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_claiming_and_waiting_leaves_descriptors_to_others(
    few_descriptors: int, desk: Desk, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    items = {f"m{number}": f"until={gate} {number}".encode() for number in range(2 * few_descriptors)}
    with opened(tmp_path / "cache") as second, trio.fail_after(60):
        other = Desk(second, tmp_path / "other")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.compile, *(desk.item(*item) for item in items.items()))
            await trio.testing.wait_all_tasks_blocked()
            # Of those that began last, another process sees nothing, and would make them as well.
            first = list(items.items())[: few_descriptors // 8]
            deferred = [one for item in first for one in await other.compile(other.item(*item))]
            for result in 8 * deferred:
                assert isinstance(result, Deferred)
                nursery.start_soon(result.released)
            await trio.testing.wait_all_tasks_blocked()
            assert len(descriptors()) < few_descriptors // 2
            gate.touch()
        for result in deferred:
            assert use(await other.one(result.module, items[result.module])) is SHARED

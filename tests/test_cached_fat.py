"""Layer: contract. Fat LTO through a cached backend: a fake compiler, and a real store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from attrs import evolve

from tests.cached_samples import (
    MODULES,
    Desk,
    checked,
    damage,
    entry_of,
    forget,
    note_of,
    objects,
    opened,
    touched,
    use,
    uses,
)
from workers.fat import FatLink, FatLinked, FatPartition
from workers.store import LocalStore
from workers.work import CacheOutcome, Deferred, Failed, Finished, Step

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


@pytest.fixture
def workspace(desk: Desk) -> Iterator[Path]:
    with desk.cached.workspace() as path:
        yield path


async def merged(desk: Desk, link: FatLink) -> tuple[FatLinked | Failed | Deferred, list[FatPartition]]:
    parts: list[FatPartition] = []
    linked = await desk.cached.fat_link(link, parts.append)
    return linked, parts


async def fat(
    desk: Desk, modules: dict[str, bytes], directory: Path | None = None
) -> tuple[FatLinked, list[Finished | Failed | Deferred]]:
    linked, parts = await merged(desk, await desk.fat_link(modules, directory=directory))
    assert isinstance(linked, FatLinked), linked
    assert sorted(part.name for part in parts) == [f"fat-lto.{number}" for number in range(linked.partitions)]
    return linked, [await desk.cached.fat_codegen(part) for part in parts]


async def test_a_program_of_the_same_modules_is_there(desk: Desk, other: Desk) -> None:
    modules = MODULES | {"d": b"needs=symbol warn=too"}
    first, made = await fat(desk, modules)
    second, copied = await fat(other, modules)
    assert uses([first, *made]) == [MISS] * 3
    assert uses([second, *copied]) == [HIT] * 3
    assert other.fake.made == []
    assert objects(copied) == objects(made)
    assert second.needs == first.needs == {"symbol": ("d",)}
    assert (second.partitions, second.unneeded) == (first.partitions, first.unneeded)
    assert second.diagnostics == first.diagnostics != ()
    for before, after in zip(made, copied, strict=True):
        assert isinstance(before, Finished)
        assert isinstance(after, Finished)
        assert (after.step, after.diagnostics) == (before.step, before.diagnostics)
        assert after.artifacts[0].path == other.out / f"{after.module}.o"


async def test_only_the_parts_that_changed_are_made_again(desk: Desk) -> None:
    await fat(desk, MODULES)
    desk.fake.made.clear()
    linked, results = await fat(desk, MODULES | {"b": b"edited"})
    assert uses([linked, *results]) == [MISS, HIT, MISS]
    assert desk.fake.made == [(Step.PRE_LINK, "b"), (Step.FAT_LINK, "fat link"), (Step.FAT_CODEGEN, "fat-lto.1")]


async def test_a_program_of_which_a_part_is_gone_is_merged_again(desk: Desk, tmp_path: Path) -> None:
    _, made = await fat(desk, MODULES)
    entry_of(tmp_path / "cache", checked(made)[1].cache.key).unlink()
    linked, results = await fat(desk, MODULES)
    assert uses([linked, *results]) == [MISS, HIT, MISS]
    assert uses([*(await fat(desk, MODULES))[1]]) == [HIT, HIT]


@pytest.mark.parametrize(
    "note",
    [
        {"parts": [["fat-lto.0", "no digest"]], "needs": {}, "unneeded": []},
        {"parts": [], "needs": [], "unneeded": []},
        {"parts": None},
        {},
    ],
)
async def test_a_program_that_makes_no_sense_is_a_miss(desk: Desk, store: LocalStore, note: dict[str, object]) -> None:
    linked, _ = await fat(desk, MODULES)
    assert await store.add(linked.cache.key, {}, note_of(**note))
    linked, parts = await fat(desk, MODULES)
    assert uses([linked, *parts]) == [MISS, HIT, HIT]


async def test_a_program_depends_on_what_the_link_read(desk: Desk, tmp_path: Path) -> None:
    listed = tmp_path / "listed"
    for text, outcome in (("x", MISS), ("x", HIT), ("y", MISS), ("x", HIT)):
        listed.write_text(text)
        linked, _ = await fat(desk, MODULES | {"d": f"reads={listed}".encode()})
        assert use(linked) is outcome


async def test_a_fat_link_without_a_key_still_has_parts_that_are_there(desk: Desk) -> None:
    for outcome in (MISS, HIT):
        linked, results = await fat(desk, MODULES | {"n": b"nolinkkey"})
        assert uses([linked, *results]) == [OFF, outcome, outcome]


async def test_a_part_without_a_key_keeps_the_program_from_being_kept(desk: Desk) -> None:
    for outcome in (MISS, HIT):
        linked, results = await fat(desk, MODULES | {"n": b"nokey"})
        assert uses([linked, *results]) == [MISS, outcome, OFF]


async def test_failures_of_fat_lto_are_not_kept(desk: Desk) -> None:
    for outcome in (MISS, HIT):
        failed, parts = await merged(desk, await desk.fat_link(MODULES | {"x": b"link-fail"}))
        assert isinstance(failed, Failed)
        assert parts == []
        linked, (good, bad) = await fat(desk, MODULES | {"x": b"lto-fail"})
        assert uses([linked, good, bad]) == [MISS, outcome, MISS]
        assert isinstance(bad, Failed)


async def test_a_program_is_claimed_until_its_last_part_has_ended(
    desk: Desk, other: Desk, workspace: Path, tmp_path: Path
) -> None:
    linked, parts = await merged(desk, await desk.fat_link(MODULES, directory=workspace))
    assert isinstance(linked, FatLinked)
    link = await other.fat_link(MODULES)
    for part in parts:
        waiting, none = await merged(other, link)
        assert isinstance(waiting, Deferred)
        assert none == []
        with trio.move_on_after(0.02) as early:
            await waiting.released()
        assert early.cancelled_caught
        await desk.cached.fat_codegen(part)
        still = waiting
    with trio.fail_after(10):
        await still.released()
    shared, there = await merged(other, link)
    assert use(shared) is SHARED
    assert uses([await other.cached.fat_codegen(part) for part in there]) == [HIT, HIT]
    assert other.fake.made == []


@pytest.mark.parametrize("end", ["given up", "fails", "cannot be kept", "has no key for a part", "cancelled"])
async def test_who_waited_for_a_program_takes_over(desk: Desk, other: Desk, tmp_path: Path, end: str) -> None:
    gate, listed = tmp_path / "gate", tmp_path / "listed"
    listed.write_text("x")
    words = {"fails": "lto-fail", "cannot be kept": f"reads={listed}", "has no key for a part": "nokey"}
    modules = {"a": f"until={gate} {words.get(end, '')}".encode(), "b": b"b"}
    gate.touch()
    link = await other.fat_link(modules)
    with trio.fail_after(10):
        with desk.cached.workspace() as workspace:
            linked, (first, second) = await merged(desk, await desk.fat_link(modules, directory=workspace))
            assert isinstance(linked, FatLinked)
            gate.unlink()
            waiting, _ = await merged(other, link)
            assert isinstance(waiting, Deferred)
            await desk.cached.fat_codegen(second)
            async with trio.open_nursery() as nursery:
                if end == "given up":
                    pass
                elif end == "cancelled":
                    with trio.move_on_after(0.02):
                        await desk.cached.fat_codegen(first)
                else:
                    if end == "cannot be kept":
                        listed.unlink()
                    nursery.start_soon(touched, gate)
                    await desk.cached.fat_codegen(first)
        await waiting.released()
        gate.touch()
        listed.write_text("x")
        again, parts = await merged(other, link)
        results = [await other.cached.fat_codegen(part) for part in parts]
    if end == "cannot be kept":
        # It read the list when it was merged, and found it unchanged; only the next one sees it gone.
        assert use(again) is SHARED
    else:
        assert use(again) is MISS
        assert uses(results) == [OFF if end.startswith("has no key") else MISS, HIT]


async def test_a_program_that_cannot_be_kept_keeps_nobody_waiting(desk: Desk, other: Desk, tmp_path: Path) -> None:
    class Unsure(type(desk.fake)):  # type: ignore[misc]
        async def fat_link(self, item: FatLink, ready: object) -> object:
            return evolve(await super().fat_link(item, ready), reads=None)

    for one in (desk, other):
        one.fake = Unsure()
        one.__attrs_post_init__()
    with desk.cached.workspace() as workspace:
        linked, _ = await merged(desk, await desk.fat_link(MODULES, directory=workspace))
        assert use(linked) is MISS
        meanwhile, _ = await merged(other, await other.fat_link(MODULES))
        assert use(meanwhile) is MISS


async def test_a_part_that_another_build_makes_is_waited_for(desk: Desk, other: Desk, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    common = f"until={gate}".encode()
    _, ours = await merged(desk, await desk.fat_link({"a": common, "b": b"b"}))
    _, theirs = await merged(other, await other.fat_link({"a": common, "b": b"another"}))
    gate.unlink()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.cached.fat_codegen, ours[0])
            await trio.testing.wait_all_tasks_blocked()
            waiting = await other.cached.fat_codegen(theirs[0])
            assert isinstance(waiting, Deferred)
            nursery.start_soon(touched, gate)
            await waiting.released()
        assert uses([await other.cached.fat_codegen(part) for part in theirs]) == [SHARED, MISS]


async def test_equal_parts_of_one_program_are_made_once(desk: Desk) -> None:
    linked, results = await fat(desk, {"a": b"same", "b": b"same"})
    assert uses([linked, *results]) == [MISS, MISS, HIT]
    assert desk.made(Step.FAT_CODEGEN) == ["fat-lto.0"]
    assert uses([(await fat(desk, {"a": b"same", "b": b"same"}))[0]]) == [HIT]


async def test_nothing_is_kept_of_what_was_made_of_files_that_changed(desk: Desk) -> None:
    forget(desk)
    for _ in range(2):
        linked, results = await fat(desk, MODULES)
        assert uses([linked, *results]) == [MISS] * 3
    assert desk.made(Step.PRE_LINK) == [*MODULES] * 2


@pytest.mark.parametrize("how", ["miss", "hit", "whole program hit"])
async def test_a_fat_destination_that_is_no_place_for_it(desk: Desk, other: Desk, how: str) -> None:
    modules = {"a": b"a", "b": b"b"}
    if how != "miss":
        await fat(desk, modules if how.startswith("whole") else {"a": b"a", "b": b"c"})
    other.out.mkdir()
    (other.out / "fat-lto.0.o").mkdir()
    _, (bad, good) = await fat(other, modules)
    assert isinstance(bad, Failed)
    assert bad.step is Step.FAT_CODEGEN
    assert bad.diagnostics[-1].message == f"cannot write {other.out / 'fat-lto.0.o'}: it is a directory"
    assert isinstance(good, Finished)


async def test_damage_between_merging_and_taking_the_parts(desk: Desk, other: Desk, tmp_path: Path) -> None:
    _, made = await fat(desk, MODULES)
    link = await other.fat_link(MODULES)
    damage(tmp_path / "cache")
    linked, parts = await merged(other, link)
    results = [await other.cached.fat_codegen(part) for part in parts]
    assert uses([linked, *results]) == [MISS, MISS, MISS]
    assert objects(results) == objects(made)

"""Layer: contract. ThinLTO through a cached backend: a fake compiler, and a real store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

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
from workers.store import LocalStore
from workers.thin import REGULAR_PART, ThinLinked
from workers.work import CacheOutcome, Deferred, Diagnostic, Failed, Finished, Severity, Step

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


async def thin(desk: Desk, modules: dict[str, bytes], **lazy: bool) -> tuple[ThinLinked, list[Finished]]:
    linked = await desk.thin_linked(modules, **lazy)
    return linked, checked(await desk.cached.thin_compile(linked.compiles))


async def test_a_thin_link_of_the_same_modules_has_nothing_left_to_do(desk: Desk, other: Desk) -> None:
    modules = MODULES | {"lazy": b"nobody needs it", "r": b"regular-part warn=there"}
    first, made = await thin(desk, modules, lazy=True)
    second, copied = await thin(other, modules, lazy=True)
    assert uses([first, *made]) == [MISS] * 4
    assert uses([second, *copied]) == [HIT] * 4
    assert other.fake.made == []
    assert objects(copied) == objects(made)
    assert second.unneeded == first.unneeded == ("lazy",)
    assert second.diagnostics == first.diagnostics
    assert first.regular is not None
    assert second.regular is not None
    assert (second.regular.module, second.regular.step) == (REGULAR_PART, Step.THIN_LINK)
    assert objects([second.regular]) == objects([first.regular])
    assert second.regular.artifacts[0].path == other.out / f"{REGULAR_PART}.o"
    assert second.regular.diagnostics == (Diagnostic(Severity.WARNING, REGULAR_PART, "there"),)
    assert [one.estimate.seconds for one in second.compiles] == [0.0] * 3
    for before, after in zip(made, copied, strict=True):
        assert (after.step, after.engine, after.diagnostics) == (before.step, before.engine, before.diagnostics)
        assert after.artifacts[0].path == other.out / f"{after.module}.o"


async def test_only_what_changed_is_compiled_again(desk: Desk) -> None:
    await thin(desk, MODULES)
    desk.fake.made.clear()
    linked, results = await thin(desk, MODULES | {"b": b"edited"})
    assert uses([linked, *results]) == [MISS, HIT, MISS, HIT]
    assert desk.fake.made == [(Step.PRE_LINK, "b"), (Step.THIN_LINK, "thin link"), (Step.THIN_BACKEND, "b")]
    estimates = {one.name: one.estimate.batch for one in linked.compiles}
    assert estimates == {"a": "copy", "b": "fake", "c": "copy"}


async def test_a_renamed_module_is_not_compiled_again(desk: Desk) -> None:
    await thin(desk, MODULES)
    linked, results = await thin(desk, {f"new{name}": content for name, content in MODULES.items()})
    assert use(linked) is MISS
    assert uses(results) == [HIT] * 3
    assert results[0].diagnostics == (Diagnostic(Severity.WARNING, "newa", "careful"),)


async def test_a_plan_of_which_a_result_is_gone_is_made_again(desk: Desk, tmp_path: Path) -> None:
    _, made = await thin(desk, MODULES)
    before = objects(made)
    entry_of(tmp_path / "cache", made[1].cache.key).unlink()
    desk.fake.made.clear()
    linked, results = await thin(desk, MODULES)
    assert uses([linked, *results]) == [MISS, HIT, MISS, HIT]
    assert desk.fake.made == [(Step.THIN_LINK, "thin link"), (Step.THIN_BACKEND, "b")]
    assert objects(results) == before
    assert use(await desk.cached.thin_link(await desk.thin_link(MODULES))) is HIT


async def test_a_result_that_goes_after_the_plan_is_made_again(desk: Desk, other: Desk, tmp_path: Path) -> None:
    _, made = await thin(desk, MODULES)
    entry_of(tmp_path / "cache", made[0].cache.key).unlink()
    linked = await other.thin_linked(MODULES)
    damage(tmp_path / "cache")
    results = await other.cached.thin_compile(linked.compiles)
    assert uses(results) == [MISS] * 3
    assert objects(results) == objects(made)


async def test_what_a_plan_took_from_the_store_may_go_from_there(desk: Desk, other: Desk, store: LocalStore) -> None:
    await thin(desk, MODULES)
    linked = await other.thin_linked(MODULES)
    store.clear()
    assert uses([linked, *await other.cached.thin_compile(linked.compiles)]) == [HIT] * 4


@pytest.mark.parametrize(
    "note",
    [
        {"compiles": [["a", "no digest"]], "unneeded": [], "regular": None},
        {"compiles": 7, "unneeded": [], "regular": None},
        {"compiles": [], "unneeded": None, "regular": True},
        {},
    ],
)
async def test_a_plan_that_makes_no_sense_is_a_miss(desk: Desk, store: LocalStore, note: dict[str, object]) -> None:
    linked, _ = await thin(desk, MODULES)
    assert await store.add(linked.cache.key, {}, note_of(**note))
    linked, results = await thin(desk, MODULES)
    assert uses([linked, *results]) == [MISS, HIT, HIT, HIT]


async def test_a_plan_depends_on_what_the_link_read(desk: Desk, tmp_path: Path) -> None:
    listed = tmp_path / "listed"
    modules = {"a": f"reads={listed}".encode(), "b": b"b", "c": b"c"}
    for text, outcome, unneeded in (
        ("b", MISS, ("c",)),
        ("b", HIT, ("c",)),
        ("c", MISS, ("b",)),
        ("b", HIT, ("c",)),
        ("b c", MISS, ()),
    ):
        listed.write_text(text)
        linked, _ = await thin(desk, modules, b=True, c=True)
        assert (use(linked), linked.unneeded) == (outcome, unneeded)
    linked = await desk.thin_linked(modules | {"c": b"another"}, b=True, c=True)
    assert use(linked) is MISS


async def test_a_thin_link_without_a_key_still_has_compiles_that_are_there(desk: Desk) -> None:
    modules = MODULES | {"n": b"nolinkkey"}
    for outcome in (MISS, HIT):
        linked, results = await thin(desk, modules)
        assert use(linked) is OFF
        assert uses(results) == [outcome] * 4


async def test_a_compile_without_a_key_keeps_the_plan_from_being_kept(desk: Desk) -> None:
    for outcome in (MISS, HIT):
        linked, results = await thin(desk, MODULES | {"n": b"nokey"})
        assert use(linked) is MISS
        assert uses(results) == [outcome, outcome, outcome, OFF]


async def test_a_failed_thin_link_is_not_kept(desk: Desk) -> None:
    for _ in range(2):
        failed = await desk.cached.thin_link(await desk.thin_link(MODULES | {"x": b"link-fail"}))
        assert isinstance(failed, Failed)
        assert failed.step is Step.THIN_LINK
    assert desk.made(Step.THIN_LINK) == ["thin link"] * 2


@pytest.mark.parametrize("keep_going", [True, False])
async def test_hits_and_misses_and_failures_of_one_batch(desk: Desk, keep_going: bool) -> None:
    await thin(desk, {"a": b"a", "d": b"d", "f": b"f"})
    bad, off = b"lto-fail", b"nokey"
    modules = {"a": b"a", "b": b"b", "bad": bad, "d": b"d", "e": b"e", "f": b"f", "off": off}
    linked = await desk.thin_linked(modules)
    results = await desk.cached.thin_compile(linked.compiles, keep_going=keep_going)
    expected = {"a": HIT, "b": MISS, "bad": MISS, "d": HIT, "e": MISS, "f": HIT, "off": OFF}
    assert [result.module for result in results if not isinstance(result, Deferred)] == list(expected)[
        : None if keep_going else 4
    ]
    assert uses(results) == list(expected.values())[: len(results)]
    assert [isinstance(result, Failed) for result in results] == [name == "bad" for name in expected][: len(results)]
    assert desk.made(Step.THIN_BACKEND) == ["a", "d", "f", "b", "bad", *(["e", "off"] if keep_going else [])]


async def test_a_failed_compile_is_not_kept(desk: Desk) -> None:
    modules = MODULES | {"x": b"lto-fail"}
    for outcome in (MISS, HIT):
        linked = await desk.thin_linked(modules)
        *good, bad = await desk.cached.thin_compile(linked.compiles)
        assert uses(good) == [outcome] * 3
        assert isinstance(bad, Failed)
        assert use(bad) is MISS


async def test_equal_modules_of_one_batch_are_compiled_once(desk: Desk) -> None:
    linked = await desk.thin_linked({"a": b"same", "b": b"same"})
    first, second = await desk.cached.thin_compile(linked.compiles)
    assert use(first) is MISS
    assert isinstance(second, Deferred)
    await second.released()
    (again,) = await desk.cached.thin_compile(linked.compiles[1:])
    assert use(again) is SHARED
    assert desk.made(Step.THIN_BACKEND) == ["a"]


@pytest.mark.parametrize("end", ["made", "cancelled"])
async def test_a_compile_that_another_build_does_is_waited_for(
    desk: Desk, tmp_path: Path, end: str, store: LocalStore
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    modules = {"a": f"until={gate}".encode(), "b": b"b"}
    with opened(tmp_path / "cache") as second, trio.fail_after(10):
        other = Desk(second, tmp_path / "other")
        ours, theirs = await desk.thin_linked(modules), await other.thin_linked(modules)
        gate.unlink()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.cached.thin_compile, ours.compiles[:1])
            await trio.testing.wait_all_tasks_blocked()
            waiting, made = await other.cached.thin_compile(theirs.compiles)
            assert isinstance(waiting, Deferred)
            assert use(made) is MISS
            if end == "cancelled":
                nursery.cancel_scope.cancel()
            else:
                nursery.start_soon(touched, gate)
            await waiting.released()
        gate.touch()
        (result,) = await other.cached.thin_compile(theirs.compiles[:1])
    assert use(result) is (SHARED if end == "made" else MISS)


async def test_nothing_is_kept_of_what_was_made_of_files_that_changed(desk: Desk) -> None:
    forget(desk)
    for _ in range(2):
        linked, results = await thin(desk, MODULES)
        assert uses([linked, *results]) == [MISS] * 4
    assert desk.made(Step.PRE_LINK) == [*MODULES] * 2


@pytest.mark.parametrize("how", ["miss", "hit", "whole link hit"])
async def test_a_thin_destination_that_is_no_place_for_it(desk: Desk, other: Desk, how: str) -> None:
    modules = {"a": b"a", "b": b"b", "r": b"regular-part"}
    if how != "miss":
        await thin(desk, modules if how == "whole link hit" else modules | {"z": b"z"})
    other.out.mkdir()
    (other.out / "a.o").mkdir()
    linked = await other.thin_linked(modules)
    bad, good = await other.cached.thin_compile(linked.compiles)
    assert isinstance(bad, Failed)
    assert bad.diagnostics[-1].message == f"cannot write {other.out / 'a.o'}: it is a directory"
    assert isinstance(good, Finished)


@pytest.mark.parametrize("how", ["miss", "hit"])
async def test_a_regular_part_that_cannot_be_written_fails_the_link(desk: Desk, other: Desk, how: str) -> None:
    modules = {"a": b"a", "r": b"regular-part"}
    if how == "hit":
        await thin(desk, modules)
    other.out.mkdir()
    (other.out / f"{REGULAR_PART}.o").mkdir()
    failed = await other.cached.thin_link(await other.thin_link(modules))
    assert isinstance(failed, Failed)
    assert failed.step is Step.THIN_LINK
    assert "it is a directory" in failed.diagnostics[-1].message

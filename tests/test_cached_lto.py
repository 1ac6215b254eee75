"""Layer: contract. LTO through a cached backend: a fake compiler, and a real store."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trio
from attrs import evolve

from tests.cached_samples import Desk, opened
from workers.cached import CachedBackend
from workers.fake_keys import FakeKeys
from workers.fat import FatLink, FatLinked, FatPartition
from workers.ingredients import Key
from workers.store import LocalStore
from workers.thin import REGULAR_PART, ThinLinked
from workers.work import CacheOutcome, Deferred, Diagnostic, Failed, Finished, Severity, Step

pytestmark = pytest.mark.contract

HIT, MISS, SHARED, OFF = CacheOutcome.HIT, CacheOutcome.MISS, CacheOutcome.SHARED, CacheOutcome.OFF
MODULES = {"a": b"content of a warn=careful", "b": b"content of b", "c": b"content of c"}


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


def checked(results: Sequence[object]) -> list[Finished]:
    found = [result for result in results if isinstance(result, Finished)]
    assert len(found) == len(results), results
    for result in found:
        for artifact in result.artifacts:
            assert artifact.path.stat().st_size == artifact.bytes
    return found


def objects(results: Sequence[object]) -> dict[str, bytes]:
    return {one.module: one.artifacts[0].path.read_bytes() for one in checked(results)}


def use(result: object) -> CacheOutcome:
    assert isinstance(result, Finished | Failed | ThinLinked | FatLinked), result
    return result.cache.outcome


def uses(results: Sequence[object]) -> list[CacheOutcome]:
    return [use(result) for result in results]


def entry_of(store_directory: Path, key: str) -> Path:
    return store_directory / "v1" / "ac" / key[:2] / key


def damage(store: Path) -> None:
    for blob in store.glob("v1/cas/*/*"):
        blob.unlink()  # what a build has of it already is not harmed
        blob.write_bytes(b"damaged")


# ThinLTO


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
        {"parts": [["fat-lto.0", "no digest"]], "needs": {}, "unneeded": []},
        {"parts": [], "needs": [], "unneeded": []},
        {"parts": None},
        {},
    ],
)
async def test_a_plan_that_makes_no_sense_is_a_miss(desk: Desk, store: LocalStore, note: dict[str, object]) -> None:
    linked, _ = await thin(desk, MODULES)
    merged, _ = await fat(desk, MODULES)
    text = json.dumps({"engine": "toolchain", "diagnostics": [], **note}).encode() + b"\n[]"
    for key in (linked.cache.key, merged.cache.key):
        assert await store.add(key, {}, zlib.compress(text))
    linked, results = await thin(desk, MODULES)
    assert uses([linked, *results]) == [MISS, HIT, HIT, HIT]
    merged, parts = await fat(desk, MODULES)
    assert uses([merged, *parts]) == [MISS, HIT, HIT]


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


async def touched(path: Path) -> None:
    await trio.sleep(0.02)
    path.touch()


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


# Fat LTO


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
    class Suspicious(FakeKeys):
        def unchanged(self, key: Key) -> bool:
            return False

    desk.cached = CachedBackend(desk.fake, Suspicious(desk.fake), desk.store)
    for _ in range(2):
        linked, results = await thin(desk, MODULES)
        assert uses([linked, *results]) == [MISS] * 4
        merged, parts = await fat(desk, MODULES)
        assert uses([merged, *parts]) == [MISS] * 3
    assert desk.made(Step.PRE_LINK) == [*MODULES] * 4


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

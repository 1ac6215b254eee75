"""Layer: contract. Modules by themselves through a cached backend: a fake compiler, and a real store."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cached_samples import Desk, opened, use
from workers.cached import CachedBackend
from workers.fake import FakeBackend
from workers.fake_keys import FakeKeys
from workers.store import LocalStore, NoStore
from workers.work import (
    CacheOutcome,
    CopyArtifacts,
    Diagnostic,
    EmitKind,
    Engine,
    Failed,
    Finished,
    NeedsFatLto,
    NeedsThinLto,
    Optimize,
    PreLink,
    Severity,
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


def blobs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("v1/cas/*/*"))


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def test_what_was_made_is_not_made_again(desk: Desk, other: Desk) -> None:
    first = await desk.one("deep/m", b"warn=careful")
    second = await other.one("n", b"warn=careful")
    assert isinstance(first, Finished)
    assert isinstance(second, Finished)
    assert (use(first), use(second)) == (MISS, HIT)
    assert (desk.made(Step.CODEGEN), other.made(Step.CODEGEN)) == (["deep/m"], [])
    (made,), (copied,) = first.artifacts, second.artifacts
    assert made.path == desk.out / "deep" / "m.o"
    assert copied.path == other.out / "n.o"
    assert (copied.module, copied.kind) == ("n", EmitKind.OBJECT)
    assert copied.path.read_bytes() == made.path.read_bytes()
    assert copied.bytes == made.bytes == len(made.path.read_bytes())
    assert second.diagnostics == (Diagnostic(Severity.WARNING, "n", "careful"),)
    assert (second.engine, second.seconds, second.peak_rss_bytes) == (Engine.TOOLCHAIN, 0.0, 0)
    assert first.cache.key == second.cache.key
    assert [one.name for one in second.cache.ingredients] == ["deep/m"]


async def test_every_form_is_there_and_nothing_else(store: LocalStore, tmp_path: Path) -> None:
    emit = frozenset(EmitKind) - {EmitKind.FATOBJ}
    made = []
    for name in ("one", "two"):
        result = await Desk(store, tmp_path / name, emit=emit).one("m", b"x")
        assert isinstance(result, Finished)
        assert {artifact.kind for artifact in result.artifacts} == emit
        made.append(files(tmp_path / name / "out"))
        for path in (tmp_path / name / "out").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) & ~0o644 == 0
            assert path.stat().st_nlink == 1  # whoever edits it has his own
    assert made[0] == made[1]
    assert sorted(made[0]) == ["m.bc", "m.ll", "m.o", "m.s"]


async def test_what_is_emitted_is_a_part_of_the_key(store: LocalStore, tmp_path: Path) -> None:
    assert use(await Desk(store, tmp_path / "a").one("m", b"x")) is MISS
    assert use(await Desk(store, tmp_path / "b", emit=frozenset({EmitKind.IR})).one("m", b"x")) is MISS


async def test_other_content_is_a_miss(desk: Desk) -> None:
    assert use(await desk.one("m", b"x")) is MISS
    assert use(await desk.one("m", b"y")) is MISS
    assert use(await desk.one("m", b"x")) is HIT


async def test_looking_up_says_what_is_left_to_do(desk: Desk) -> None:
    item = desk.item("m", b"x")
    todo = await desk.look_up(item)
    assert isinstance(todo, Optimize)
    assert todo == item
    await desk.cached.compile([todo])
    again = await desk.look_up(item)
    assert isinstance(again, CopyArtifacts)
    assert again.item == item
    assert again.name == "m"


async def test_without_a_store_there_is_no_cache(tmp_path: Path) -> None:
    fake = FakeBackend()
    for cached in (CachedBackend(fake), CachedBackend(fake, FakeKeys(fake), NoStore())):
        for _ in range(2):
            with opened(tmp_path / "unused") as store:
                item = await cached.look_up(Desk(store, tmp_path / "desk").item("m", b"x"))
            assert isinstance(item, Optimize)
            (result,) = await cached.compile([item])
            assert isinstance(result, Finished)
            assert use(result) is not HIT
    assert len(fake.made) == 4


@pytest.mark.parametrize(
    ("content", "note", "warn"),
    [(b"nokey", "it says so", False), (b"warnkey", "it says so, and somebody could mend it", True)],
)
async def test_what_has_no_key_is_made_each_time(desk: Desk, content: bytes, note: str, warn: bool) -> None:
    for _ in range(2):
        result = await desk.one("m", content)
        assert isinstance(result, Finished)
        assert (use(result), result.cache.note, result.cache.warn, result.cache.key) == (OFF, note, warn, "")
        assert result.artifacts[0].path.exists()
    assert desk.made(Step.CODEGEN) == ["m", "m"]


async def test_failures_are_not_kept(desk: Desk) -> None:
    for _ in range(2):
        result = await desk.one("m", b"fail")
        assert isinstance(result, Failed)
        assert use(result) is MISS
        assert result.cache.key
    assert desk.made(Step.CODEGEN) == ["m", "m"]


async def test_a_mixed_batch_is_answered_in_its_order(desk: Desk) -> None:
    await desk.one("there", b"there")
    items = [desk.item(name, content) for name, content in (("new", b"new"), ("there", b"there"), ("bad", b"fail"))]
    results = await desk.compile(desk.item("off", b"nokey"), *items, desk.item("last", b"last"))
    assert [result.module for result in results] == ["off", "new", "there", "bad", "last"]
    assert [use(result) for result in results] == [OFF, MISS, HIT, MISS, MISS]
    assert [isinstance(result, Failed) for result in results] == [False, False, False, True, False]


@pytest.mark.parametrize(("pre_link", "kind"), [(PreLink.THIN, NeedsThinLto), (PreLink.FAT, NeedsFatLto)])
async def test_modules_on_their_way_into_lto(desk: Desk, other: Desk, pre_link: PreLink, kind: type) -> None:
    results: list[Any] = []
    for name, one in (("m", desk), ("n", other)):
        item = one.item(name, b"warn=w and more", pre_link, lazy=name == "n", origin=f"lib.a({name})")
        (result,) = await one.compile(item)
        assert type(result) is kind
        assert isinstance(result, NeedsThinLto | NeedsFatLto)
        assert result.bitcode == item.bitcode
        assert result.bitcode.read_bytes() == b"warn=w and more"
        results.append(result)
    made, copied = results
    assert (use(made), use(copied)) == (MISS, HIT)
    assert made.code_bytes == copied.code_bytes == len(b"warn=w and more")
    assert (copied.lazy, copied.origin, copied.module) == (True, "lib.a(n)", "n")
    assert copied.diagnostics == (Diagnostic(Severity.WARNING, "n", "w"),)
    assert copied.step is Step.PRE_LINK
    # Nothing but the bitcode was asked for.
    assert not desk.out.exists()
    assert not other.out.exists()


async def test_the_pipelines_do_not_share_results(desk: Desk) -> None:
    for pre_link in (None, PreLink.THIN, PreLink.FAT):
        (result,) = await desk.compile(desk.item("m", b"x", pre_link))
        assert use(result) is MISS


async def test_a_module_that_lies_in_the_output_directory_may_take_part_in_lto(desk: Desk) -> None:
    desk.out.mkdir()
    (desk.out / "m.o").write_bytes(b"x")
    for _ in range(2):
        (result,) = await desk.compile(desk.item("m", desk.out / "m.o", PreLink.FAT))
        assert isinstance(result, NeedsFatLto)


async def test_an_input_that_changes_meanwhile_is_not_kept(desk: Desk, tmp_path: Path) -> None:
    source, gate = tmp_path / "m.bc", tmp_path / "gate"
    source.write_bytes(before := f"until={gate}".encode())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.one, "m", source)
        await trio.testing.wait_all_tasks_blocked()
        source.write_bytes(b"after")
        gate.touch()
    assert blobs(tmp_path) == []
    source.write_bytes(before)
    assert use(await desk.one("m", source)) is MISS


@pytest.mark.parametrize("harm", ["gone", "shorter", "other bytes", "a directory"])
@pytest.mark.parametrize("when", ["before", "between"])
async def test_damage_in_the_store_is_a_miss(desk: Desk, tmp_path: Path, harm: str, when: str) -> None:
    await desk.one("m", b"x")
    made = (desk.out / "m.o").read_bytes()
    item = desk.item("n", b"x")
    todo = await desk.look_up(item)
    assert isinstance(todo, CopyArtifacts)
    (blob,) = blobs(tmp_path)
    content = blob.read_bytes()
    blob.unlink()
    if harm == "shorter":
        blob.write_bytes(content[:-1])
    elif harm == "other bytes":
        blob.write_bytes(content[::-1])
    elif harm == "a directory":
        blob.mkdir()
    if when == "before":
        todo = await desk.look_up(item)
    (result,) = await desk.cached.compile([todo])
    assert use(result) is MISS
    assert (desk.out / "n.o").read_bytes() == made
    assert desk.made(Step.CODEGEN) == ["m", "n"]
    if harm != "a directory":
        assert use(await desk.one("o", b"x")) is HIT


async def test_everything_gone_at_once_is_a_miss(desk: Desk, store: LocalStore) -> None:
    await desk.one("m", b"x")
    todo = await desk.look_up(desk.item("n", b"x"))
    store.clear()
    (result,) = await desk.cached.compile([todo])
    assert use(result) is MISS


async def test_what_is_in_its_place_already_is_taken_for_what_it_is(desk: Desk) -> None:
    for _ in range(2):
        await desk.one("m", b"x")
    made = desk.out / "m.o"
    content = made.read_bytes()
    os.utime(made, (0, 0))
    before = made.stat()
    assert use(await desk.one("m", b"x")) is HIT
    assert made.stat().st_ino == before.st_ino
    assert made.stat().st_mtime > 1e9  # as if it had been made now
    # Of the same size, and not the same.
    made.write_bytes(content[::-1])
    assert use(await desk.one("m", b"x")) is HIT
    assert made.read_bytes() == content
    assert desk.made(Step.CODEGEN) == ["m"]


async def test_an_entry_that_makes_no_sense_is_a_miss(desk: Desk, store: LocalStore) -> None:
    result = await desk.one("m", b"x")
    assert isinstance(result, Finished)
    for note in (b"", b"\x00", b"not zlib", b"x" * 1000):
        await store.add(result.cache.key, {"obj": b"poison"}, note)
        again = await desk.one("m", b"x")
        assert use(again) is MISS
        assert (desk.out / "m.o").read_bytes() != b"poison"


async def test_an_entry_that_lacks_an_output_is_a_miss(desk: Desk, store: LocalStore) -> None:
    result = await desk.one("m", b"x")
    assert isinstance(result, Finished)
    entry = await store.find(result.cache.key)
    assert entry is not None
    await store.add(result.cache.key, {"asm": b"something else"}, entry.note)
    assert use(await desk.one("m", b"x")) is MISS


async def test_a_user_may_edit_an_output(desk: Desk, other: Desk) -> None:
    for name, one in (("m", desk), ("m", other)):
        result = await one.one(name, b"x")
        assert isinstance(result, Finished)
        content = (one.out / "m.o").read_bytes()
        with (one.out / "m.o").open("r+b") as file:
            file.write(b"edited in its place")
        (one.out / "m.o").chmod(0o600)
    assert use(await desk.one("n", b"x")) is HIT
    assert (desk.out / "n.o").read_bytes() == content


@pytest.mark.parametrize("how", ["miss", "hit", "hit that is gone"])
async def test_a_destination_that_is_no_place_for_it_is_that_modules_failure(
    desk: Desk, other: Desk, store: LocalStore, how: str
) -> None:
    if how != "miss":
        for content in (b"x", b"y", b"z"):
            await desk.one(content.decode(), content)
    other.out.mkdir()
    (other.out / "a.o").mkdir()
    (other.out / "file").touch()
    items = [other.item(name, content) for name, content in (("a", b"x"), ("file/b", b"y"), ("c", b"z"))]
    todo = [await other.look_up(item) for item in items]
    if how == "hit that is gone":
        store.clear()
    blocked, below_a_file, good = await other.cached.compile(todo)
    assert isinstance(blocked, Failed)
    assert str(blocked.diagnostics[-1]) == f"error: a: cannot write {other.out / 'a.o'}: it is a directory"
    assert isinstance(below_a_file, Failed)
    assert "cannot write" in below_a_file.diagnostics[-1].message
    assert isinstance(good, Finished)
    assert sorted(path.name for path in other.out.iterdir()) == ["a.o", "c.o", "file"]


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../b", "a//b", "./a", "a\0b"])
async def test_a_name_does_not_lead_out_of_the_directory_when_it_is_there(desk: Desk, name: str) -> None:
    await desk.one("m", b"x")
    result = await desk.one(name, b"x")
    assert isinstance(result, Failed)
    assert "rename it" in result.diagnostics[0].message


async def test_an_input_is_not_overwritten_when_the_output_is_there(desk: Desk, tmp_path: Path) -> None:
    desk.out.mkdir()
    source = desk.out / "m.o"
    source.write_bytes(b"x")
    await desk.one("n", b"x")
    result = await desk.one("m", source)
    assert isinstance(result, Failed)
    assert "would overwrite its input" in result.diagnostics[0].message
    assert source.read_bytes() == b"x"


async def test_an_output_goes_where_a_link_points_and_into_a_device(desk: Desk, tmp_path: Path) -> None:
    desk.out.mkdir()
    for turn in range(2):
        (desk.out / f"m{turn}.o").symlink_to(tmp_path / f"elsewhere{turn}")
        result = await desk.one(f"m{turn}", b"x")
        assert isinstance(result, Finished)
        assert (desk.out / f"m{turn}.o").is_symlink()
        (desk.out / f"null{turn}.o").symlink_to("/dev/null")
        assert isinstance(await desk.one(f"null{turn}", b"x"), Finished)
    assert (tmp_path / "elsewhere0").read_bytes() == (tmp_path / "elsewhere1").read_bytes() != b""
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)  # noqa: PTH116


async def test_a_store_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    with opened(tmp_path / "cache") as store:
        desk = Desk(store, tmp_path / "desk")
        for _ in range(2):
            results = await desk.compile(desk.item("a", b"x"), desk.item("b", b"y"))
            assert [use(result) for result in results] == [MISS, MISS]
            assert (desk.out / "a.o").exists()

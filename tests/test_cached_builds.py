"""Layer: contract. Whole builds with a cache, over a fake compiler: alone, side by side, and in several processes."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from coordinator import (
    BuildConfig,
    BuildFailed,
    BuildResult,
    Cache,
    Coordinator,
    FatLto,
    Module,
    ModuleFinished,
    ModuleQueued,
    Step,
    ThinLto,
    open_coordinator,
)
from coordinator._cache import open_cache
from coordinator._loop import MainLoop
from coordinator._machine import Machine
from coordinator._records import Records, Thing
from coordinator._tokens import OwnTokens
from tests.cached_samples import LTO, build, child, outcomes, said, until
from workers.cached import CachedBackend
from workers.fake_keys import KeyedFakeBackend

pytestmark = pytest.mark.contract

EACH = pytest.mark.parametrize("lto", LTO)
MODULES = {"a": b"content of a warn=careful", "b": b"content of b needs=x", "c": b"content of c"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def lock_files() -> int:
    """How many files of claims this process has open, as who has one or waits for it."""
    open_files = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum("/locks/" in str(path) for path in open_files)


def claims(cache: Path) -> list[Path]:
    return list(cache.glob("v1/locks/*"))


@EACH
async def test_the_second_build_makes_nothing_and_says_so(cache: Path, tmp_path: Path, lto: str) -> None:
    first = await build(cache, tmp_path / "one", MODULES, lto=LTO[lto], link=True)
    backend = KeyedFakeBackend()
    second = await build(cache, tmp_path / "two", MODULES, lto=LTO[lto], link=True, backend=backend)
    # What is linked is not kept, for it takes no longer than copying; it is left where it is.
    assert backend.made == [(Step.LINK, "program")]
    third = await build(cache, tmp_path / "two", MODULES, lto=LTO[lto], link=True, backend=backend)
    assert backend.made == [(Step.LINK, "program")]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert set(outcomes(first).values()) == {"miss"}
    assert {name for name, outcome in outcomes(second).items() if outcome != "hit"} == {"program link"}
    assert set(outcomes(third).values()) == {"hit"}
    assert second.diagnostics == first.diagnostics
    assert [artifact.bytes for artifact in second.artifacts] == [artifact.bytes for artifact in first.artifacts]


@EACH
async def test_without_a_cache_there_is_none(cache: Path, tmp_path: Path, lto: str) -> None:
    for _ in range(2):
        result = await build(None, tmp_path / "out", MODULES, lto=LTO[lto])
        assert set(outcomes(result).values()) == {"off"}
        assert {one.cache.reason for one in result.results} == {"no cache is configured"}
    assert not cache.exists()


def reasons(result: BuildResult, step: Step) -> dict[str, str]:
    return {one.module: one.cache.reason for one in result.results if one.step is step}


async def test_a_build_says_why(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert set(reasons(await build(cache, out, MODULES), Step.CODEGEN).values()) == {"not built before"}
    unchanged = "nothing it is made of has changed"
    assert set(reasons(await build(cache, out, MODULES), Step.CODEGEN).values()) == {unchanged}
    edited = await build(cache, out, MODULES | {"b": b"edited", "d": b"new", "off": b"nokey"})
    found = reasons(edited, Step.CODEGEN)
    assert found.pop("b").startswith("recompiled because ")
    assert found == {"a": unchanged, "c": unchanged, "d": "new in this build", "off": "it says so"}
    back = reasons(await build(cache, out, MODULES), Step.CODEGEN)
    assert back["b"] == "it changed since the last build, to what was made before"
    moved = reasons(await build(cache, tmp_path / "elsewhere", MODULES), Step.CODEGEN)
    assert set(moved.values()) == {"the same was made before, in another build"}


@pytest.mark.parametrize(("lto", "step"), [("thin", Step.THIN_BACKEND), ("fat", Step.FAT_CODEGEN)])
async def test_lto_says_why(cache: Path, tmp_path: Path, lto: str, step: Step) -> None:
    out = tmp_path / "out"
    await build(cache, out, MODULES, lto=LTO[lto])
    result = await build(cache, out, MODULES | {"b": b"edited"}, lto=LTO[lto])
    link = Step.THIN_LINK if lto == "thin" else Step.FAT_LINK
    (reason,) = reasons(result, link).values()
    assert reason.startswith("linked again because ")
    again = [reason for reason in reasons(result, step).values() if reason.startswith("recompiled because ")]
    assert len(again) == 1
    kept = [reason for reason in reasons(result, step).values() if reason == "nothing it is made of has changed"]
    assert len(kept) == len(reasons(result, step)) - 1


@EACH
async def test_what_a_build_came_to_is_on_record(cache: Path, tmp_path: Path, lto: str) -> None:
    out = tmp_path / "out"
    kind = {"none": "modules, no LTO", "thin": "modules, thin LTO", "fat": "modules, fat LTO"}[lto]
    result = await build(cache, out, MODULES, lto=LTO[lto])
    last = Records(cache).previous(Thing(out, kind))
    assert {(one.module, one.step.value) for one in result.results} == set(last)
    for one in result.results:
        record = last[one.module, one.step.value]
        assert (record.outcome, record.key, record.reason) == (one.cache.outcome, one.cache.key, one.cache.reason)
        assert record.ingredients == one.cache.ingredients
        assert record.key
        assert record.ok


async def test_a_failure_is_on_record_and_tried_again(cache: Path, tmp_path: Path) -> None:
    modules = MODULES | {"bad": b"fail"}
    for reason in ("not built before", "it failed the last time"):
        result = await build(cache, tmp_path / "out", modules, keep_going=True)
        assert reasons(result, Step.CODEGEN)["bad"] == reason


@EACH
async def test_what_the_user_can_mend_is_told_once(cache: Path, tmp_path: Path, lto: str) -> None:
    modules = {name: b"warnkey " + name.encode() for name in "abc"}
    for _ in range(2):
        result = await build(cache, tmp_path / "out", modules, lto=LTO[lto])
        warnings = [one.message for one in result.diagnostics if one.message.startswith("not cached")]
        assert warnings == ["not cached: it says so, and somebody could mend it"]


@EACH
async def test_equal_modules_of_one_build_are_made_once(cache: Path, tmp_path: Path, lto: str) -> None:
    backend = KeyedFakeBackend()
    modules = dict.fromkeys(("a", "b", "c", "d"), b"same")
    result = await build(cache, tmp_path / "out", modules, lto=LTO[lto], backend=backend, jobs=2)
    assert result.ok
    assert set(Counter(step for step, _ in backend.made).values()) == {1}
    done = Counter(outcomes(result, Step.CODEGEN if lto == "none" else Step.PRE_LINK).values())
    assert done["miss"] == 1
    assert done["shared"] + done["hit"] == 3


@EACH
async def test_two_builds_at_once_make_each_thing_once(
    cache: Path, tmp_path: Path, lto: str, autojump_clock: trio.abc.Clock
) -> None:
    backend = KeyedFakeBackend()
    modules = {name: content + b" seconds=1" for name, content in MODULES.items()}
    results: list[BuildResult] = []
    async with open_coordinator(
        jobs=2, backend=backend, memory_budget=2**40, environ={}, cache=Cache(directory=cache)
    ) as coordinator:

        async def one(name: str) -> None:
            async with coordinator.build(BuildConfig(out_dir=tmp_path / name, lto=LTO[lto])) as build:
                for module, content in modules.items():
                    await build.submit(Module(module, content))
                results.append(await build.finish())

        async with trio.open_nursery() as nursery:
            for name in ("one", "two", "three"):
                nursery.start_soon(one, name)
        machine = coordinator._loop.machine
        machine.check_invariants()
        assert machine._stages == {}
        assert not coordinator._loop._waits
    # Thin links are not waited for: they take no longer than finding out.
    made = Counter(item for item in backend.made if item[0] is not Step.THIN_LINK)
    assert set(made.values()) == {1}
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")
    assert claims(cache) == []
    told = Counter(outcome for result in results for outcome in outcomes(result).values())
    assert told["shared"] > 0


async def two_users(
    cache: Path, tmp_path: Path, lto: str, ours: Mapping[str, bytes], theirs: Mapping[str, bytes], after: float
) -> tuple[float, dict[str, str]]:
    """Somebody builds `ours`, and `after` seconds another, with one job, builds `theirs`: how long it takes him."""
    took = 0.0
    done: dict[str, str] = {}

    async def second() -> None:
        nonlocal took
        await trio.sleep(after)
        started = trio.current_time()
        done.update(outcomes(await build(cache, tmp_path / "theirs", theirs, lto=LTO[lto])))
        took = trio.current_time() - started

    async with trio.open_nursery() as nursery:
        nursery.start_soon(second)
        await build(cache, tmp_path / "ours", ours, lto=LTO[lto])
    return took, done


async def test_a_token_is_not_held_for_what_another_makes(
    cache: Path, tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    common = {"common": b"seconds=10"}
    theirs = {**common, **{f"own{number}": b"seconds=2 %d" % number for number in range(3)}}
    took, done = await two_users(cache, tmp_path, "none", common, theirs, after=1)
    assert took == pytest.approx(9)  # and not 15, nor 16
    assert Counter(done.values()) == {"shared": 1, "miss": 3}


async def test_a_slot_is_not_held_for_a_compile_that_another_does(
    cache: Path, tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    common = {"common": b"seconds=10"}
    theirs = {**common, **{f"own{number}": b"seconds=2 %d" % number for number in range(3)}}
    took, done = await two_users(cache, tmp_path, "thin", common, theirs, after=1)
    # Meanwhile the other has all of its own pre-links done; then the compiles, while the common one is awaited.
    assert took == pytest.approx(19, abs=0.1)
    assert [name for name, outcome in done.items() if outcome == "shared"] == [
        "common pre-link",
        "common thin-backend",
    ]


async def test_a_program_that_another_links_is_waited_for_without_a_slot(
    cache: Path, tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    modules = {"a": b"seconds=10", "b": b"seconds=5"}
    await build(cache, tmp_path / "warm", {**modules, "c": b"another program"}, lto=FatLto(partitions=1))
    took, done = await two_users(cache, tmp_path, "fat", modules, modules, after=1)
    assert took == pytest.approx(14, abs=0.1)
    assert {outcome for name, outcome in done.items() if name.endswith("fat-link")} == {"shared"}


@pytest.mark.parametrize("keep_going", [False, True])
async def test_a_failure_ends_the_waiting_unless_told_to_go_on(
    cache: Path, tmp_path: Path, keep_going: bool, autojump_clock: trio.abc.Clock
) -> None:
    common = {"common": b"seconds=10"}

    async def second() -> None:
        await trio.sleep(1)
        modules = {**common, "bad": b"seconds=2 fail"}
        result = await build(cache, tmp_path / "theirs", modules, keep_going=keep_going)
        assert trio.current_time() - started == pytest.approx(10 if keep_going else 3)
        assert result.skipped == (() if keep_going else ("common",))

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second)
        await build(cache, tmp_path / "ours", common)


@pytest.mark.parametrize("keep_going", [False, True])
@pytest.mark.parametrize("lto", ["thin", "fat"])
async def test_a_failure_in_lto_ends_the_waiting_unless_told_to_go_on(
    cache: Path, tmp_path: Path, lto: str, keep_going: bool, autojump_clock: trio.abc.Clock
) -> None:
    common, bad = {"common": b"seconds=10"}, {"bad": b"lto-fail seconds=2"}
    # So that only LTO is left to do.
    await build(cache, tmp_path / "warm", {**common, **bad, "x": b"link-fail"}, lto=LTO[lto])

    async def second() -> None:
        await trio.sleep(1)
        result = await build(cache, tmp_path / "theirs", {**common, **bad}, lto=LTO[lto], keep_going=keep_going, jobs=2)
        assert trio.current_time() - started == pytest.approx(10 if keep_going else 3, abs=0.1)
        awaited = "common" if lto == "thin" else "fat-lto.0"
        assert result.skipped == (() if keep_going else (awaited,))

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second)
        await build(cache, tmp_path / "ours", {**common, "y": b"y"}, lto=LTO[lto])


@pytest.mark.parametrize("end", ["fails", "cancelled"])
async def test_what_is_not_wanted_any_more_is_not_waited_for(
    cache: Path, tmp_path: Path, end: str, autojump_clock: trio.abc.Clock
) -> None:
    async with (
        trio.open_nursery() as nursery,
        open_coordinator(
            jobs=1, backend=KeyedFakeBackend(), memory_budget=2**40, environ={}, cache=Cache(directory=cache)
        ) as coordinator,
    ):
        nursery.start_soon(build, cache, tmp_path / "ours", {"common": b"seconds=10"})
        await trio.sleep(1)
        async with coordinator.build(BuildConfig(out_dir=tmp_path / "theirs")) as one:
            await one.submit(Module("common", b"seconds=10"))
            await trio.sleep(1)
            assert lock_files() == 2  # one has it, one waits
            if end == "fails":
                await one.submit(Module("bad", b"fail"))
            else:
                await one.cancel()
            with pytest.raises(BuildFailed):
                await one.finish()
        await trio.testing.wait_all_tasks_blocked()
        assert lock_files() == 1
        assert not coordinator._loop._waits


@EACH
async def test_a_build_that_waits_can_be_cancelled(
    cache: Path, tmp_path: Path, lto: str, autojump_clock: trio.abc.Clock
) -> None:
    modules = {"a": b"seconds=10", "b": b"seconds=10 b"}
    async with trio.open_nursery() as nursery:

        async def first() -> None:
            await build(cache, tmp_path / "ours", modules, lto=LTO[lto], jobs=2)

        nursery.start_soon(first)
        await trio.sleep(1)
        for seconds in (1, 14) if lto != "none" else (1,):
            started = trio.current_time()
            with trio.move_on_after(seconds):
                await build(cache, tmp_path / "theirs", modules, lto=LTO[lto])
            assert trio.current_time() - started == pytest.approx(seconds)
    assert claims(cache) == []


async def test_watchers_hear_of_each_step_once(cache: Path, tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    modules = {"a": b"seconds=10", "b": b"seconds=10"}
    async with open_coordinator(
        jobs=2, backend=KeyedFakeBackend(), memory_budget=2**40, environ={}, cache=Cache(directory=cache)
    ) as coordinator:
        async with coordinator.build(BuildConfig(out_dir=tmp_path / "out", lto=ThinLto())) as one:
            events = one.watch()
            for name, content in modules.items():
                await one.submit(Module(name, content))
            await one.finish()
        told = [event async for event in events]
    queued = Counter((event.module, event.step) for event in told if isinstance(event, ModuleQueued))
    finished = Counter((event.module, event.result.step) for event in told if isinstance(event, ModuleFinished))
    assert set(queued.values()) == set(finished.values()) == {1}
    assert set(queued) == {item for item in finished if item[1] is not Step.THIN_LINK}


class CountingTokens(OwnTokens):
    """Own tokens that know how many are out."""

    out = 0

    async def acquire(self):  # type: ignore[no-untyped-def]
        token = await super().acquire()
        self.out += 1
        return token

    def release(self, token) -> None:  # type: ignore[no-untyped-def]
        super().release(token)
        self.out -= 1


@pytest.mark.parametrize("seed", range(12))
async def test_many_builds_with_random_ends_share_and_lose_nothing(
    cache: Path, tmp_path: Path, seed: int, autojump_clock: trio.abc.Clock
) -> None:
    rng = random.Random(seed)
    ends = ["", "", "", "", "", "fail", "lto-fail", "link-fail", "nokey", "nolinkkey"]
    pool = [f"{rng.choice(ends)} seconds={rng.uniform(0, 2)} m{number}".encode() for number in range(12)]

    ends_seen: Counter[str] = Counter()

    async def one(coordinator: Coordinator, number: int) -> None:
        await trio.sleep(rng.uniform(0, 4))
        config = BuildConfig(
            out_dir=tmp_path / f"out{number}",
            lto=rng.choice([None, ThinLto(), FatLto(partitions=rng.choice([1, 3]))]),
            keep_going=rng.random() < 0.5,
        )
        chosen = [rng.choice(pool) for _ in range(6)]
        with trio.move_on_after(rng.choice([1000, 1000, rng.uniform(0, 20)])):
            try:
                async with coordinator.build(config) as build:
                    for index, content in enumerate(chosen):
                        await build.submit(Module(f"m{index}", content))
                    await build.finish()
            except BuildFailed:
                ends_seen["failed"] += 1
                return
            ends_seen["ok"] += 1

    async with trio.open_nursery() as outer:
        loops = []
        async with open_cache(Cache(directory=cache), {}) as first, open_cache(Cache(directory=cache), {}) as second:
            for opened_cache in (first, second):
                backend = KeyedFakeBackend()
                tokens = CountingTokens(2)
                cached = CachedBackend(backend, backend.keys(opened_cache.store), opened_cache.store)
                loop = MainLoop(tokens, Machine(2, 2**40), cached)
                await outer.start(loop.run)
                loops.append((loop, tokens, Coordinator(loop, cached, outer, None, opened_cache)))
            with trio.fail_after(1000):
                async with trio.open_nursery() as builds:
                    for number in range(16):
                        builds.start_soon(one, loops[number % 2][2], number)
            for loop, tokens, _ in loops:
                loop.machine.check_invariants()
                assert loop.machine._stages == {}
                assert tokens.out == 0
            assert claims(cache) == []
            assert sum(ends_seen.values()) > 8
            outer.cancel_scope.cancel()
    good = {f"m{number}": content for number, content in enumerate(pool) if b"fail" not in content}
    for lto in LTO.values():
        await build(cache, tmp_path / "warm", good, lto=lto)
        await build(None, tmp_path / "cold", good, lto=lto)
        assert files(tmp_path / "warm") == files(tmp_path / "cold")


# In processes


def words(made: object) -> list[tuple[str, str]]:
    assert isinstance(made, list)
    return [(step, name) for step, name in made]


@EACH
async def test_two_processes_at_once_make_each_thing_once(cache: Path, tmp_path: Path, lto: str) -> None:
    modules = {name: f"{content.decode()} seconds=0.2" for name, content in MODULES.items()}
    answers = []

    async def one(name: str) -> None:
        with child(cache, tmp_path / name, lto, modules) as process:
            answers.append(await said(process))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for name in ("one", "two", "three"):
                nursery.start_soon(one, name)
    made = Counter(item for answer in answers for item in words(answer["made"]) if item[0] != "thin-link")
    assert set(made.values()) == {1}
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")


@EACH
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_who_waits_for_a_process_that_dies_takes_over(
    cache: Path, tmp_path: Path, lto: str, how: signal.Signals
) -> None:
    gate = tmp_path / "gate"
    begun = tmp_path / "gate.begun"
    modules = {"slow": f"until={gate}".encode(), "quick": b"quick"}
    backend = KeyedFakeBackend()
    results = []

    async def take_over() -> None:
        results.append(await build(cache, tmp_path / "two", modules, lto=LTO[lto], backend=backend))

    texts = {name: content.decode() for name, content in modules.items()}
    with child(cache, tmp_path / "one", lto, texts) as process, trio.fail_after(60):
        await until(begun)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_over)
            await until_waiting()
            begun.unlink()
            await trio.sleep(0.05)
            assert not begun.exists()  # it waits
            process.send_signal(how)
            await until(begun)
            gate.touch()
    assert results[0].ok
    cold = await build(None, tmp_path / "cold", modules, lto=LTO[lto])
    assert cold.ok
    assert files(tmp_path / "two") == files(tmp_path / "cold")
    assert claims(cache) == []


async def until_waiting() -> None:
    """Until this process has a claim's file open, to wait for its end."""
    with trio.fail_after(30):
        while not lock_files():  # noqa: ASYNC110
            await trio.sleep(0.01)

"""Pure layer: builds with LTO over the fake backend, with a clock that jumps; the boundary between the two kinds."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import trio
from attrs import evolve

from coordinator import (
    BuildConfig,
    BuildFailed,
    BuildResult,
    Failed,
    FatLto,
    LinkKind,
    LinkOptions,
    Module,
    ModuleFinished,
    ModuleKind,
    ModuleQueued,
    ModuleStarted,
    RequestError,
    Step,
    ThinLto,
    open_coordinator,
)
from workers.fake import FakeBackend

pytestmark = pytest.mark.pure

CONFIG = BuildConfig(out_dir=Path("unused"))
LTO = pytest.mark.parametrize("lto", [ThinLto(), FatLto()], ids=["thin", "fat"])
BACKEND_STEP = {ThinLto: Step.THIN_BACKEND, FatLto: Step.FAT_CODEGEN}
LINK_STEP = {ThinLto: Step.THIN_LINK, FatLto: Step.FAT_LINK}


def module(name: str, what: str = "", seconds: float = 1.0, **more: object) -> Module:
    return Module(name, f"{what} seconds={seconds}".encode(), **more)  # type: ignore[arg-type]


async def build(
    config: BuildConfig, modules: Iterable[Module], *, jobs: int = 2, write: bool = False, memory: int = 2**40
) -> BuildResult:
    async with open_coordinator(
        jobs=jobs, backend=FakeBackend(write=write), memory_budget=memory, environ={}
    ) as coordinator:
        try:
            async with coordinator.build(config) as one:
                for each in modules:
                    await one.submit(each)
                return await one.finish()
        except BuildFailed as failed:
            return failed.result


def steps(result: BuildResult) -> list[tuple[str, str]]:
    return [(one.module, one.step.value) for one in result.results]


async def test_thin_lto_has_a_pre_link_and_a_backend_compile_for_each_module(autojump_clock: trio.abc.Clock) -> None:
    result = await build(evolve(CONFIG, lto=ThinLto()), [module("b"), module("a")])
    assert result.ok
    assert steps(result) == [
        ("a", "pre-link"),
        ("a", "thin-backend"),
        ("b", "pre-link"),
        ("b", "thin-backend"),
        ("thin link", "thin-link"),
    ]


async def test_fat_lto_has_partitions(autojump_clock: trio.abc.Clock) -> None:
    result = await build(evolve(CONFIG, lto=FatLto(partitions=3)), [module("b"), module("a")])
    assert result.ok
    assert steps(result) == [
        ("a", "pre-link"),
        ("b", "pre-link"),
        ("fat link", "fat-link"),
        ("fat-lto.0", "fat-codegen"),
        ("fat-lto.1", "fat-codegen"),
        ("fat-lto.2", "fat-codegen"),
    ]


@LTO
async def test_what_does_not_take_part_goes_round_lto(lto: ThinLto | FatLto, autojump_clock: trio.abc.Clock) -> None:
    modules = [
        module("regular"),
        module("metadata", kind=ModuleKind.METADATA),
        module("allocator", kind=ModuleKind.ALLOCATOR),
        module("builtins", lto=False),
    ]
    result = await build(evolve(CONFIG, lto=lto), modules)
    codegen = [one.module for one in result.results if one.step is Step.CODEGEN]
    assert codegen == ["allocator", "builtins", "metadata"]
    assert [one.module for one in result.results if one.step is Step.PRE_LINK] == ["regular"]


@LTO
async def test_nothing_that_takes_part_needs_no_lto(lto: ThinLto | FatLto, autojump_clock: trio.abc.Clock) -> None:
    result = await build(evolve(CONFIG, lto=lto), [module("a", lto=False)])
    assert steps(result) == [("a", "codegen")]


@LTO
async def test_all_tokens_work(lto: ThinLto | FatLto, autojump_clock: trio.abc.Clock) -> None:
    if isinstance(lto, FatLto):
        lto = FatLto(partitions=4)
    started = trio.current_time()
    await build(evolve(CONFIG, lto=lto), [module(str(n), seconds=10) for n in range(4)], jobs=4)
    # One round of pre-links, one of backends; links take no time.
    assert trio.current_time() - started == pytest.approx(20, abs=0.1)


@LTO
async def test_memory_is_admitted_in_lto_as_well(lto: ThinLto | FatLto, autojump_clock: trio.abc.Clock) -> None:
    if isinstance(lto, FatLto):
        lto = FatLto(partitions=4)
    started = trio.current_time()
    # What the fake reserves for one item: the four tokens find memory for one at a time.
    await build(evolve(CONFIG, lto=lto), [module(str(n), seconds=10) for n in range(4)], jobs=4, memory=2**20)
    assert trio.current_time() - started == pytest.approx(80, abs=0.1)


@LTO
async def test_events_tell_the_story_of_every_step(lto: ThinLto | FatLto, autojump_clock: trio.abc.Clock) -> None:
    async with (
        open_coordinator(jobs=2, backend=FakeBackend(write=False), memory_budget=2**40, environ={}) as coordinator,
        coordinator.build(evolve(CONFIG, lto=lto)) as one,
    ):
        events = one.watch()
        for name in ("a", "b"):
            await one.submit(module(name))
        await one.finish()
        told = [event async for event in events]
    queued = {(event.module, event.step) for event in told if isinstance(event, ModuleQueued)}
    started = {(event.module, event.step) for event in told if isinstance(event, ModuleStarted)}
    finished = {(event.module, event.result.step) for event in told if isinstance(event, ModuleFinished)}
    kind = type(lto)
    assert started == finished
    assert {step for _, step in finished} == {Step.PRE_LINK, LINK_STEP[kind], BACKEND_STEP[kind]}
    assert queued == {(name, step) for name, step in finished if step is not LINK_STEP[kind]}


@LTO
async def test_a_failed_pre_link_keeps_lto_from_starting(lto: ThinLto | FatLto, autojump_clock: trio.abc.Clock) -> None:
    config = evolve(CONFIG, lto=lto, keep_going=True)
    result = await build(config, [module("a"), module("bad", "fail"), module("c")])
    assert [(one.module, one.step) for one in result.results if isinstance(one, Failed)] == [("bad", Step.PRE_LINK)]
    assert result.skipped == ("a", "c")
    assert {one.step for one in result.results} == {Step.PRE_LINK}


@LTO
async def test_a_failed_link_of_modules_ends_the_build(lto: ThinLto | FatLto, autojump_clock: trio.abc.Clock) -> None:
    result = await build(evolve(CONFIG, lto=lto, keep_going=True), [module("a"), module("b", "link-fail")])
    assert [one.step for one in result.results if isinstance(one, Failed)] == [LINK_STEP[type(lto)]]
    assert not any(one.step is BACKEND_STEP[type(lto)] for one in result.results)


async def test_a_failed_backend_compile_skips_what_has_not_started(autojump_clock: trio.abc.Clock) -> None:
    modules = [module("bad", "lto-fail", seconds=50), *(module(str(n), seconds=10) for n in range(20))]
    result = await build(evolve(CONFIG, lto=ThinLto()), modules)
    compiled = [one.module for one in result.results if one.step is Step.THIN_BACKEND]
    assert "bad" in compiled
    assert len(compiled) < len(modules)
    assert sorted([*compiled, *result.skipped]) == sorted(each.name for each in modules)


async def test_what_follows_a_failure_in_its_batch_is_skipped(autojump_clock: trio.abc.Clock) -> None:
    modules = [module("bad", "lto-fail guess=0.02", 1.0), *(module(f"{n}", "guess=0.001", 1.0) for n in range(9))]
    result = await build(evolve(CONFIG, lto=ThinLto()), modules, jobs=1)
    compiled = [one.module for one in result.results if one.step is Step.THIN_BACKEND]
    assert compiled == ["bad"]
    assert sorted(result.skipped) == [f"{n}" for n in range(9)]


@LTO
async def test_keep_going_compiles_everything_else(lto: ThinLto | FatLto, autojump_clock: trio.abc.Clock) -> None:
    if isinstance(lto, FatLto):
        lto = FatLto(partitions=8)
    modules = [module("bad", "lto-fail", seconds=50), *(module(str(n), seconds=10) for n in range(7))]
    result = await build(evolve(CONFIG, lto=lto, keep_going=True), modules)
    done = [one for one in result.results if one.step is BACKEND_STEP[type(lto)]]
    assert len(done) == len(modules)
    assert sum(isinstance(one, Failed) for one in done) == 1
    assert not result.ok


@LTO
@pytest.mark.parametrize("when", [0.5, 1.005, 1.5, 3.0])
async def test_cancelling_at_any_time_ends_the_build_and_gives_every_slot_back(
    lto: ThinLto | FatLto, when: float, autojump_clock: trio.abc.Clock
) -> None:
    async with open_coordinator(
        jobs=2, backend=FakeBackend(write=False), memory_budget=2**40, environ={}
    ) as coordinator:
        async with coordinator.build(evolve(CONFIG, lto=lto)) as one, trio.open_nursery() as nursery:
            for n in range(2):
                await one.submit(module(str(n), seconds=1))

            async def cancel() -> None:
                await trio.sleep(when)
                asked = trio.current_time()
                await one.cancel()
                assert trio.current_time() == asked  # what runs is stopped, not waited for

            nursery.start_soon(cancel)

            if when < 2:
                with pytest.raises(BuildFailed, match="cancelled"):
                    await one.finish()
                assert one.result is not None
                assert one.result.cancelled
            else:
                assert (await one.finish()).ok
        started = trio.current_time()
        async with coordinator.build(CONFIG) as after:
            for n in range(2):
                await after.submit(module(str(n), seconds=7))
            await after.finish()
        assert trio.current_time() - started == pytest.approx(7)  # on two tokens again


@LTO
async def test_finish_may_be_cancelled_and_called_again(lto: ThinLto | FatLto, autojump_clock: trio.abc.Clock) -> None:
    async with (
        open_coordinator(jobs=2, backend=FakeBackend(write=False), memory_budget=2**40, environ={}) as coordinator,
        coordinator.build(evolve(CONFIG, lto=lto)) as one,
    ):
        for n in range(2):
            await one.submit(module(str(n), seconds=1))
        for _ in range(8):
            with trio.move_on_after(0.25):
                await one.finish()
        result = await one.finish()
        assert result.ok
        assert len([done for done in result.results if done.step is LINK_STEP[type(lto)]]) == 1


@LTO
async def test_closing_the_coordinator_ends_lto(lto: ThinLto | FatLto, autojump_clock: trio.abc.Clock) -> None:
    async with (
        trio.open_nursery() as nursery,
        open_coordinator(jobs=2, backend=FakeBackend(write=False), memory_budget=2**40, environ={}) as coordinator,
    ):
        one = coordinator.build(evolve(CONFIG, lto=lto))
        await one.__aenter__()
        await one.submit(module("a", seconds=1))

        async def fail() -> None:
            with pytest.raises(BuildFailed):
                await one.finish()

        nursery.start_soon(fail)
        await trio.sleep(1.5)
    assert one.result is not None
    assert one.result.cancelled


async def test_two_builds_share_the_slots_fairly(autojump_clock: trio.abc.Clock) -> None:
    ended: dict[str, float] = {}

    async def one(name: str, lto: ThinLto | FatLto | None) -> None:
        async with coordinator.build(evolve(CONFIG, lto=lto)) as build:
            for n in range(8):
                await build.submit(module(str(n), seconds=10))
            await build.finish()
        ended[name] = trio.current_time()

    async with open_coordinator(
        jobs=2, backend=FakeBackend(write=False), memory_budget=2**40, environ={}
    ) as coordinator:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "thin", ThinLto())
            nursery.start_soon(one, "plain", None)
    # 24 times ten seconds on two tokens; the plain one has half of the pool until it is done.
    assert ended["plain"] - started == pytest.approx(80, abs=11)
    assert ended["thin"] - started == pytest.approx(120, abs=1)


@LTO
async def test_lazy_modules_that_nobody_needs_leave_no_artifact(
    lto: ThinLto | FatLto, tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    modules = [module("main", "needs=x"), module("x", lazy=True), module("y", lazy=True)]
    link = LinkOptions(LinkKind.EXECUTABLE, tmp_path / "prog")
    config = BuildConfig(out_dir=tmp_path / "out", lto=lto, link=link)
    result = await build(config, modules, write=True)
    assert result.ok
    assert "y" not in {artifact.module for artifact in result.artifacts}
    linked = b"".join(artifact.path.read_bytes() for artifact in result.artifacts)
    assert (tmp_path / "prog").read_bytes() == linked


@LTO
async def test_the_result_does_not_depend_on_who_finished_first(
    lto: ThinLto | FatLto, tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    programs = set()
    for number, order in enumerate([(1, 2, 3), (3, 2, 1), (2, 1, 3)]):
        # What is expected of a module is no part of it: the order in which they run is all that differs.
        modules = [module(f"m{n}", f"m{n}", seconds=1) for n in range(3)]
        link = LinkOptions(LinkKind.EXECUTABLE, tmp_path / f"prog{number}")
        config = BuildConfig(out_dir=tmp_path / str(number), lto=lto, link=link)
        async with open_coordinator(jobs=3, backend=FakeBackend(), memory_budget=2**40, environ={}) as coordinator:
            for name, seconds in zip(("m0", "m1", "m2"), order, strict=True):
                for step in Step:
                    coordinator._history.record((config.out_dir, name, step, config.codegen), seconds, 2**20)
            async with coordinator.build(config) as one:
                for each in modules:
                    await one.submit(each)
                await one.finish()
        programs.add((tmp_path / f"prog{number}").read_bytes())
    assert len(programs) == 1


@pytest.mark.parametrize(
    ("config", "name", "complaint"),
    [
        (evolve(CONFIG, lto=FatLto()), "fat-lto.3", "LTO calls an output of its own"),
        (evolve(CONFIG, lto=ThinLto()), "regular-lto", "LTO calls an output of its own"),
        (evolve(CONFIG, lto=ThinLto()), "ltoless", "no LTO for an ltoless target"),
    ],
)
async def test_modules_that_cannot_take_part_are_a_wrong_request(
    config: BuildConfig, name: str, complaint: str
) -> None:
    async with (
        open_coordinator(backend=FakeBackend(write=False), environ={}) as coordinator,
        coordinator.build(config) as one,
    ):
        with pytest.raises(RequestError, match=complaint):
            await one.submit(Module(name, f"target={name}-x-y".encode()))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (evolve(CONFIG, exports=("f",)), "objects hide nothing"),
        (evolve(CONFIG, exports=("f",), link=LinkOptions(LinkKind.STATIC, Path("x"))), "objects hide nothing"),
        (evolve(CONFIG, exports=("f",), lto=ThinLto(local=True)), "thin-local"),
        (evolve(CONFIG, exports=("a\nb",), lto=ThinLto()), "cannot be the name"),
        (
            evolve(CONFIG, lto=FatLto(), link=LinkOptions(LinkKind.SHARED, Path("unused/fat-lto.0.o"))),
            "an output of its own",
        ),
        (evolve(CONFIG, exports=("",), lto=ThinLto()), "cannot be the name"),
    ],
)
async def test_exports_that_make_no_sense_are_a_wrong_request(config: BuildConfig, complaint: str) -> None:
    async with open_coordinator(backend=FakeBackend(write=False), environ={}) as coordinator:
        with pytest.raises(RequestError, match=complaint):
            coordinator.build(config)


@pytest.mark.parametrize("partitions", [0, -1, 1000])
def test_a_number_of_partitions_has_bounds(partitions: int) -> None:
    with pytest.raises(RequestError, match="partitions"):
        FatLto(partitions)


# The boundary

ROOT = Path(__file__).parent.parent


def imports(path: Path) -> set[str]:
    """The modules of this project that a file imports, at whatever depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] in ("coordinator", "lto", "workers")}


def files(*patterns: str) -> list[Path]:
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    assert found, patterns
    return found


def existing(names: Iterable[str]) -> set[str]:
    return {
        name
        for name in names
        if (ROOT / (name.replace(".", "/") + ".py")).exists() or (ROOT / name.replace(".", "/")).is_dir()
    }


THIN = ("lto/thin/*.py", "workers/thin.py", "workers/cached/_thin.py", "workers/llvm/thin_*.py")
FAT = ("lto/fat/*.py", "workers/fat.py", "workers/cached/_fat.py", "workers/llvm/fat_*.py")


@pytest.mark.parametrize(("here", "there"), [(THIN, "fat"), (FAT, "thin")])
def test_fat_and_thin_never_import_each_other(here: Sequence[str], there: str) -> None:
    foreign = (f"lto.{there}", f"workers.{there}", f"workers.cached._{there}", f"workers.llvm.{there}_")
    for path in files(*here):
        assert not [name for name in imports(path) if name.startswith(foreign)], path


def test_fat_and_thin_have_no_helper_of_their_own_in_common() -> None:
    """What both use is what plain codegen or plain linking uses as well."""
    thin = existing(set().union(*map(imports, files(*THIN))))
    fat = existing(set().union(*map(imports, files(*FAT))))
    own = {path for pattern in (*THIN, *FAT) for path in ROOT.glob(pattern)}
    others = [path for path in files("coordinator/*.py", "workers/*.py", "workers/*/*.py") if path not in own]
    # These join the seam together, so that they use both is no sign of a general use.
    others = [path for path in others if path.name not in ("_join.py", "backend.py", "_slots.py")]
    general = existing(set().union(*map(imports, others)))
    assert thin & fat <= general | {"workers.slots"}


def test_imports_go_one_way() -> None:
    for path in files("lto/**/*.py"):
        assert not [name for name in imports(path) if name.startswith("coordinator")], path
    for path in files("workers/**/*.py"):
        assert not [name for name in imports(path) if name.startswith(("coordinator", "lto"))], path

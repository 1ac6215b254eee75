"""Pure layer: coordinator, loop and build over the fake backend; no process, no file, a clock that jumps."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from coordinator import (
    BuildConfig,
    BuildEvent,
    BuildFailed,
    CodegenOptions,
    Coordinator,
    DiagnosticReported,
    EmitKind,
    FatLto,
    Finished,
    LinkKind,
    LinkOptions,
    Module,
    ModuleFinished,
    ModuleQueued,
    ModuleStarted,
    RequestError,
    ThinLto,
    open_coordinator,
    open_coordinator_in_thread,
)
from coordinator._loop import MainLoop
from coordinator._machine import Machine
from coordinator._tokens import OwnTokens, Token
from workers.cached import CachedBackend
from workers.fake import FakeBackend
from workers.work import Optimize

pytestmark = pytest.mark.pure

CONFIG = BuildConfig(out_dir=Path("unused"))
KEEP_GOING = attrs.evolve(CONFIG, keep_going=True)


def module(name: str, what: str = "", seconds: float = 1.0) -> Module:
    return Module(name, f"{what} seconds={seconds}".encode())


def pure(jobs: int = 2, backend: FakeBackend | None = None):  # type: ignore[no-untyped-def]
    return open_coordinator(jobs=jobs, backend=backend or FakeBackend(write=False), memory_budget=2**40, environ={})


async def build_all(coordinator: Coordinator, modules: Sequence[Module], config: BuildConfig = CONFIG) -> list[bool]:
    async with coordinator.build(config) as build:
        taken = [await build.submit(m) for m in modules]
        await build.finish()
    return taken


async def test_results_are_sorted_and_events_tell_the_story(autojump_clock: trio.abc.Clock) -> None:
    async with pure() as coordinator, coordinator.build(CONFIG) as build:
        events = build.watch()
        for name in ("c", "a", "b"):
            assert await build.submit(module(name))
        result = await build.finish()
        assert result.ok
        assert [r.module for r in result.results] == ["a", "b", "c"]
        told = [event async for event in events]
    for name in "abc":
        mine = [type(e) for e in told if not isinstance(e, DiagnosticReported) and e.module == name]
        assert mine == [ModuleQueued, ModuleStarted, ModuleFinished]


async def test_two_tokens_run_two_items_at_once(autojump_clock: trio.abc.Clock) -> None:
    started = trio.current_time()
    async with pure(jobs=2) as coordinator:
        await build_all(coordinator, [module(str(n), seconds=10) for n in range(4)])
    assert trio.current_time() - started == pytest.approx(20)


async def test_the_first_error_aborts_and_drains(autojump_clock: trio.abc.Clock) -> None:
    async with pure(jobs=2) as coordinator, coordinator.build(CONFIG) as build:
        await build.submit(module("slow", seconds=10))
        await build.submit(module("bad", "fail", seconds=5))
        await build.submit(module("never", seconds=1))
        with pytest.raises(BuildFailed, match="bad: it does not parse") as failed:
            await build.finish()
    result = failed.value.result
    assert result.skipped == ("never",)
    assert isinstance(result.results[1], Finished)  # slow was running: it is drained and counts
    assert result.results[1].module == "slow"


async def test_submitting_to_an_aborted_build_says_no(autojump_clock: trio.abc.Clock) -> None:
    async with pure(jobs=1) as coordinator, coordinator.build(CONFIG) as build:
        assert await build.submit(module("bad", "fail"))
        await trio.sleep(5)
        assert not await build.submit(module("late"))
        with pytest.raises(BuildFailed) as failed:
            await build.finish()
        assert failed.value.result.skipped == ("late",)


async def test_keep_going_builds_the_rest(autojump_clock: trio.abc.Clock) -> None:
    async with pure(jobs=1) as coordinator, coordinator.build(KEEP_GOING) as build:
        for m in (module("bad", "fail"), module("good"), module("hung", "hang"), module("fine")):
            assert await build.submit(m)
        with pytest.raises(BuildFailed, match=r"and 1 more") as failed:
            await build.finish()
    result = failed.value.result
    assert [r.module for r in result.results if isinstance(r, Finished)] == ["fine", "good"]
    assert result.skipped == ()


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../x", "a//b", "a\0b", "a/", "./a"])
async def test_unusable_names_are_refused(name: str) -> None:
    async with pure() as coordinator, coordinator.build(CONFIG) as build:
        with pytest.raises(RequestError, match="cannot name a file"):
            await build.submit(Module(name, b""))


async def test_duplicate_names_are_refused_and_the_build_goes_on(autojump_clock: trio.abc.Clock) -> None:
    async with pure() as coordinator, coordinator.build(CONFIG) as build:
        await build.submit(module("a"))
        with pytest.raises(RequestError, match="duplicate module name 'a'"):
            await build.submit(module("a"))
        assert (await build.finish()).ok


async def test_mixed_targets_name_both_modules(autojump_clock: trio.abc.Clock) -> None:
    async with pure() as coordinator, coordinator.build(KEEP_GOING) as build:
        await build.submit(Module("one", b"target=x86_64-unknown-linux-gnu"))
        await build.submit(Module("two", b"target=aarch64-unknown-linux-gnu"))
        await build.submit(Module("three", b"target=x86_64-pc-linux-gnu"))
        with pytest.raises(BuildFailed, match=r"two: its target triple is .*aarch64.* but that of one is .*x86_64"):
            await build.finish()
        assert build.result is not None
        assert [r.module for r in build.result.results if isinstance(r, Finished)] == ["one", "three"]


async def test_an_artifact_never_replaces_an_input(tmp_path: Path) -> None:
    source = tmp_path / "a.bc"
    source.write_bytes(b"")
    config = BuildConfig(
        out_dir=tmp_path / "x" / "..", codegen=CodegenOptions(emit=frozenset({EmitKind.BITCODE})), keep_going=True
    )
    (tmp_path / "x").mkdir()
    async with pure() as coordinator, coordinator.build(config) as build:
        with pytest.raises(RequestError, match="would overwrite its input"):
            await build.submit(Module("a", source))
        (tmp_path / "link.bc").symlink_to(source)
        await build.submit(Module("b", tmp_path / "link.bc"))
        with pytest.raises(RequestError, match="would overwrite its input"):
            await build.submit(Module("a", b""))


@pytest.mark.parametrize(("output", "inputs"), [("n.o", ["n.o"]), ("m.o", []), ("p", ["m.o"])])
async def test_neither_link_inputs_nor_outputs_are_overwritten(tmp_path: Path, output: str, inputs: list[str]) -> None:
    link = LinkOptions(LinkKind.SHARED, tmp_path / output, tuple(tmp_path / name for name in inputs))
    with pytest.raises(RequestError, match=r"would overwrite its input|twice"):
        async with pure() as coordinator, coordinator.build(BuildConfig(out_dir=tmp_path, link=link)) as build:
            await build.submit(module("m"))


async def test_native_files_are_for_builds_that_link(tmp_path: Path) -> None:
    native = tmp_path / "n.o"
    link = LinkOptions(LinkKind.STATIC, tmp_path / "lib.a")
    config = BuildConfig(out_dir=tmp_path, link=link)
    async with open_coordinator(jobs=1, backend=FakeBackend(), memory_budget=2**30, environ={}) as coordinator:
        async with coordinator.build(attrs.evolve(config, link=None)) as build:
            with pytest.raises(RequestError, match=r"n\.o can only be linked, and this build links nothing"):
                build.add_native(native)
        build = coordinator.build(config)
        with pytest.raises(RequestError, match="not open"):
            build.add_native(native)
        async with build:
            for wrong in ("n.o", b"n.o"):
                with pytest.raises(RequestError, match="give a Path"):
                    build.add_native(wrong)  # type: ignore[arg-type]
            with pytest.raises(RequestError, match="would overwrite its input"):
                build.add_native(link.output)
            await build.submit(module("m", seconds=0))
            build.add_native(native)
            with pytest.raises(RequestError, match="would overwrite its input"):
                await build.submit(module("n", seconds=0))
            await build.submit(module("l", seconds=0))
            native.write_bytes(b"native ")  # in time
            assert (await build.finish()).ok
            with pytest.raises(RequestError, match="too late"):
                build.add_native(native)
        linked = link.output.read_bytes()
        parts = [(tmp_path / name).read_bytes() for name in ("m.o", "n.o", "l.o")]
        assert linked == b"".join(parts)


async def test_an_unreadable_module_fails_the_build(tmp_path: Path) -> None:
    async with pure() as coordinator, coordinator.build(CONFIG) as build:
        assert not await build.submit(Module("a", tmp_path / "missing.bc"))
        with pytest.raises(BuildFailed, match="a: cannot read"):
            await build.finish()


async def test_options_nobody_can_honour_are_refused_before_anything_runs() -> None:
    async with pure() as coordinator:
        with pytest.raises(RequestError, match="nonesuch"):
            coordinator.build(attrs.evolve(CONFIG, codegen=CodegenOptions(target_cpu="nonesuch")))
        with pytest.raises(RequestError, match="linking needs objects"):
            coordinator.build(
                attrs.evolve(
                    CONFIG,
                    codegen=CodegenOptions(emit=frozenset({EmitKind.IR})),
                    link=LinkOptions(LinkKind.SHARED, Path("x")),
                )
            )


async def test_options_that_the_target_lacks_are_refused_with_the_first_module() -> None:
    async with pure() as coordinator, coordinator.build(CONFIG) as build:
        with pytest.raises(RequestError, match="no such target"):
            await build.submit(Module("a", b"target=nonesuch-unknown-linux"))


async def test_a_link_that_cannot_be_is_refused_with_the_first_module() -> None:
    link = LinkOptions(LinkKind.SHARED, Path("x"))
    async with pure() as coordinator, coordinator.build(attrs.evolve(CONFIG, link=link)) as build:
        with pytest.raises(RequestError, match="cannot link x"):
            await build.submit(Module("a", b"target=unlinkable-unknown-none"))


async def test_a_producer_that_runs_ahead_waits(autojump_clock: trio.abc.Clock) -> None:
    submitted = 0
    async with pure(jobs=1) as coordinator, coordinator.build(CONFIG) as build:

        async def produce() -> None:
            nonlocal submitted
            for n in range(2000):
                await build.submit(module(str(n)))
                submitted += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            await trio.sleep(0.5)
            assert 513 <= submitted <= 514  # one runs, 512 wait, and one may be on its way
            await trio.sleep(300)
            assert 700 < submitted < 1000
        assert (await build.finish()).ok


async def test_cancelling_one_build_leaves_the_others_alone(autojump_clock: trio.abc.Clock) -> None:
    async with pure(jobs=2) as coordinator:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(build_all, coordinator, [module(str(n)) for n in range(20)])
            with trio.move_on_after(3) as scope:
                await build_all(coordinator, [module(str(n)) for n in range(20)])
            assert scope.cancelled_caught
        machine = coordinator._loop.machine
        machine.check_invariants()
        assert machine._running == {}
        assert machine._stages == {}


async def test_cancel_from_another_task_ends_finish(autojump_clock: trio.abc.Clock) -> None:
    async with pure(jobs=1) as coordinator, coordinator.build(CONFIG) as build:
        await build.submit(module("a", seconds=100))
        await build.submit(module("b", seconds=100))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(build.cancel)
            with pytest.raises(BuildFailed, match="cancelled") as failed:
                await build.finish()
        assert failed.value.result.cancelled
        assert failed.value.result.skipped == ("b",)
    assert trio.current_time() < 1e9


@pytest.mark.parametrize("seed", range(10))
async def test_submit_finish_and_cancel_may_cross(seed: int, autojump_clock: trio.abc.Clock) -> None:
    rng = random.Random(seed)
    async with pure(jobs=1) as coordinator:
        async with coordinator.build(CONFIG) as build:

            async def produce(prefix: str) -> None:
                for n in range(400):
                    try:
                        if not await build.submit(module(f"{prefix}{n}", seconds=0.01)):
                            return
                    except RequestError:
                        return

            async with trio.open_nursery() as nursery:
                for prefix in "abc":
                    nursery.start_soon(produce, prefix)
                await trio.sleep(rng.uniform(0, 4))
                if seed % 2:
                    nursery.start_soon(build.cancel)
                with pytest.raises(BuildFailed) if seed % 2 else nullcontext():
                    await build.finish()
        await build_all(coordinator, [module("after")])


async def test_closing_the_coordinator_under_a_build_never_passes_for_success(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with trio.open_nursery() as nursery, pure(jobs=1) as coordinator:
        build = await coordinator.build(CONFIG).__aenter__()
        await build.submit(module("a", seconds=100))

        async def finish() -> None:
            with pytest.raises(BuildFailed, match="cancelled"):
                await build.finish()

        nursery.start_soon(finish)
        await trio.sleep(1)


async def test_leaving_without_finish_cancels(autojump_clock: trio.abc.Clock) -> None:
    started = trio.current_time()
    async with pure() as coordinator:
        async with coordinator.build(CONFIG) as build:
            await build.submit(module("a", seconds=1e6))
        assert build.result is not None
        assert build.result.cancelled
    assert trio.current_time() - started < 1


async def test_an_exception_of_the_body_comes_out_as_it_is(autojump_clock: trio.abc.Clock) -> None:
    with pytest.raises(ZeroDivisionError):
        async with pure() as coordinator, coordinator.build(CONFIG) as build:
            await build.submit(module("a", seconds=1e6))
            raise ZeroDivisionError


async def test_a_closed_coordinator_is_a_wrong_request() -> None:
    async with pure() as coordinator:
        pass
    with pytest.raises(RequestError, match="closed"):
        await build_all(coordinator, [])


async def test_submit_after_finish_is_a_wrong_request() -> None:
    async with pure() as coordinator, coordinator.build(CONFIG) as build:
        await build.finish()
        with pytest.raises(RequestError, match="comes too late"):
            await build.submit(module("a"))


async def test_a_bug_in_a_backend_costs_one_build(autojump_clock: trio.abc.Clock) -> None:
    class Buggy(FakeBackend):
        async def compile(self, batch: Sequence[Optimize]):  # type: ignore[no-untyped-def]
            if any(item.name == "bug" for item in batch):
                raise KeyError("oops")
            return await super().compile(batch)

    async with pure(backend=Buggy(write=False)) as coordinator:
        with pytest.raises(BuildFailed, match=r"bug: internal error, please report it: KeyError"):
            await build_all(coordinator, [module("bug")])
        await build_all(coordinator, [module("fine")])


async def test_measured_cost_orders_the_next_build(autojump_clock: trio.abc.Clock) -> None:
    order: list[str] = []

    class Watching(FakeBackend):
        async def compile(self, batch: Sequence[Optimize]):  # type: ignore[no-untyped-def]
            order.extend(item.name for item in batch)
            return await super().compile(batch)

    modules = [module("first"), Module("a", b"guess=9"), Module("b", b"guess=5 seconds=50"), Module("c", b"guess=1")]
    async with pure(jobs=1, backend=Watching(write=False)) as coordinator:
        await build_all(coordinator, modules)
        await build_all(coordinator, modules)
        await build_all(coordinator, modules, attrs.evolve(CONFIG, out_dir=Path("of another program")))
    assert order == ["first", "a", "b", "c", "first", "b", "a", "c", "first", "a", "b", "c"]


class CountingTokens(OwnTokens):
    """Own tokens that remember how many are out."""

    def __init__(self, jobs: int) -> None:
        super().__init__(jobs)
        self.out: set[Token] = set()

    async def acquire(self) -> Token:
        token = await super().acquire()
        self.out.add(token)
        return token

    def release(self, token: Token) -> None:
        super().release(token)
        self.out.remove(token)


@pytest.mark.parametrize("seed", range(20))
async def test_many_builds_with_random_ends_lose_no_token(seed: int, autojump_clock: trio.abc.Clock) -> None:
    rng = random.Random(seed)
    tokens = CountingTokens(4)
    backend = CachedBackend(FakeBackend(write=False))
    loop = MainLoop(tokens, Machine(tokens.limit, 2**40), backend)
    endings: list[str] = []

    async def one(coordinator: Coordinator) -> None:
        ends = ["", "", "", "", "", "", "fail", "crash", "lto-fail", "link-fail"]
        modules = [module(str(n), rng.choice(ends), rng.uniform(0, 3)) for n in range(rng.choice([5, 10]))]
        config = attrs.evolve(rng.choice([CONFIG, KEEP_GOING]), lto=rng.choice([None, ThinLto(), FatLto()]))
        with trio.move_on_after(rng.uniform(0, 30)) as scope:
            try:
                await build_all(coordinator, modules, config)
                endings.append("ok")
            except BuildFailed:
                endings.append("failed")
        if scope.cancelled_caught:
            endings.append("cancelled")

    async with trio.open_nursery() as outer:
        await outer.start(loop.run)
        coordinator = Coordinator(loop, backend, outer, None, None)
        async with trio.open_nursery() as builds:
            for _ in range(30):
                builds.start_soon(one, coordinator)
        loop.machine.check_invariants()
        assert tokens.out == set()
        assert len(endings) == 30
        outer.cancel_scope.cancel()


def test_from_a_thread_without_trio() -> None:
    with open_coordinator_in_thread(
        jobs=2, backend=FakeBackend(write=False), memory_budget=2**30, environ={}
    ) as coordinator:
        with coordinator.build(CONFIG) as build:
            for n in range(5):
                assert build.submit(module(str(n), seconds=0))
            with pytest.raises(RequestError, match="links nothing"):
                build.add_native(Path("n.o"))
            assert [r.module for r in build.finish().results] == ["0", "1", "2", "3", "4"]
        with coordinator.build(CONFIG) as build:
            build.submit(module("bad", "fail", seconds=0))
            with pytest.raises(BuildFailed, match="bad"):
                build.finish()
        with coordinator.build(CONFIG) as build:
            build.submit(module("slow", seconds=1000))  # leaving cancels


def test_a_closed_coordinator_in_a_thread_is_a_wrong_request() -> None:
    with open_coordinator_in_thread(backend=FakeBackend(write=False), environ={}) as coordinator:
        pass
    with pytest.raises(RequestError, match="closed"), coordinator.build(CONFIG):
        pass


@pytest.mark.parametrize(
    ("kind", "values", "complaint"),
    [
        (Module, {"name": "m", "content": "m.bc"}, r"Module.content is 'm.bc': give Path or bytes"),
        (Module, {"name": "m", "content": bytearray(b"x")}, r"Module.content"),
        (Module, {"name": Path("m"), "content": b""}, r"Module.name"),
        (BuildConfig, {"out_dir": "out"}, r"BuildConfig.out_dir is 'out': give Path"),
        (CodegenOptions, {"opt_level": "2"}, r"CodegenOptions.opt_level is '2': give OptLevel"),
        (CodegenOptions, {"emit": "obj"}, r"CodegenOptions.emit is 'obj': give a frozenset of EmitKind"),
        (CodegenOptions, {"extra_passes": ["a"]}, r"CodegenOptions.extra_passes"),
        (LinkOptions, {"kind": LinkKind.SHARED, "output": Path("x"), "inputs": [Path("y")]}, r"LinkOptions.inputs"),
    ],
)
def test_values_of_a_wrong_type_are_a_wrong_request(
    kind: Callable[..., object], values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RequestError, match=complaint):
        kind(**values)


@pytest.mark.parametrize("options", [{"jobs": "2"}, {"toolchain": "/x"}, {"memory_budget": 0}])
async def test_settings_of_a_wrong_type_are_a_wrong_request(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(options)).replace("_", "[_ ]")):
        async with open_coordinator(backend=FakeBackend(), **options):
            pass


async def test_layouts_must_agree_where_they_are_named() -> None:
    async with pure() as coordinator, coordinator.build(KEEP_GOING) as build:
        for name, layout in (("a", ""), ("b", "e-p"), ("c", ""), ("d", "E")):
            await build.submit(Module(name, f"layout={layout}".encode()))
        with pytest.raises(BuildFailed, match="d: its data layout is 'E', but that of b is 'e-p'"):
            await build.finish()


def test_a_thread_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(RequestError, match="at least 1"),
        open_coordinator_in_thread(jobs=0, backend=FakeBackend(write=False), environ={}),
    ):
        pass


async def test_watching_late_and_unwatching(autojump_clock: trio.abc.Clock) -> None:
    async with pure() as coordinator, coordinator.build(CONFIG) as build:
        gone, staying = build.watch(), build.watch()
        gone.close()
        await build.submit(module("a"))
        await build.finish()
        # One that has left costs the others nothing, not even the event it is noticed by.
        assert [type(event) async for event in staying] == [ModuleQueued, ModuleStarted, ModuleFinished]
        late: list[BuildEvent] = [event async for event in build.watch()]
        assert late == []

"""Layer: contract. What every codegen backend owes the main loop: each case runs over all of them."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
from attrs import evolve, frozen

from tests.cached_samples import Persistent, opened
from tests.leftovers import descendants, descriptors
from tests.samples import ABORTING_IR, GOOD_IR, UNPARSABLE_IR
from workers.backend import CodegenBackend
from workers.errors import ModuleError, RequestError
from workers.fake import FakeBackend
from workers.fake_keys import FakeKeys
from workers.llvm.codegen import open_llvm_backend
from workers.work import (
    CodegenOptions,
    EmitKind,
    Engine,
    Failed,
    Finished,
    Module,
    Optimize,
    Severity,
)

pytestmark = pytest.mark.contract

Kind = Literal["good", "broken", "crashing", "hanging"]


@frozen
class Subject:
    """One implementation, and modules in its own language."""

    name: str
    backend: CodegenBackend
    engine: Engine
    modules: dict[Kind, bytes]

    @property
    def is_fake(self) -> bool:
        return self.modules is _FAKE

    def options(self, **changes: Any) -> CodegenOptions:
        return evolve(CodegenOptions(engine=self.engine), **changes)

    def item(
        self, name: str, kind: Kind, out: Path, options: CodegenOptions | None = None, number: int = 0
    ) -> Optimize:
        options = options or self.options()
        content = self.modules[kind] + _number(self, number)
        module = Module(name, content)
        inspection = self.backend.inspect(module, options)
        return Optimize(module, options, out, out / "reproducers", inspection.target, inspection.size)


def _number(subject: Subject, number: int) -> bytes:
    """Something that makes modules different from each other."""
    if subject.is_fake:
        return f" number={number}".encode()
    return f"define i32 @number{number}(i32 %x) {{\n  %y = add i32 %x, {number}\n  ret i32 %y\n}}\n".encode()


_FAKE: dict[Kind, bytes] = {
    "good": b"target=fake-unknown-none",
    "broken": b"fail",
    "crashing": b"crash",
    "hanging": b"hang seconds=30",
}


def hanging_ir() -> bytes:
    """A module that takes far longer than a small limit: a huge function of loads, stores and branches."""
    lines = ["define i32 @slow(ptr %p, i32 %x) {", "b0:"]
    for number in range(30_000):
        lines += [
            f"  %q{number} = getelementptr i32, ptr %p, i32 {number % 977}",
            f"  %v{number} = load volatile i32, ptr %q{number}",
            f"  %c{number} = icmp eq i32 %v{number}, {number}",
            f"  br i1 %c{number}, label %b{number + 1}, label %end",
            f"b{number + 1}:",
        ]
    lines += ["  br label %end", "end:", "  ret i32 %x", "}", ""]
    return GOOD_IR.encode() + "\n".join(lines).encode()


_LLVM: dict[Kind, bytes] = {
    "good": GOOD_IR.encode(),
    "broken": UNPARSABLE_IR.encode(),
    "crashing": ABORTING_IR.encode(),
    "hanging": hanging_ir(),
}

_ENGINES = {"llvm-auto": Engine.AUTO, "llvm-toolchain": Engine.TOOLCHAIN, "llvm-llvmlite": Engine.LLVMLITE}


@asynccontextmanager
async def _open(name: str, scratch: Path, cache: Path) -> AsyncIterator[Subject]:
    fake = FakeBackend()
    if name == "fake":
        yield Subject(name, fake, Engine.AUTO, _FAKE)
    elif name == "fake-cached":
        with opened(cache) as store:
            yield Subject(name, Persistent(fake, FakeKeys(fake), store), Engine.AUTO, _FAKE)
    elif name == "llvm-cached":
        with opened(cache) as store:
            async with open_llvm_backend(scratch_dir=scratch, environ={}, limit=2) as backend:
                yield Subject(name, Persistent(backend, backend.keys(store), store), Engine.AUTO, _LLVM)
    else:
        async with open_llvm_backend(scratch_dir=scratch, environ={}, limit=2) as backend:
            yield Subject(name, backend, _ENGINES[name], _LLVM)


@pytest.fixture(params=["fake", "fake-cached", *_ENGINES, "llvm-cached"])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = descriptors(), descendants()
    async with _open(request.param, scratch, tmp_path / "cache") as opened:
        yield opened
    assert (descriptors(), descendants()) == before
    assert list(scratch.iterdir()) == []


def _codegen(results: Sequence[object]) -> list[Finished | Failed]:
    """The results, none of which asks for LTO."""
    found = [result for result in results if isinstance(result, Finished | Failed)]
    assert len(found) == len(results)
    return found


async def _compile(subject: Subject, *items: Optimize) -> list[Finished | Failed]:
    with trio.fail_after(60):
        results = _codegen(await subject.backend.compile(items))
    assert [result.module for result in results] == [item.name for item in items]
    for result in results:
        if isinstance(result, Failed):
            assert any(one.severity is Severity.ERROR for one in result.diagnostics)
            assert all(one.module == result.module for one in result.diagnostics)
    return results


def _bytes(result: Finished | Failed) -> dict[EmitKind, bytes]:
    assert isinstance(result, Finished), result
    return {artifact.kind: artifact.path.read_bytes() for artifact in result.artifacts}


async def test_artifacts_are_where_they_should_be(subject: Subject, tmp_path: Path) -> None:
    out = tmp_path / "not" / "there yet"
    options = subject.options(emit=frozenset(EmitKind) - {EmitKind.FATOBJ})
    (result,) = await _compile(subject, subject.item("deep/down/m", "good", out, options))
    assert isinstance(result, Finished)
    assert [artifact.kind for artifact in result.artifacts if artifact.bytes == artifact.path.stat().st_size]
    paths = {artifact.kind: artifact.path for artifact in result.artifacts}
    stem = out / "deep" / "down"
    assert paths == {
        EmitKind.OBJECT: stem / "m.o",
        EmitKind.ASSEMBLY: stem / "m.s",
        EmitKind.BITCODE: stem / "m.bc",
        EmitKind.IR: stem / "m.ll",
    }
    assert sorted(path.name for path in stem.iterdir()) == ["m.bc", "m.ll", "m.o", "m.s"]
    assert {stat.S_IMODE(path.stat().st_mode) & ~0o644 for path in paths.values()} == {0}


async def test_bytes_do_not_depend_on_the_batch(subject: Subject, tmp_path: Path) -> None:
    options = subject.options(emit=frozenset(EmitKind) - {EmitKind.FATOBJ})
    names = [f"m{number}" for number in range(4)]
    together = await _compile(
        subject, *(subject.item(name, "good", tmp_path / "a", options, n) for n, name in enumerate(names))
    )
    backwards = await _compile(
        subject,
        *(subject.item(name, "good", tmp_path / "b", options, n) for n, name in reversed(list(enumerate(names)))),
    )
    mixed = await _compile(
        subject,
        subject.item("bad", "broken", tmp_path / "c", options),
        *(subject.item(name, "good", tmp_path / "c", options, n) for n, name in enumerate(names)),
    )
    for number, name in enumerate(names):
        (alone,) = await _compile(subject, subject.item(name, "good", tmp_path / "d", options, number))
        expected = _bytes(alone)
        assert set(expected) == options.emit
        assert _bytes(together[number]) == expected
        assert _bytes(backwards[-1 - number]) == expected
        assert _bytes(mixed[1 + number]) == expected
    assert _bytes(together[0]) != _bytes(together[1])


async def test_bytes_do_not_depend_on_what_else_is_emitted(subject: Subject, tmp_path: Path) -> None:
    everything = subject.options(emit=frozenset(EmitKind) - {EmitKind.FATOBJ})
    (all_kinds,) = await _compile(subject, subject.item("m", "good", tmp_path / "all", everything))
    for kind in everything.emit:
        options = subject.options(emit=frozenset({kind}))
        (one,) = await _compile(subject, subject.item("m", "good", tmp_path / kind.value, options))
        assert _bytes(one) == {kind: _bytes(all_kinds)[kind]}


@pytest.mark.parametrize("kind", ["broken", "crashing"])
async def test_one_bad_module_harms_no_other(subject: Subject, tmp_path: Path, kind: Kind) -> None:
    names: list[tuple[str, Kind]] = [("a", "good"), ("b", kind), ("c", "good"), ("d", kind), ("e", "good")]
    items = [subject.item(name, one, tmp_path, number=n) for n, (name, one) in enumerate(names)]
    results = await _compile(subject, *items)
    assert [isinstance(result, Finished) for result in results] == [True, False, True, False, True]
    artifacts = sorted(path.name for path in tmp_path.glob("*.o"))
    assert artifacts == ["a.o", "c.o", "e.o"]


async def test_a_module_that_hangs_harms_no_other(subject: Subject, tmp_path: Path) -> None:
    options = subject.options(time_limit=0.5)
    items = [
        subject.item("good", "good", tmp_path, options),
        subject.item("slow", "hanging", tmp_path, options),
        subject.item("too", "good", tmp_path, options, number=2),
    ]
    good, slow, too = await _compile(subject, *items)
    assert isinstance(good, Finished)
    assert isinstance(too, Finished)
    assert isinstance(slow, Failed)
    assert "0.5 s" in slow.diagnostics[0].message


async def test_two_batches_at_once(subject: Subject, tmp_path: Path) -> None:
    results: list[Finished | Failed] = []

    async def one(number: int) -> None:
        item = subject.item(f"m{number}", "good", tmp_path, number=number)
        results.extend(_codegen(await subject.backend.compile([item])))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
    assert len(results) == 8
    assert all(isinstance(result, Finished) for result in results)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.02, 0.2])
async def test_cancel_leaves_no_half_artifact(subject: Subject, tmp_path: Path, delay: float) -> None:
    out = tmp_path / "out"
    items = [subject.item(f"m{n}", "good", out, number=n) for n in range(3)]
    items.append(subject.item("slow", "hanging", out))
    with trio.fail_after(60), trio.move_on_after(delay) as scope:
        await subject.backend.compile(items)
    assert scope.cancelled_caught
    left = [path for path in out.rglob("*") if path.is_file()] if out.exists() else []
    assert {path.name for path in left} <= {"m0.o", "m1.o", "m2.o"}
    for path in left:
        assert path.stat().st_size > 0
    again = subject.item("again", "good", out)
    assert isinstance((await _compile(subject, again))[0], Finished)


async def test_an_output_that_cannot_be_written_is_that_modules_failure(subject: Subject, tmp_path: Path) -> None:
    if subject.name == "fake":
        pytest.skip("the fake backend writes plainly")
    (tmp_path / "a.o").mkdir()
    (tmp_path / "b").write_bytes(b"a file where a directory should be")
    items = [subject.item(name, "good", tmp_path, number=n) for n, name in enumerate(["a", "b/b", "c"])]
    blocked, below_a_file, good = await _compile(subject, *items)
    assert isinstance(blocked, Failed)
    assert "cannot write" in blocked.diagnostics[0].message
    assert isinstance(below_a_file, Failed)
    assert isinstance(good, Finished)


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../b", "", "a//b", "./a"])
async def test_names_do_not_lead_out_of_the_directory(subject: Subject, tmp_path: Path, name: str) -> None:
    if subject.name == "fake":
        pytest.skip("the fake backend trusts names")
    (result,) = await _compile(subject, subject.item(name, "good", tmp_path / "out"))
    assert isinstance(result, Failed)
    assert not (tmp_path / "out.o").exists()


async def test_an_input_is_never_overwritten(subject: Subject, tmp_path: Path) -> None:
    if subject.name == "fake":
        pytest.skip("the fake backend trusts names")
    source = tmp_path / "m.ll"
    source.write_bytes(subject.modules["good"])
    options = subject.options(emit=frozenset({EmitKind.IR}))
    module = Module("m", source)
    inspection = subject.backend.inspect(module, options)
    item = Optimize(module, options, tmp_path, tmp_path / "r", inspection.target, inspection.size)
    (result,) = await _compile(subject, item)
    assert isinstance(result, Failed)
    assert "overwrite" in result.diagnostics[0].message
    assert source.read_bytes() == subject.modules["good"]


async def test_checked_options_are_refused_before_anything_starts(subject: Subject) -> None:
    subject.backend.check(subject.options())
    wrong = subject.options(target_cpu="nonesuch" if subject.is_fake else "not a name")
    with pytest.raises(RequestError, match="CPU"):
        subject.backend.check(wrong)


async def test_inspection_tells_target_size_and_cost(subject: Subject, tmp_path: Path) -> None:
    content = subject.modules["good"]
    path = tmp_path / "m"
    path.write_bytes(content)
    for module in (Module("m", content), Module("m", path)):
        inspection = subject.backend.inspect(module, subject.options())
        assert inspection.size == len(content)
        assert inspection.target.triple
        assert inspection.estimate.seconds >= 0
        assert inspection.estimate.peak_rss_bytes > 0
        assert inspection.estimate.batch is not None
    with pytest.raises(ModuleError) as caught:
        subject.backend.inspect(Module("gone", tmp_path / "gone"), subject.options())
    assert caught.value.module == "gone"

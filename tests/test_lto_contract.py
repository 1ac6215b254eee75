"""Layer: contract. What every backend owes the LTO loops: each case runs over all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from attrs import evolve, frozen

from tests.cached_samples import Persistent, opened
from tests.leftovers import descendants, descriptors
from tests.samples import ABORTING_IR, LAYOUT, TRIPLE
from workers.backend import Backend
from workers.errors import RequestError
from workers.fake import FakeBackend
from workers.fake_keys import FakeKeys
from workers.fat import FatLink, FatLinked, FatPartition
from workers.llvm.codegen import open_llvm_backend
from workers.thin import ThinCompile, ThinLink, ThinLinked
from workers.work import (
    CodegenOptions,
    EmitKind,
    Engine,
    Failed,
    Finished,
    Module,
    NeedsFatLto,
    NeedsThinLto,
    Optimize,
    PreLink,
    Severity,
    Step,
    Target,
)

pytestmark = pytest.mark.contract

_HEAD = f'target datalayout = "{LAYOUT}"\ntarget triple = "{TRIPLE}"\n'
OPTIONS = CodegenOptions()


@frozen
class Subject:
    """One implementation, and modules in its own language: three that call each other, one whose code cannot be
    generated, and two of one symbol.
    """

    name: str
    backend: Backend
    modules: dict[str, bytes]
    broken: bytes
    clash: dict[str, bytes]
    unlinkable: str


def _ir(name: str, calls: str | None) -> bytes:
    body = f"  %y = call i32 @{calls}(i32 %x)\n" if calls else "  %y = mul i32 %x, 3\n"
    declared = f"declare i32 @{calls}(i32)\n" if calls else ""
    return f"{_HEAD}{declared}define i32 @{name}(i32 %x) {{\n{body}  ret i32 %y\n}}\n".encode()


_FAKE = {name: f"target=fake-unknown-none name={name}".encode() for name in ("a", "b", "c")}
_REAL = {"a": _ir("a", "b"), "b": _ir("b", "c"), "c": _ir("c", None)}


@pytest.fixture(params=["fake", "fake-cached", "llvm", "llvm-cached"])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    name: str = request.param
    with opened(tmp_path / "cache") as store:
        backend: Backend
        if name.startswith("fake"):
            fake = FakeBackend()
            backend = fake if name == "fake" else Persistent(fake, FakeKeys(fake), store)
            clash = {"a": b"target=fake-unknown-none", "b": b"link-fail target=fake-unknown-none"}
            broken = b"lto-fail target=fake-unknown-none"
            yield Subject(name, backend, _FAKE, broken, clash, "ltoless-unknown-none")
            return
        clash = {"a": _ir("same", None), "b": _ir("same", None)}
        async with open_llvm_backend(limit=2) as llvm:
            backend = llvm if name == "llvm" else Persistent(llvm, llvm.keys(store), store)
            yield Subject(name, backend, _REAL, ABORTING_IR.encode(), clash, "wasm32-unknown-unknown")


async def _pre_link(
    subject: Subject, modules: dict[str, bytes], pre_link: PreLink, place: Path
) -> list[NeedsThinLto | NeedsFatLto]:
    items = []
    for number, (name, content) in enumerate(modules.items()):
        module = Module(name, content)
        seen = subject.backend.inspect(module, OPTIONS, pre_link)
        bitcode = place / f"{pre_link.value}{number}.bc"
        items.append(
            Optimize(
                module,
                OPTIONS,
                place / "out",
                place / "repro",
                seen.target,
                seen.size,
                pre_link,
                bitcode,
                seen.pre_linked,
            )
        )
    with trio.fail_after(60):
        results = await subject.backend.compile(items)
    assert [result.module for result in results] == list(modules)
    needs = [result for result in results if isinstance(result, NeedsThinLto | NeedsFatLto)]
    assert len(needs) == len(results)
    return needs


async def _thin_link(subject: Subject, modules: dict[str, bytes], place: Path, out: str = "out") -> ThinLink:
    needs = await _pre_link(subject, modules, PreLink.THIN, place)
    files = tuple(one for one in needs if isinstance(one, NeedsThinLto))
    assert len(files) == len(modules)
    directory = place / f"dir-{out}"
    directory.mkdir()
    return ThinLink(files, None, (), OPTIONS, Target(TRIPLE, LAYOUT), directory, place / out, place / "repro")


async def _fat_link(subject: Subject, modules: dict[str, bytes], place: Path, partitions: int | None) -> FatLink:
    needs = await _pre_link(subject, modules, PreLink.FAT, place)
    files = tuple(one for one in needs if isinstance(one, NeedsFatLto))
    assert len(files) == len(modules)
    directory = place / f"dir-{partitions}"
    directory.mkdir()
    out = place / f"out-{partitions}"
    return FatLink(files, None, (), partitions, OPTIONS, Target(TRIPLE, LAYOUT), directory, out, place / "repro")


def _checked(done: object, name: str, step: Step) -> bytes:
    assert isinstance(done, Finished)
    assert (done.module, done.step) == (name, step)
    (artifact,) = done.artifacts
    assert (artifact.module, artifact.kind) == (name, EmitKind.OBJECT)
    data = artifact.path.read_bytes()
    assert len(data) == artifact.bytes
    return data


def _assert_told(done: object, step: Step) -> None:
    assert isinstance(done, Failed)
    assert done.step is step
    assert any(one.severity is Severity.ERROR for one in done.diagnostics)


async def _compile(subject: Subject, batch: list[ThinCompile]) -> list[bytes]:
    with trio.fail_after(60):
        results = await subject.backend.thin_compile(batch)
    return [_checked(done, item.name, Step.THIN_BACKEND) for done, item in zip(results, batch, strict=True)]


async def test_lto_that_cannot_be_is_a_wrong_request(subject: Subject) -> None:
    subject.backend.check_lto(OPTIONS, Target(TRIPLE, LAYOUT))
    with pytest.raises(RequestError):
        subject.backend.check_lto(OPTIONS, Target(subject.unlinkable, ""))


async def test_a_workspace_is_a_directory_and_goes(subject: Subject) -> None:
    with subject.backend.workspace() as first, subject.backend.workspace() as second:
        assert first != second
        (first / "file").write_text("x")
    assert not first.exists()
    assert not second.exists()


async def test_thin_link_plans_every_module(subject: Subject, tmp_path: Path) -> None:
    link = await _thin_link(subject, subject.modules, tmp_path)
    estimate = subject.backend.thin_estimate(link)
    assert estimate.seconds > 0
    assert estimate.peak_rss_bytes > 0
    with trio.fail_after(60):
        linked = await subject.backend.thin_link(link)
    assert isinstance(linked, ThinLinked)
    assert sorted(item.name for item in linked.compiles) == ["a", "b", "c"]
    assert linked.unneeded == ()


async def test_thin_objects_do_not_depend_on_their_batch(subject: Subject, tmp_path: Path) -> None:
    objects = []
    for out, split in (("together", [3]), ("single", [1, 1, 1]), ("mixed", [2, 1])):
        link = await _thin_link(subject, subject.modules, tmp_path, out)
        linked = await subject.backend.thin_link(link)
        assert isinstance(linked, ThinLinked)
        waiting = sorted(linked.compiles, key=lambda item: item.name)
        made: list[bytes] = []
        for size in split:
            made += await _compile(subject, waiting[:size])
            waiting = waiting[size:]
        objects.append(made)
    assert objects[0] == objects[1] == objects[2]


async def test_the_first_failure_may_be_the_last_result_unless_told_to_go_on(subject: Subject, tmp_path: Path) -> None:
    link = await _thin_link(subject, subject.modules | {"broken": subject.broken}, tmp_path)
    linked = await subject.backend.thin_link(link)
    assert isinstance(linked, ThinLinked)
    one, *others = sorted(linked.compiles, key=lambda item: item.name == "broken")
    batch = [one, others[-1], *others[:-1]]
    with trio.fail_after(60):
        everything = await subject.backend.thin_compile(batch)
        stopped = await subject.backend.thin_compile(batch, keep_going=False)
    assert [isinstance(done, Failed) for done in everything] == [False, True, False, False]
    _checked(stopped[0], one.name, Step.THIN_BACKEND)
    _assert_told(stopped[1], Step.THIN_BACKEND)
    assert [done.module for done in stopped[:2]] == [one.name, "broken"]
    # What follows was there already.
    assert len(stopped) == (len(batch) if subject.name.endswith("cached") else 2)
    for done in stopped[2:]:
        _checked(done, done.module, Step.THIN_BACKEND)


async def test_a_thin_link_that_fails_says_why(subject: Subject, tmp_path: Path) -> None:
    link = await _thin_link(subject, subject.clash, tmp_path)
    with trio.fail_after(60):
        _assert_told(await subject.backend.thin_link(link), Step.THIN_LINK)


@pytest.mark.parametrize("partitions", [1, 2, 3])
async def test_fat_partitions_are_ready_once_each(subject: Subject, tmp_path: Path, partitions: int) -> None:
    link = await _fat_link(subject, subject.modules, tmp_path, partitions)
    assert subject.backend.fat_estimate(link).peak_rss_bytes > 0
    ready: list[FatPartition] = []
    with trio.fail_after(60):
        linked = await subject.backend.fat_link(link, ready.append)
        assert isinstance(linked, FatLinked)
        # Nobody needs what was merged any more.
        for file in link.files:
            assert isinstance(file, NeedsFatLto)
            file.bitcode.unlink(missing_ok=True)
        assert sorted(one.name for one in ready) == [f"fat-lto.{n}" for n in range(linked.partitions)]
        for one in ready:
            _checked(await subject.backend.fat_codegen(one), one.name, Step.FAT_CODEGEN)


async def test_a_fat_link_that_fails_says_why(subject: Subject, tmp_path: Path) -> None:
    link = await _fat_link(subject, subject.clash, tmp_path, None)
    with trio.fail_after(60):
        _assert_told(await subject.backend.fat_link(link, lambda _: None), Step.FAT_LINK)


async def test_cancelling_lto_leaves_nothing_behind(subject: Subject, tmp_path: Path) -> None:
    thin = await _thin_link(subject, subject.modules, tmp_path)
    fat = await _fat_link(subject, subject.modules, tmp_path, None)
    linked = await subject.backend.thin_link(thin)
    assert isinstance(linked, ThinLinked)
    processes, before = descendants(), descriptors()
    for seconds in (0, 0.001, 0.01):
        for call in (
            lambda: subject.backend.thin_link(thin),
            lambda: subject.backend.thin_compile(linked.compiles),
            lambda: subject.backend.fat_link(fat, lambda _: None),
        ):
            with trio.fail_after(60), trio.move_on_after(seconds):
                await call()
    assert descendants() == processes
    assert descriptors() == before


async def test_llvmlite_has_no_lto(subject: Subject) -> None:
    if subject.name.startswith("fake"):
        pytest.skip("the fake has one engine")
    with pytest.raises(RequestError, match="toolchain"):
        subject.backend.check_lto(evolve(OPTIONS, engine=Engine.LLVMLITE), Target(TRIPLE, LAYOUT))

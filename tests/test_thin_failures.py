"""ThinLTO never believes a tool that says all is well, and what goes wrong is told in terms of modules.

Layer: process.
"""

from __future__ import annotations

import os
import shutil

import pytest
import trio
from attrs import evolve

from tests.samples import ABORTING_IR, TRIPLE, zig
from tests.thin_site import (
    PIC,
    PIE,
    PROGRAM,
    SMALL,
    Site,
    always_clang,
    always_lld,
    imports_of,
    needs_cc,
    pre_linked,
)
from workers.work import (
    CodegenOptions,
    EmitKind,
    Engine,
    Failed,
    Finished,
    LinkFile,
    LinkKind,
    NeedsThinLto,
    Severity,
    Step,
    artifact_path,
)

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the programs of these tests are for x86-64"),
]


async def test_what_is_gone_or_another_modules_is_a_failure(site: Site) -> None:
    modules = pre_linked(site.root / "in", PROGRAM, *PIC)
    compiles = {one.name: one for one in (await site.linked(site.item(modules))).compiles}
    importer = compiles["zmain"]
    assert "state" in imports_of(importer)
    (swapped,) = await site.compile([evolve(importer, shard=compiles["state"].shard)])
    assert isinstance(swapped, Failed)
    assert "another module's" in swapped.diagnostics[0].message
    damaged = site.root / "damaged.bc"
    damaged.write_bytes(importer.shard.read_bytes()[:-40])
    (cut,) = await site.compile([evolve(importer, shard=damaged)])
    assert isinstance(cut, Failed)
    state = compiles["state"].bitcode
    whole = state.read_bytes()
    for content in (None, b"", b"garbage", whole[: len(whole) // 2], b"BC\xc0\xde" + whole[8:][::-1]):
        state.unlink(missing_ok=True)
        if content is not None:
            state.write_bytes(content)
        always_lld(list(compiles.values()))
        results = await site.compile([importer, compiles["another"]])
        assert isinstance(results[0], Failed), content
        assert isinstance(results[1], Failed), (
            content
        )  # lld needs all of them, and has said nothing that clang knows of
        importer.link.by_clang = True
        for one in (importer, compiles["state"]):
            (result,) = await site.compile([one])
            assert isinstance(result, Failed), content
            assert result.diagnostics[-1].severity is Severity.ERROR
            assert "state" in f"{result.module} {result.diagnostics}", content
        untouched = [one for one in compiles.values() if "state" not in (one.name, *imports_of(one))]
        assert untouched
        # A batch that lld cannot do is not their fault.
        *fine, last = await site.compile([*untouched, importer])
        assert all(isinstance(result, Finished) for result in fine)
        assert isinstance(last, Failed)
    assert list((site.root / "build0" / "out").rglob("zmain*")) == []


async def test_one_that_aborts_harms_no_other_and_can_be_reproduced(site: Site) -> None:
    modules = pre_linked(site.root / "in", SMALL)
    path = site.root / "in" / "abort.bc"
    argv = [zig(), "clang", "-cc1", "-triple", TRIPLE, "-O2", "-flto=thin", "-flto-unit", "-emit-llvm-bc"]
    await trio.run_process([*argv, "-x", "ir", "-", "-o", str(path)], stdin=ABORTING_IR.encode())
    modules.append(NeedsThinLto("odd/abort", path, 100, False, str(path), Engine.TOOLCHAIN, 0.0, 0))
    for force in (always_clang, always_lld):
        item = site.item(modules)
        compiles = (await site.linked(item)).compiles
        force(compiles)
        *good, bad = await site.compile(compiles)
        assert all(isinstance(result, Finished) for result in good)
        assert isinstance(bad, Failed)
        (diagnostic,) = bad.diagnostics
        assert "Cannot select" in diagnostic.message
        assert diagnostic.reproducer is not None
        shutil.rmtree(item.directory)
        script = ["sh", str(diagnostic.reproducer / "repro.sh")]
        again = await trio.run_process(script, capture_stderr=True, check=False)
        assert again.returncode != 0
        assert b"Cannot select" in again.stderr


async def test_behind_a_failure_nothing_is_compiled_unless_told_so(site: Site) -> None:
    modules = pre_linked(site.root / "in", SMALL)
    for by_clang in (True, False):
        item = site.item(modules)
        compiles = (await site.linked(item)).compiles
        compiles[0].link.by_clang = by_clang
        artifact_path(item.out_dir, compiles[1].name, EmitKind.OBJECT).mkdir(parents=True)
        with trio.fail_after(60):
            results = await site.engine.thin_compile(compiles, keep_going=False)
        assert [type(result) for result in results] == [Finished, Failed]
        written = {path for path in item.out_dir.rglob("*") if path.is_file()}
        assert written == {artifact_path(item.out_dir, compiles[0].name, EmitKind.OBJECT)}


@needs_cc
async def test_a_thin_link_that_crashes_can_be_reproduced(site: Site) -> None:
    modules = pre_linked(site.root / "in", SMALL, *PIC)
    path = site.root / "in" / "abort.bc"
    argv = [zig(), "clang", "-cc1", "-triple", TRIPLE, "-O2", "-flto=full", "-emit-llvm-bc"]
    await trio.run_process([*argv, "-x", "ir", "-", "-o", str(path)], stdin=ABORTING_IR.encode())
    # The thin link compiles it itself.
    modules.append(NeedsThinLto("odd/abort", path, 100, False, str(path), Engine.TOOLCHAIN, 0.0, 0))
    native = site.root / "native.o"
    await trio.run_process([zig(), "clang", "-cc1", "-triple", TRIPLE, "-emit-obj", "-xc", "-", "-o", str(native)])
    item = site.item([*modules, LinkFile("native", native)], LinkKind.SHARED, exports=("walk0", "f"))
    with trio.fail_after(60):
        result = await site.engine.thin_link(item)
    assert isinstance(result, Failed)
    assert result.step is Step.THIN_LINK
    (diagnostic,) = result.diagnostics
    assert "Cannot select" in diagnostic.message
    assert diagnostic.reproducer is not None
    shutil.rmtree(item.directory)
    for file in site.scratch.glob("exports-*"):
        file.unlink()
    script = ["sh", str(diagnostic.reproducer / "repro.sh")]
    again = await trio.run_process(script, capture_stderr=True, check=False)
    assert again.returncode != 0
    assert b"Cannot select" in again.stderr
    assert str(site.scratch).encode() not in (diagnostic.reproducer / "repro.sh").read_bytes()


async def test_limits_hold_for_each_module(site: Site) -> None:
    modules = pre_linked(site.root / "in", SMALL)
    item = site.item(modules, options=CodegenOptions(time_limit=0.0001))
    compiles = (await site.linked(item)).compiles
    for result in await site.compile(compiles[:2]):
        assert isinstance(result, Failed)
        assert "time limit" in result.diagnostics[0].message
        assert result.diagnostics[0].reproducer is not None
    item = site.item(modules)
    compiles = (await site.linked(item)).compiles
    compiles[0].link.item = evolve(item, options=CodegenOptions(memory_limit=150 * 2**20))
    for force in (always_clang, always_lld):
        force(compiles)
        for result in await site.compile(compiles[:2]):
            assert isinstance(result, Failed)
    assert list(item.out_dir.rglob("*")) == []


async def test_a_link_that_cannot_be_is_told_in_terms_of_modules(site: Site) -> None:
    twice = {"one": "int same(void) { return 1; }", "two": "int same(void) { return 2; }"}
    modules = pre_linked(site.root / "in", twice)
    with trio.fail_after(60):
        result = await site.engine.thin_link(site.item(modules))
    assert isinstance(result, Failed)
    assert result.step is Step.THIN_LINK
    (diagnostic,) = result.diagnostics
    assert "duplicate symbol: same" in diagnostic.message
    assert ">>> defined in one" in diagnostic.message
    assert str(site.root) not in diagnostic.message
    modules[0].bitcode.unlink()
    gone = await site.engine.thin_link(site.item(modules))
    assert isinstance(gone, Failed)
    assert "the bitcode of one is gone" in gone.diagnostics[0].message
    modules[1].bitcode.write_bytes(b"BC\xc0\xdegarbage")
    damaged = await site.engine.thin_link(site.item(modules[1:]))
    assert isinstance(damaged, Failed)
    assert "two" in damaged.diagnostics[0].message


@needs_cc
async def test_bitcode_among_the_libraries_is_refused_and_nothing_is_written_beside_it(site: Site) -> None:
    modules = pre_linked(site.root / "in", {"main": "int lib(int); int main(int c) { return lib(c); }"}, *PIE)
    theirs = site.root / "theirs"
    for flags in ((), ("-flto=full",)):
        (library,) = pre_linked(theirs, {"lib": "int lib(int x) { return x; }"}, *PIE, *flags)
        item = site.item(modules, LinkKind.EXECUTABLE)
        assert item.link is not None
        item = evolve(item, link=evolve(item.link, inputs=(library.bitcode,)))
        with trio.fail_after(60):
            result = await site.engine.thin_link(item)
        assert isinstance(result, Failed)
        assert f"{library.bitcode} is bitcode that an argument" in result.diagnostics[0].message
        assert list(theirs.iterdir()) == [library.bitcode]


async def test_an_output_that_cannot_be_placed_is_a_failure(site: Site) -> None:
    modules = pre_linked(site.root / "in", SMALL)
    item = site.item(modules)
    compiles = (await site.linked(item)).compiles
    item.out_dir.write_text("in the way")
    for batch in (compiles, compiles[:1]):
        for result in await site.compile(batch):
            assert isinstance(result, Failed)
            assert "cannot write" in result.diagnostics[0].message


async def test_cancelling_leaves_nothing_behind(site: Site) -> None:
    modules = pre_linked(site.root / "in", PROGRAM, *PIC)
    item = site.item(modules)
    compiles = (await site.linked(item)).compiles
    for seconds in (0.0, 0.005, 0.03):
        with trio.move_on_after(seconds):
            await site.engine.thin_link(site.item(modules))
        for force in (always_lld, always_clang):
            force(compiles)
            compiles[0].link.by_clang = force is always_clang
            with trio.move_on_after(seconds):
                await site.engine.thin_compile(compiles)

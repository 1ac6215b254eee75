"""Layer: process. Fat LTO through ld.lld: what becomes of each kind of failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from attrs import evolve

from tests.fat_bench import ADD, MAIN, TWICE, Bench, compiled, ran, sources
from tests.leftovers import descendants
from tests.samples import ABORTING_IR, zig
from workers.fat import FatLinked
from workers.llvm.codegen import open_llvm_backend
from workers.work import (
    CodegenOptions,
    Failed,
    Finished,
    Link,
    LinkFile,
    LinkKind,
    LinkOptions,
    OptLevel,
    Step,
)

pytestmark = pytest.mark.process

_PLAIN = CodegenOptions()


async def test_symbols_defined_twice_are_told_with_their_modules(bench: Bench) -> None:
    files = await bench.files({"main": MAIN, "one": ADD, "two": ADD, "twice": TWICE}, CodegenOptions())
    merged, parts = await bench.merge(bench.link(files, link=bench.program()))
    assert isinstance(merged, Failed)
    assert merged.step is Step.FAT_LINK
    message = merged.diagnostics[0].message
    assert "duplicate symbol: add" in message
    assert "one" in message
    assert "two" in message
    assert str(bench.workspace) not in message
    assert parts == []


async def test_who_needs_an_undefined_symbol_is_known_after_the_merge(bench: Bench) -> None:
    files = await bench.files({"main": MAIN.replace("native(1)", "twice(1)"), "twice": TWICE}, CodegenOptions())
    item = bench.link(files, link=bench.program(), partitions=2)
    merged, parts = await bench.merge(item)
    assert isinstance(merged, FatLinked)
    assert merged.needs == {"add": ("main", "twice")}
    objects = [
        LinkFile(one.module, one.artifacts[0].path) for one in await bench.generate(parts) if isinstance(one, Finished)
    ]
    assert item.link is not None
    made = frozenset(file.module for file in objects)
    link = Link(
        item.link,
        tuple(objects),
        item.options,
        item.target,
        bench.root / "repro",
        needs=merged.needs,
        from_lto=made,
    )
    failed = await bench.backend.link(link)
    assert isinstance(failed, Failed)
    message = failed.diagnostics[0].message
    assert message.endswith("undefined symbol: add\n>>> used by module main\n>>> used by module twice")


async def test_members_that_take_no_part_need_nothing(bench: Bench) -> None:
    text = "int gone(void); int main(void) { return gone(); }\n"
    files = await bench.files({"main": text, "other": "int gone(void); int other(void) { return gone(); }"}, _PLAIN)
    files[1] = evolve(files[1], lazy=True)
    merged, _ = await bench.merge(bench.link(files, link=bench.program()))
    assert isinstance(merged, FatLinked), merged
    assert merged.unneeded == ("other",)
    assert merged.needs == {"gone": ("main",)}


async def test_thin_modules_that_the_linker_finds_itself_are_refused(bench: Bench) -> None:
    files = await bench.files({"main": "int add(int, int); int main(void) { return add(40, 2); }\n"}, CodegenOptions())
    member, archive = compiled(ADD, bench.root / "hidden.bc", "thin"), bench.root / "libx.a"
    assert ran(zig(), "ar", "qcs", archive, member).returncode == 0
    link = LinkOptions(LinkKind.EXECUTABLE, bench.root / "prog")
    for item in (
        bench.link(files, link=evolve(link, inputs=(archive,)), partitions=2),
        bench.link([*files, LinkFile(str(archive), archive, given=True)], link=link, partitions=2),
    ):
        merged, _ = await bench.merge(item)
        assert isinstance(merged, Failed)
        assert "hidden" in merged.diagnostics[0].message
        assert "ThinLTO" in merged.diagnostics[0].message
    assert {path.name for path in bench.root.iterdir() if "precodegen" in path.name} == set()


async def test_a_crash_in_code_generation_names_its_part(bench: Bench) -> None:
    options = CodegenOptions()
    files = await bench.files({"add": ADD}, options)
    files.append(await bench.pre_linked(ABORTING_IR.encode(), "bad", options))
    merged, parts = await bench.merge(bench.link(files, partitions=2))
    assert isinstance(merged, FatLinked), merged
    results = await bench.generate(parts)
    (failed,) = (one for one in results if isinstance(one, Failed))
    assert failed.step is Step.FAT_CODEGEN
    where = failed.diagnostics[0].reproducer
    assert where is not None
    assert "Cannot select" in failed.diagnostics[0].message
    assert ", on function f of module bad" in failed.diagnostics[0].message
    again = ran("sh", where / "repro.sh")
    assert again.returncode != 0
    assert b"Cannot select" in again.stderr


async def test_a_crash_of_the_merge_names_the_function(tmp_path: Path) -> None:
    """By what lld prints when it dies, which not every build of it does, or by the passes that it says it begins."""
    stack = """Stack dump:
0.\tProgram arguments: ld.lld
1.\tRunning pass "cgscc(inline)" on module "ld-temp.o"
2.\tRunning pass "inline<only-mandatory>" on function "add.specialized.1"
 #0 0x00007fef1b6b8786 llvm::sys::PrintStackTrace(llvm::raw_ostream&, int)"""
    account = """Running pass: EarlyCSEPass on twice (3 instructions)
Running pass: IndVarSimplifyPass on loop %a b in function add
Running analysis: X on twice"""
    for number, (always, if_asked, step) in enumerate(
        [(stack, "", "inline<only-mandatory>, on function add.specialized.1"),
         ("", account, "IndVarSimplifyPass, on function add"), ("", "", None)]
    ):  # fmt: skip
        root = tmp_path / str(number)
        tools, scratch = root / "tools", root / "scratch"
        tools.mkdir(parents=True)
        scratch.mkdir()
        (tools / "clang").write_text(f'#!/bin/sh\nexec {zig()} clang "$@"\n')
        (tools / "ld.lld").write_text(
            f"""#!/bin/sh
case "$*" in
  *--lto-emit-asm*--lto-debug-pass-manager*) echo '{if_asked}' >&2; ulimit -c 0; kill -s ABRT $$ ;;
  *--lto-emit-asm*) echo '{always}' >&2; ulimit -c 0; kill -s ABRT $$ ;;
esac
exec {zig()} ld.lld "$@"
"""
        )
        for tool in tools.iterdir():
            tool.chmod(0o755)
        environ = {"PATH": os.environ["PATH"]}
        async with open_llvm_backend(toolchain=tools, scratch_dir=scratch, environ=environ, limit=1) as backend:
            with backend.workspace() as workspace:
                bench = Bench(backend, root, workspace)
                files = await bench.files({"add": ADD, "twice": TWICE}, CodegenOptions())
                merged, _ = await bench.merge(bench.link(files))
        assert isinstance(merged, Failed)
        (diagnostic,) = merged.diagnostics
        where = "" if step is None else f"\nin {step} of module add"
        assert diagnostic.message == f"ld.lld crashed with SIGABRT{where}"
        assert diagnostic.reproducer is not None


async def test_a_merge_that_is_killed_leaves_a_reproducer(bench: Bench) -> None:
    options = CodegenOptions(memory_limit=215 * 2**20, time_limit=60)
    files = await bench.files(sources(30), CodegenOptions())
    big = "int a[9];\n" + "\n".join(
        f"int f{n}(int x) {{ for (int i = 0; i < x; i++) a[i] += f{n - 1}(i) * {n}; return x ^ {n}; }}" if n else
        "int f0(int x) { return a[x]; }" for n in range(1500)
    )  # fmt: skip
    files += await bench.files({"big": big}, CodegenOptions(opt_level=OptLevel.O1))
    merged, _ = await bench.merge(bench.link(files, options=options))
    assert isinstance(merged, Failed), merged
    assert merged.step is Step.FAT_LINK
    where = merged.diagnostics[0].reproducer
    assert where is not None, merged
    assert len(list((where / "modules").iterdir())) == 31
    again = ran("sh", where / "repro.sh")
    assert again.returncode != 0


async def test_a_merge_that_takes_too_long_is_ended(bench: Bench) -> None:
    files = await bench.files(sources(), CodegenOptions())
    options = CodegenOptions(time_limit=0.001)
    merged, _ = await bench.merge(bench.link(files, options=options))
    assert isinstance(merged, Failed)
    assert "time limit" in merged.diagnostics[0].message


async def test_outputs_that_cannot_be_written(bench: Bench) -> None:
    files = await bench.files({"add": ADD}, CodegenOptions())
    (bench.root / "out").write_text("a file")
    _, parts = await bench.merge(bench.link(files))
    (failed,) = await bench.generate(parts)
    assert isinstance(failed, Failed)
    assert "cannot write" in failed.diagnostics[0].message


async def test_a_cancelled_merge_leaves_no_process(bench: Bench) -> None:
    files = await bench.files(sources(), CodegenOptions())
    before = descendants()
    for delay in (0.0, 0.02, 0.06):
        with trio.move_on_after(delay) as scope:
            await bench.backend.fat_link(bench.link(files), lambda _: None)
        assert descendants() == before
        assert scope.cancelled_caught or delay

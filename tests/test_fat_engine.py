"""Layer: process. Fat LTO through ld.lld: what is merged, and what comes out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import trio
from attrs import evolve

from tests.fat_bench import ADD, MAIN, NATIVE, TWICE, Bench, compiled, functions, in_process, ran, sources
from tests.samples import LAYOUT, TRIPLE, small_c, zig
from workers.fat import FatLinked, FatPartition, partition_name
from workers.llvm.bitcode import read_header
from workers.llvm.codegen import open_llvm_backend
from workers.llvm.fat_pipeline import level_options, printed_pipeline
from workers.work import (
    CodegenOptions,
    EmitKind,
    Finished,
    LinkFile,
    LinkKind,
    LinkOptions,
    OptLevel,
)

pytestmark = pytest.mark.process


@pytest.mark.parametrize("partitions", [1, 2, 5])
@pytest.mark.parametrize("level", list(OptLevel))
async def test_a_program_runs(bench: Bench, level: OptLevel, partitions: int) -> None:
    options = CodegenOptions(opt_level=level)
    files = await bench.files({"main": MAIN, "add": ADD, "twice": TWICE}, options)
    native = LinkFile("native", compiled(NATIVE, bench.root / "native.o", "native"))
    item = bench.link([*files, native], link=bench.program(), partitions=partitions, options=options)
    assert await bench.run(item) == 42


@pytest.mark.parametrize("kinds", [("thin", "unified", "full", "raw"), ("raw", "thin", "thin", "unified")])
async def test_modules_prepared_in_any_way_become_one_program(bench: Bench, kinds: tuple[str, ...]) -> None:
    options = CodegenOptions()
    sources = {"main": MAIN.replace("native(1)", "twice(3) + 1"), "add": ADD, "twice": TWICE, "more": small_c(0, 1)}
    files = []
    for (name, text), kind in zip(sources.items(), kinds, strict=True):
        files += await bench.files({name: text}, options, kind)
    item = bench.link(files, link=bench.program(), partitions=1, options=options)
    assert await bench.run(item) == 42
    (path,) = (bench.root / "out").glob("*.o")
    # Everything is inlined into main, which is all that an executable shows.
    assert [name for name in functions(path) if name.startswith(".text")] == [".text.main"]


async def test_rust_is_merged_with_c(bench: Bench) -> None:
    rustc = shutil.which("rustc", path=f"{os.environ['PATH']}:{Path.home() / '.cargo/bin'}")
    if rustc is None:
        pytest.skip("there is no rustc")
    source, bitcode = bench.root / "r.rs", bench.root / "r.bc"
    source.write_text('#![no_std]\n#[no_mangle] pub extern "C" fn add(a: i32, b: i32) -> i32 { a.wrapping_add(b) }\n')
    flags = ("--crate-type=lib", "-O", "-Cpanic=abort", "-Clinker-plugin-lto", "-Ccodegen-units=1", "--emit=llvm-bc")
    made = ran(rustc, *flags, source, "-o", bitcode)
    if made.returncode:
        pytest.skip(f"rustc does not work: {made.stderr.decode()}")
    options = CodegenOptions()
    files = await bench.files({"main": MAIN.replace("native(1)", "twice(3) + 1"), "twice": TWICE}, options)
    files.append(await bench.pre_linked(bitcode, "r", options))
    item = bench.link(files, link=bench.program(), partitions=1)
    merged, _ = await bench.merge(item)
    assert isinstance(merged, FatLinked), merged
    # rustc and clang spell one target in two ways.
    assert merged.diagnostics == ()
    assert await bench.run(item) == 42
    (path,) = (bench.root / "out").glob("*.o")
    assert ".text.add" not in functions(path)


@pytest.mark.parametrize("flag", ["-O2", "-g"])
@pytest.mark.parametrize("level", [OptLevel.O0, OptLevel.O1, OptLevel.O2, OptLevel.O3])
async def test_of_one_part_the_code_is_llds_own(bench: Bench, level: OptLevel, flag: str) -> None:
    options = CodegenOptions(opt_level=level)
    files = await bench.files(sources(), options)
    if flag == "-g":
        debug = compiled(ADD, bench.root / "g.bc", "full", "-debug-info-kind=standalone", "-dwarf-version=5")
        files.append(await bench.pre_linked(debug, "g", options))
    objects = await bench.objects(bench.link(files, partitions=1, options=options))
    reference = functions(*in_process(bench, files, f"--lto-O{level.value}"))
    assert functions(*(file.path for file in objects)) == reference
    assert len(reference) >= 36


async def test_of_many_parts_the_code_is_llds_own_where_the_pipeline_stays_whole(bench: Bench) -> None:
    options = CodegenOptions(opt_level=OptLevel.O1)
    files = await bench.files(sources(), options)
    objects = await bench.objects(bench.link(files, partitions=3, options=options))
    reference = in_process(bench, files, "--lto-O1", "--lto-partitions=3")
    assert len(objects) == len(reference) == 3
    for file, path in zip(objects, reference, strict=True):
        assert functions(file.path) == functions(path)


async def test_of_a_cut_pipeline_the_code_is_llds_own_too(bench: Bench) -> None:
    # Nothing in these modules is internal, so nothing is lost by parts not seeing each other.
    files = await bench.files(sources(), CodegenOptions())
    objects = await bench.objects(bench.link(files, partitions=3))
    reference = functions(*in_process(bench, files, "--lto-partitions=3"))
    assert functions(*(file.path for file in objects)) == reference


@pytest.mark.parametrize("level", [OptLevel.O2, OptLevel.O3])
async def test_the_pipeline_in_words_is_llds_own(bench: Bench, level: OptLevel) -> None:
    files = await bench.files(sources(30), CodegenOptions())
    lld = [zig(), "ld.lld", "-r", *(str(file.bitcode) for file in files), f"--lto-O{level.value}", "--lto-emit-llvm"]
    own, words = bench.root / "own.bc", bench.root / "words.bc"
    said = ran(*lld, "-o", own, "-mllvm", "-print-pipeline-passes")
    text = printed_pipeline(said.stdout + said.stderr)
    assert text is not None
    assert ran(*lld, "-o", words, f"--lto-newpm-passes={text}", *level_options(level)).returncode == 0
    assert own.read_bytes() == words.read_bytes()


async def test_type_tests_take_llvms_own_pipeline(bench: Bench) -> None:
    head = f'target datalayout = "{LAYOUT}"\ntarget triple = "{TRIPLE}"\n'
    text = (
        head
        + """
@table = internal constant [1 x ptr] [ptr @yes], !type !0
declare i1 @llvm.type.test(ptr, metadata)
declare void @llvm.assume(i1)
define internal i32 @yes() { ret i32 42 }
define i32 @main() {
  %known = call i1 @llvm.type.test(ptr @table, metadata !"T")
  %unknown = call i1 @llvm.type.test(ptr @main, metadata !"T")
  %assumed = call i1 @llvm.type.test(ptr @table, metadata !"T")
  call void @llvm.assume(i1 %assumed)
  %f = load ptr, ptr @table
  %x = call i32 %f()
  %wrong = select i1 %unknown, i32 1, i32 %x
  %r = select i1 %known, i32 %wrong, i32 2
  ret i32 %r
}
!0 = !{i64 0, !"T"}
"""
    )
    files = [await bench.pre_linked(text.encode(), "types", CodegenOptions())]
    assert await bench.run(bench.link(files, link=bench.program(), partitions=3)) == 42


async def test_the_same_bytes_from_any_directory_and_in_any_order(bench: Bench) -> None:
    options = CodegenOptions()
    files = await bench.files(sources(), options)
    first = await bench.objects(bench.link(files, partitions=4))
    merged, parts = await bench.merge(bench.link(files, partitions=4, out="again"))
    assert isinstance(merged, FatLinked)
    again = await bench.generate(parts[::-1])
    for file, result in zip(first, again[::-1], strict=True):
        assert isinstance(result, Finished)
        assert result.artifacts[0].path.read_bytes() == file.path.read_bytes()


async def test_every_kind_of_output(bench: Bench) -> None:
    options = CodegenOptions(emit=frozenset(EmitKind) - {EmitKind.FATOBJ})
    files = await bench.files(sources(), options)
    merged, parts = await bench.merge(bench.link(files, partitions=2, options=options))
    assert isinstance(merged, FatLinked)
    for result in await bench.generate(parts):
        assert isinstance(result, Finished)
        heads = {one.kind: one.path.read_bytes()[:5000] for one in result.artifacts}
        assert heads[EmitKind.OBJECT].startswith(b"\x7fELF")
        assert b".text" in heads[EmitKind.ASSEMBLY]
        assert heads[EmitKind.BITCODE].startswith(b"BC\xc0\xde")
        assert b"target triple" in heads[EmitKind.IR]
        for one in result.artifacts:
            assert one.path == bench.root / "out" / one.path.name
            assert one.bytes == one.path.stat().st_size


async def test_more_parts_than_there_is_code_for(bench: Bench) -> None:
    files = await bench.files({"main": "int main(void) { return 42; }\n"}, CodegenOptions())
    assert await bench.run(bench.link(files, link=bench.program(), partitions=7)) == 42


async def test_exports_are_all_that_is_left(bench: Bench) -> None:
    files = await bench.files({"add": ADD, "twice": TWICE, "more": small_c(0, 1)}, CodegenOptions())
    link = LinkOptions(LinkKind.SHARED, bench.root / "lib.so")
    objects = await bench.objects(bench.link(files, link=link, exports=("twice",), partitions=1))
    assert [name for name in functions(objects[0].path) if name.startswith(".text")] == [".text.twice"]
    objects = await bench.objects(bench.link(files, exports=("twice",), partitions=1, out="static"))
    assert [name for name in functions(objects[0].path) if name.startswith(".text")] == [".text.twice"]
    objects = await bench.objects(bench.link(files, partitions=1, out="all"))
    assert {".text.twice", ".text.add", ".text.walk0"} <= functions(objects[0].path).keys()


async def test_lazy_modules_are_taken_if_needed(bench: Bench) -> None:
    options = CodegenOptions()
    files = await bench.files({"main": "int add(int, int); int main(void) { return add(40, 2); }\n"}, options)
    for name, text in (("add", ADD), ("twice", TWICE)):
        path = compiled(text, bench.root / f"{name}.bc")
        files.append(await bench.pre_linked(path, name, options, lazy=True))
    item = bench.link(files, link=bench.program(), partitions=1)
    merged, _ = await bench.merge(item)
    assert isinstance(merged, FatLinked)
    assert merged.unneeded == ("twice",)
    assert await bench.run(item) == 42


async def test_a_program_that_needs_none_of_its_modules(bench: Bench) -> None:
    options = CodegenOptions()
    lazy = await bench.pre_linked(compiled(ADD, bench.root / "add.bc"), "add", options, lazy=True)
    main = compiled("int main(void) { return 42; }\n", bench.root / "main.o", "native")
    item = bench.link([LinkFile("main", main), lazy], link=bench.program(), partitions=2)
    merged, parts = await bench.merge(item)
    assert isinstance(merged, FatLinked), merged
    assert (merged.partitions, parts, merged.unneeded) == (0, [], ("add",))
    assert await bench.run(item) == 42


async def test_passes_are_reported(bench: Bench) -> None:
    options = CodegenOptions(print_passes=True)
    files = await bench.files(sources(), options)
    merged, parts = await bench.merge(bench.link(files, partitions=2, options=options))
    assert isinstance(merged, FatLinked)
    assert any("InlinerPass" in line for line in merged.passes)
    assert not any("LoopVectorizePass" in line for line in merged.passes)
    (first, *_) = await bench.generate(parts)
    assert isinstance(first, Finished)
    assert any("LoopVectorizePass" in line for line in first.passes)
    assert any(line.startswith("Running codegen pass") for line in first.passes)


async def test_parts_are_handed_on_once_and_whole(bench: Bench) -> None:
    files = await bench.files(sources(60), CodegenOptions())
    seen: list[tuple[str, int]] = []

    def ready(part: FatPartition) -> None:
        seen.append((part.name, read_header(part.bitcode.read_bytes()).code_bytes))

    with trio.fail_after(60):
        merged = await bench.backend.fat_link(bench.link(files, partitions=16), ready)
    assert isinstance(merged, FatLinked)
    assert sorted(name for name, _ in seen) == sorted(partition_name(number) for number in range(16))
    assert sum(size for _, size in seen) > 0
    assert all(not path.name.endswith(".s") for path in bench.workspace.rglob("*"))


_OWN = """
static int state;
__attribute__((noinline)) static int helper(int x) { return x + (state += 2); }
int NAME_one(int x) { return helper(x) * 3; }
__attribute__((noinline)) int NAME_two(int x) { for (int i = 0; i < x; i++) state += helper(i); return state; }
__attribute__((noinline)) int NAME_three(int x) { return helper(x) ^ state; }
"""
_STRANGER = "int state = 5; int helper(int x) { return x + state; }\n"


async def test_what_was_static_does_not_meet_the_symbols_of_others(bench: Bench) -> None:
    main = """
    int a_one(int), a_two(int), a_three(int), b_one(int), b_two(int), b_three(int), stranger(int);
    int main(int argc, char **argv) {
      int x = a_one(argc) + a_two(argc + 1) + a_three(argc) + b_one(argc) + b_two(argc + 2) + b_three(argc);
      return x > 0 && stranger(37) == 42 ? 42 : 1;
    }
    """
    sources = {name: _OWN.replace("NAME", name) for name in ("a", "b")} | {"main": main}
    files = await bench.files(sources, CodegenOptions())
    native = compiled(f"{_STRANGER} int stranger(int x) {{ return helper(x); }}\n", bench.root / "native.o", "native")
    item = bench.link([*files, LinkFile("native", native)], link=bench.program(), partitions=4)
    assert await bench.run(item) == 42


async def test_static_libraries_go_into_one_program(bench: Bench) -> None:
    objects = []
    for name, partitions in (("a", 5), ("b", 3)):
        files = await bench.files({name: _OWN.replace("NAME", name), f"{name}_more": small_c(0, 1)}, CodegenOptions())
        exports = (f"{name}_one", f"{name}_two")
        item = bench.link(files, partitions=partitions, exports=exports, out=name)
        objects += [file.path for file in await bench.objects(item)]
    main = "int a_one(int), a_two(int), b_one(int), b_two(int);\n"
    main += "int main(int argc, char **argv) { return a_one(argc) + b_two(3) > 0 ? 42 : 1; }\n"
    objects.append(compiled(main, bench.root / "native.o", "native"))
    program = bench.root / "prog"
    made = ran(zig(), "cc", *objects, "-o", program)
    assert made.returncode == 0, made.stderr.decode()
    assert ran(program).returncode == 42


async def test_the_names_of_parts_are_the_same_in_every_build(bench: Bench) -> None:
    options = CodegenOptions()
    found = []
    for out in ("one", "two"):
        files = await bench.files({"a": _OWN.replace("NAME", "a")}, options)
        objects = await bench.objects(bench.link(files, partitions=3, out=out))
        found.append([file.path.read_bytes() for file in objects])
    assert found[0] == found[1]
    assert any(b"helper.ltod." in data for data in found[0])


@pytest.mark.parametrize("triple", ["i686-linux-gnu", "s390x-linux-gnu", "aarch64-linux-gnu", "powerpc-linux-gnu"])
async def test_parts_for_other_targets_fit_together(bench: Bench, triple: str) -> None:
    options = CodegenOptions(target_triple=triple)
    files = []
    for name in ("a", "b"):
        text = _OWN.replace("NAME", name)
        source, raw = bench.root / f"{name}.c", bench.root / f"{name}.bc"
        source.write_text(text)
        made = ran(
            zig(), "clang", "-cc1", "-triple", triple, "-O2", "-mrelocation-model", "pic", "-pic-level", "2",
            "-disable-llvm-passes", "-emit-llvm-bc", source, "-o", raw,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        files.append(await bench.pre_linked(raw, name, options))
    objects = await bench.objects(bench.link(files, partitions=4, options=options))
    shared = bench.root / "lib.so"
    linked = ran(zig(), "ld.lld", "-shared", "-z", "defs", *(file.path for file in objects), "-o", shared)
    assert (linked.returncode, linked.stderr) == (0, b"")
    assert any(b"helper.ltod." in file.path.read_bytes() for file in objects)


async def test_with_a_toolchain_of_the_system(bench: Bench) -> None:
    directory = Path("/usr/lib/llvm-22/bin")
    if not (directory / "ld.lld").exists():
        pytest.skip("there is no LLVM 22 in /usr/lib/llvm-22")
    environ = {"PATH": os.environ["PATH"]}
    async with open_llvm_backend(toolchain=directory, environ=environ, scratch_dir=bench.workspace) as backend:
        other = evolve(bench, backend=backend)
        files = await other.files({"main": MAIN, "add": ADD, "twice": TWICE}, CodegenOptions())
        native = LinkFile("native", compiled(NATIVE, bench.root / "native.o", "native"))
        assert await other.run(other.link([*files, native], link=bench.program(), partitions=3)) == 42
        files = await other.files(sources(), CodegenOptions())
        theirs = await other.objects(other.link(files, partitions=3, out="theirs"))
    ours = await bench.objects(bench.link(files, partitions=3, out="ours"))
    assert functions(*(file.path for file in theirs)) == functions(*(file.path for file in ours))

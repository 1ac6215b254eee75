"""Layer: process (clang, lld and ar of the wheel, the system's cc). Objects that carry bitcode for LTO: made once, read
by linkers of all kinds, and taken as inputs again."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.samples import GOOD_IR, TRIPLE, zig
from workers.errors import RequestError
from workers.llvm import coff, elf
from workers.llvm.bitcode import BitcodeError, read_header
from workers.llvm.codegen import LlvmBackend, open_llvm_backend
from workers.llvm.content import open_file
from workers.llvm.inputs import inspect_content, llvm_content, read_inputs
from workers.llvm.lto_flags import without_lto_flags
from workers.llvm.thin_bitcode import make_plain
from workers.work import (
    CodegenOptions,
    EmitKind,
    Engine,
    Failed,
    Finished,
    Module,
    Optimize,
    OptLevel,
    Sanitizer,
    Target,
)

pytestmark = pytest.mark.process

FATOBJ = CodegenOptions(emit=frozenset({EmitKind.FATOBJ}))
MACOS = "arm64-apple-macosx13.0.0"
WINDOWS = "x86_64-pc-windows-msvc"
WASM = "wasm32-unknown-unknown"

LIBRARY = """
double table[64];
extern int other(int);
static int twice(int x) { return x + x; }
int (*const calls[])(int) = { twice };
void scale(float *restrict a, const float *restrict b, int n) { for (int i = 0; i < n; i++) a[i] += b[i] * 3; }
double pick(const int *tags) { return table[tags[3] & 63]; }
__attribute__((noinline)) static int step(int n) { return other(n) + other(n + 1); }
int use(int n) { return step(n) * step(n + 2) + calls[0](n); }
"""
MAIN = """
int other(int x) { return x + 1; }
int use(int);
int main(void) { return use(3) - 9 * 13 - 6; }
"""

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "O0": {"opt_level": OptLevel.O0},
    "extra passes": {"extra_passes": "function(sink)"},
    "no passes": {"prepopulate_passes": False},
    "sanitizer": {"sanitizers": frozenset({Sanitizer.ADDRESS})},
}


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[LlvmBackend]:
    (tmp_path / "scratch").mkdir()
    async with open_llvm_backend(scratch_dir=tmp_path / "scratch", environ={}) as opened:
        yield opened


def run(*command: str | Path, cwd: Path | None = None) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=120, env={}, cwd=cwd).stdout


def clang(source: str | Path, output: Path, *flags: str, triple: str = TRIPLE) -> Path:
    """Compile C, or IR that is in a file."""
    language = "ir"
    if isinstance(source, str):
        path, language = output.with_suffix(".c"), "c"
        path.write_text(source)
        source = path
    run(zig(), "clang", f"--target={triple}", "-O2", "-fPIC", "-c", *flags, "-x", language, source, "-o", output)
    return output


def raw(source: str, output: Path, *flags: str, triple: str = TRIPLE) -> Path:
    return clang(source, output, "-emit-llvm", "-Xclang", "-disable-llvm-passes", *flags, triple=triple)


async def compile_modules(
    backend: LlvmBackend, out: Path, *modules: Module, options: CodegenOptions = FATOBJ
) -> list[Finished | Failed]:
    items = []
    for module in modules:
        seen = backend.inspect(module, options)
        items.append(Optimize(module, options, out, out / "repro", seen.target, seen.size, pre_linked=seen.pre_linked))
    with trio.fail_after(120):
        results = await backend.compile(items)
    assert all(isinstance(result, Finished | Failed) for result in results)
    return [result for result in results if isinstance(result, Finished | Failed)]


async def fat_object(
    backend: LlvmBackend, content: Path, out: Path, name: str = "m", options: CodegenOptions = FATOBJ
) -> Path:
    (result,) = await compile_modules(backend, out, Module(name, content), options=options)
    assert isinstance(result, Finished), result
    assert result.diagnostics == ()
    assert result.engine is Engine.TOOLCHAIN
    (artifact,) = result.artifacts
    assert artifact.path == out / f"{name}.o"
    return artifact.path


def embedded(path: Path) -> bytes:
    content = llvm_content(Module("m", path))
    assert isinstance(content, bytes)
    return content


def text(bitcode: bytes, directory: Path) -> str:
    source = directory / "bitcode.bc"
    source.write_bytes(bitcode)
    clang(source, directory / "text.ll", "-S", "-emit-llvm", "-Xclang", "-disable-llvm-passes")
    return (directory / "text.ll").read_text()


def lld(directory: Path, *arguments: str | Path) -> bytes:
    return run(zig(), "ld.lld", *arguments, cwd=directory)


def lto_objects(directory: Path, mode: str, *inputs: str | Path) -> int:
    """Link a program by LTO of what is in fat objects, run it, and say how many objects LTO made for it."""
    program, prefix = directory / f"{mode}.out", directory / f"{mode}.lto"
    objects = ["--fat-lto-objects", f"--lto={mode}", f"--lto-obj-path={prefix}", *inputs]
    lld(directory, "-pie", "-e", "main", *objects, "-o", program)
    # In thin mode, there is also one of what is merged, which is nothing.
    made = list(directory.glob("full.lto" if mode == "full" else "thin.lto[1-9]*"))
    for path in made:
        path.unlink()
    return len(made)


@pytest.mark.parametrize("level", [OptLevel.O0, OptLevel.O2, OptLevel.SIZE])
@pytest.mark.parametrize("triple", [TRIPLE, "aarch64-unknown-linux-gnu", "i686-unknown-linux-gnu", WINDOWS])
async def test_the_object_is_the_drivers(backend: LlvmBackend, tmp_path: Path, triple: str, level: OptLevel) -> None:
    pic = [] if triple == WINDOWS else ["-fPIC"]
    source = tmp_path / "m.c"
    source.write_text(LIBRARY)
    compiler = [zig(), "clang", f"--target={triple}", f"-O{level.value}", "-c"]
    run(*compiler, *pic, "-emit-llvm", "-Xclang", "-disable-llvm-passes", source, "-o", tmp_path / "m.bc")
    ours = await fat_object(backend, tmp_path / "m.bc", tmp_path / "out", options=evolve(FATOBJ, opt_level=level))
    flags = ["-flto=thin", "-funified-lto", "-ffat-lto-objects", "-mno-incremental-linker-compatible"]
    run(*compiler, *flags, "-x", "ir", tmp_path / "m.bc", "-o", tmp_path / "theirs.o")
    assert ours.read_bytes() == (tmp_path / "theirs.o").read_bytes()


@pytest.mark.parametrize("triple", [TRIPLE, MACOS, WINDOWS, WASM])
async def test_the_bitcode_is_what_clang_prepares_for_lto(backend: LlvmBackend, tmp_path: Path, triple: str) -> None:
    source = tmp_path / "m.c"
    source.write_text(LIBRARY)
    compiler = [zig(), "clang", f"--target={triple}", "-O2", "-c"]
    run(*compiler, "-emit-llvm", "-Xclang", "-disable-llvm-passes", source, "-o", tmp_path / "m.bc")
    ours = embedded(await fat_object(backend, tmp_path / "m.bc", tmp_path / "out"))
    run(*compiler, "-flto=thin", "-funified-lto", "-x", "ir", tmp_path / "m.bc", "-o", tmp_path / "theirs.bc")
    # The path is in the module's identifier, which is as long or as short as the path.
    header, theirs = read_header(ours), read_header((tmp_path / "theirs.bc").read_bytes())
    assert header.has_summary
    assert evolve(header, size=0) == evolve(theirs, size=0)
    assert b"UnifiedLTO" in ours
    assert b"CG Profile" not in ours


@pytest.mark.parametrize("triple", [TRIPLE, MACOS, WINDOWS, WASM])
@pytest.mark.parametrize("way", ["plain", "sanitizer"])
async def test_no_pass_of_one_half_runs_again(backend: LlvmBackend, tmp_path: Path, triple: str, way: str) -> None:
    if way == "sanitizer" and triple in (WINDOWS, WASM):
        pytest.skip("clang has no AddressSanitizer for this target")
    source = tmp_path / "m.ll"
    source.write_text(
        "define i32 @load(ptr %p) sanitize_address {\n  %v = load i32, ptr %p\n  ret i32 %v\n}\n"
        "define i32 @one() {\n  ret i32 1\n}\n"
    )
    options = evolve(FATOBJ, print_passes=True, target_triple=triple, **WAYS[way])
    (result,) = await compile_modules(backend, tmp_path / "out", Module("m", source), options=options)
    assert isinstance(result, Finished), result
    assert result.diagnostics == ()
    names = [line.partition(": ")[2].partition(" ")[0] for line in result.passes]
    for name in ("NameAnonGlobalPass", "CGProfilePass"):
        assert names.count(name) == 1, name
    if way == "plain" and triple in (TRIPLE, WINDOWS):
        # One run, which does not come back to what is before the bitcode.
        assert names.count("Annotation2MetadataPass") == 1
    assert names.count("AddressSanitizerPass") == (way == "sanitizer")
    # Bitcode first, then what is for code alone.
    assert names.index("NameAnonGlobalPass") < names.index("CGProfilePass")
    silent = evolve(options, print_passes=False)
    assert (await fat_object(backend, source, tmp_path / "silent", options=silent)).read_bytes() == (
        tmp_path / "out" / "m.o"
    ).read_bytes()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "sanitizer"])  # whose runtime library is not there
@pytest.mark.parametrize("prepared", ["", "-flto=thin", "-flto=full"])
async def test_linkers_with_and_without_lto_take_it(
    backend: LlvmBackend, tmp_path: Path, way: str, prepared: str
) -> None:
    options = evolve(FATOBJ, **WAYS[way])
    flags = [prepared] if prepared else ["-emit-llvm", "-Xclang", "-disable-llvm-passes"]
    library = await fat_object(backend, clang(LIBRARY, tmp_path / "use.bc", *flags), tmp_path / "out", "use", options)
    main = await fat_object(backend, raw(MAIN, tmp_path / "main.bc"), tmp_path / "out", "main")
    assert read_header(embedded(library)).has_summary
    # Objects that say that they are for either kind of LTO, and agree in all that linkers compare.
    assert lto_objects(tmp_path, "thin", main, library) == 2
    assert lto_objects(tmp_path, "full", main, library) == 1
    lld(tmp_path, "-pie", "-e", "main", main, library, "-o", "plain.out")
    assert b"BC\xc0\xde" not in (tmp_path / "plain.out").read_bytes()
    assert b".llvm.lto" not in (tmp_path / "plain.out").read_bytes()
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no cc on this machine")
    program = tmp_path / "cc.out"
    with trio.fail_after(60):
        await trio.run_process([compiler, main, library, "-o", program])
        await trio.run_process([program])
    assert b"BC\xc0\xde" not in program.read_bytes()


async def test_modules_of_all_makes_can_be_in_one_link(backend: LlvmBackend, tmp_path: Path) -> None:
    """Raw bitcode may say already what kind of LTO it is for, and linkers refuse modules that disagree."""
    disabled = ["-Xclang", "-disable-llvm-passes"]
    makes = [["-emit-llvm", *disabled], ["-flto=thin", *disabled], ["-flto=full", *disabled], ["-flto=thin"]]
    makes += [["-flto=full"], ["-flto=thin", "-funified-lto"], ["-flto=thin", "-funified-lto", "-fno-split-lto-unit"]]
    objects = []
    for number, flags in enumerate(makes):
        after = (
            f"int f{number + 1}(int);"
            if number + 1 < len(makes)
            else f"static int f{number + 1}(int n) {{ return n; }}"
        )
        source = f"{after} int f{number}(int n) {{ return f{number + 1}(n + 1) * 3; }}"
        bitcode = clang(source, tmp_path / f"f{number}.bc", *flags)
        objects.append(await fat_object(backend, bitcode, tmp_path / "out", f"f{number}"))
    main = clang("int f0(int); int main(void) { return f0(1); }", tmp_path / "main.bc", "-flto=thin", "-funified-lto")
    assert lto_objects(tmp_path, "thin", main, *objects) == len(makes) + 1
    assert lto_objects(tmp_path, "full", main, *objects) == 1


@pytest.mark.parametrize("thin", [False, True])
async def test_archives_of_them(backend: LlvmBackend, tmp_path: Path, thin: bool) -> None:
    out = tmp_path / "out"
    for name, source in (("use", LIBRARY), ("main", MAIN), ("idle", "int idle(void) { return 4; }")):
        await fat_object(backend, raw(source, tmp_path / f"{name}.bc"), out, name)
    run(zig(), "ar", "rcsT" if thin else "rcs", "libuse.a", "out/idle.o", "out/use.o", cwd=tmp_path)
    # Lazily: of the archive, only what is used.
    assert lto_objects(tmp_path, "thin", "out/main.o", "libuse.a") == 2
    assert lto_objects(tmp_path, "full", "out/main.o", "libuse.a") == 1
    found = read_inputs([out / "main.o", tmp_path / "libuse.a"], lambda: b"")
    assert (found.problems, found.link_inputs) == ((), ())
    assert [(module.name, module.lazy) for module in found.modules] == [
        ("main", False),
        ("libuse/idle", True),
        ("libuse/use", True),
    ]
    assert [llvm_content(module) for module in found.modules] == [
        embedded(out / f"{name}.o") for name in ("main", "idle", "use")
    ]
    # What is prepared is not prepared again.
    again = await fat_object(backend, out / "use.o", tmp_path / "again", "use")
    first = text(embedded(out / "use.o"), tmp_path)
    second = text(embedded(again), tmp_path)
    assert first.partition("\n^0")[0].split("\n!llvm", 1)[0] == second.partition("\n^0")[0].split("\n!llvm", 1)[0]


@pytest.mark.parametrize(
    "triple",
    [
        TRIPLE,
        "i686-unknown-linux-gnu",
        "powerpc64-unknown-linux-gnu",
        "powerpc-unknown-linux-gnu",
        "riscv64-unknown-linux-gnu",
        "thumbv7m-unknown-none-eabi",
        WINDOWS,
        "i686-w64-windows-gnu",
        "aarch64-pc-windows-msvc",
        MACOS,
        "x86_64-apple-macosx13.0.0",
        WASM,
        "wasm64-unknown-unknown",
        "x86_64-unknown-uefi",
    ],
)
@pytest.mark.parametrize("prepared", [False, True])
async def test_every_format(backend: LlvmBackend, tmp_path: Path, triple: str, prepared: bool) -> None:
    source = tmp_path / "m.ll"
    source.write_text(f'target triple = "{triple}"\ndefine i32 @f() {{\n  ret i32 1\n}}\n')
    if prepared:
        command = [zig(), "clang", "-cc1", "-triple", triple, "-O2", "-flto=thin", "-emit-llvm-bc", "-x", "ir"]
        run(*command, source, "-o", tmp_path / "m.bc")
        source = tmp_path / "m.bc"
    path = await fat_object(backend, source, tmp_path / "out")
    header = inspect_content(Module("m", path), max_major=22)
    assert (header.triple, header.has_summary, header.module_count) == (triple, True, 1)
    (module,) = read_inputs([path], lambda: b"").modules
    assert module.content == embedded(path)
    with open_file(path) as view:
        head = view[:4]
        name = frozenset({b".llvm.lto"})
        if head == b"\x7fELF":
            (section,) = elf.sections(view, name)
            wide = view[4:5] == b"\2"
            order = "<" if view[5:6] == b"\1" else ">"
            kind, flags = struct.unpack_from(
                order + ("4xIQ" if wide else "4xII"), view[section.header : section.header + 64]
            )
            assert (kind, flags) == (0x6FFF4C0C, 0x80000000)
        elif not triple.endswith(MACOS[-6:]) and not triple.startswith("wasm"):
            (section,) = coff.sections(view, name)
            assert int.from_bytes(view[section.header + 36 : section.header + 40], "little") & 0x800


@pytest.mark.parametrize("triple", ["powerpc64-ibm-aix", "spirv64-unknown-unknown", "s390x-ibm-zos"])
async def test_targets_without_a_place_for_bitcode_are_refused(
    backend: LlvmBackend, tmp_path: Path, triple: str
) -> None:
    with trio.fail_after(30):
        await backend.prepare(Target(triple, ""), CodegenOptions())
        with pytest.raises(RequestError, match=f"cannot put bitcode into objects for {triple}: emit obj or bc"):
            await backend.prepare(Target(triple, ""), FATOBJ)
    source = f'target triple = "{triple}"\ndefine i32 @f() {{\n  ret i32 1\n}}\n'
    (result,) = await compile_modules(backend, tmp_path / "out", Module("m", source.encode()))
    assert isinstance(result, Failed)
    assert f"objects for {triple}" in result.diagnostics[0].message
    assert not (tmp_path / "out").exists()


async def test_llvmlite_does_not_make_them(backend: LlvmBackend) -> None:
    with pytest.raises(RequestError, match="llvmlite cannot prepare modules for LTO"):
        backend.check(evolve(FATOBJ, engine=Engine.LLVMLITE))


async def test_bytes_depend_neither_on_the_batch_nor_on_what_else_is_made(backend: LlvmBackend, tmp_path: Path) -> None:
    sources = {
        "a": "struct S {int a; double b;}; struct S one[3]; double f(struct S *p) { return p->b + p[2].a; }",
        "b": "struct S {char c[7]; struct S *n;}; struct S two[4]; char g(struct S *p) { return p->n->c[3]; }",
    }
    modules = [Module(name, raw(source, tmp_path / f"{name}.bc", "-g")) for name, source in sources.items()]
    alone = [await fat_object(backend, tmp_path / f"{name}.bc", tmp_path / "alone", name) for name in sources]
    everything = evolve(FATOBJ, emit=frozenset(EmitKind) - {EmitKind.OBJECT})
    together = await compile_modules(backend, tmp_path / "together", *modules, options=everything)
    for path, result in zip(alone, together, strict=True):
        assert isinstance(result, Finished), result
        made = {artifact.kind: artifact.path for artifact in result.artifacts}
        assert set(made) == everything.emit
        assert made[EmitKind.FATOBJ].read_bytes() == path.read_bytes()


async def test_extra_passes_reach_both_bitcode_and_code_and_spoil_no_other_kind(
    backend: LlvmBackend, tmp_path: Path
) -> None:
    source = raw(LIBRARY, tmp_path / "m.bc")
    options = evolve(FATOBJ, extra_passes="function(reg2mem)")
    everything = evolve(options, emit=frozenset({EmitKind.FATOBJ, EmitKind.IR, EmitKind.ASSEMBLY}))
    (result,) = await compile_modules(backend, tmp_path / "all", Module("m", source), options=everything)
    assert isinstance(result, Finished), result
    made = {artifact.kind: artifact.path for artifact in result.artifacts}
    assert "= alloca " in text(embedded(made[EmitKind.FATOBJ]), tmp_path)
    alone = await fat_object(backend, source, tmp_path / "alone", options=options)
    assert alone.read_bytes() == made[EmitKind.FATOBJ].read_bytes()
    plain = evolve(options, emit=frozenset({EmitKind.IR}))
    (only,) = await compile_modules(backend, tmp_path / "ir", Module("m", source), options=plain)
    assert isinstance(only, Finished)
    assert only.artifacts[0].path.read_bytes() == made[EmitKind.IR].read_bytes()


SPLIT = """
@vtable = constant [1 x ptr] [ptr @virtual], !type !0
define i32 @virtual(ptr %this) {
  ret i32 3
}
define i1 @test(ptr %p) {
  %x = call i1 @llvm.type.test(ptr %p, metadata !"T")
  ret i1 %x
}
declare i1 @llvm.type.test(ptr, metadata)
!0 = !{i64 0, !"T"}
"""


async def test_a_module_in_two_parts(backend: LlvmBackend, tmp_path: Path) -> None:
    """With type metadata, bitcode for LTO has a part for each kind; FatLTO makes code of the whole before that."""
    source = tmp_path / "m.ll"
    source.write_text(f'target triple = "{TRIPLE}"\n{SPLIT}')
    path = await fat_object(backend, source, tmp_path / "elf")
    assert read_header(embedded(path)).module_count == 2
    (module,) = read_inputs([path], lambda: b"").modules
    assert module.content == embedded(path)
    source.write_text(f'target triple = "{MACOS}"\n{SPLIT}')
    (result,) = await compile_modules(backend, tmp_path / "macho", Module("m", source))
    assert isinstance(result, Failed)
    assert "type metadata splits it" in result.diagnostics[0].message


def test_flags_for_one_kind_of_lto_are_renamed_and_nothing_else_changes(tmp_path: Path) -> None:
    source = 'const char *const names[] = {"EnableSplitLTOUnit", "ThinLTO"}; int EnableSplitLTOUnit(void) { return 1; }'
    for flags, gone, stays in (
        (["-flto=thin"], ["EnableSplitLTOUnit"], []),
        (["-flto=full"], ["ThinLTO"], ["EnableSplitLTOUnit"]),
        (["-flto=thin", "-funified-lto"], [], ["EnableSplitLTOUnit", "UnifiedLTO"]),
    ):
        path = clang(source, tmp_path / "m.bc", *flags)
        data = path.read_bytes()
        renamed = without_lto_flags(data)
        assert isinstance(renamed, bytes)
        before, after = text(data, tmp_path), text(renamed, tmp_path)
        for name in gone:
            assert f'!"{name}"' in before
            assert f'!"{name}"' not in after
            before = before.replace(f'!"{name}"', "!flag")
        for name in stays:
            assert f'!"{name}", i32 1' in after
        after = after.replace('!"ltod.was-not-split"', "!flag").replace('!"not-lto"', "!flag")
        assert before == after


@pytest.mark.parametrize("first", ["unified", "plain"])
async def test_made_plain_they_mix_with_others_in_a_thin_link(backend: LlvmBackend, tmp_path: Path, first: str) -> None:
    library = await fat_object(backend, raw(LIBRARY, tmp_path / "use.bc"), tmp_path / "out", "use")
    before = embedded(library)
    unified, plain = tmp_path / "unified.bc", clang(MAIN, tmp_path / "main.bc", "-flto=thin")
    inputs = [unified, plain] if first == "unified" else [plain, unified]
    line: list[str | Path] = ["-pie", "-e", "main", *inputs, "--lto-obj-path=lto", "-o", "program"]
    unified.write_bytes(before)
    with pytest.raises(subprocess.CalledProcessError):
        lld(tmp_path, *line)
    after = make_plain(before)
    unified.write_bytes(after)
    lld(tmp_path, *line)
    assert len(after) == len(before)
    assert make_plain(after) is after
    assert make_plain(plain.read_bytes()) == plain.read_bytes()
    # One link of unified modules, and one of the same made plain: the same objects.
    main = clang(MAIN, tmp_path / "main.bc", "-flto=thin", "-funified-lto")
    made = []
    for change in (lambda data: data, make_plain):
        unified.write_bytes(change(before))
        main.write_bytes(change(main.read_bytes()))
        lld(tmp_path, *line)
        made.append([(tmp_path / f"lto{number}").read_bytes() for number in (1, 2)])
    assert made[0] == made[1]


async def test_what_is_split_stays_split(backend: LlvmBackend, tmp_path: Path) -> None:
    source = tmp_path / "m.ll"
    source.write_text(f'target triple = "{TRIPLE}"\n{SPLIT}')
    data = embedded(await fat_object(backend, source, tmp_path / "out"))
    plain = make_plain(data)
    assert b"EnableSplitLTOUnit" in plain
    (tmp_path / "m.bc").write_bytes(plain)
    other = clang("int other(void) { return 2; }", tmp_path / "other.bc", "-flto=thin", "-fsplit-lto-unit")
    lld(tmp_path, "-shared", "m.bc", other, "-o", "lib.so")


def test_what_has_no_flags_stays_as_it_is(tmp_path: Path) -> None:
    path = raw(MAIN, tmp_path / "m.bc")
    assert without_lto_flags(path) is path
    data = path.read_bytes()
    assert without_lto_flags(data) is data
    (tmp_path / "m.ll").write_text(GOOD_IR)
    assert without_lto_flags(tmp_path / "m.ll") == tmp_path / "m.ll"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6), st.integers(0, 64))
def test_damaged_bitcode_is_renamed_in_place_or_refused(flips: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(prepared())
    for position, value in flips:
        data[position % len(data)] = value
    data = data[: len(data) - cut]
    for change in (without_lto_flags, make_plain):
        try:
            changed = change(bytes(data))
        except BitcodeError as error:
            assert str(error)  # noqa: PT017 - both outcomes are right
        else:
            assert isinstance(changed, bytes)
            assert len(changed) == len(data)


@cache
def prepared() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        return clang("int f(void) { return 1; }", Path(directory) / "m.bc", "-flto=thin", "-funified-lto").read_bytes()

"""Layer: process. Modules on their way into LTO: raw ones through a pre-link pipeline, prepared ones as they are."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from tests.leftovers import descendants
from tests.samples import GOOD_IR, LAYOUT, TRIPLE, UNPARSABLE_IR, zig
from workers.errors import RequestError
from workers.llvm.bitcode import BitcodeError, read_header
from workers.llvm.codegen import LlvmBackend, open_llvm_backend
from workers.llvm.fat_bitcode import make_regular
from workers.work import (
    CodegenOptions,
    EmitKind,
    Engine,
    Failed,
    Module,
    NeedsFatLto,
    NeedsThinLto,
    Optimize,
    OptLevel,
    PreLink,
    Step,
    Target,
)

pytestmark = pytest.mark.process

# A symbol and a string of the flag's name: only the flag itself may be renamed.
_SOURCE = """
int EnableSplitLTOUnit = 3;
const char *text(void) { return "EnableSplitLTOUnit"; }
int twice(int x) { return x * EnableSplitLTOUnit; }
"""
_CLASSES = """
struct A { virtual int f(int); virtual ~A(); };
struct B : A { int f(int) override; };
int A::f(int x) { return x; }
A::~A() {}
int B::f(int x) { return x + 3; }
extern "C" A *make() { return new B; }
"""

_KINDS = {
    "raw": ("-O2", "-disable-llvm-passes"),
    "thin": ("-O2", "-flto=thin", "-flto-unit"),
    "thin -g": ("-O2", "-flto=thin", "-flto-unit", "-debug-info-kind=standalone", "-dwarf-version=5"),
    "unified": ("-O2", "-flto=thin", "-flto-unit", "-funified-lto", "-fsplit-lto-unit"),
    "full": ("-O2", "-flto=full", "-flto-unit"),
    "split": ("-O2", "-flto=thin", "-flto-unit", "-fsplit-lto-unit", "-fwhole-program-vtables", "-fvisibility=hidden"),
}


def prepared(kind: str, directory: Path, *, name: str = "m") -> Path:
    """A module that clang took as far as `kind` says."""
    directory.mkdir(parents=True, exist_ok=True)
    language = "c++" if kind == "split" else "c"
    source, output = directory / f"{name}.{language}", directory / f"{name}.bc"
    text = _CLASSES if kind == "split" else _SOURCE.replace("twice", f"{name}_twice").replace("text", f"{name}_text")
    source.write_text(text.replace("int EnableSplit", "static int EnableSplit") if kind != "split" else text)
    cc1 = (zig(), "clang", "-cc1", "-triple", TRIPLE, *_KINDS[kind], "-emit-llvm-bc", "-x", language)
    subprocess.run([*cc1, str(source), "-o", str(output)], check=True)
    return output


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[LlvmBackend]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    async with open_llvm_backend(scratch_dir=scratch, environ={"PATH": "/usr/bin:/bin"}, limit=2) as opened:
        yield opened
    assert list(scratch.iterdir()) == []


def _item(
    backend: LlvmBackend, module: Module, kind: PreLink, place: Path, options: CodegenOptions | None = None
) -> Optimize:
    options = options or CodegenOptions()
    seen = backend.inspect(module, options, kind)
    place.mkdir(exist_ok=True)
    return Optimize(
        module, options, place / "out", place / "repro", seen.target, seen.size, kind, place / f"{module.name}.bc",
        seen.pre_linked,
    )  # fmt: skip


def _fat_object(raw: Path, output: Path) -> Path:
    clang = (zig(), "clang", f"--target={TRIPLE}", "-c", "-O2", "-flto=thin", "-ffat-lto-objects")
    subprocess.run([*clang, "-x", "ir", str(raw), "-o", str(output)], check=True)
    return output


async def _compile(backend: LlvmBackend, *items: Optimize) -> list[Any]:
    with trio.fail_after(60):
        return list(await backend.compile(items))


@pytest.mark.parametrize("pre_link", [PreLink.THIN, PreLink.FAT])
async def test_raw_modules_and_text_go_through_the_pipeline(
    backend: LlvmBackend, tmp_path: Path, pre_link: PreLink
) -> None:
    raw = prepared("raw", tmp_path / "in")
    modules = Module("a", raw, lazy=True, origin="lib.a(a.o at 8)"), Module("b", GOOD_IR.encode())
    items = [_item(backend, module, pre_link, tmp_path / "w") for module in modules]
    assert not any(item.pre_linked for item in items)
    results = await _compile(backend, *items)
    expected = NeedsThinLto if pre_link is PreLink.THIN else NeedsFatLto
    for item, result in zip(items, results, strict=True):
        assert isinstance(result, expected), result
        assert result.bitcode == item.bitcode
        header = read_header(result.bitcode.read_bytes())
        assert header.has_summary
        assert 0 < result.code_bytes == header.code_bytes
    assert (results[0].lazy, results[0].origin) == (True, "lib.a(a.o at 8)")
    assert (results[1].lazy, results[1].origin) == (False, "b")
    assert not (tmp_path / "w" / "out").exists()


async def test_prepared_modules_are_taken_as_they_are(backend: LlvmBackend, tmp_path: Path) -> None:
    path = prepared("thin", tmp_path / "in")
    seen = backend.inspect(Module("m", path), CodegenOptions(), PreLink.THIN)
    assert seen.pre_linked
    assert (seen.estimate.seconds, seen.estimate.batch) == (0.0, "as is")
    item = _item(backend, Module("m", path), PreLink.THIN, tmp_path / "w")
    children = descendants()
    (result,) = await _compile(backend, item)
    assert descendants() == children
    assert isinstance(result, NeedsThinLto)
    assert result.origin == str(path)
    assert result.bitcode == path
    assert result.code_bytes == read_header(path.read_bytes()).code_bytes


async def test_a_module_that_changed_meanwhile_is_refused(backend: LlvmBackend, tmp_path: Path) -> None:
    path = prepared("thin", tmp_path / "in")
    item = _item(backend, Module("m", path), PreLink.THIN, tmp_path / "w")
    path.write_bytes(prepared("raw", tmp_path / "raw").read_bytes())
    (changed,) = await _compile(backend, item)
    path.unlink()
    (gone,) = await _compile(backend, item)
    for result, words in ((changed, "changed during the build"), (gone, "no such file")):
        assert isinstance(result, Failed)
        assert result.step is Step.PRE_LINK
        assert words in result.diagnostics[0].message


async def test_a_bad_module_fails_alone(backend: LlvmBackend, tmp_path: Path) -> None:
    bad = _item(backend, Module("bad", UNPARSABLE_IR.encode()), PreLink.FAT, tmp_path / "w")
    good = _item(backend, Module("good", GOOD_IR.encode()), PreLink.FAT, tmp_path / "w")
    asis = _item(backend, Module("asis", prepared("full", tmp_path / "in")), PreLink.FAT, tmp_path / "w")
    first, second, third = await _compile(backend, bad, good, asis)
    assert isinstance(first, Failed)
    assert first.step is Step.PRE_LINK
    assert isinstance(second, NeedsFatLto)
    assert isinstance(third, NeedsFatLto)


async def test_extra_passes_run_on_prepared_modules_too(backend: LlvmBackend, tmp_path: Path) -> None:
    options = CodegenOptions(extra_passes="strip")
    module = Module("m", prepared("thin -g", tmp_path / "in"))
    (plain,) = await _compile(backend, _item(backend, module, PreLink.FAT, tmp_path / "plain"))
    (stripped,) = await _compile(backend, _item(backend, module, PreLink.FAT, tmp_path / "w", options))
    assert isinstance(stripped, NeedsFatLto), stripped
    assert len(stripped.bitcode.read_bytes()) < len(plain.bitcode.read_bytes()) * 0.8


async def test_fat_lto_objects(backend: LlvmBackend, tmp_path: Path) -> None:
    made = _fat_object(prepared("raw", tmp_path), tmp_path / "m.o")
    item = _item(backend, Module("m", made), PreLink.FAT, tmp_path / "w")
    assert item.pre_linked
    (result,) = await _compile(backend, item)
    assert isinstance(result, NeedsFatLto)
    assert read_header(result.bitcode.read_bytes()).has_summary


async def test_a_workspace_is_removed_with_what_is_in_it(backend: LlvmBackend) -> None:
    with backend.workspace() as path:
        (path / "file").write_bytes(b"x")
    assert not path.exists()


@pytest.mark.parametrize(
    ("changes", "triple", "words"),
    [
        ({"engine": Engine.LLVMLITE}, TRIPLE, "toolchain"),
        ({"emit": frozenset({EmitKind.FATOBJ})}, TRIPLE, "fatobj"),
        ({"prepopulate_passes": False, "extra_passes": "dce"}, TRIPLE, "switched off"),
        ({"unroll_loops": False}, TRIPLE, "unroll"),
        ({"merge_functions": True}, TRIPLE, "merge functions"),
        ({"vectorize_loops": True, "opt_level": OptLevel.O1}, TRIPLE, "from -O2 on"),
        ({}, "arm64-apple-macosx14.0", "ELF only"),
        ({}, "x86_64-pc-windows-msvc", "ELF only"),
        ({}, "wasm32-wasi", "ELF only"),
        ({}, "bpf", "does not know 'bpf'"),
        ({"target_triple": "nvptx64-nvidia-cuda"}, TRIPLE, "does not know 'nvptx64-nvidia-cuda'"),
    ],
)
async def test_what_lto_cannot_do_is_refused(
    backend: LlvmBackend, changes: dict[str, Any], triple: str, words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        backend.check_lto(evolve(CodegenOptions(), **changes), Target(triple, LAYOUT))


@pytest.mark.parametrize(
    "triple", [TRIPLE, "aarch64-linux-gnu", "riscv64-unknown-elf", "powerpc64le-linux", "i686-linux"]
)
async def test_what_lto_can_do_is_not(backend: LlvmBackend, triple: str) -> None:
    for level in OptLevel:
        backend.check_lto(CodegenOptions(opt_level=level), Target(triple, LAYOUT))


@pytest.mark.parametrize("kind", ["thin", "thin -g", "unified", "split", "full"])
def test_made_regular_it_keeps_its_size_and_its_names(kind: str, tmp_path: Path) -> None:
    data = prepared(kind, tmp_path).read_bytes()
    regular = make_regular(data)
    assert make_regular(regular) == regular
    assert len(regular) == len(data)
    assert read_header(regular) == evolve(read_header(data), is_unified=False)
    assert regular.count(b"EnableSplitLTOUnit") >= data.count(b"EnableSplitLTOUnit") - 1
    different = sum(one != other for one, other in zip(data, regular, strict=True))
    assert different == 0 if kind == "full" else 0 < different <= 22


@pytest.mark.parametrize("lld", ["wheel", "ld.lld-22"])
def test_all_kinds_are_merged_into_one_module(lld: str, tmp_path: Path) -> None:
    found = f"{zig()} ld.lld" if lld == "wheel" else shutil.which(lld)
    if found is None:
        pytest.skip(f"there is no {lld}")
    files = []
    for number, kind in enumerate(_KINDS):
        if kind != "raw":
            path = prepared(kind, tmp_path, name=f"m{number}")
            assert read_header(path.read_bytes()).has_summary
            path.write_bytes(make_regular(path.read_bytes()))
            files.append(str(path))
    output = tmp_path / "out.o"
    done = subprocess.run(
        [*found.split(), "-r", *files, "--save-temps=precodegen", "-o", str(output)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    # One part, and none that went another way.
    assert [path.name for path in tmp_path.glob("out.o.*")] == ["out.o.0.5.precodegen.bc"]


def test_damaged_bitcode_is_refused_and_nothing_worse(tmp_path: Path) -> None:
    data = prepared("unified", tmp_path).read_bytes()
    random_ = random.Random(3)
    for _ in range(600):
        damaged = bytearray(data[: random_.choice((len(data), random_.randrange(8, len(data))))])
        for _ in range(random_.randrange(3)):
            damaged[random_.randrange(len(damaged))] ^= 1 << random_.randrange(8)
        try:
            assert len(make_regular(bytes(damaged))) == len(damaged)
        except BitcodeError:
            continue

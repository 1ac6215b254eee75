"""Layer: process (clang, ar and rustc make the inputs). What a user names becomes modules, or a clear problem."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from llvmlite import binding as llvm

from workers.errors import ModuleError, RequestError
from workers.llvm.inputs import Inputs, NativeMember, inspect_content, llvm_content, read_inputs
from workers.work import Module

pytestmark = pytest.mark.process

TRIPLE = "x86_64-unknown-linux-gnu"


def ir(name: str = "f") -> str:
    return f'source_filename = "{name}.c"\ntarget triple = "{TRIPLE}"\ndefine i32 @{name}() {{\n  ret i32 1\n}}\n'


@cache
def bitcode(name: str = "f") -> bytes:
    with llvm.parse_assembly(ir(name)) as module:
        return bytes(module.as_bitcode())


def zig() -> str:
    spec = importlib.util.find_spec("ziglang")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return str(Path(spec.submodule_search_locations[0]) / "zig")


def run(directory: Path, *command: str, stdin: str | None = None) -> None:
    subprocess.run(command, cwd=directory, input=stdin, capture_output=True, check=True, timeout=120, text=True)


def clang(directory: Path, output: str, *options: str, name: str = "f", target: str = TRIPLE) -> Path:
    text = ir(name).replace(TRIPLE, target)
    run(directory, zig(), "clang", f"--target={target}", "-c", "-x", "ir", "-", "-o", output, *options, stdin=text)
    return directory / output


def embed(directory: Path, output: str, how: str, target: str) -> Path:
    """An object with its IR in it, or with a mark, or with neither; the driver does not offer it for all targets."""
    (directory / "f.ll").write_text(ir().replace(TRIPLE, target))
    form = ["-triple", target, "-O2", "-emit-obj", f"-fembed-bitcode={how}", "-x", "ir", "f.ll", "-o", output]
    run(directory, zig(), "clang", "-cc1", *form)
    return directory / output


def no_stdin() -> bytes:
    raise AssertionError("standard input was read")


def read(*arguments: str | Path, stdin: Callable[[], bytes] = no_stdin) -> Inputs:
    return read_inputs(arguments, stdin)


def source_of(module: Module) -> str:
    return inspect_content(module, max_major=22).source_filename


def test_bitcode_and_textual_ir_stay_files(tmp_path: Path) -> None:
    (tmp_path / "a.bc").write_bytes(bitcode("a"))
    (tmp_path / "b.txt").write_text(ir("b"))
    paths = tmp_path / "a.bc", tmp_path / "b.txt"
    found = read(paths[0], str(paths[1]))
    modules = [Module(name, path, origin=str(path)) for name, path in zip(("a", "b"), paths, strict=True)]
    assert found == Inputs(tuple(modules), ())
    assert [source_of(module) for module in found.modules] == ["a.c", "b.c"]
    assert [llvm_content(module) for module in found.modules] == [tmp_path / "a.bc", tmp_path / "b.txt"]


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.bc").write_bytes(bitcode())
    assert read("./a.bc").modules == (Module("a", tmp_path / "a.bc", origin="./a.bc"),)


@pytest.mark.parametrize("flto", ["thin", "full"])
def test_a_fat_lto_object_gives_its_bitcode(flto: str, tmp_path: Path) -> None:
    fat = clang(tmp_path, "fat.o", "-O2", f"-flto={flto}", "-ffat-lto-objects")
    (module,) = read(fat).modules
    assert module.name == "fat"
    assert isinstance(module.content, bytes)
    header = inspect_content(module, max_major=22)
    assert header.has_summary
    assert header.size == len(module.content)
    # The object itself as a module's content, as an embedder may give it.
    for content in (fat, fat.read_bytes()):
        assert inspect_content(Module("fat", content), max_major=22) == header
        assert llvm_content(Module("fat", content)) == module.content


@pytest.mark.parametrize(
    "target",
    [
        TRIPLE,
        "i386-linux-gnu",
        "powerpc-linux-gnu",
        "s390x-linux-gnu",
        "arm64-apple-macosx13.0.0",
        "armv7k-apple-watchos8.0.0",
        "x86_64-pc-windows-msvc",
        "i686-pc-windows-gnu",
        "aarch64-pc-windows-msvc",
        "thumbv7-pc-windows-msvc",
        "wasm32-unknown-unknown",
        "wasm64-unknown-unknown",
    ],
)
def test_embedded_bitcode_in_objects_of_any_format_width_and_byte_order(target: str, tmp_path: Path) -> None:
    embedded = embed(tmp_path, "e.o", "all", target)
    (module,) = read(embedded).modules
    assert source_of(module) == "f.c"
    for native in embed(tmp_path, "m.o", "marker", target), embed(tmp_path, "n.o", "off", target):
        assert read(native) == Inputs((native,), ())
    run(tmp_path, zig(), "ar", "qcs", "x.a", "n.o", "e.o")
    found = read(tmp_path / "x.a")
    assert (len(found.modules), len(found.link_inputs), found.problems) == (1, 1, ())
    # Cut off, it is a problem wherever that is, or there is no bitcode in what is left.
    data = embedded.read_bytes()
    for size in range(4, len(data), max(1, len(data) // 40)):
        (tmp_path / "cut.o").write_bytes(data[:size])
        cut = read(tmp_path / "cut.o")
        assert cut.modules == () or cut.modules[0].content == module.content


def test_a_universal_file_is_refused_by_that_name(tmp_path: Path) -> None:
    native = embed(tmp_path, "n.o", "all", "arm64-apple-macosx13.0.0").read_bytes()
    header = struct.pack(">II5I", 0xCAFEBABE, 1, 0x0100000C, 0, 28, len(native), 0)
    (tmp_path / "u.o").write_bytes(header + native)
    (tmp_path / "j.class").write_bytes(struct.pack(">IHH", 0xCAFEBABE, 0, 61))
    run(tmp_path, zig(), "ar", "qcs", "u.a", "u.o")
    file, member, java = read(tmp_path / "u.o", tmp_path / "u.a", tmp_path / "j.class").problems
    assert "take one out first, with lipo -thin" in file.message
    assert "take one out first, with lipo -thin" in member.message
    assert "is not LLVM bitcode" in java.message
    with pytest.raises(ModuleError, match="lipo -thin"):
        inspect_content(Module("u", tmp_path / "u.o"), max_major=22)


def test_linked_files_of_other_systems(tmp_path: Path) -> None:
    (tmp_path / "p.wasm").write_bytes(b"\0asm\1\0\0\0")
    (tmp_path / "c.wasm").write_bytes(b"\0asm\x0d\0\1\0")
    (tmp_path / "p").write_bytes(struct.pack("<8I", 0xFEEDFACF, 0x0100000C, 0, 2, 0, 0, 0, 0))
    (tmp_path / "k").write_bytes(struct.pack("<8I", 0xFEEDFACF, 0x0100000C, 0, 11, 0, 0, 0, 0))
    library = tmp_path / "l.dylib"
    library.write_bytes(struct.pack("<8I", 0xFEEDFACF, 0x0100000C, 0, 6, 0, 0, 0, 0))
    shared = tmp_path / "l.wasm"
    shared.write_bytes(b"\0asm\1\0\0\0\0\x09\x08dylink.0")
    names = ["p.wasm", "c.wasm", "p", "k", "l.dylib", "l.wasm"]
    found = read(*(tmp_path / name for name in names))
    assert found.link_inputs == (library, shared)
    messages = [problem.message for problem in found.problems]
    assert "is a linked program" in messages[0]
    assert "no module of version 1" in messages[1]
    assert "is a linked program" in messages[2]
    assert "which is no object" in messages[3]


def test_what_is_lazy_and_what_linkers_call_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the wheel's lld says it, in the file of its resolutions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    text = 'target triple = "x86_64-unknown-linux-gnu"\ndefine i32 @{}() {{\n  ret i32 1\n}}\n'
    for name in ("main", "a", "a-name-too-long-for-a-header"):
        symbol = name.replace("-", "_")
        (tmp_path / "sub" / f"{name}.ll").write_text(text.format(symbol))
        lto = ["-flto=thin", "-c", "-x", "ir", f"sub/{name}.ll", "-o", f"sub/{name}.bc"]
        run(tmp_path, zig(), "clang", "--target=x86_64-unknown-linux-gnu", *lto)
    run(tmp_path, "cp", "sub/main.bc", "main.bc")
    run(tmp_path, zig(), "ar", "qcs", "libx.a", "sub/a.bc", "sub/a-name-too-long-for-a-header.bc")
    run(tmp_path, zig(), "ar", "rcsT", "sub/thin.a", "sub/a.bc", "sub/a-name-too-long-for-a-header.bc")
    for archive in ("libx.a", "./sub/thin.a", str(tmp_path / "libx.a")):
        line = ["--save-temps", "-shared", "--whole-archive", "./main.bc", archive, "-o", "out"]
        run(tmp_path, zig(), "ld.lld", *line)
        theirs = re.findall(r"^-r=(.*),\w+,\w+$", (tmp_path / "out.resolution.txt").read_text(), re.MULTILINE)
        found = read("./main.bc", archive)
        assert [module.origin for module in found.modules] == theirs
        assert len(theirs) == 3
        assert [module.lazy for module in found.modules] == [False, True, True]
        assert read(archive, stdin=lambda: b"").modules == found.modules[1:]
    (module,) = read("-", stdin=lambda: bitcode()).modules
    assert (module.lazy, module.origin) == (False, "")


def test_what_only_the_linker_needs(tmp_path: Path) -> None:
    native = clang(tmp_path, "n.o")
    run(tmp_path, zig(), "ld.lld", "-shared", "n.o", "-o", "libn.so")
    run(tmp_path, zig(), "ar", "rcs", "libn.a", "n.o")
    link_inputs = (native, tmp_path / "libn.so", tmp_path / "libn.a")
    assert read(*link_inputs) == Inputs(link_inputs, ())
    with pytest.raises(ModuleError, match="without bitcode"):
        inspect_content(Module("n", native), max_major=22)


@pytest.mark.parametrize("thin", [False, True])
def test_a_mixed_archive_is_taken_apart(thin: bool, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.bc").write_bytes(bitcode(name))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.o").write_bytes(bitcode("other"))
    (tmp_path / "README").write_text("notes\n")
    native = clang(tmp_path, "n.o")
    clang(tmp_path, "fat.o", "-flto=thin", "-ffat-lto-objects", name="fat")
    members = ["a.bc", "b.bc", "sub/a.o", "README", "n.o", "fat.o"]
    run(tmp_path, zig(), "ar", "rcsT" if thin else "qcs", "libx.a", *members)
    found = read(tmp_path / "libx.a")
    assert [module.name for module in found.modules] == ["libx/a", "libx/b", "libx/a.2", "libx/fat"]
    assert [source_of(module) for module in found.modules] == ["a.c", "b.c", "other.c", "fat.c"]
    assert all(isinstance(module.content, bytes) for module in found.modules)
    assert found.problems == ()
    (link_input,) = found.link_inputs
    assert isinstance(link_input, NativeMember)
    assert (link_input.archive, link_input.name) == (native if thin else tmp_path / "libx.a", "n.o")
    data = link_input.archive.read_bytes()[link_input.offset : link_input.offset + link_input.size]
    assert data == native.read_bytes()
    assert re.fullmatch(re.escape(f"{tmp_path / 'libx.a'}(n.o at ") + r"\d+\)", link_input.origin)
    assert all(module.lazy for module in found.modules)
    # What follows stays behind it, each member in its place.
    more = read(tmp_path / "a.bc", tmp_path / "libx.a", native, tmp_path / "b.bc").files
    names = [file.name if isinstance(file, Module | NativeMember) else file for file in more]
    assert names == ["a", "libx/a", "libx/b", "libx/a.2", "n.o", "libx/fat", native, "b"]


def test_members_of_no_use_stop_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.bc").write_bytes(bitcode("a"))
    (tmp_path / "cut.bc").write_bytes(bitcode()[:-8])
    (tmp_path / "gone.bc").write_bytes(bitcode())
    run(tmp_path, zig(), "ar", "rcsT", "in.a", "a.bc")
    run(tmp_path, zig(), "ar", "rcsT", "x.a", "a.bc", "cut.bc", "gone.bc")
    (tmp_path / "gone.bc").unlink()
    archive = str(tmp_path / "x.a")
    found = read(archive)
    assert [module.name for module in found.modules] == ["x/a"]
    assert [problem.module for problem in found.problems] == [f"{archive}(cut.bc)", f"{archive}(gone.bc)"]
    assert "cut off" in found.problems[0].message
    assert found.problems[1].message == f"no such file ({tmp_path / 'gone.bc'})"


def test_an_archive_in_an_archive_is_not_dropped_silently(tmp_path: Path) -> None:
    (tmp_path / "a.bc").write_bytes(bitcode("a"))
    run(tmp_path, zig(), "ar", "qcs", "in.a", "a.bc")
    run(tmp_path, zig(), "ar", "qcs", "out.a", "in.a")
    (problem,) = read(tmp_path / "out.a").problems
    assert "archive inside of an archive" in problem.message


@pytest.mark.parametrize("options", [("-Clinker-plugin-lto",), ("-Cembed-bitcode=yes",)])
def test_a_rust_library(options: tuple[str, ...], tmp_path: Path) -> None:
    rustc = shutil.which("rustc")
    if rustc is None:
        pytest.skip("rustc is not installed")
    source = '#[no_mangle] pub extern "C" fn f(x: u32) -> u32 { x * 3 }'
    run(tmp_path, rustc, "-O", "--crate-type=rlib", "--crate-name=l", "-o", "libl.rlib", *options, "-", stdin=source)
    found = read(tmp_path / "libl.rlib")
    assert (found.link_inputs, found.problems) == ((), ())
    for module in found.modules:
        header = inspect_content(module, max_major=99)
        assert module.name.startswith("libl/")
        assert "-rust-" in header.producer
        assert header.has_summary
    assert found.modules


def test_standard_input(tmp_path: Path) -> None:
    found = read("-", stdin=lambda: bitcode("s"))
    assert found == Inputs((Module("stdin", bitcode("s")),), ())
    assert read("-", stdin=lambda: ir().encode()).modules[0].content == ir().encode()
    fat = clang(tmp_path, "fat.o", "-flto=thin", "-ffat-lto-objects", name="fat")
    assert source_of(read("-", stdin=fat.read_bytes).modules[0]) == "fat.c"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"hello\n", "is not LLVM bitcode"),
        (b"!<arch>\n", "is an archive"),
        (bitcode()[:-4], "cut off"),
    ],
)
def test_standard_input_of_no_use(content: bytes, complaint: str) -> None:
    (problem,) = read("-", stdin=lambda: content).problems
    assert problem.module == "-"
    assert complaint in problem.message


def test_standard_input_that_cannot_be_read() -> None:
    def broken() -> bytes:
        raise OSError("Bad file descriptor")

    (problem,) = read("-", stdin=broken).problems
    assert "Bad file descriptor" in problem.message


def test_inputs_of_no_use_stop_no_other(tmp_path: Path) -> None:
    contents = {
        "empty.bc": b"",
        "cut.bc": bitcode()[: len(bitcode()) // 2],
        "x.c": b"int main(void) { return 0; }\n",
        "x.rs": b"fn main() {}\n",
        "x.gz": b"\x1f\x8b\x08\0\0\0\0\0",
        "cut.o": b"\x7fELF\2\1\1",
        "cut.a": b"!<arch>\nhello",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "directory.bc").mkdir()
    os.mkfifo(tmp_path / "pipe.bc")
    (tmp_path / "good.bc").write_bytes(bitcode())
    expected = {
        "empty.bc": "is empty",
        "cut.bc": "cut off",
        "x.c": "C source: compile it to bitcode first",
        "x.rs": "rustc --emit=llvm-bc",
        "x.gz": "is not LLVM bitcode, textual IR, an archive or an object file",
        "cut.o": "ELF file with a damaged header",
        "cut.a": "archive is truncated or damaged",
        "missing.bc": "no such file",
        "loop": "cannot be read: too many levels",
        "directory.bc": "is a directory",
        "pipe.bc": "is not a regular file",
        "good.bc/x.bc": "cannot be read: not a directory",
    }
    found = read(*(tmp_path / name for name in expected), tmp_path / "good.bc")
    assert [module.name for module in found.modules] == ["good"]
    assert [problem.module for problem in found.problems] == [str(tmp_path / name) for name in expected]
    for problem, complaint in zip(found.problems, expected.values(), strict=True):
        assert complaint in problem.message


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "a.bc").write_bytes(bitcode())
    (tmp_path / "a.bc").chmod(0)
    (problem,) = read(tmp_path / "a.bc").problems
    assert problem.message == "permission denied"


def test_the_same_input_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bc").write_bytes(bitcode())
    (tmp_path / "link.bc").symlink_to(tmp_path / "a.bc")
    for again in (tmp_path / "a.bc", tmp_path / "." / "a.bc", tmp_path / "link.bc"):
        with pytest.raises(RequestError, match=re.escape(f"{again} is given twice")):
            read(tmp_path / "a.bc", again)
    with pytest.raises(RequestError, match="standard input is given twice"):
        read("-", "-")


@pytest.mark.parametrize("argument", ["", "a\0b", "\ud800"])
def test_what_cannot_be_a_file_name_is_refused(argument: str) -> None:
    with pytest.raises(RequestError):
        read(argument)


def descriptors() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "a.bc").write_bytes(bitcode())
    (tmp_path / "cut.bc").write_bytes(bitcode()[:100])
    before = descriptors()
    read(tmp_path / "a.bc", tmp_path / "cut.bc", tmp_path)
    assert descriptors() == before


def test_bitcode_newer_than_llvm_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bc"
    path.write_bytes(bitcode())
    major = llvm.llvm_version_info[0]
    assert inspect_content(Module("a", path), max_major=major).triple == TRIPLE
    with pytest.raises(ModuleError) as caught:
        inspect_content(Module("a", path), max_major=major - 1)
    assert caught.value.module == "a"
    assert f"LLVM {major} (LLVM{major}." in caught.value.message
    assert "LTOD_TOOLCHAIN" in caught.value.message


def test_contents_that_are_no_module_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.a").write_bytes(b"!<arch>\n")
    (tmp_path / "cut.bc").write_bytes(bitcode()[:-8])
    expected: dict[Path | bytes, str] = {
        tmp_path / "x.a": "name its file",
        tmp_path / "cut.bc": "cut off",
        tmp_path / "none.bc": "no such file",
        tmp_path / "a\0b": "cannot be the name of a file",
        tmp_path: "is a directory",
        b"": "is empty",
        b"hello": "is not LLVM bitcode",
        b'target triple = "x86_64\n-linux"\n': "is no text that LLVM makes",
    }
    for content, complaint in expected.items():
        with pytest.raises(ModuleError, match=complaint) as caught:
            inspect_content(Module("m", content), max_major=22)
        assert caught.value.module == "m"
        if isinstance(content, Path):
            assert str(content) in caught.value.message


def test_a_message_names_the_file_unless_the_module_does(tmp_path: Path) -> None:
    path = tmp_path / "cut.bc"
    path.write_bytes(bitcode()[:-8])
    for name, named in (("cut", False), ("dir/cut", False), ("other", True)):
        with pytest.raises(ModuleError) as caught:
            inspect_content(Module(name, path), max_major=22)
        assert (str(path) in caught.value.message) == named


def test_the_name_of_a_member_cannot_pass_as_more_than_a_name(tmp_path: Path) -> None:
    data = bitcode()[:-8]
    header = b"#1/8".ljust(16) + b"0".ljust(12) + b"0".ljust(6) * 2 + b"644".ljust(8)
    (tmp_path / "x.a").write_bytes(
        b"!<arch>\n" + header + str(len(data) + 8).encode().ljust(10) + b"`\na\nerror:" + data
    )
    (problem,) = read(tmp_path / "x.a").problems
    assert problem.module == f"{tmp_path / 'x.a'}(a\\nerror:)"

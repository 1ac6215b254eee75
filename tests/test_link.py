"""Objects become programs, shared libraries and archives, and the linker speaks of modules. Layer: process."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trio
from attrs import evolve

from workers.llvm.link import link
from workers.llvm.lld_line import LldLines
from workers.llvm.toolchain import Toolchain, find_toolchain
from workers.work import (
    CodegenOptions,
    Failed,
    Link,
    Linked,
    LinkFile,
    LinkKind,
    LinkOptions,
    RelocationModel,
    Sanitizer,
    Severity,
    Target,
)

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the programs of these tests are for x86-64"),
]

TRIPLE = "x86_64-unknown-linux-gnu"
NO_COMPILER = {"PATH": "/nowhere"}
SYSTEM_LLVM = Path("/usr/lib/llvm-22/bin")

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no cc")
needs_system_llvm = pytest.mark.skipif(
    not (SYSTEM_LLVM / "clang").exists(), reason=f"there is no LLVM in {SYSTEM_LLVM}"
)
needs_cplusplus = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")

MAIN = """
double half(double); int twice(int); int printf(const char *, ...); double pow(double, double);
int main(int argc, char **argv) { printf("%g %d\\n", pow(half(6.0 * argc), 2.0), twice(argc)); return 0; }
"""
HALF = "double half(double x) { return x / 2; }"
TWICE = "int twice(int x) { return 2 * x; }"


@pytest.fixture(scope="session")
def wheel() -> Toolchain:
    return find_toolchain(None, {})


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where zig may keep what it builds: with the user's caches if there are some, for that takes a while."""
    return os.environ.get("XDG_CACHE_HOME") or str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    (tmp_path / "scratch").mkdir()
    yield
    assert list((tmp_path / "scratch").iterdir()) == []
    assert [path.name for path in tmp_path.rglob(".ltod*")] == []
    assert descriptors() == before


def compile_c(toolchain: Toolchain, source: str, output: Path, *flags: str) -> Path:
    output.parent.mkdir(parents=True, exist_ok=True)
    argv = [*toolchain.clang, "-cc1", "-triple", TRIPLE, "-O1", "-mrelocation-model", "pic", "-pic-level", "2"]
    emit = [] if "-emit-llvm-bc" in flags else ["-emit-obj"]
    argv += [*emit, "-w", "-x", "c", *flags, "-", "-o", str(output)]
    subprocess.run(argv, input=source.encode(), check=True)
    return output


@pytest.fixture
def objects(wheel: Toolchain, tmp_path: Path) -> tuple[tuple[str, Path], ...]:
    sources = {"app/main": MAIN, "app/half": HALF, "lib/half": TWICE}
    return tuple(
        (name, compile_c(wheel, source, tmp_path / "o" / f"{number}.o"))
        for number, (name, source) in enumerate(sources.items())
    )


def item(
    objects: Sequence[tuple[str, Path]],
    kind: LinkKind,
    output: Path,
    *arguments: str,
    inputs: tuple[Path, ...] = (),
    triple: str = TRIPLE,
    options: CodegenOptions | None = None,
) -> Link:
    options = options or CodegenOptions()
    work = LinkOptions(kind, output, inputs, arguments)
    files = tuple(LinkFile(name, path) for name, path in objects)
    return Link(work, files, options, Target(triple, ""), output.parent / "reproducers")


async def perform(work: Link, toolchain: Toolchain, tmp_path: Path, environ: dict[str, str]) -> Linked | Failed:
    with trio.fail_after(600):
        return await link(work, toolchain, tmp_path / "scratch", environ)


async def linked(work: Link, toolchain: Toolchain, tmp_path: Path, environ: dict[str, str] | None = None) -> Linked:
    result = await perform(work, toolchain, tmp_path, dict(os.environ) if environ is None else environ)
    assert isinstance(result, Linked), result
    assert result.bytes == work.link.output.stat().st_size
    assert result.seconds > 0
    assert result.peak_rss_bytes > 0
    return result


async def failure(work: Link, toolchain: Toolchain, tmp_path: Path, environ: dict[str, str] | None = None) -> str:
    result = await perform(work, toolchain, tmp_path, dict(os.environ) if environ is None else environ)
    assert isinstance(result, Failed), result
    (diagnostic,) = result.diagnostics
    assert diagnostic.severity is Severity.ERROR
    return diagnostic.message


async def output_of(*argv: str) -> str:
    return (await trio.run_process(argv, capture_stdout=True)).stdout.decode()


@needs_cc
@pytest.mark.parametrize("model", [RelocationModel.PIC, RelocationModel.STATIC])
async def test_a_program_with_the_machines_own_libraries(
    model: RelocationModel, wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path
) -> None:
    work = item(objects, LinkKind.EXECUTABLE, tmp_path / "a.out", "-lm", options=CodegenOptions(relocation_model=model))
    await linked(work, wheel, tmp_path)
    first = (tmp_path / "a.out").read_bytes()
    assert first[16] == (3 if model is RelocationModel.PIC else 2)  # ET_DYN, ET_EXEC
    assert b"LLD 22" in first
    assert (tmp_path / "a.out").stat().st_mode & 0o111
    assert await output_of(str(tmp_path / "a.out"), "x") == "36 4\n"
    await linked(work, wheel, tmp_path)
    assert (tmp_path / "a.out").read_bytes() == first


async def test_a_program_without_any_compiler_on_the_machine(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path, cache: str
) -> None:
    work = item(objects, LinkKind.EXECUTABLE, tmp_path / "a.out", "-lm")
    await linked(work, wheel, tmp_path, {**NO_COMPILER, "XDG_CACHE_HOME": cache})
    first = (tmp_path / "a.out").read_bytes()
    assert await output_of(str(tmp_path / "a.out"), "x") == "36 4\n"
    await linked(work, wheel, tmp_path, {**NO_COMPILER, "XDG_CACHE_HOME": cache})
    assert (tmp_path / "a.out").read_bytes() == first


@needs_system_llvm
@needs_cc
async def test_a_named_toolchain_links_with_its_own_clang(objects: Sequence[tuple[str, Path]], tmp_path: Path) -> None:
    toolchain = find_toolchain(SYSTEM_LLVM, {})
    await linked(item(objects, LinkKind.EXECUTABLE, tmp_path / "a.out", "-lm"), toolchain, tmp_path)
    assert await output_of(str(tmp_path / "a.out")) == "9 2\n"
    archive = tmp_path / "liball.a"
    await linked(item(objects, LinkKind.STATIC, archive), toolchain, tmp_path)
    assert (await output_of(str(SYSTEM_LLVM / "llvm-ar"), "t", str(archive))).split() == [
        "app.main.o",
        "app.half.o",
        "lib.half.o",
    ]


async def test_a_shared_library_can_be_loaded(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path, cache: str
) -> None:
    for environ in (dict(os.environ), {**NO_COMPILER, "XDG_CACHE_HOME": cache}):
        output = tmp_path / f"libhalf{len(environ)}.so"
        await linked(item(objects[1:], LinkKind.SHARED, output), wheel, tmp_path, environ)
        assert ctypes.CDLL(str(output)).twice(21) == 42
        assert b"libhalf" not in output.read_bytes()  # no DT_SONAME


@needs_cc
async def test_an_archive_has_a_symbol_table_and_all_members(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path
) -> None:
    archive = tmp_path / "liball.a"
    twins = [("same", objects[1][1]), ("same", objects[2][1])]
    await linked(item(twins, LinkKind.STATIC, archive), wheel, tmp_path)
    first = archive.read_bytes()
    # An archive goes into an archive by its members.
    await linked(item(objects[:1], LinkKind.STATIC, tmp_path / "more.a", inputs=(archive,)), wheel, tmp_path)
    program = tmp_path / "a.out"
    await linked(item(objects[:1], LinkKind.EXECUTABLE, program, "-lm", inputs=(archive,)), wheel, tmp_path)
    assert await output_of(str(program)) == "9 2\n"
    await trio.run_process(["cc", "-o", str(program), str(tmp_path / "more.a"), "-lm"])
    assert await output_of(str(program)) == "9 2\n"
    archive.write_bytes(b"not an archive: it is not added to")
    await linked(item(twins, LinkKind.STATIC, archive), wheel, tmp_path)
    assert archive.read_bytes() == first
    assert archive.stat().st_mode & 0o777 == 0o644


@needs_cc
async def test_an_archive_takes_neither_arguments_nor_shared_libraries(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path
) -> None:
    archive, library = tmp_path / "x.a", tmp_path / "x.so"
    assert "'-lm'" in await failure(item(objects, LinkKind.STATIC, archive, "-lm"), wheel, tmp_path)
    await linked(item(objects[1:], LinkKind.SHARED, library), wheel, tmp_path)
    message = await failure(item(objects, LinkKind.STATIC, archive, inputs=(library,)), wheel, tmp_path)
    assert "is a shared library" in message
    assert not archive.exists()


@pytest.mark.parametrize("with_cc", [pytest.param(True, marks=needs_cc), False])
async def test_messages_name_modules_and_a_good_program_stays(
    with_cc: bool, wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path, cache: str
) -> None:
    environ = dict(os.environ) if with_cc else {**NO_COMPILER, "XDG_CACHE_HOME": cache}
    program = tmp_path / "a.out"
    program.write_text("a good program")
    undefined = await failure(item(objects[:2], LinkKind.EXECUTABLE, program, "-lm"), wheel, tmp_path, environ)
    assert "undefined symbol: twice" in undefined
    assert "app/main:(main)" in undefined
    again = ("other/half", objects[1][1])
    duplicate = await failure(item([*objects, again], LinkKind.EXECUTABLE, program, "-lm"), wheel, tmp_path, environ)
    assert "duplicate symbol: half" in duplicate
    assert "app/half" in duplicate
    assert "other/half" in duplicate
    for message in (undefined, duplicate):
        assert "ltod-link" not in message
        assert "collect2" not in message
    assert program.read_text() == "a good program"


@needs_cc
async def test_lazy_objects_are_taken_if_they_are_needed(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path
) -> None:
    broken = compile_c(wheel, "int nowhere(void); int unneeded(void) { return nowhere(); }", tmp_path / "broken.o")
    files = (
        LinkFile("lib x/unneeded", broken, lazy=True),
        LinkFile("lib x/half", objects[1][1], lazy=True),
        LinkFile(objects[0][0], objects[0][1]),
        LinkFile("lib x/twice", objects[2][1], lazy=True),
    )
    program = evolve(item(objects, LinkKind.EXECUTABLE, tmp_path / "a.out", "-lm"), objects=files)
    await linked(program, wheel, tmp_path)
    assert await output_of(str(tmp_path / "a.out")) == "9 2\n"
    assert b"unneeded" not in (tmp_path / "a.out").read_bytes()
    whole = evolve(program, objects=tuple(evolve(file, lazy=False) for file in files))
    message = await failure(whole, wheel, tmp_path)
    assert "undefined symbol: nowhere" in message
    assert "lib x/unneeded:(unneeded)" in message
    archive = item(objects, LinkKind.STATIC, tmp_path / "all.a")
    await linked(evolve(archive, objects=files), wheel, tmp_path)
    assert b"unneeded" in (tmp_path / "all.a").read_bytes()


@needs_cc
async def test_exports_of_programs_and_libraries(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path
) -> None:
    library = evolve(item(objects[1:], LinkKind.SHARED, tmp_path / "lib.so"), exports=("twice",))
    await linked(library, wheel, tmp_path)
    loaded = ctypes.CDLL(str(tmp_path / "lib.so"))
    assert loaded.twice(21) == 42
    assert not hasattr(loaded, "half")
    program = evolve(item(objects, LinkKind.EXECUTABLE, tmp_path / "a.out", "-lm"), exports=("half", "nothing"))
    message = await failure(program, wheel, tmp_path)
    assert message.endswith("symbol 'nothing' is to be exported, but nothing defines it")
    assert "cannot be exported" in await failure(evolve(program, exports=("a*",)), wheel, tmp_path)


@needs_cc
async def test_what_a_link_has_learnt_serves_the_next(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path
) -> None:
    (tmp_path / "lines").mkdir()
    lines = LldLines(wheel, tmp_path / "lines", os.environ)
    for number in range(2):
        work = item(objects, LinkKind.EXECUTABLE, tmp_path / f"{number}.out", "-lm")
        with trio.fail_after(60):
            result = await link(work, wheel, tmp_path / "scratch", NO_COMPILER, lines)
        assert isinstance(result, Linked), result
    assert (tmp_path / "0.out").read_bytes() == (tmp_path / "1.out").read_bytes()


@needs_cc
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("-lno_such_library", "unable to find library -lno_such_library"),
        ("-Wl,--no-such-option", "unknown argument '--no-such-option'"),
        ("--no-such-option", "unrecognized command-line option"),
        ("absent file.o", "absent file.o"),
    ],
)
async def test_other_errors_come_through(
    argument: str, words: str, wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path
) -> None:
    message = await failure(item(objects, LinkKind.EXECUTABLE, tmp_path / "a.out", "-lm", argument), wheel, tmp_path)
    assert message.startswith("linking failed (exit status 1")
    assert words.replace("unrecognized", "") in message.replace("unrecognized", "").replace("unsupported", "")


@needs_cc
async def test_code_that_cannot_be_moved_is_the_modules_fault(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path
) -> None:
    source = 'int f(void) { int r; __asm__("movl $elsewhere, %0" : "=r"(r)); return r; }'
    fixed = compile_c(wheel, source, tmp_path / "fixed.o")
    work = item([*objects, ("fixed/code", fixed)], LinkKind.SHARED, tmp_path / "lib.so")
    message = await failure(work, wheel, tmp_path)
    assert "relocation R_X86_64_32 cannot be used against symbol 'elsewhere'" in message
    assert "fixed/code:(f)" in message


@needs_cc
async def test_names_that_are_no_paths_and_very_many_objects(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path
) -> None:
    names = ["../escape", "/absolute", 'with "quotes" \\ and space']
    odd = [(name, path) for name, (_, path) in zip(names, objects, strict=True)]
    empty = compile_c(wheel, "static int unused;", tmp_path / "empty.o")
    many = [*odd, *((f"filler/{number:04}", empty) for number in range(1500))]
    program = tmp_path / "a.out"
    await linked(item(many, LinkKind.EXECUTABLE, program, "-lm"), wheel, tmp_path)
    assert await output_of(str(program)) == "9 2\n"
    await linked(item(many, LinkKind.STATIC, tmp_path / "many.a"), wheel, tmp_path)
    await trio.run_process(["cc", "-o", str(program), str(tmp_path / "many.a"), "-lm"])
    assert await output_of(str(program)) == "9 2\n"


@needs_cc
async def test_arguments_are_meant_in_the_users_directory(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libs").mkdir()
    await linked(item(objects[1:], LinkKind.STATIC, tmp_path / "libs" / "libhalves.a"), wheel, tmp_path)
    monkeypatch.chdir(tmp_path)
    work = item(objects[:1], LinkKind.EXECUTABLE, Path("bin/a.out"), "-Llibs", "-lhalves", "-lm", "-Wl,-Map=a.map")
    await linked(work, wheel, tmp_path)
    assert await output_of("bin/a.out") == "9 2\n"
    assert "half" in Path("a.map").read_text()


CPLUSPLUS = {
    "thrower": "#include <stdexcept>\n#include <string>\n"
    "void fail(const std::string &s) { throw std::runtime_error(s); }",
    "catcher": "#include <iostream>\n#include <string>\nvoid fail(const std::string &);\n"
    "struct Early { Early() { std::cout << 'e'; } } early;\n"
    'int main() { try { fail("ops"); } catch (const std::exception &e) { std::cout << e.what() << std::endl; } }',
}


@needs_system_llvm
@needs_cplusplus
@pytest.mark.parametrize("named", [False, True])
async def test_exceptions_of_cplusplus_programs(named: bool, wheel: Toolchain, tmp_path: Path) -> None:
    objects = []
    for name, source in CPLUSPLUS.items():
        path = tmp_path / f"{name}.o"
        argv = [
            str(SYSTEM_LLVM / "clang"),
            "--driver-mode=g++",
            "-O1",
            "-fPIC",
            "-c",
            "-x",
            "c++",
            "-",
            "-o",
            str(path),
        ]
        await trio.run_process(argv, stdin=source.encode())
        objects.append((name, path))
    toolchain = find_toolchain(SYSTEM_LLVM, {}) if named else wheel
    await linked(item(objects, LinkKind.EXECUTABLE, tmp_path / "a.out"), toolchain, tmp_path)
    assert await output_of(str(tmp_path / "a.out")) == "eops\n"


@needs_cc
async def test_signs_of_cplusplus_leave_no_trace_in_c_programs(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path
) -> None:
    decoy = ("decoy", compile_c(wheel, 'const char *text = "__gxx_personality_v0";', tmp_path / "decoy.o"))
    await linked(item([*objects, decoy], LinkKind.EXECUTABLE, tmp_path / "a.out", "-lm"), wheel, tmp_path)
    assert b"libstdc++" not in (tmp_path / "a.out").read_bytes()


@pytest.mark.parametrize(
    ("triple", "sanitizers", "message"),
    [
        ("x86_64-pc-windows-msvc", frozenset[Sanitizer](), "for Linux only"),
        ("arm64-apple-macosx14.0", frozenset[Sanitizer](), "for Linux only"),
        ("wasm32-unknown-wasi", frozenset[Sanitizer](), "for Linux only"),
        ("x86_64-unknown-linux-gnu", frozenset({Sanitizer.ADDRESS}), "no runtime for the address sanitizer"),
    ],
)
async def test_what_cannot_be_linked_is_said(
    triple: str,
    sanitizers: frozenset[Sanitizer],
    message: str,
    wheel: Toolchain,
    objects: Sequence[tuple[str, Path]],
    tmp_path: Path,
) -> None:
    options = CodegenOptions(sanitizers=sanitizers)
    work = item(objects, LinkKind.EXECUTABLE, tmp_path / "a.out", triple=triple, options=options)
    assert message in await failure(work, wheel, tmp_path, NO_COMPILER)
    without = evolve(wheel, lld=None)
    work = item(objects, LinkKind.EXECUTABLE, tmp_path / "a.out")
    assert "there is no ld.lld" in await failure(work, without, tmp_path, NO_COMPILER)


async def test_files_that_are_in_the_way_or_gone(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path
) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "x").touch()
    (tmp_path / "file").touch()
    message = await failure(item(objects, LinkKind.STATIC, tmp_path / "directory"), wheel, tmp_path)
    assert "directory" in message
    message = await failure(item(objects, LinkKind.STATIC, tmp_path / "file" / "x.a"), wheel, tmp_path)
    assert "file" in message
    gone = [("gone", tmp_path / "gone.o")]
    assert "gone.o" in await failure(item(gone, LinkKind.STATIC, tmp_path / "x.a"), wheel, tmp_path)
    absent = (tmp_path / "absent.a",)
    assert "absent.a" in await failure(item(objects, LinkKind.STATIC, tmp_path / "x.a", inputs=absent), wheel, tmp_path)


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.5])
async def test_cancelling_leaves_nothing(
    delay: float, wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path
) -> None:
    # A fresh cache: zig is busy for seconds.
    environ = {**NO_COMPILER, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    (tmp_path / "a.out").write_text("old")
    with trio.move_on_after(delay) as scope:
        await link(item(objects, LinkKind.EXECUTABLE, tmp_path / "a.out", "-lm"), wheel, tmp_path / "scratch", environ)
    assert scope.cancelled_caught
    assert (tmp_path / "a.out").read_text() == "old"
    children = [(task / "children").read_text() for task in Path("/proc/self/task").iterdir()]
    assert "".join(children).split() == []


@pytest.mark.parametrize("kind", [LinkKind.EXECUTABLE, LinkKind.STATIC])
async def test_outputs_that_are_links_or_devices_stay_what_they_are(
    kind: LinkKind, wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path, cache: str
) -> None:
    if kind is LinkKind.EXECUTABLE and shutil.which("cc") is None:
        pytest.skip("without a compiler on the machine, zig would build a C library for this")
    environ = {**os.environ, "XDG_CACHE_HOME": cache}
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/output")
    os.mkfifo(tmp_path / "fifo")
    arguments = ("-lm",) if kind is LinkKind.EXECUTABLE else ()
    await linked(item(objects, kind, tmp_path / "link", *arguments), wheel, tmp_path, environ)
    assert (tmp_path / "link").is_symlink()
    assert os.access(tmp_path / "real" / "output", os.X_OK) is (kind is LinkKind.EXECUTABLE)
    result = await perform(item(objects, kind, tmp_path / "null", *arguments), wheel, tmp_path, environ)
    assert isinstance(result, Linked), result
    assert (tmp_path / "null").is_symlink()
    message = await failure(item(objects, kind, tmp_path / "fifo", *arguments), wheel, tmp_path, environ)
    assert message == f"{tmp_path / 'fifo'}: it is a FIFO"


async def test_a_full_disk_is_said(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path, small_disk: Path
) -> None:
    big = ("big", compile_c(wheel, "char table[400000] = {1};", tmp_path / "big.o"))
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    work = item([*objects, big], LinkKind.SHARED, small_disk / "x.so")
    assert await failure(work, wheel, tmp_path, environ) == f"no space left on {small_disk}"
    assert list(small_disk.iterdir()) == []


async def test_a_place_that_cannot_be_written_is_named_as_the_user_named_it(
    wheel: Toolchain, objects: Sequence[tuple[str, Path]], tmp_path: Path
) -> None:
    # Nobody, root included, makes files in /proc.
    message = await failure(item(objects, LinkKind.STATIC, Path("/proc/x.a")), wheel, tmp_path)
    assert message.startswith("/proc/x.a: ")
    assert ".ltod" not in message

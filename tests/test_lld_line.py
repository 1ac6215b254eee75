"""Drivers are asked for lld's command line, and lld works with it as often as it is run. Layer: process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trio

from tests.test_link import NO_COMPILER, SYSTEM_LLVM, TRIPLE, compile_c, needs_cc, needs_system_llvm
from workers.llvm.link_driver import DriverError
from workers.llvm.lld_line import LldLine, LldLines, check_exports, in_directory
from workers.llvm.toolchain import Toolchain, find_toolchain
from workers.work import CodegenOptions, LinkKind, LinkOptions, Target

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the programs of these tests are for x86-64"),
]

BITCODE = ("-flto=full", "-emit-llvm-bc")

MAIN = """
int used(int); int printf(const char *, ...); void *dlsym(void *, const char *);
int main(void) {
  printf("%d %d %d\\n", used(20), dlsym(0, "shown") != 0, dlsym(0, "used") != 0);
  return 0;
}
"""
LIBRARY = """
__attribute__((noinline)) int used(int x) { return x + 1; }
int shown(void) { return 7; }
int odd(void) __asm__("größe \\\\ of it");
int odd(void) { return 9; }
"""
ODD = "größe \\ of it"


@pytest.fixture(scope="module")
def wheel() -> Toolchain:
    return find_toolchain(None, {})


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "scratch with spaces"
    directory.mkdir()
    yield directory
    assert [path.name for path in directory.iterdir() if path.name.startswith(("line-", "action-"))] == []


@pytest.fixture
def files(wheel: Toolchain, tmp_path: Path) -> list[Path]:
    sources = {"main": MAIN, "library": LIBRARY}
    return [compile_c(wheel, source, tmp_path / "in put" / f"{name}.bc", *BITCODE) for name, source in sources.items()]


async def ask(
    lines: LldLines,
    kind: LinkKind | None,
    *arguments: str,
    exports: tuple[str, ...] = (),
    files: Sequence[Path] = (),
    inputs: tuple[Path, ...] = (),
) -> LldLine:
    link = None if kind is None else LinkOptions(kind, Path("unused"), inputs, arguments)
    with trio.fail_after(300):
        return await lines.line(link, exports, files, CodegenOptions(), Target(TRIPLE, ""))


async def lld(
    line: LldLine, files: Sequence[Path | tuple[Path, bool]], output: Path, *extra: str, fails: bool = False
) -> str:
    pairs = [(str(one[0]), one[1]) if isinstance(one, tuple) else (str(one), False) for one in files]
    argv = in_directory(line.directory, line.argv(pairs, str(output), extra))
    with trio.fail_after(60):
        result = await trio.run_process(argv, env=line.environment, check=False, capture_stderr=True)
    said = result.stderr.decode()
    assert (result.returncode != 0) is fails, said
    return said


async def output_of(program: Path) -> str:
    return (await trio.run_process([str(program)], capture_stdout=True)).stdout.decode()


@pytest.mark.parametrize(
    "driver",
    [
        pytest.param("cc", marks=needs_cc),
        pytest.param("clang", marks=[needs_system_llvm, needs_cc]),
        "zig",
    ],
)
async def test_a_line_serves_as_often_as_lld_is_run(
    driver: str,
    wheel: Toolchain,
    files: list[Path],
    scratch: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    toolchain = find_toolchain(SYSTEM_LLVM, {}) if driver == "clang" else wheel
    cache = os.environ.get("XDG_CACHE_HOME") or str(tmp_path_factory.getbasetemp() / "cache")
    environ = {**NO_COMPILER, "XDG_CACHE_HOME": cache} if driver == "zig" else dict(os.environ)
    working = tmp_path / "work here"
    (working / "my libs").mkdir(parents=True)
    extra = compile_c(wheel, "int extra(void) { return 1; }", tmp_path / "extra.o")
    await trio.run_process([wheel.clang[0], "ar", "qc", str(working / "my libs" / "libextra.a"), str(extra)])
    monkeypatch.chdir(working)

    lines = LldLines(toolchain, scratch, environ)
    line = await ask(lines, LinkKind.EXECUTABLE, "-Lmy libs", "-lextra", "-ldl", "-lm", "-Wl,-rpath,/a b", files=files)
    assert line.directory == working
    for word in line.argv((), "x"):
        assert not word.startswith(("-plugin", "-L" + str(scratch)))
        assert "/line-" not in word
    first, second = tmp_path / "first", tmp_path / "second"
    await lld(line, files, first)
    await lld(line, files, second)
    assert first.read_bytes() == second.read_bytes()
    assert await output_of(first) == "21 0 0\n"
    assert b"/a b\0" in first.read_bytes()
    # The library beside the program is found, and only then does its symbol count.
    await lld(line, files, first, "--undefined=extra")
    await lld(line, files, second, "--undefined=nowhere")
    assert b"\0extra\0" in first.read_bytes()
    assert b"\0extra\0" not in second.read_bytes()


@needs_cc
async def test_a_driver_is_asked_once_for_all_who_want_the_same(
    wheel: Toolchain, scratch: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    spy, log = tmp_path / "bin" / "cc", tmp_path / "log"
    spy.write_text(f'#!/bin/sh\necho "$*" >>{log}\nexec {shutil.which("cc")} "$@"\n')
    spy.chmod(0o755)
    lines = LldLines(wheel, scratch, {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    extra = compile_c(wheel, "int extra;", tmp_path / "extra.o")
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask, lines, LinkKind.EXECUTABLE, str(extra))
    assert len(log.read_text().splitlines()) == 3  # its target, its start files, its line
    assert await ask(lines, LinkKind.EXECUTABLE, str(extra)) == await ask(
        lines, LinkKind.EXECUTABLE, str(extra), files=[extra]
    )
    await ask(lines, LinkKind.SHARED, str(extra))
    assert len(log.read_text().splitlines()) == 4
    # What a line relies on is gone, as after an update of the system: the answer is not to be trusted any more.
    extra.unlink()
    await ask(lines, LinkKind.EXECUTABLE, str(extra))
    assert len(log.read_text().splitlines()) == 5


@needs_cc
async def test_options_of_the_user_in_a_response_file(
    wheel: Toolchain, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "options").write_text('-lm "-Lsome where" -Wl,--defsym=a\\"b=1')
    monkeypatch.chdir(tmp_path)
    line = await ask(LldLines(wheel, scratch, os.environ), LinkKind.EXECUTABLE, "@options")
    assert {"-lm", "-Lsome where", '--defsym=a"b=1'} <= set(line.argv((), "x"))


@needs_cc
async def test_signs_of_cplusplus_in_bitcode_are_seen(
    wheel: Toolchain, files: list[Path], scratch: Path, tmp_path: Path
) -> None:
    lines = LldLines(wheel, scratch, os.environ)
    source = 'extern int f(void) __asm__("_ZSt9terminatev"); int g(void) { return f(); }'
    cplusplus = compile_c(wheel, source, tmp_path / "cplusplus.bc", *BITCODE)
    plain = await ask(lines, LinkKind.SHARED, files=files)
    assert plain == await ask(lines, LinkKind.SHARED)
    assert "-lstdc++" not in plain.argv((), "x")
    assert "-lstdc++" in (await ask(lines, LinkKind.SHARED, files=[*files, cplusplus])).argv((), "x")


@needs_cc
@pytest.mark.parametrize("section", ["-Wl,--gc-sections", "-Wl,--no-gc-sections"])
async def test_a_program_exports_just_what_is_asked_for(
    section: str, wheel: Toolchain, files: list[Path], scratch: Path, tmp_path: Path
) -> None:
    lines = LldLines(wheel, scratch, os.environ)
    line = await ask(lines, LinkKind.EXECUTABLE, "-ldl", section, exports=("shown", ODD))
    objects = [
        compile_c(wheel, source, tmp_path / f"{number}.o", "-ffunction-sections")
        for number, source in enumerate((MAIN, LIBRARY))
    ]
    for main, library in (files, objects):
        for lazy in (False, True):
            await lld(line, [main, (library, lazy)], tmp_path / "a.out")
            assert await output_of(tmp_path / "a.out") == "21 1 0\n"
            assert f"\0{ODD}\0".encode() in (tmp_path / "a.out").read_bytes()


@needs_cc
async def test_a_shared_library_exports_just_what_is_asked_for(
    wheel: Toolchain, files: list[Path], scratch: Path, tmp_path: Path
) -> None:
    lines = LldLines(wheel, scratch, os.environ)
    line = await ask(lines, LinkKind.SHARED, exports=("shown", ODD))
    # Lazy, and needed by nothing but the exports.
    await lld(line, [(files[1], True)], tmp_path / "lib.so")
    content = (tmp_path / "lib.so").read_bytes()
    assert b"\0shown\0" in content
    assert f"\0{ODD}\0".encode() in content
    assert b"\0used\0" not in content
    await lld(await ask(lines, LinkKind.SHARED), [files[1]], tmp_path / "lib.so")
    assert b"\0used\0" in (tmp_path / "lib.so").read_bytes()


@needs_cc
@pytest.mark.parametrize("kind", [LinkKind.EXECUTABLE, LinkKind.SHARED, None])
async def test_exports_that_nothing_defines_are_named(
    kind: LinkKind | None, wheel: Toolchain, files: list[Path], scratch: Path, tmp_path: Path
) -> None:
    lines = LldLines(wheel, scratch, os.environ)
    line = await ask(lines, kind, *(["-ldl"] if kind else []), exports=("shown", "no such\\thing", "nor_this"))
    said = await lld(line, files, tmp_path / "a.out", fails=True)
    assert "no such\\thing" in said
    assert "nor_this" in said
    assert "shown" not in said


@pytest.mark.parametrize("name", ["", 'a"b', "every*", "a?", "a[b]", "two\nlines", "nul\0"])
def test_names_that_lld_would_not_take_literally_are_refused(name: str) -> None:
    with pytest.raises(DriverError, match=r"cannot be exported|is empty"):
        check_exports(["fine", name])
    check_exports(["_ZN4core3fmt5write17h0123456789abcdefE", "_RNvCs1_1a1b", "a$b.c", "größe"])


@pytest.mark.parametrize("machine", [(TRIPLE, 62), ("aarch64-unknown-linux-gnu", 183)])
async def test_without_a_link_every_symbol_stays(
    machine: tuple[str, int], wheel: Toolchain, scratch: Path, tmp_path: Path
) -> None:
    triple, number = machine
    files = [
        compile_c(wheel, source, tmp_path / f"{index}.bc", *BITCODE, "-triple", triple)
        for index, source in enumerate((LIBRARY, "int lonely(void) { return 1; }"))
    ]
    lines = LldLines(wheel, scratch, NO_COMPILER)
    output = tmp_path / "all.o"
    for kind in (None, LinkKind.STATIC):
        line = await ask(lines, kind)
        # Nothing is lazy in a static library.
        await lld(line, [files[0], (files[1], True)], output)
        content = output.read_bytes()
        assert content[18] == number
        assert all(f"\0{name}\0".encode() in content for name in ("used", "shown", "lonely"))
        await lld(await ask(lines, kind, exports=("shown",)), files, output)
        assert b"\0shown\0" in output.read_bytes()
        assert b"\0used\0" not in output.read_bytes()


async def test_what_native_inputs_of_a_static_library_use_is_kept(
    wheel: Toolchain, files: list[Path], scratch: Path, tmp_path: Path
) -> None:
    native = compile_c(wheel, "int used(int); int user(void) { return used(1); }", tmp_path / "native.o")
    lines = LldLines(wheel, scratch, NO_COMPILER)
    for inputs, kept in (((), b""), ((native,), b".text")):
        line = await ask(lines, LinkKind.STATIC, exports=("shown",), inputs=inputs)
        await lld(line, [files[1]], tmp_path / "x.so", "--lto-emit-llvm")
        assert (b"user" in (tmp_path / "x.so").read_bytes()) is False
        assert (b"used" in (tmp_path / "x.so").read_bytes()) is bool(kept)


@needs_cc
async def test_what_drivers_refuse_is_said_in_their_words(wheel: Toolchain, scratch: Path) -> None:
    lines = LldLines(wheel, scratch, os.environ)
    with pytest.raises(DriverError, match="--no-such-option"):
        await ask(lines, LinkKind.EXECUTABLE, "--no-such-option")
    with pytest.raises(DriverError, match=r"did not start ld\.lld: leave out"):
        await ask(lines, LinkKind.EXECUTABLE, "-c")
    without = LldLines(wheel, scratch, NO_COMPILER)
    with pytest.raises(DriverError, match=r"zig cc.*no-such-thing"):
        await ask(without, LinkKind.EXECUTABLE, "-Wl,--no-such-thing")


def test_options_with_values_are_found_in_all_their_spellings(tmp_path: Path) -> None:
    line = LldLine(tmp_path, {}, ("lld", "--wrap=a", "-wrap", "b", "--wrapped=x"), ("-wrap=c", "--wrap", "d"))
    assert line.option("wrap") == ["a", "b", "c", "d"]


@pytest.mark.parametrize("value", ["ALL", "libx.a", "libz.a,libx.a", "libz.a:libx.a"])
def test_what_has_no_effect_on_members_is_refused(tmp_path: Path, value: str) -> None:
    line = LldLine(tmp_path, {}, ("lld",), (f"--exclude-libs={value}",))
    line.check_members([])
    with pytest.raises(DriverError, match="no effect on lib/libx/m,"):
        line.check_members(["lib/libx/m"])
    if value != "ALL":
        line.check_members(["liby/m", "libx"])


def test_very_many_files_go_through_a_file(tmp_path: Path) -> None:
    line = LldLine(tmp_path, {}, ("lld",), ("tail",))
    few = [("a", False), ("b", True), ("c", True), ("d", False), ("e", True)]
    grouped = ("a", "--start-lib", "b", "c", "--end-lib", "d", "--start-lib", "e", "--end-lib")
    assert line.argv(few, "out", ["-x"], tmp_path / "r") == ("lld", "-o", "out", *grouped, "tail", "-x")
    many = [(f'/a "quoted" name/{number:060}', number % 2 == 1) for number in range(2000)]
    argv = line.argv(many, "out", (), tmp_path / "r")
    assert argv == ("lld", "-o", "out", f"@{tmp_path / 'r'}", "tail")
    assert (tmp_path / "r").read_text().startswith('"/a \\"quoted\\" name/000')


@needs_cc
@pytest.mark.parametrize("delay", [0.0, 0.005, 0.02])
async def test_who_gives_up_spoils_nothing_for_others(delay: float, wheel: Toolchain, scratch: Path) -> None:
    lines = LldLines(wheel, scratch, os.environ)
    found: list[LldLine] = []

    async def patient() -> None:
        found.append(await ask(lines, LinkKind.EXECUTABLE))

    async def impatient() -> None:
        with trio.move_on_after(delay):
            await ask(lines, LinkKind.EXECUTABLE)

    async with trio.open_nursery() as nursery:
        for task in (impatient, patient, impatient, patient):
            nursery.start_soon(task)
    assert len(found) == 2
    assert found[0] == found[1]

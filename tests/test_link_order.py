"""Which definition wins where several files have one, as ld.lld does it with the same files. Layer: process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from coordinator import (
    BuildConfig,
    BuildFailed,
    CodegenOptions,
    Coordinator,
    FatLto,
    LinkKind,
    LinkOptions,
    Module,
    ThinLto,
    open_coordinator,
)
from coordinator.cli._inputs import NativeInput, read_build_inputs
from tests.samples import TRIPLE, zig
from workers.llvm.lld_line import LldLines, in_directory
from workers.llvm.toolchain import find_toolchain
from workers.work import Target

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the programs of these tests are for x86-64"),
]

MODES = pytest.mark.parametrize(
    "lto",
    [None, ThinLto(), ThinLto(local=True), FatLto(partitions=1), FatLto(partitions=2)],
    ids=["none", "thin", "thin-local", "fat", "fat-2"],
)

MAIN = """
int puts(const char *); const char *who(void); const char *other(void);
int main(void) { puts(who()); return other() == 0; }
"""
WHO = 'const char *who(void) {{ return "{0}"; }} '
WEAK = '__attribute__((weak)) const char *who(void) {{ return "{0}"; }} '
OTHER = 'const char *other(void) {{ return "{0}"; }}'

# `main` needs `who` alone. A letter says of what kind a definition is, two that there is one of `other` beside it.
SOURCES = {
    "main.bc": MAIN.replace("other() == 0", "0"),
    "needs.bc": MAIN,
    "needs.o": MAIN,
    "b.bc": WHO.format("bitcode"),
    "n.o": WHO.format("native"),
    "wb.bc": WEAK.format("weak bitcode"),
    "wn.o": WEAK.format("weak native"),
    "bb.bc": WHO.format("bitcode of two") + OTHER.format("bitcode"),
    "nn.o": WHO.format("native of two") + OTHER.format("native"),
    "ob.bc": OTHER.format("bitcode"),
    "on.o": OTHER.format("native"),
    "chain.o": 'const char *other(void); const char *who(void) { return other() ? "native, by way of bitcode" : ""; }',
    "chain.bc": 'const char *other(void); const char *who(void) { return other() ? "bitcode, by native" : ""; }',
    "shared.o": WHO.format("shared"),
    "wrap.o": """
        const char *__real_who(void);
        const char *__wrap_who(void) { return __real_who()[0] == 'b' ? "wrapped" : ""; }
    """,
    "wrapping.o": 'const char *__wrap_who(void) { return "wrapped"; }',
    "idle.bc": "int idle;",
}
ARCHIVES = {
    "lib-b.a": ["b.bc"],
    "lib-n.a": ["n.o"],
    "lib-bb.a": ["bb.bc"],
    "lib-nn.a": ["nn.o"],
    "lib-ob.a": ["ob.bc"],
    "lib-wrap.a": ["wrap.o"],
    "lib-on.a": ["on.o"],
    "lib-chain-n.a": ["chain.o"],
    "lib-chain-b.a": ["chain.bc"],
    "mixed.a": ["b.bc", "n.o"],
    "xedmi.a": ["n.o", "b.bc"],
    "mixed-ob.a": ["n.o", "ob.bc"],
    "mixed-on.a": ["b.bc", "on.o"],
}
DUPLICATE = "duplicate symbol: who"

CASES = {
    # Objects count at once, wherever they are; members of archives where something needs them.
    "main.bc n.o b.bc": DUPLICATE,
    "main.bc b.bc n.o": DUPLICATE,
    "main.bc n.o lib-b.a": "native",
    "main.bc lib-b.a n.o": DUPLICATE,
    "n.o main.bc lib-b.a": "native",
    "lib-b.a n.o main.bc": "native",
    "main.bc n.o lib-bb.a": "native",
    "needs.bc n.o lib-bb.a": DUPLICATE,
    "main.bc b.bc lib-n.a": "bitcode",
    "main.bc lib-n.a lib-b.a": "native",
    "main.bc lib-b.a lib-n.a": "bitcode",
    "lib-n.a lib-b.a main.bc": "native",
    "lib-b.a lib-n.a main.bc": "bitcode",
    "lib-n.a main.bc lib-b.a": "native",
    "lib-nn.a lib-b.a needs.bc": "native of two",
    "needs.bc lib-b.a lib-nn.a": DUPLICATE,
    "needs.bc lib-bb.a lib-nn.a": "bitcode of two",
    "needs.o lib-bb.a lib-nn.a idle.bc": "bitcode of two",
    # Shared libraries.
    "main.bc n.so lib-b.a": "shared",
    "main.bc lib-b.a n.so": "bitcode",
    "n.so main.bc lib-b.a": "shared",
    "n.so main.bc b.bc": "bitcode",
    "main.bc n.so lib-n.a lib-b.a": "shared",
    "lib-n.a n.so main.bc": "shared",
    "main.bc lib-n.a n.so": "native",
    "main.bc lib-n.a n.so ob.bc": "native",
    # Archives of both kinds of members.
    "main.bc mixed.a": "bitcode",
    "main.bc xedmi.a": "native",
    "main.bc mixed.a lib-n.a": "bitcode",
    "main.bc lib-b.a xedmi.a": "bitcode",
    "main.bc lib-n.a mixed.a": "native",
    "main.bc n.o mixed.a": "native",
    "needs.bc mixed-ob.a lib-bb.a": "native",
    "needs.bc lib-b.a mixed-on.a lib-nn.a": "bitcode",
    # Weak definitions.
    "main.bc wn.o wb.bc": "weak native",
    "main.bc wb.bc wn.o": "weak bitcode",
    "wn.o main.bc b.bc": "bitcode",
    "wb.bc main.bc n.o": "native",
    "main.bc wn.o lib-b.a": "weak native",
    "wb.bc lib-n.a main.bc": "weak bitcode",
    # One kind needs the other.
    "main.bc lib-chain-n.a lib-ob.a": "native, by way of bitcode",
    "lib-ob.a lib-chain-n.a main.bc": "native, by way of bitcode",
    "main.bc lib-chain-n.a lib-on.a lib-ob.a lib-n.a": "native, by way of bitcode",
    "main.bc lib-chain-b.a lib-nn.a lib-ob.a": DUPLICATE,
    "main.bc lib-chain-b.a lib-on.a lib-ob.a": "bitcode, by native",
    # Objects that count as if they were in archives.
    "main.bc lazy:n.o lib-b.a": "native",
    "main.bc lib-b.a lazy:n.o": "bitcode",
    "lazy:n.o lazy:nn.o lib-bb.a main.bc": "native",
    "main.bc n.o lazy:nn.o": "native",
    "main.bc lazy:n.so lazy:lib-n.a lib-b.a": "shared",
    # The same thing twice.
    "main.bc n.o n.o": DUPLICATE,
    "main.bc lib-n.a lib-b.a lib-n.a": "native",
}


def compile_to(output: Path, source: str) -> None:
    kind = ("-emit-llvm-bc", "-disable-llvm-passes") if output.suffix == ".bc" else ("-emit-obj",)
    flags = ("-triple", TRIPLE, "-O2", "-mrelocation-model", "pic", "-pic-level", "2", *kind)
    argv = [zig(), "clang", "-cc1", *flags, "-x", "c", "-", "-o", str(output)]
    subprocess.run(argv, input=source.encode(), check=True)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("samples")
    for name, source in SOURCES.items():
        compile_to(place / name, source)
    for name, members in ARCHIVES.items():
        subprocess.run([zig(), "ar", "qcs", name, *members], cwd=place, check=True)
    for name, member in (("n.so", "shared.o"), ("wrapping.so", "wrapping.o")):
        subprocess.run([zig(), "ld.lld", "-shared", member, "-o", name], cwd=place, check=True)
    return place


def given(case: str, place: Path) -> list[tuple[Path, bool]]:
    """The files of a case, and whether they are lazy."""
    return [(place / word.removeprefix("lazy:"), word.startswith("lazy:")) for word in case.split()]


async def printed(program: Path) -> str:
    with trio.fail_after(30):
        return (await trio.run_process([program], capture_stdout=True)).stdout.decode().strip()


@pytest.fixture(scope="module")
def by_lld(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What lld makes of the cases in its own process: what the programs print, or why there is none."""
    place = tmp_path_factory.mktemp("lld")
    environ = dict(os.environ)

    async def link() -> dict[str, str]:
        outcomes = {}
        with trio.fail_after(300):
            lines = LldLines(find_toolchain(None, {}), place, environ)
            options = LinkOptions(LinkKind.EXECUTABLE, place / "program")
            line = await lines.line(options, (), [], CodegenOptions(), Target(TRIPLE, ""))
        for case in CASES:
            pairs = [(str(path), lazy) for path, lazy in given(case, samples)]
            argv = in_directory(line.directory, line.argv(pairs, str(options.output)))
            with trio.fail_after(60):
                result = await trio.run_process(argv, env=line.environment, check=False, capture_stderr=True)
            outcomes[case] = await outcome(options.output, result.stderr.decode() if result.returncode else None)
        return outcomes

    return trio.run(link)


async def outcome(program: Path, failure: str | None) -> str:
    if failure is None:
        return await printed(program)
    assert DUPLICATE in failure, failure
    return DUPLICATE


def files_of(case: str, place: Path, stack: ExitStack) -> Sequence[Module | NativeInput]:
    """What the command line makes of a case; it has no word for lazy objects, and takes no input twice."""
    files: list[Module | NativeInput] = []
    for number, (path, lazy) in enumerate(given(case, place)):
        if lazy or path.suffix == ".o":
            files.append(NativeInput(path, lazy))
        elif path.suffix == ".bc":
            files.append(Module(path.stem, path))
        else:
            # With a module, for there must be one.
            found = read_build_inputs([str(place / "idle.bc"), str(path)], stack, linking=True).files[1:]
            files += [
                Module(f"{number}/{file.name}", file.content, lazy=file.lazy) if isinstance(file, Module) else file
                for file in found
            ]
    return files


async def by_ltod(
    coordinator: Coordinator, files: Sequence[Module | NativeInput], lto: ThinLto | FatLto | None, out: Path
) -> str:
    link = LinkOptions(LinkKind.EXECUTABLE, out / "program")
    try:
        with trio.fail_after(120):
            async with coordinator.build(BuildConfig(out_dir=out, lto=lto, link=link)) as build:
                for file in files:
                    if isinstance(file, Module):
                        assert await build.submit(file)
                    else:
                        build.add_native(file.path, lazy=file.lazy)
                await build.finish()
    except BuildFailed as failed:
        return await outcome(link.output, str(failed))
    return await outcome(link.output, None)


def test_what_the_cases_say_is_what_lld_does(by_lld: Mapping[str, str]) -> None:
    assert by_lld == CASES


@MODES
async def test_the_definition_that_wins_is_that_of_lld(
    lto: ThinLto | FatLto | None, samples: Path, by_lld: Mapping[str, str], tmp_path: Path
) -> None:
    ours = {}
    async with open_coordinator(jobs=2, environ=dict(os.environ)) as coordinator:
        for number, case in enumerate(by_lld):
            with ExitStack() as stack:
                files = files_of(case, samples, stack)
                ours[case] = await by_ltod(coordinator, files, lto, tmp_path / str(number))
    assert ours == by_lld


@MODES
async def test_static_libraries_have_their_members_in_order(
    lto: ThinLto | FatLto | None, samples: Path, tmp_path: Path
) -> None:
    """A symbol may be defined twice in it; fat LTO's parts are where the first of its modules was."""
    out = tmp_path / "out"
    config = BuildConfig(out_dir=out, lto=lto, link=LinkOptions(LinkKind.STATIC, tmp_path / "all.a"))
    async with open_coordinator(jobs=2, environ=dict(os.environ)) as coordinator:
        with trio.fail_after(120):
            async with coordinator.build(config) as build:
                build.add_native(samples / "on.o")
                await build.submit(Module("main", samples / "main.bc"))
                build.add_native(samples / "lib-nn.a")
                build.add_native(samples / "n.o", lazy=True)
                await build.submit(Module("b", samples / "b.bc"))
                build.add_native(samples / "on.o")
                await build.finish()
            assert isinstance(lto, FatLto) or {path.name for path in out.iterdir()} == {"main.o", "b.o"}
            told = await trio.run_process([zig(), "ar", "t", tmp_path / "all.a"], capture_stdout=True)
            fat = [f"fat-lto.{number}.o" for number in range(lto.partitions or 0)] if isinstance(lto, FatLto) else None
            modules = (["main.o"], ["b.o"]) if fat is None else (fat, [])
            assert told.stdout.decode().split() == ["on.o", *modules[0], "nn.o", "n.o", *modules[1], "on.o"]
            refused = coordinator.build(config)
            with pytest.raises(BuildFailed, match=r"n\.so is a shared library, which cannot be put"):
                async with refused as build:
                    await build.submit(Module("main", samples / "main.bc"))
                    build.add_native(samples / "n.so")
                    await build.finish()


@pytest.mark.parametrize("lto", [ThinLto(), FatLto(partitions=1)], ids=["thin", "fat"])
async def test_a_library_of_exports_sees_native_files_in_their_place(
    lto: ThinLto | FatLto, samples: Path, tmp_path: Path
) -> None:
    """LTO of a static library that says what it exports resolves symbols, so that the order matters."""
    link = LinkOptions(LinkKind.STATIC, tmp_path / "all.a")
    config = BuildConfig(out_dir=tmp_path / "out", lto=lto, link=link, exports=("main",))
    async with open_coordinator(jobs=2, environ=dict(os.environ)) as coordinator:
        with trio.fail_after(120):
            async with coordinator.build(config) as build:
                await build.submit(Module("main", samples / "main.bc"))
                build.add_native(samples / "wn.o")
                await build.submit(Module("wb", samples / "wb.bc"))
                await build.finish()
            program = tmp_path / "program"
            await trio.run_process([zig(), "cc", "-target", "x86_64-linux-gnu", link.output, "-o", program])
            assert await printed(program) == "weak native"


async def test_very_many_files_stay_in_order(samples: Path, tmp_path: Path) -> None:
    """Their paths go through a file then."""
    place = tmp_path / ("long" * 40)
    place.mkdir()
    for number in range(500):
        (place / f"{number}.a").symlink_to(samples / ("lib-n.a" if number == 250 else "lib-on.a"))
    link = LinkOptions(LinkKind.EXECUTABLE, tmp_path / "program")
    async with open_coordinator(jobs=2, environ=dict(os.environ)) as coordinator:
        for lto in (None, ThinLto(), FatLto(partitions=1)):
            with trio.fail_after(120):
                async with coordinator.build(BuildConfig(out_dir=tmp_path / "out", lto=lto, link=link)) as build:
                    await build.submit(Module("main", samples / "main.bc"))
                    for number in range(500):
                        build.add_native(place / f"{number}.a")
                    await build.submit(Module("b", samples / "b.bc", lazy=True))
                    await build.finish()
            assert await printed(link.output) == "native"


@MODES
async def test_a_native_file_that_is_missing_is_named(
    lto: ThinLto | FatLto | None, samples: Path, tmp_path: Path
) -> None:
    link = LinkOptions(LinkKind.EXECUTABLE, tmp_path / "program")
    async with open_coordinator(jobs=2, environ=dict(os.environ)) as coordinator:
        with trio.fail_after(120), pytest.raises(BuildFailed, match=r"nowhere\.o: .*No such file"):
            async with coordinator.build(BuildConfig(out_dir=tmp_path / "out", lto=lto, link=link)) as build:
                await build.submit(Module("main", samples / "main.bc"))
                build.add_native(tmp_path / "nowhere.o")
                await build.finish()


async def test_thin_local_leaves_symbols_visible_in_a_program(samples: Path, tmp_path: Path) -> None:
    for lto, visible in ((ThinLto(local=True), True), (ThinLto(), False)):
        link = LinkOptions(LinkKind.EXECUTABLE, tmp_path / "program")
        config = BuildConfig(out_dir=tmp_path / "out", lto=lto, link=link)
        async with open_coordinator(jobs=2, environ=dict(os.environ)) as coordinator:
            with trio.fail_after(120):
                async with coordinator.build(config) as build:
                    await build.submit(Module("main", samples / "main.bc"))
                    await build.submit(Module("bb", samples / "bb.bc"))
                    await build.finish()
        assert (b".text.other" in (tmp_path / "out" / "bb.o").read_bytes()) is visible


@pytest.mark.parametrize("wrapper", ["wrap.o", "lib-wrap.a", "wrapping.so", None])
@MODES
async def test_calls_that_the_linker_redirects_go_where_it_says(
    lto: ThinLto | FatLto | None, wrapper: str | None, samples: Path, tmp_path: Path
) -> None:
    link = LinkOptions(LinkKind.EXECUTABLE, tmp_path / "program", arguments=("-Wl,--wrap=who",))
    async with open_coordinator(jobs=2, environ=dict(os.environ)) as coordinator:
        with trio.fail_after(120):
            async with coordinator.build(BuildConfig(out_dir=tmp_path / "out", lto=lto, link=link)) as build:
                await build.submit(Module("main", samples / "main.bc"))
                await build.submit(Module("b", samples / "b.bc"))
                if wrapper is None:
                    with pytest.raises(BuildFailed, match="undefined symbol: __wrap_who"):
                        await build.finish()
                    return
                build.add_native(samples / wrapper)
                await build.finish()
            assert await printed(link.output) == "wrapped"

"""Layer: e2e. A program is linked again if anything that it is made of changed, and only then."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from attrs import define, field, frozen

from coordinator import (
    BuildConfig,
    BuildFailed,
    BuildResult,
    Cache,
    CacheOutcome,
    FatLto,
    LinkKind,
    LinkOptions,
    Module,
    ThinLto,
    open_coordinator,
)
from tests.incremental_lab import Lab
from tests.samples import zig
from tests.test_link_key import archive, native
from tests.thin_site import needs_cc
from workers.work import Linked

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the programs of these tests are for x86-64"),
]

HIT, MISS, OFF = CacheOutcome.HIT, CacheOutcome.MISS, CacheOutcome.OFF
UNCHANGED = "nothing it is made of has changed"
MAIN = "int helper(int); int twice(int); int main(int argc, char **argv) { return helper(argc) + twice(argc); }"
TWICE = "int twice(int x) { return 2 * x; }"
HELPER = "int helper(int x) { return x + 1; }"
OTHER_HELPER = "int helper(int x) { return x + 7; }"


@frozen
class Program:
    """What was linked."""

    result: BuildResult
    content: bytes = field(repr=False)
    inode: int
    modified: int

    @property
    def outcome(self) -> CacheOutcome:
        return self.linked.cache.outcome

    @property
    def reason(self) -> str:
        return self.linked.cache.reason

    @property
    def linked(self) -> Linked:
        (one,) = (one for one in self.result.results if isinstance(one, Linked))
        return one


@define
class Shop:
    """A working directory in which one program is linked again and again."""

    place: Path
    lto: ThinLto | FatLto | None = None
    kind: LinkKind = LinkKind.EXECUTABLE
    sources: dict[str, str] = field(factory=lambda: {"main": MAIN, "twice": TWICE})
    arguments: tuple[str, ...] = ("-Lfirst", "-Llib", "-lhelper")
    inputs: tuple[Path, ...] = ()
    exports: tuple[str, ...] = ()
    output: str = "out/program"
    lab: Lab = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.lab = Lab(self.place / "lab", None)
        self.helper(HELPER)

    def helper(self, text: str, place: str = "lib/libhelper.a") -> Path:
        """An archive with `helper` in it."""
        path = archive(self.place / place, native(text, self.place / "o" / "helper.o"))
        self.settle()
        return path

    def settle(self) -> None:
        """All that was just made seems to be old: what is new may still be in the making."""
        time.sleep(0.15)

    async def link(self, *, cached: bool = True, objects: str = "objects") -> Program:
        output = self.place / self.output if cached else self.place / "cold" / Path(self.output).name
        config = BuildConfig(
            out_dir=self.place / (objects if cached else "cold-objects"),
            lto=self.lto,
            link=LinkOptions(self.kind, output, inputs=self.inputs, arguments=self.arguments),
            exports=self.exports,
        )
        output.parent.mkdir(exist_ok=True)
        cache = Cache(directory=self.place / "cache") if cached else None
        async with (
            open_coordinator(jobs=2, cache=cache, short_lived=True) as coordinator,
            coordinator.build(config) as build,
        ):
            for name, path in self.lab.bitcode(self.sources).items():
                await build.submit(Module(name, path))
            result = await build.finish()
        state = output.stat()
        return Program(result, output.read_bytes(), state.st_ino, state.st_mtime_ns)

    async def twins(self) -> Program:
        """Link, and compare with what is linked without a cache."""
        program, cold = await self.link(), await self.link(cached=False)
        assert program.content == cold.content
        return program

    async def hit(self) -> Program:
        """Nothing is left to do."""
        program = await self.twins()
        assert (program.outcome, program.reason) == (HIT, UNCHANGED)
        return program

    async def missed(self) -> str:
        """It has to be linked, once. Gives the reason."""
        program = await self.twins()
        assert program.outcome is MISS
        await self.hit()
        return program.reason


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.chdir(tmp_path)
    return Shop(tmp_path)


@pytest.mark.parametrize("lto", [None, ThinLto(), FatLto()])
async def test_nothing_changed(shop: Shop, lto: ThinLto | FatLto | None) -> None:
    shop.lto = lto
    first = await shop.twins()
    assert (first.outcome, first.reason) == (MISS, "not built before")
    os.utime(shop.output, (0, 0))
    again = await shop.hit()
    assert again.inode == first.inode
    assert again.modified > first.modified  # make sees it as new
    assert again.result.diagnostics == first.result.diagnostics


@pytest.mark.parametrize("damage", ["edited", "removed", "stripped", "replaced", "locked", "shared"])
async def test_the_output_changed(shop: Shop, damage: str) -> None:
    first = await shop.twins()
    output = Path(shop.output)
    if damage == "edited":
        output.write_bytes(first.content[:-1] + bytes([first.content[-1] ^ 1]))
    elif damage == "removed":
        output.unlink()
    elif damage == "stripped":
        output.write_bytes(first.content[: len(first.content) // 2])
    elif damage == "locked":
        output.chmod(0o644)
    elif damage == "shared":
        Path("kept").hardlink_to(output)
    else:
        output.unlink()
        output.symlink_to("../lib/libhelper.a")
        archived = Path("lib/libhelper.a").read_bytes()
    assert (await shop.link()).outcome is MISS
    assert output.stat().st_mode & 0o100
    assert output.stat().st_nlink == 1
    if damage == "replaced":
        assert output.is_symlink()  # it stays, as without a cache
        assert Path("lib/libhelper.a").read_bytes() == first.content
        Path("lib/libhelper.a").write_bytes(archived)
        output.unlink()
        shop.settle()
        assert (await shop.link()).outcome is MISS
    assert (await shop.hit()).content == first.content


async def test_a_directory_in_the_outputs_place(shop: Shop) -> None:
    await shop.twins()
    Path(shop.output).unlink()
    Path(shop.output).mkdir()
    with pytest.raises(BuildFailed, match="it is a directory"):
        await shop.link()
    Path(shop.output).rmdir()
    await shop.missed()


def add(*arguments: str) -> Callable[[Shop], None]:
    def change(shop: Shop) -> None:
        shop.arguments += arguments

    return change


def edit_library(shop: Shop) -> None:
    shop.helper(OTHER_HELPER)


def add_library_before(shop: Shop) -> None:
    shop.helper(OTHER_HELPER, "first/libhelper.a")


def edit_module(shop: Shop) -> None:
    shop.sources["twice"] = "int twice(int x) { return 3 * x; }"


def add_module(shop: Shop) -> None:
    shop.sources["more"] = "int more;"


def change_order(shop: Shop) -> None:
    shop.sources = dict(reversed(shop.sources.items()))


def add_input(shop: Shop) -> None:
    shop.inputs = (shop.helper(OTHER_HELPER, "given/libfirst.a"),)


def export(shop: Shop) -> None:
    shop.exports = ("twice",)


CHANGES: Mapping[str, tuple[Callable[[Shop], None], str]] = {
    "a library": (edit_library, "linked again because the library `libhelper.a` changed"),
    "a library that is found before": (add_library_before, "linked again because the library `libhelper.a` changed"),
    "a module": (edit_module, "linked again because the code of `twice` changed"),
    "one more module": (add_module, "linked again because the module `more` was added"),
    "the order of modules": (change_order, "linked again because the order of its modules changed"),
    "an input": (add_input, "the library `libfirst.a` is used now"),
    "exports": (export, "`--export-dynamic-symbol-list`"),
    "an argument": (add("-Wl,-z,now"), "linked again because -z=now was added"),
    "a path in the output": (add("-Wl,-rpath,/somewhere"), "linked again because -rpath=/somewhere was added"),
    "what shows in the output only": (add("-Wl,--build-id=md5"), "--build-id=md5 was added"),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_something_changed(shop: Shop, name: str) -> None:
    change, words = CHANGES[name]
    first = await shop.twins()
    before = shop.sources, shop.arguments, shop.inputs, shop.exports
    shop.sources = {**shop.sources}
    change(shop)
    assert words in await shop.missed()
    # What is in its place now was made of other things.
    shop.sources, shop.arguments, shop.inputs, shop.exports = before
    shutil.rmtree("first", ignore_errors=True)
    shop.helper(HELPER)
    again = await shop.twins()
    assert again.outcome is MISS
    assert again.content == first.content


async def test_what_makes_no_difference_is_found_again(shop: Shop) -> None:
    first = await shop.twins()
    shop.arguments += ("-Wl,--lto-O1",)  # there is no bitcode
    assert "--lto-O=1 was added" in await shop.missed()
    shop.arguments = shop.arguments[:-1]
    again = await shop.link()
    assert (again.outcome, again.content) == (HIT, first.content)
    shop.arguments += ("-Wl,--threads=1",)
    await shop.hit()


@pytest.mark.parametrize(
    "arguments",
    [
        ("-Wl,-Map=report",),
        ("-Wl,--dependency-file=report",),
        ("-Wl,--why-extract=report",),
        ("-Wl,--time-trace=report",),
        ("-Wl,--reproduce,report",),
    ],
)
async def test_what_is_to_be_written_besides_is_written_each_time(shop: Shop, arguments: tuple[str, ...]) -> None:
    shop.arguments += arguments
    for _ in range(2):
        program = await shop.link()
        assert program.outcome is OFF
        assert arguments[0].removeprefix("-Wl,").partition("=")[0].partition(",")[0] in program.reason
        Path("report").unlink()
    shop.arguments = shop.arguments[:-1]
    await shop.missed()


async def test_who_wants_to_see_what_is_read_sees_it_each_time(shop: Shop) -> None:
    await shop.twins()
    shop.arguments += ("-Wl,--verbose",)
    for _ in range(2):
        program = await shop.link()
        assert program.outcome is OFF
        assert any("lib/libhelper.a" in str(one) for one in program.result.diagnostics)


async def test_warnings_are_told_again(shop: Shop) -> None:
    shop.arguments += ("-Wl,-z,nonsense", "-Wl,--icf=all")
    first = await shop.twins()
    assert [one.message for one in first.result.diagnostics] == ["ld.lld: warning: unknown -z value: nonsense"]
    again = await shop.hit()
    assert again.result.diagnostics == first.result.diagnostics


async def test_a_link_that_fails_is_not_remembered(shop: Shop) -> None:
    first = await shop.twins()
    shop.helper("int something_else;")
    for _ in range(2):
        with pytest.raises(BuildFailed, match="undefined symbol: helper"):
            await shop.link()
    shop.helper(HELPER)
    again = await shop.link()
    assert (again.outcome, again.inode) == (HIT, first.inode)  # the failed one has left it there


async def test_outputs_in_two_places(shop: Shop) -> None:
    outcomes = []
    for output in ("one/program", "two/program", "one/program", "two/program", "two/other", "two/other"):
        shop.output = output
        outcomes.append((await shop.twins()).outcome)
    assert outcomes == [MISS, MISS, HIT, HIT, MISS, HIT]


async def test_static_libraries_are_made_each_time(shop: Shop) -> None:
    shop.kind, shop.output, shop.arguments = LinkKind.STATIC, "out/libx.a", ()
    for _ in range(2):
        library = await shop.twins()
        assert (library.outcome, library.reason) == (OFF, "a static library is made as quickly as it could be compared")


async def test_shared_libraries(shop: Shop) -> None:
    shop.kind, shop.output = LinkKind.SHARED, "out/libone.so"
    Path("versions").write_text("V1 { global: helper; local: *; };")
    shop.arguments += ("-Wl,--version-script=versions",)
    one = await shop.twins()
    assert await shop.hit()
    # The first version of a library without a name is called after its file.
    shop.output = "out/libtwo.so"
    shutil.copy("out/libone.so", shop.output)
    await shop.missed()
    assert b"libtwo.so" in (await shop.hit()).content
    assert b"libtwo.so" not in one.content
    Path("versions").write_text("V2 { global: helper; local: *; };")
    assert await shop.missed() == "linked again because the file `--version-script` changed"
    shop.arguments += ("-Wl,-soname,libname.so.1",)
    assert "-soname=libname.so.1 was added" in await shop.missed()


def nameless(path: Path) -> Path:
    """A shared library that does not say what it is called."""
    path.parent.mkdir()
    shop = native("int helper(int x) { return x; }", path.with_suffix(".o"), "-mrelocation-model", "pic")
    subprocess.run([zig(), "ld.lld", "-shared", str(shop), "-o", str(path)], check=True)
    return path


async def test_a_static_library_that_appears_before_a_shared_one(shop: Shop) -> None:
    Path("lib/libhelper.a").unlink()
    nameless(shop.place / "shared" / "libhelper.so")
    shop.settle()
    shop.arguments = ("-Lfirst", "-Lshared", "-lhelper")
    await shop.twins()
    await shop.hit()
    shop.helper(OTHER_HELPER, "first/libhelper.a")
    assert "`libhelper.a`" in await shop.missed()


async def test_a_library_that_appears_for_a_file_that_an_object_depends_on(shop: Shop) -> None:
    text = '__asm__(".section .deplibs,\\"MS\\",@llvm_dependent_libraries,1\\n.asciz \\"dependence\\"\\n.text");'
    shop.inputs = (native(text, shop.place / "o" / "needing.o"),)
    native(HELPER, shop.place / "dependence")
    shop.settle()
    shop.arguments = ("-Lfirst",)
    await shop.twins()
    await shop.hit()
    shop.helper(OTHER_HELPER, "first/libdependence.a")
    assert "`libdependence.a`" in await shop.missed()


async def test_a_library_without_a_name_is_known_by_its_path(shop: Shop, tmp_path: Path) -> None:
    one = nameless(tmp_path / "one" / "libnameless.so")
    shop.settle()
    shop.inputs = (one,)
    assert bytes(one) in (await shop.twins()).content
    one.parent.rename(tmp_path / "two")
    shop.inputs = (tmp_path / "two" / one.name,)
    await shop.missed()
    assert bytes(shop.inputs[0]) in (await shop.hit()).content
    (tmp_path / "two").rename(tmp_path / "six")
    shop.inputs = ()
    shop.arguments += ("-Wl,--no-as-needed", "six/libnameless.so")
    await shop.missed()
    (tmp_path / "six").rename(tmp_path / "ten")
    shop.arguments = (*shop.arguments[:-1], "ten/libnameless.so")
    await shop.missed()
    assert b"ten/libnameless.so" in (await shop.hit()).content


async def test_a_link_that_reads_its_own_output_is_done_each_time(shop: Shop) -> None:
    shop.kind, shop.output = LinkKind.SHARED, "lib/libself.so"
    shop.sources = {"twice": TWICE}
    await shop.twins()
    shop.arguments = ("-Llib", "-lself")
    for _ in range(3):
        program = await shop.link()
        assert program.outcome is MISS
        assert program.linked.reads is None
        shop.settle()


@needs_cc
async def test_bitcode_that_only_the_last_link_sees(shop: Shop, tmp_path: Path) -> None:
    def bitcode(text: str) -> None:
        archive(tmp_path / "lib" / "libhelper.a", shop.lab.bitcode({"helper": text})["helper"])
        shop.settle()

    bitcode(HELPER)
    first = await shop.twins()
    assert first.outcome is MISS
    await shop.hit()
    bitcode(OTHER_HELPER)
    assert await shop.missed() == "linked again because the library `libhelper.a` changed"
    shop.arguments += ("-Wl,--lto-O0",)
    assert await shop.missed() == "linked again because --lto-O=0 was added"
    shop.arguments += ("-Wl,-mllvm,-stats",)
    program = await shop.link()
    assert program.outcome is OFF
    assert "-stats" in program.reason

"""Layer: end-to-end. `ltod build --lto`: whole programs, what stays visible, and links that fail."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from tests.command import ltod, ltod_json
from tests.samples import compile_c, zig

pytestmark = pytest.mark.e2e

KINDS = pytest.mark.parametrize("lto", ["thin", "thin-local", "fat"])
SOURCES = {
    "main": 'int twice(int); int printf(const char *, ...); int main(void) { printf("%d\\n", twice(21)); return 0; }',
    "twice": "int add(int, int); int twice(int x) { return add(x, x); }",
    "add": "int add(int x, int y) { return x + y; }",
}


@pytest.fixture
def bitcode(place: Path) -> dict[str, Path]:
    return {path.stem: path for path in compile_c(SOURCES, place / "bc")}


def archive(path: str, *members: Path) -> str:
    subprocess.run([zig(), "ar", "qcs", path, *members], check=True)
    return path


def run(program: str) -> str:
    return subprocess.run([Path(program).absolute()], check=True, capture_output=True, text=True).stdout


@KINDS
def test_a_program_is_optimised_across_its_modules_and_runs(bitcode: dict[str, Path], lto: str) -> None:
    answer = ltod_json(*bitcode.values(), "--lto", lto, "--link", "exe", "-o", "prog", "--out-dir", "out")
    assert answer["ok"]
    assert run("prog") == "42\n"
    stages = {item["stage"] for item in answer["items"]}
    compiled = {"thin-link", "thin-backend"} if lto != "fat" else {"fat-link", "fat-codegen"}
    assert stages == {"pre-link", "link"} | compiled


@pytest.mark.parametrize("lto", [[], ["--lto", "thin"], ["--lto", "thin-local"], ["--lto", "fat"]])
def test_the_order_of_inputs_is_the_order_of_the_link(bitcode: dict[str, Path], lto: list[str]) -> None:
    (other,) = compile_c({"other": SOURCES["add"].replace("x + y", "2 * (x + y)")}, Path("bc2"))
    assert ltod("build", other, "--out-dir", "native").returncode == 0
    native, members = archive("libn.a", Path("native/other.o")), archive("libb.a", bitcode["add"])
    mixed = archive("mixed.a", bitcode["twice"], Path("native/other.o"))
    for inputs, answer in (
        ([bitcode["twice"], native, members], "84\n"),
        ([bitcode["twice"], members, native], "42\n"),
        ([mixed, members], "84\n"),
        ([members, mixed], "42\n"),
        ([bitcode["twice"], "native/other.o", members], "84\n"),
    ):
        link = [*lto, "--link", "exe", "-o", "prog", "--out-dir", "out"]
        process = ltod("build", bitcode["main"], *inputs, *link)
        assert process.returncode == 0, process.stderr
        assert run("prog") == answer
    static = ltod("build", "native/other.o", bitcode["main"], native, *lto, "--link", "static", "-o", "all.a")
    assert static.returncode == 0, static.stderr
    made = "fat-lto.0.o" if "fat" in lto else "main.o"
    listed = subprocess.run([zig(), "ar", "t", "all.a"], check=True, capture_output=True, text=True)
    assert listed.stdout.split() == ["other.o", made, "other.o"]


@KINDS
def test_members_of_archives_come_as_they_are_needed(bitcode: dict[str, Path], lto: str) -> None:
    unneeded = compile_c({"other": "int nowhere(void); int other(void) { return nowhere(); }"}, Path("bc2"))
    library = archive("libx.a", bitcode["twice"], bitcode["add"], *unneeded)
    process = ltod("build", bitcode["main"], library, "--lto", lto, "--link", "exe", "-o", "prog", "--out-dir", "out")
    assert process.returncode == 0, process.stderr
    assert run("prog") == "42\n"


@pytest.mark.parametrize("lto", ["thin", "fat"])
def test_a_module_may_stay_out(bitcode: dict[str, Path], lto: str) -> None:
    arguments = ["--lto", lto, "--no-lto", "add", "--link", "exe", "-o", "prog", "--out-dir", "out"]
    answer = ltod_json(*bitcode.values(), *arguments)
    assert [item["module"] for item in answer["items"] if item["stage"] == "codegen"] == ["add"]
    assert run("prog") == "42\n"
    assert ltod("build", *bitcode.values(), "--lto", lto, "--no-lto", "nonesuch").returncode == 2


@pytest.mark.parametrize("lto", ["thin", "fat"])
def test_exports_are_what_a_shared_library_shows(bitcode: dict[str, Path], lto: str) -> None:
    Path("symbols").write_text("# one\ntwice\n\n")
    inputs = [bitcode["twice"], bitcode["add"]]
    shared = ["--lto", lto, "--link", "shared", "-o", "libx.so", "--out-dir", "out"]
    assert ltod("build", *inputs, *shared, "--export-file", "symbols", "--relocation-model", "pic").returncode == 0
    library = ctypes.CDLL(str(Path("libx.so").absolute()))
    assert library.twice(21) == 42
    assert not hasattr(library, "add")
    process = ltod("build", *inputs, *shared, "--export", "nonesuch")
    assert process.returncode == 1
    assert "nonesuch" in process.stderr


@pytest.mark.parametrize("lto", ["thin", "fat"])
def test_symbols_that_are_missing_or_there_twice_are_told_with_their_modules(
    bitcode: dict[str, Path], lto: str
) -> None:
    link = ["--lto", lto, "--link", "exe", "-o", "prog", "--out-dir", "out"]
    missing = ltod("build", bitcode["main"], bitcode["twice"], *link)
    assert missing.returncode == 1
    assert "undefined symbol: add" in missing.stderr
    told = missing.stderr.partition("undefined symbol: add")[2]
    assert "twice" in told
    assert "ld-temp" not in told
    assert "fat-lto" not in told
    # Thin LTO may have moved the code that needs it.
    assert "main" not in told
    (again,) = compile_c({"again": SOURCES["add"]}, Path("bc2"))
    twice = ltod("build", *bitcode.values(), again, *link)
    assert twice.returncode == 1
    assert "duplicate symbol: add" in twice.stderr
    told = twice.stderr.partition("duplicate symbol: add")[2]
    assert "add" in told
    assert "again" in told
    assert not Path("prog").exists()


@KINDS
def test_of_archives_that_define_the_same_only_what_is_needed_counts(bitcode: dict[str, Path], lto: str) -> None:
    others = compile_c({"other": "int add(int x, int y) { return 7; } int more;", "wrong": "int add;"}, Path("bc2"))
    libraries = [archive("liba.a", bitcode["twice"], bitcode["add"]), archive("libb.a", *others)]
    process = ltod(
        "build", bitcode["main"], *libraries, "--lto", lto, "--link", "exe", "-o", "prog", "--out-dir", "out"
    )
    assert process.returncode == 0, process.stderr
    assert run("prog") == "42\n"


@KINDS
def test_symbols_can_be_wrapped(bitcode: dict[str, Path], lto: str) -> None:
    (wrap,) = compile_c(
        {"wrap": "int __real_add(int, int); int __wrap_add(int x, int y) { return __real_add(x, y) + 1; }"}, Path("bc2")
    )
    link = ["--lto", lto, "--link", "exe", "-o", "prog", "--out-dir", "out", "--link-arg", "-Wl,--wrap=add"]
    process = ltod("build", *bitcode.values(), wrap, *link)
    assert process.returncode == 0, process.stderr
    assert run("prog") == "43\n"


@pytest.mark.parametrize("lto", ["thin", "fat"])
def test_a_shared_library_of_nothing_that_is_needed_is_empty(bitcode: dict[str, Path], lto: str) -> None:
    library = archive("libx.a", *bitcode.values())
    process = ltod("build", library, "--lto", lto, "--link", "shared", "-o", "libe.so", "--out-dir", "out")
    assert process.returncode == 0, process.stderr
    assert Path("libe.so").read_bytes().startswith(b"\x7fELF")


@pytest.mark.parametrize("lto", ["thin", "fat"])
def test_fat_objects_are_inputs_again(bitcode: dict[str, Path], lto: str) -> None:
    assert ltod("build", *bitcode.values(), "--emit", "fatobj", "--out-dir", "fat").returncode == 0
    objects = sorted(Path("fat").glob("*.o"))
    process = ltod("build", *objects, "--lto", lto, "--link", "exe", "-o", "prog", "--out-dir", "out")
    assert process.returncode == 0, process.stderr
    assert run("prog") == "42\n"


@KINDS
def test_a_module_whose_name_is_no_text_is_linked(bitcode: dict[str, Path], lto: str) -> None:
    odd = os.fsencode(bitcode["add"].parent) + b"/\xff.bc"
    bitcode["add"].rename(os.fsdecode(odd))
    link = ["--lto", lto, "--link", "exe", "-o", "prog", "--out-dir", "out"]
    process = ltod("build", bitcode["main"], bitcode["twice"], odd, *link)
    assert process.returncode == 0, process.stderr
    assert run("prog") == "42\n"

"""The linker's words in terms of modules, and symbol tables of bitcode. Layer: process."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.test_link import compile_c
from workers.llvm.bitstream import BitcodeError
from workers.llvm.irsymtab import Symbol, read_symbols
from workers.llvm.link_messages import explain_link
from workers.llvm.toolchain import Toolchain, find_toolchain

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the modules of these tests are for x86-64"),
]

BITCODE = ("-flto=full", "-emit-llvm-bc")
NM = shutil.which("llvm-nm-22") or shutil.which("llvm-nm")

SYMBOLS = """
int defined(void) { return 1; }
__attribute__((weak)) int weak(void) { return 2; }
int common;
_Thread_local int local;
int needed(void);
extern int odd __asm__("größe \\\\ of it");
static int hidden(void) { return needed() + odd; }
int (*pointer)(void) = hidden;
__asm__(".globl in_assembly\\nin_assembly: call called_from_assembly");
"""

USER = """
namespace shop { struct Cart { int add(int) const; virtual ~Cart(); }; template <class T> T sum(T); int one(int); }
int visit(shop::Cart *cart) { return cart->add(3) + shop::sum(4) + shop::one(1); }
struct Base { virtual int f(); Base(); }; Base *make() { return new Base; }
extern "C" int plain(int);
extern "C" int _start() { return plain(2) + visit(nullptr) + (make() != nullptr); }
"""
OTHER = """
namespace shop { int one(int); int one(int, int); int one(int, int) { return 1; } }
extern "C" int plain(int);
extern "C" int other() { return plain(3) + shop::one(2); }
"""


@pytest.fixture(scope="module")
def wheel() -> Toolchain:
    return find_toolchain(None, {})


def cplusplus(toolchain: Toolchain, source: str, output: Path, *flags: str) -> Path:
    return compile_c(toolchain, source, output, *(flags or BITCODE), "-x", "c++", "-std=c++17")


def lld(toolchain: Toolchain, *arguments: str) -> bytes:
    assert toolchain.lld is not None
    result = subprocess.run([*toolchain.lld, "--error-limit=0", *arguments], capture_output=True, timeout=60)
    assert result.returncode != 0
    return result.stderr


def test_a_table_says_what_is_defined_and_what_is_needed(wheel: Toolchain, tmp_path: Path) -> None:
    path = compile_c(wheel, SYMBOLS, tmp_path / "symbols.bc", *BITCODE, "-fcommon")
    symbols = {symbol.name: symbol for symbol in read_symbols(path.read_bytes()) or ()}
    none = {"undefined": False, "common": False}
    assert symbols == {
        "defined": Symbol("defined", **none),
        "weak": Symbol("weak", **none),
        "common": Symbol("common", **none | {"common": True}),
        "local": Symbol("local", **none),
        "pointer": Symbol("pointer", **none),
        "hidden": Symbol("hidden", **none | {"local": True}),
        "needed": Symbol("needed", **none | {"undefined": True}),
        "größe \\ of it": Symbol("größe \\ of it", **none | {"undefined": True}),
        "in_assembly": Symbol("in_assembly", **none),
        "called_from_assembly": Symbol("called_from_assembly", **none | {"undefined": True, "called_by_name": True}),
    }


@pytest.mark.skipif(NM is None, reason="there is no llvm-nm")
def test_tables_of_split_units_agree_with_llvm(wheel: Toolchain, tmp_path: Path) -> None:
    for number, flags in enumerate(((), ("-fsplit-lto-unit", "-fwhole-program-vtables", "-fvisibility=hidden"))):
        path = tmp_path / f"{number}.bc"
        cplusplus(wheel, USER, path, "-flto=thin", "-flto-unit", *flags, "-emit-llvm-bc")
        told = subprocess.run([str(NM), str(path)], check=True, capture_output=True, text=True).stdout
        expected = [(line.split()[-1], line.split()[-2] in ("U", "w")) for line in told.splitlines()]
        found = [(symbol.name, symbol.undefined) for symbol in read_symbols(path.read_bytes()) or ()]
        assert sorted(found) == sorted(expected)


def test_tables_that_are_absent_unknown_or_damaged(wheel: Toolchain, tmp_path: Path) -> None:
    data = compile_c(wheel, SYMBOLS, tmp_path / "x.bc", *BITCODE).read_bytes()
    symbols = read_symbols(data)
    assert symbols
    # The table is where its header is: version, then the producer's place in the string table.
    start = next(at for at in range(0, len(data), 4) if table_at(data, at, len(symbols)))
    unknown = data[:start] + struct.pack("<I", 99) + data[start + 4 :]
    assert read_symbols(unknown) is None
    too_many = data[: start + 32] + struct.pack("<I", 1 << 31) + data[start + 36 :]
    assert read_symbols(too_many) is None
    with pytest.raises(BitcodeError):
        read_symbols(data[: start + 8])
    plain = compile_c(wheel, "int x;", tmp_path / "plain.o").read_bytes()
    with pytest.raises(BitcodeError):
        read_symbols(plain)


def table_at(data: bytes, at: int, symbols: int) -> bool:
    words = struct.unpack_from("<9I", data, at) if at + 36 <= len(data) else (0,) * 9
    return words[0] in (3, 4) and words[4] == 1 and words[8] >= symbols and words[7] < len(data)


def test_users_of_undefined_symbols_are_found_behind_lto(wheel: Toolchain, tmp_path: Path) -> None:
    modules = {
        "app/user": cplusplus(wheel, USER, tmp_path / "user.bc"),
        "app/other": cplusplus(wheel, OTHER, tmp_path / "other.bc"),
        "gone": tmp_path / "gone.bc",
        "native": compile_c(wheel, "int plain_2;", tmp_path / "native.o"),
    }
    stderr = lld(wheel, *(str(modules[name]) for name in ("app/user", "app/other")), "-u", "other", "-o", "out")
    text = explain_link(stderr, {"out": "the program"}, modules)
    parts = {part.splitlines()[0]: part for part in text.split("ld.lld: error: ")[1:]}
    users = {
        "plain": ["app/other", "app/user"],
        "shop::Cart::add(int) const": ["app/user"],
        "int shop::sum<int>(int)": ["app/user"],
        "shop::one(int)": ["app/other", "app/user"],
        "operator new(unsigned long)": [],
        "Base::Base()": [],
    }
    assert set(parts) == {f"undefined symbol: {name}" for name in users}
    for name, expected in users.items():
        lines = parts[f"undefined symbol: {name}"].splitlines()
        assert [line for line in lines if "used by" in line] == [f">>> used by module {user}" for user in expected]
    assert "the program.lto.o:(" in text


def test_an_overload_is_not_taken_for_another(wheel: Toolchain, tmp_path: Path) -> None:
    source = 'int f(int); int f(long); extern "C" int g(int x) { return x ? f(1) : f(1L); }'
    modules = {"m": cplusplus(wheel, source, tmp_path / "m.bc")}
    text = explain_link(b"ld.lld: error: undefined symbol: f(int)\n>>> referenced by lto.tmp\n", {}, modules)
    assert "used by" not in text


def test_duplicates_in_bitcode_are_named_by_module(wheel: Toolchain, tmp_path: Path) -> None:
    names: dict[str, str] = {}
    for name in ("lib a/one", "lib b/two"):
        path = compile_c(wheel, "int twin(void) { return 1; }", tmp_path / "in put" / f"{len(names)}.bc", *BITCODE)
        names[str(path)] = name
    text = explain_link(lld(wheel, *names, "-o", "out"), names)
    assert text.splitlines()[:3] == [
        "ld.lld: error: duplicate symbol: twin",
        ">>> defined in lib a/one",
        ">>> defined in lib b/two",
    ]


def test_many_users_and_many_errors_are_counted(wheel: Toolchain, tmp_path: Path) -> None:
    user = compile_c(wheel, "int gone(void); int f(void) { return gone(); }", tmp_path / "user.bc", *BITCODE)
    modules = {f"m{number:02}": user for number in range(9)}
    text = explain_link(b"ld.lld: error: undefined symbol: gone\n>>> referenced by m03:(f)\n", {"m03": "m03"}, modules)
    assert text.splitlines()[2:] == [
        *(f">>> used by module m{number:02}" for number in (0, 1, 2, 4, 5)),
        ">>> used by 3 more modules",
    ]
    line = b"ld.lld: error: undefined symbol: " + b"x" * 100 + b"\n>>> referenced by y\n\n"
    text = explain_link(line * 1000, {})
    shown = text.count("undefined symbol")
    assert 50 < shown < 200
    assert text.splitlines()[-1] == f"... and {1000 - shown} more errors"
    cut = explain_link(line * 500 + b"[... 1234 bytes left out ...]\n" + line * 500, {})
    assert cut.splitlines()[-1] == f"... and more than {1000 - shown} other errors"
    assert len(explain_link(b"y" * 100_000, {})) < 20_000


def test_what_lto_made_gives_way_to_the_modules_that_need_a_symbol() -> None:
    names = {"/t/f0.o": "fat-lto.0", "/t/f1.o": "fat-lto.1", "/t/n.o": "native"}
    stderr = b"""ld.lld: error: undefined symbol: gone
>>> referenced by ld-temp.o
>>>               /t/f0.o:(main)
>>> referenced by b.c:12 (dir/b.c:12)
>>>               /t/f1.o:(twice)
>>> referenced by n.c
>>>               /t/n.o:(natively)
>>> referenced 7 more times
>>> did you mean: gono
>>> defined in: /t/f1.o

ld.lld: error: undefined symbol: synthetic
>>> referenced by ld-temp.o
>>>               /t/f0.o:(main)
"""
    text = explain_link(stderr, names, needs={"gone": ("a", "b")}, made={"fat-lto.0", "fat-lto.1"})
    assert text.splitlines() == [
        "ld.lld: error: undefined symbol: gone",
        ">>> referenced by b.c:12 (dir/b.c:12)",
        ">>> referenced by n.c",
        ">>>               native:(natively)",
        ">>> did you mean: gono",
        ">>> used by module a",
        ">>> used by module b",
        "ld.lld: error: undefined symbol: synthetic",
        ">>> referenced by ld-temp.o",
        ">>>               fat-lto.0:(main)",
    ]


def test_an_importer_is_not_taken_for_the_module_that_needs_a_symbol(wheel: Toolchain, tmp_path: Path) -> None:
    source = "int gone(void); int f(void) { return gone(); }"
    modules = {"user": compile_c(wheel, source, tmp_path / "user.bc", *BITCODE)}
    modules["importer"] = compile_c(wheel, "int f(void); int g(void) { return f(); }", tmp_path / "i.bc", *BITCODE)
    names = {f"/t/{name}.o": name for name in modules}
    stderr = b"""ld.lld: error: undefined symbol: gone
>>> referenced by i.c
>>>               /t/importer.o:(g)
>>> referenced by user.c
>>>               /t/user.o:(f)
>>> referenced by user.c
>>>               /t/user.o:(f)
>>> did you mean: f
>>> defined in: /t/importer.o
"""
    assert explain_link(stderr, names, modules, made=modules).splitlines() == [
        "ld.lld: error: undefined symbol: gone",
        ">>> referenced by user.c",
        ">>>               user:(f)",
        ">>> did you mean: f",
        ">>> defined in: importer",
    ]


def test_names_replace_whole_paths_only() -> None:
    names = {"/t/m/a.o": "a", "/t/m/a.o.1.o": "b", "/t/m": "never", "/t/out": "prog"}
    stderr = b"ld.lld: warning: /t/m/a.o.1.o: /t/m/a.o:(.text) /t/outer /t/m/c.o /t/out\n\n\xff\n"
    assert explain_link(stderr, names) == "ld.lld: warning: b: a:(.text) /t/outer /t/m/c.o prog\n\ufffd"
    assert explain_link(b"", names) == ""
    assert explain_link(b"\n", {}) == ""

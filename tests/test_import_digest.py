"""Layer: process. What of a module matters to those that import from it; that all else does not is seen in links."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from tests.dtlto_site import MAIN, DtltoSite, needs_lld
from tests.samples import zig
from workers.llvm.import_digest import MOST_BYTES, import_digest

pytestmark = pytest.mark.process

SHIM = "int two(int);\nint one(int x) { return two(x) + 1; }\n"
LARGE = f"char room[] = {{{', '.join(str(random.Random(7).randrange(100)) for _ in range(2 * MOST_BYTES))}}};\n"
TWO = "int two(int x) { return x * 7; }\n"


def compiled(place: Path, name: str, text: str, *flags: str) -> bytes:
    (place / name).write_text(text)
    argv = [zig(), "clang", "-c", "--target=x86_64-linux-gnu", "-O2", "-flto=thin", "-fno-sanitize=all", "-w", *flags]
    subprocess.run([*argv, name, "-o", "module.bc"], cwd=place, check=True, timeout=60)
    return (place / "module.bc").read_bytes()


def test_the_name_of_the_source_does_not_matter_and_all_else_does(tmp_path: Path) -> None:
    told = import_digest(compiled(tmp_path, "first.c", SHIM))
    assert told is not None
    for name in ("other.c", "s.c", "a much longer name than the first.c"):
        assert import_digest(compiled(tmp_path, name, SHIM)) == told
    others = {
        "body": compiled(tmp_path, "first.c", SHIM.replace("+ 1", "+ 2")),
        "callee": compiled(tmp_path, "first.c", SHIM.replace("two", "six")),
        "name": compiled(tmp_path, "first.c", SHIM.replace("one", "six")),
        "option": compiled(tmp_path, "first.c", SHIM, "-mno-red-zone"),
        "variable": compiled(tmp_path, "first.c", SHIM + "int counter;\n"),
        "assembly": compiled(tmp_path, "first.c", SHIM + '__asm__(".globl here\\nhere:");\n'),
    }
    digests = {name: import_digest(data) for name, data in others.items()}
    assert None not in digests.values()
    assert len({told, *digests.values()}) == len(digests) + 1


@pytest.mark.parametrize(
    "more",
    [
        "static __attribute__((noinline)) int help(int x) { return two(x); }\nint six(int x) { return help(x); }\n",
        'const char *text(void) { return "text"; }\n',
        "static int state;\nint count(void) { return state++; }\n",
        'static __attribute__((used, alias("one"))) int own(int);\n',
        LARGE,
    ],
    ids=["function", "string", "variable", "aliased", "large"],
)
def test_all_matters_of_what_is_local_or_large(tmp_path: Path, more: str) -> None:
    assert import_digest(compiled(tmp_path, "first.c", SHIM + more)) is None


def test_all_matters_where_a_symbol_is_called_as_the_source(tmp_path: Path) -> None:
    assert import_digest(compiled(tmp_path, "one", SHIM, "-x", "c")) is None
    assert import_digest(compiled(tmp_path, "six", SHIM, "-x", "c")) is not None


def test_all_matters_of_what_is_not_one_whole_module(tmp_path: Path) -> None:
    whole = compiled(tmp_path, "first.c", SHIM)
    told = import_digest(whole)
    assert import_digest(compiled(tmp_path, "first.c", SHIM, "-flto=full")) is None  # without HASH
    for data in (b"", b"BC\xc0\xde", whole[:-400], whole + whole, b"\x7fELF" + bytes(100)):
        assert import_digest(data) is None
    random_bits = random.Random(11)
    for _ in range(300):
        place, bit = random_bits.randrange(len(whole)), 1 << random_bits.randrange(8)
        damaged = bytearray(whole)
        damaged[place] ^= bit
        import_digest(bytes(damaged))  # gives one or none, but is no error
    assert told is not None


@needs_lld
def test_programs_whose_own_modules_differ_in_name_share_what_imports_from_them(place: Path) -> None:
    site = DtltoSite.at(place)
    library = {"main.c": MAIN, "two.c": TWO}
    first = site.same(site.compile({**library, "first.c": SHIM}), says="71\n")
    assert first.counts() == (0, 3)
    second = site.same(site.compile({**library, "of another name.c": SHIM}), says="71\n")
    # The name of its source is in the module's own object.
    assert second.counts() == (2, 1)
    assert site.same(site.compile({**library, "third.c": SHIM.replace("+ 1", "+ 2")}), says="72\n").counts() == (1, 2)

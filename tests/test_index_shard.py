"""ThinLTO indexes are read as LLVM reads them, and rewritten so that LLVM still does. Layer: process."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.samples import TRIPLE, small_c, zig
from workers.llvm.bitstream import BitcodeError
from workers.llvm.index_shard import Index, guid_of, read_index, rewrite_index

pytestmark = pytest.mark.process

ANALYZER = shutil.which("llvm-bcanalyzer-22")
DISASSEMBLER = shutil.which("llvm-dis-22")

needs_analyzer = pytest.mark.skipif(ANALYZER is None, reason="there is no llvm-bcanalyzer-22")
needs_disassembler = pytest.mark.skipif(DISASSEMBLER is None, reason="there is no llvm-dis-22")

COUNT = 5
EXTRA = """
static int hidden_state; int table[4] = {1, 2, 3, 4};
int touch(int x) { hidden_state += table[x & 3]; return hidden_state; }
extern int other(int) __attribute__((alias("touch")));
int walk0(int); int (*pointer)(int) = walk0;
int main(void) { return pointer(3) + other(2) + walk0(4); }
"""


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The combined index of a small program, and the shards of its modules."""
    directory = tmp_path_factory.mktemp("indexes")
    sources = {f"m{number}": small_c(number, COUNT) for number in range(COUNT)} | {"main": EXTRA}
    for name, source in sources.items():
        argv = [zig(), "clang", "-cc1", "-triple", TRIPLE, "-O2", "-flto=thin", "-flto-unit", "-emit-llvm-bc"]
        subprocess.run([*argv, "-x", "c", "-", "-o", f"{name}.bc"], input=source.encode(), check=True, cwd=directory)
    argv = [zig(), "ld.lld", "-e", "main", "--thinlto-index-only", "--save-temps=combinedindex", "-o", "program"]
    subprocess.run([*argv, *(f"{name}.bc" for name in sources)], check=True, cwd=directory)
    found = {name: directory / f"{name}.bc.thinlto.bc" for name in sources}
    return {**found, "combined": directory / "program.index.bc"}


def dump(path: Path) -> str:
    assert ANALYZER is not None
    return subprocess.run([ANALYZER, "-dump", str(path)], check=True, capture_output=True, text=True).stdout


def numbers(line: str) -> list[int]:
    """A record's operands; the tool prints them as signed numbers of 64 bits."""
    return [int(number) & 0xFFFFFFFFFFFFFFFF for number in re.findall(r"op\d+=(-?\d+)", line)]


@needs_analyzer
def test_it_reads_what_llvm_reads(indexes: dict[str, Path]) -> None:
    for path in indexes.values():
        index = read_index(path.read_bytes())
        text = dump(path)
        assert [list(module.hash) for module in index.modules] == [
            numbers(line) for line in text.splitlines() if "<HASH " in line
        ]
        assert [module.path.decode() for module in index.modules] == re.findall(
            r"<ENTRY .*record string = '(.*)'", text
        )
        guids = {}
        rows = []
        for line in text.splitlines():
            values = numbers(line)
            if "<VALUE_GUID" in line:
                guids[values[0]] = values[1] << 32 | values[2]
            elif re.search("<COMBINED_(PROFILE|GLOBALVAR_INIT_REFS|ALIAS|[0-9]+)? ?", line) and "ORIGINAL" not in line:
                rows.append((values[1], values[0], bool(values[2] & 0x40)))
        assert rows
        assert [(row.module, row.guid, row.dso_local) for row in index.summaries] == [
            (module, guids[value], local) for module, value, local in rows
        ]


def test_uses_are_calls_references_and_aliases(indexes: dict[str, Path]) -> None:
    index = read_index(indexes["combined"].read_bytes())
    uses = {row.guid: row.uses for row in index.summaries}
    assert guid_of("walk0") in uses[guid_of("main")]
    assert uses[guid_of("other")] == {guid_of("touch")}
    assert uses[guid_of("pointer")] == {guid_of("walk0")}
    assert guid_of("table") in uses[guid_of("touch")]
    assert guid_of(b"walk0") == guid_of("walk0")


def facts(index: Index) -> list[tuple[int, int, bool, frozenset[int]]]:
    return [(row.module, row.guid, row.dso_local, row.uses) for row in index.summaries]


@pytest.mark.parametrize("locals_", [[], [7], [guid_of(f"symbol{number}") for number in range(300)]])
def test_a_rewritten_index_says_the_same_and_more(locals_: list[int], indexes: dict[str, Path], tmp_path: Path) -> None:
    for name, path in indexes.items():
        data = path.read_bytes()
        index = read_index(data)
        paths = {module.id: b"x" * (module.id * 37) + b"/m \xff" for module in index.modules}
        owner = index.modules[-1].id
        new = rewrite_index(data, index.frame, paths, locals_, owner)
        assert len(new) % 4 == 0
        again = read_index(new)
        assert [(module.id, module.path, module.hash) for module in again.modules] == [
            (module.id, paths[module.id], module.hash) for module in index.modules
        ]
        assert facts(again)[: len(locals_)] == [(owner, guid, True, frozenset()) for guid in locals_]
        assert facts(again)[len(locals_) :] == facts(index)
        same = rewrite_index(new, again.frame, {module.id: module.path for module in index.modules})
        assert facts(read_index(same)) == facts(again)
        if ANALYZER is not None:
            (tmp_path / name).write_bytes(new)
            text = dump(tmp_path / name)
            assert text.count("<COMBINED_") == dump(path).count("<COMBINED_") + len(locals_)


@needs_disassembler
def test_llvm_takes_a_rewritten_index_for_an_index(indexes: dict[str, Path], tmp_path: Path) -> None:
    assert DISASSEMBLER is not None
    data = indexes["main"].read_bytes()
    index = read_index(data)
    paths = {module.id: b"renamed-%d.bc" % module.id for module in index.modules}
    (tmp_path / "new.bc").write_bytes(rewrite_index(data, index.frame, paths, [guid_of("elsewhere")], 0))
    argv = [DISASSEMBLER, str(tmp_path / "new.bc"), "-o", "-"]
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert 'path: "renamed-0.bc"' in text
    assert str(guid_of("elsewhere")) in text


def test_what_is_no_index_or_damaged_is_told(indexes: dict[str, Path]) -> None:
    module = indexes["main"].with_name("main.bc").read_bytes()
    for data in (b"", b"BC\xc0\xde", b"\x7fELF", module):
        with pytest.raises(BitcodeError):
            read_index(data)
    data = indexes["main"].read_bytes()
    for size in range(0, len(data), 4):
        with suppress(BitcodeError):
            assert facts(read_index(data[:size])) == facts(read_index(data))
    pick = random.Random(3)
    survived = 0
    for _ in range(1500):
        damaged = bytearray(data)
        damaged[pick.randrange(4, len(data))] ^= 1 << pick.randrange(8)
        try:
            index = read_index(bytes(damaged))
            paths = {one.id: b"path" for one in index.modules}
            rewrite_index(bytes(damaged), index.frame, paths, [1, 2], 0)
            survived += 1
        except BitcodeError:
            pass
    assert 0 < survived < 1500


def test_another_version_is_refused(indexes: dict[str, Path]) -> None:
    data = bytearray(indexes["main"].read_bytes())
    index = read_index(bytes(data))
    # The version record comes first: abbreviation id, code, number of values, value.
    at = index.frame.summaries.start + index.frame.summaries.width + 12
    word = int.from_bytes(data, "little") ^ (12 ^ 13) << at
    with pytest.raises(BitcodeError, match="version 13"):
        read_index(word.to_bytes(len(data), "little"))

"""Process layer: programs that must not be split by fat LTO, and are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fat_bench import Bench, compiled, ran
from workers.fat import FatLinked
from workers.llvm import fat_options
from workers.llvm.fat_ties import Ties
from workers.llvm.irsymtab import read_symbols
from workers.work import CodegenOptions

pytestmark = pytest.mark.process

ASSEMBLY = '__asm__("local: ret\\n"); void called(void) { __asm__("call local"); }'
CALLED_BY_NAME = """
static int __attribute__((used)) helper(int x) { return x + 1; }
int called(int x) { int r; __asm__("call helper" : "=a"(r) : "D"(x)); return r; }
"""
VERSIONED = '__asm__(".symver old,called@V1"); int old(void) { return 1; }'
BOUNDED = '__attribute__((section("set"), used)) static int member = 5;'
BOUNDED_CODE = '__attribute__((section("hot"))) int called(int x) { return x; }'
ORDERED = '__attribute__((section(".init_array"), used)) static void (*start)(void) = 0;'
SET = """
int putchar(int);
static int call(void) {{ putchar('0' + {0}); return {0}; }}
__attribute__((used, section("set"))) static int (*member)(void) = call;
"""
WALK = """
extern int (*__start_set[])(void), (*__stop_set[])(void);
int main(void) { for (int (**one)(void) = __start_set; one < __stop_set; one++) (*one)(); return 42; }
"""


def why(directory: Path, *texts: str) -> str | None:
    ties = Ties()
    for number, text in enumerate(texts):
        content = compiled(text, directory / f"{number}.bc", "full").read_bytes()
        ties.add(f"m{number}", content, read_symbols(content) or ())
    return ties.why()


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ((ASSEMBLY,), "m0 has assembly beside its functions"),
        ((CALLED_BY_NAME,), "assembly in m0 may call helper"),
        ((VERSIONED,), "m0 has assembly"),
        ((BOUNDED,), "section set, whose bounds have names"),
        ((BOUNDED_CODE,), "section hot"),
        ((ORDERED, ORDERED), "order of variables in the section .init_array may matter, of m0 and m1"),
        ((ORDERED + ORDERED.replace("start", "again"),), "section .init_array may matter, of m0"),
    ],
)
def test_what_holds_a_program_together(tmp_path: Path, texts: tuple[str, ...], words: str) -> None:
    assert words in (why(tmp_path, *texts) or "")


@pytest.mark.parametrize(
    "text",
    [
        "int puts(const char *); static int count; int f(int x) { return x + count++ + puts(__func__); }",
        '__attribute__((section(".text.cold"))) int f(int x) { return x; }',
        '__attribute__((section(".data.a"))) int a = 1; __attribute__((section(".data.a"))) int b = 2;',
        '__attribute__((constructor)) void f(void) {} int g(int x) { __asm__("nop" : "+r"(x)); return x; }',
        '__attribute__((used)) static const char identity[] = "file.c 1.1";',
        ORDERED,
    ],
)
def test_what_does_not(tmp_path: Path, text: str) -> None:
    assert why(tmp_path, text) is None


async def test_a_set_keeps_its_order(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fat_options, "_PARTITION_BYTES", 64)
    sources = {"walk": WALK} | {f"m{number}": SET.format(number) for number in range(8)}
    files = await bench.files(sources, CodegenOptions())
    item = bench.link(files, link=bench.program())
    merged, _ = await bench.merge(item)
    assert isinstance(merged, FatLinked), merged
    assert (merged.partitions, merged.diagnostics) == (1, ())
    assert await bench.run(item) == 42
    assert item.link is not None
    assert ran(item.link.output).stdout == b"01234567"


async def test_who_wants_it_split_is_warned(bench: Bench) -> None:
    files = await bench.files({"walk": WALK, "m": SET.format(1)}, CodegenOptions())
    merged, _ = await bench.merge(bench.link(files, link=bench.program(), partitions=2))
    assert isinstance(merged, FatLinked), merged
    assert merged.partitions == 2
    (warning,) = merged.diagnostics
    assert "section set" in warning.message


async def test_others_are_split(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fat_options, "_PARTITION_BYTES", 64)
    names = [f"f{number}" for number in range(8)]
    body = "int {0}(int x) {{ for (int i = 0; i < x; i++) x += {0}(i) ^ i; return x; }}"
    files = await bench.files({name: body.format(name) for name in names}, CodegenOptions())
    merged, _ = await bench.merge(bench.link(files))
    assert isinstance(merged, FatLinked), merged
    assert merged.partitions > 1

"""Layer: process (llvmlite and LLVM's tools make and read the bitcode). Headers are read right, damage is refused."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import binding as llvm

from workers.llvm.bitcode import BitcodeError, Header, check_whole, producer_major, read_header
from workers.llvm.bitstream import BitCursor, Record
from workers.llvm.content import open_file
from workers.llvm.textir import looks_like_ir, read_text_header

pytestmark = pytest.mark.process

LAYOUT = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128"
TEXT = f"""; ModuleID = 'somewhere else'
source_filename = "dir/a \\22file\\22.c"
target datalayout = "{LAYOUT}"
target triple = "x86_64-unknown-linux-gnu"

%pair = type {{ i32, ptr }}
@table = global [4 x i32] zeroinitializer
@hidden = internal constant i8 -1

declare i32 @elsewhere(i32)

define i32 @twice(i32 %x) {{
  %y = call i32 @elsewhere(i32 %x)
  %z = add i32 %y, %y
  ret i32 %z
}}
"""


@cache
def bitcode(text: str = TEXT) -> bytes:
    with llvm.parse_assembly(text) as module:
        return bytes(module.as_bitcode())


def tool(name: str) -> str:
    """An LLVM tool of the system, for comparison."""
    found = shutil.which(f"{name}-22") or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path, stdin: bytes | None = None) -> bytes:
    return subprocess.run(command, input=stdin, capture_output=True, check=True, timeout=60).stdout


def test_the_header_of_a_module() -> None:
    data = bitcode()
    header = read_header(data)
    assert header == Header(
        triple="x86_64-unknown-linux-gnu",
        data_layout=LAYOUT,
        source_filename='dir/a "file".c',
        producer=header.producer,
        size=len(data),
        code_bytes=header.code_bytes,
    )
    assert 0 < header.code_bytes < len(data)
    assert producer_major(header.producer) == llvm.llvm_version_info[0]


def test_a_module_that_says_nothing() -> None:
    header = read_header(bitcode("@x = global i32 1\n"))
    assert (header.triple, header.data_layout, header.module_count) == ("", "", 1)


def test_every_form_of_bytes_gives_the_same(tmp_path: Path) -> None:
    data = bitcode()
    file = tmp_path / "m.bc"
    file.write_bytes(data)
    with open_file(file) as view:
        assert read_header(view) == read_header(data) == read_header(memoryview(data))


def test_a_module_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    text = "".join(
        f"declare void @d{number}(i64)\ndefine i32 @f{number}(i32 %x) {{\n"
        f"  %y = mul i32 %x, {number}\n  ret i32 %y\n}}\n"
        for number in range(4000)
    )
    data = bitcode(TEXT + text)
    assert len(data) > 4 << 16
    file = tmp_path / "m.bc"
    file.write_bytes(data)
    with open_file(file) as view:
        assert read_header(view).source_filename == 'dir/a "file".c'
    for cut in (len(data) - 4, len(data) // 2, 70_000):
        file.write_bytes(data[:cut])
        with open_file(file) as view, pytest.raises(BitcodeError):
            read_header(view)


def test_the_wrapper_of_darwins_tools() -> None:
    data = bitcode()
    wrapper = b"\xde\xc0\x17\x0b" + b"".join(n.to_bytes(4, "little") for n in (0, 20, len(data), 7))
    assert read_header(wrapper + data).triple == "x86_64-unknown-linux-gnu"
    assert read_header(wrapper + data + b"\0" * 12).triple == "x86_64-unknown-linux-gnu"
    for damaged in (wrapper + data[:-4], wrapper[:12], wrapper.replace(b"\x14", b"\x13") + data):
        with pytest.raises(BitcodeError):
            read_header(damaged)


@pytest.mark.parametrize("padding", [b"\0", b"\0" * 4, b"\0" * 4096, b"\n", b"\n" * 7])
def test_padding_behind_the_end_is_allowed(padding: bytes) -> None:
    check_whole(bitcode() + padding)
    assert read_header(bitcode() + padding).module_count == 1


def test_other_bytes_behind_the_end_are_not() -> None:
    for rest in (b"\1", b"trailing garbage", b"\0\0\0\0\1"):
        with pytest.raises(BitcodeError):
            read_header(bitcode() + rest)


def test_joined_files_are_recognised() -> None:
    for check in (read_header, check_whole):
        with pytest.raises(BitcodeError, match="second bitcode file"):
            check(bitcode() + b"\0" * 8 + bitcode())


def test_every_truncation_is_recognised() -> None:
    data = bitcode()
    for size in range(len(data)):
        with pytest.raises(BitcodeError):
            read_header(data[:size])


def test_a_quick_check_notices_truncation_within_any_block() -> None:
    data = bitcode()
    unnoticed = 0
    for size in range(len(data)):
        try:
            check_whole(data[:size])
        except BitcodeError:
            continue
        unnoticed += 1
    # Only where one of the last blocks (strings, symbols) is missing as a whole, to the byte.
    assert unnoticed <= 3


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_bytes_give_a_header_or_a_clear_error(flips: list[tuple[int, int]]) -> None:
    data = bytearray(bitcode())
    for position, value in flips:
        data[position % len(data)] = value
    try:
        header = read_header(bytes(data))
    except BitcodeError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert header.module_count >= 1


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_is_refused(garbage: bytes) -> None:
    for data in (garbage, b"BC\xc0\xde" + garbage, bitcode()[:8] + garbage):
        with pytest.raises(BitcodeError):
            read_header(data)


class Bits:
    """Writes a bitstream, for damage that flips of bytes will not find."""

    def __init__(self) -> None:
        self._bits = ""

    def fixed(self, value: int, width: int) -> Bits:
        self._bits += f"{value:0{width}b}"[::-1]
        return self

    def vbr(self, value: int, width: int) -> Bits:
        while value >> (width - 1):
            self.fixed(value & ((1 << width - 1) - 1) | 1 << width - 1, width)
            value >>= width - 1
        return self.fixed(value, width)

    def bytes(self) -> bytes:
        bits = self._bits + "0" * (-len(self._bits) % 32)
        return int(bits[::-1] or "0", 2).to_bytes(len(bits) // 8, "little")


def module_block(body: bytes, width: int = 3) -> bytes:
    head = Bits().fixed(1, 2).vbr(8, 8).vbr(width, 4).bytes()
    return b"BC\xc0\xde" + head + (len(body) // 4).to_bytes(4, "little") + body


RECORD, DEFINE, TRIPLE = 3, 2, 2


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"\xff" * 64, "abbreviation that nothing defines"),
        (Bits().fixed(RECORD, 3).vbr(TRIPLE, 6).vbr(1 << 40, 6).bytes(), "values"),
        (Bits().fixed(RECORD, 3).vbr(99, 6).vbr(1 << 40, 6).bytes(), "run over it"),
        (Bits().fixed(RECORD, 3).vbr(TRIPLE, 6).vbr(1, 6).fixed((1 << 200) - 1, 200).bytes(), "has no end"),
        (Bits().fixed(RECORD, 3).vbr(99, 6).vbr(1, 6).fixed((1 << 200) - 1, 200).bytes(), "has no end"),
        (Bits().fixed(DEFINE, 3).vbr(1 << 60, 5).bytes(), "operands"),
        (Bits().fixed(DEFINE, 3).vbr(0, 5).bytes(), "makes no record"),
        (Bits().fixed(DEFINE, 3).vbr(1, 5).fixed(0, 1).fixed(3, 3).bytes(), "makes no record"),
        (Bits().fixed(DEFINE, 3).vbr(1, 5).fixed(0, 1).fixed(2, 3).vbr(1, 5).bytes(), "operand of 1 bits"),
        (Bits().fixed(DEFINE, 3).vbr(1, 5).fixed(0, 1).fixed(1, 3).vbr(99, 5).bytes(), "operand of 99 bits"),
        (Bits().fixed(DEFINE, 3).vbr(1, 5).fixed(0, 1).fixed(7, 3).bytes(), "unknown encoding 7"),
        (Bits().fixed(1, 3).vbr(12, 8).vbr(1, 4).bytes() + b"\1\0\0\0", "abbreviation ids of 1 bits"),
        (Bits().fixed(1, 3).vbr(12, 8).vbr(4, 4).bytes() + b"\xff" * 4, "cut off"),
        (b"", "run over it"),
    ],
)
def test_hostile_contents_are_refused_with_a_reason(body: bytes, complaint: str) -> None:
    with pytest.raises(BitcodeError, match=complaint):
        read_header(module_block(body))


def test_records_in_all_encodings_are_read_and_skipped() -> None:
    bits = Bits()
    # Five abbreviations: literal code, then fixed + VBR; an array of fixed; of char6; of VBR; a blob.
    shapes: list[list[tuple[int, int | None]]] = [
        [(1, 9), (2, 6)], [(3, None), (1, 7)], [(3, None), (4, None)], [(3, None), (2, 5)], [(5, None)]
    ]  # fmt: skip
    for code, shape in enumerate(shapes, 40):
        bits.fixed(DEFINE, 5).vbr(len(shape) + 1, 5).fixed(1, 1).vbr(code, 8)
        for encoding, width in shape:
            bits.fixed(0, 1).fixed(encoding, 3)
            if width is not None:
                bits.vbr(width, 5)
    expected = []
    for _ in range(2):
        bits.fixed(4, 5).fixed(300, 9).vbr((1 << 64) - 1, 6)
        bits.fixed(5, 5).vbr(3, 6).fixed(65, 7).fixed(66, 7).fixed(127, 7)
        bits.fixed(6, 5).vbr(2, 6).fixed(0, 6).fixed(63, 6)
        bits.fixed(7, 5).vbr(2, 6).vbr(1000, 5).vbr(1, 5)
        bits.fixed(RECORD, 5).vbr(50, 6).vbr(3, 6).vbr(31, 6).vbr((1 << 64) - 1, 6).vbr(32, 6)
        expected += [
            Record(40, [300, (1 << 64) - 1]), Record(41, [65, 66, 127]), Record(42, [97, 95]),
            Record(43, [1000, 1]), Record(50, [31, (1 << 64) - 1, 32]),
        ]  # fmt: skip
    bits.fixed(8, 5).vbr(3, 6)
    body = bits.bytes() + b"xyz\0" + Bits().fixed(0, 5).bytes()
    data = module_block(body, width=5)
    expected.append(Record(44, [], blob=(data.index(b"xyz"), 3)))
    for wanted in (set(range(64)), {41, 50}, {44}, set[int]()):
        cursor = BitCursor(data, 0, len(data))
        cursor.pos = 34
        block = cursor.enter()
        items = list(cursor.items(block, frozenset(wanted)))
        assert items == [record for record in expected if record.code in wanted]
        assert cursor.pos == block.end - 27


def test_a_fast_zero_width_array_costs_nothing() -> None:
    bits = Bits().fixed(DEFINE, 3).vbr(3, 5).fixed(1, 1).vbr(99, 8).fixed(0, 1).fixed(3, 3)
    bits.fixed(0, 1).fixed(1, 3).vbr(0, 5).fixed(4, 3).vbr(1 << 50, 6).fixed(0, 3)
    assert read_header(module_block(bits.bytes())).module_count == 1


def test_the_same_as_llvms_own_tools_say(tmp_path: Path) -> None:
    bcanalyzer, disassembler = tool("llvm-bcanalyzer"), tool("llvm-dis")
    data = bitcode()
    dump = run(bcanalyzer, "-dump", "-", stdin=data).decode()
    text = run(disassembler, "-o", "-", "-", stdin=data)
    header, from_text = read_header(data), read_text_header(text)
    assert f"record string = '{header.producer}'" in dump
    assert (header.triple, header.data_layout, header.source_filename) == (
        from_text.triple,
        from_text.data_layout,
        from_text.source_filename,
    )


@pytest.mark.parametrize("level", ["thin", "full"])
def test_summaries_and_split_units_as_clang_writes_them(level: str, tmp_path: Path) -> None:
    clang = tool("clang")
    source = tmp_path / "a.ll"
    source.write_text(TEXT + '@vt = constant ptr @twice, !type !0\n!0 = !{i64 0, !"type"}\n')
    plain, split = tmp_path / "plain.bc", tmp_path / "split.bc"
    base = (clang, "--target=x86_64-unknown-linux-gnu", "-x", "ir", "-c", "-O2", f"-flto={level}", source, "-o")
    run(*base, plain)
    run(*base, split, "-fsplit-lto-unit")
    one, two = read_header(plain.read_bytes()), read_header(split.read_bytes())
    assert one.has_summary
    assert one.module_count == 1
    assert two.has_summary
    assert two.module_count == (2 if level == "thin" else 1)
    assert two.triple == one.triple == "x86_64-unknown-linux-gnu"
    for size in (len(split.read_bytes()) - 4, len(split.read_bytes()) // 2):
        with pytest.raises(BitcodeError):
            read_header(split.read_bytes()[:size])


def test_a_thinlto_index_is_no_module(tmp_path: Path) -> None:
    clang, lto = tool("clang"), tool("llvm-lto")
    (tmp_path / "a.ll").write_text(TEXT)
    module, index = tmp_path / "a.bc", tmp_path / "index"
    target = "--target=x86_64-unknown-linux-gnu"
    run(clang, target, "-x", "ir", "-c", "-O2", "-flto=thin", tmp_path / "a.ll", "-o", module)
    run(lto, "-thinlto", "-o", index, module)
    header = read_header(Path(f"{index}.thinlto.bc").read_bytes())
    assert header.is_index
    assert not read_header(module.read_bytes()).is_index


@pytest.mark.parametrize(
    ("producer", "major"),
    [
        ("LLVM22.1.8", 22),
        ("LLVM23.0.0git", 23),
        ("LLVM22.1.2-rust-1.95.0-stable", 22),
        ("LLVM3.9.1", 3),
        ("APPLE_1_1600.0.26.4_0", None),
        ("zig 0.14.0", None),
        ("", None),
        ("LLVM", None),
    ],
)
def test_the_major_version_of_a_producer(producer: str, major: int | None) -> None:
    assert producer_major(producer) == major


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "; only a comment\n" * 3 + TEXT,
        "/* two\n lines */ ; x\n" + TEXT,
        "; " + "x" * 200_000 + "\n" + TEXT,
        TEXT.replace("target triple =", "target ; odd\n triple/**/="),
        TEXT.replace("x86_64-unknown-linux-gnu", "x86_64\\2Dunknown-linux-gnu"),
        TEXT.replace("\n", "\r\n"),
    ],
)
def test_the_header_of_textual_ir_is_what_llvm_reads(text: str) -> None:
    header = read_text_header(text.encode())
    with llvm.parse_assembly(text) as module:
        assert header.triple == module.triple == "x86_64-unknown-linux-gnu"
        assert header.data_layout == module.data_layout == LAYOUT
        assert header.source_filename == module.source_file
    assert header.size == len(text.encode())
    assert looks_like_ir(text.encode())


def test_textual_ir_without_a_header() -> None:
    assert read_text_header(b'@x = global i32 1\n; target triple = "no"\n').triple == ""
    assert read_text_header(b"").triple == ""


@pytest.mark.parametrize(
    "text",
    [
        "@x = global i32 1",
        "%t = type opaque",
        'module asm "nop"',
        "!llvm.ident = !{}",
        "; ModuleID = 'x'\n",
        "define void @f() {",
        "declare void @f()",
        "$c = comdat any",
        '@"odd name" = global i8 0',
        "attributes #0 = { nounwind }",
        "^0 = module: ()",
    ],
)
def test_text_that_is_ir(text: str) -> None:
    assert looks_like_ir(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "int main(void) { return 0; }",
        "#include <stdio.h>\n",
        "/* C */ int x;",
        "/* C */",
        "define = 3",
        "target: all",
        "hello",
        "!important",
        "@echo off",
        "\0\0\0",
        "; binary \0",
        "package main",
        "\x1f\x8b\x08",
    ],
)
def test_text_that_is_not(text: str) -> None:
    assert not looks_like_ir(text.encode())


def test_text_made_to_be_slow_is_read_in_one_go() -> None:
    # With a pattern that gives back what it matched, any of these takes for ever.
    for text in (b"target" + b" " * 50_000 + b"x", b"target" + b"/**/ " * 10_000, b"target triple" + b";\n" * 20_000):
        assert read_text_header(text).triple == ""

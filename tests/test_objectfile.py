"""Layer: process (clang makes some of the objects). Where bitcode is in objects of every format, damaged ones too."""

from __future__ import annotations

import struct
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_inputs import bitcode, embed, read, source_of
from workers.llvm.objectfile import ObjectError, find_bitcode, object_type

pytestmark = pytest.mark.process


def elf(*sections: tuple[bytes, bytes], order: str = "<", is_64: bool = True) -> bytes:
    """A relocatable object with these sections and no more than it takes."""
    names = b"\0" + b"".join(name + b"\0" for name, _ in sections) + b".shstrtab\0"
    contents = [*(content for _, content in sections), names]
    header_form, section_form = ("HHIQQQIHHHHHH", "IIQQQQIIQQ") if is_64 else ("HHIIIIIHHHHHH", "IIIIIIIIII")
    start = 16 + struct.calcsize(order + header_form)
    table = [struct.pack(order + section_form, *[0] * 10)]
    for name, content in zip((*(name for name, _ in sections), b".shstrtab"), contents, strict=True):
        table.append(
            struct.pack(order + section_form, names.index(name + b"\0"), 1, 0, 0, start, len(content), 0, 0, 1, 0)
        )
        start += len(content)
    stride = len(table[0])
    ident = b"\x7fELF" + bytes([2 if is_64 else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    header = struct.pack(order + header_form, 1, 62, 1, 0, 0, start, 0, 0, 0, 0, stride, len(table), len(table) - 1)
    return ident + header + b"".join(contents) + b"".join(table)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_64", [True, False])
def test_sections_in_every_layout_of_elf(order: str, is_64: bool) -> None:
    data = elf((b".text", b"x"), (b".llvmbc", bitcode("e")), (b".llvm.lto", bitcode("l")), order=order, is_64=is_64)
    place = find_bitcode(data)
    assert place is not None
    assert data[place[0] : sum(place)] == bitcode("l")
    assert find_bitcode(elf((b".text", b"x"), order=order, is_64=is_64)) is None
    assert find_bitcode(elf((b".rela.llvmbc", bitcode()), (b".llvmbcx", bitcode()), order=order, is_64=is_64)) is None


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (elf((b".llvm.lto", b"")), "holds no bitcode"),
        (elf((b".llvm.lto", bitcode()), (b".llvm.lto", bitcode())), "2 sections"),
        (elf((b".llvmbc", bitcode()), (b".llvmbc", bitcode())), "2 sections"),
        (elf((b".llvmbc", bitcode()))[:-1], "cut off"),
        (elf()[:40], "cut off"),
    ],
)
def test_objects_of_no_use(data: bytes, complaint: str) -> None:
    with pytest.raises(ObjectError, match=complaint):
        find_bitcode(data)


def test_modules_joined_by_the_linker_are_refused(tmp_path: Path) -> None:
    (tmp_path / "joined.o").write_bytes(elf((b".llvmbc", bitcode("a") + bitcode("b"))))
    (problem,) = read(tmp_path / "joined.o").problems
    assert "joined, by 'ld -r'" in problem.message


def test_a_coff_object_with_very_many_sections(tmp_path: Path) -> None:
    data = big_coff((b".text", b"x"), (b".llvmbc", bitcode("e")), (b".llvm.lto", bitcode("l")))
    place = find_bitcode(data)
    assert place is not None
    assert data[place[0] : sum(place)] == bitcode("l")
    (tmp_path / "big.obj").write_bytes(data)
    (module,) = read(tmp_path / "big.obj").modules
    assert source_of(module) == "l.c"
    for size in (20, 55, 60, 120):
        with pytest.raises(ObjectError, match="cut off"):
            find_bitcode(data[:size])
    # An import of a DLL's function, in an import library.
    assert find_bitcode(struct.pack("<HHHHIIHH", 0, 0xFFFF, 0, 0x8664, 0, 4, 0, 4) + b"f\0d\0") is None


def big_coff(*sections: tuple[bytes, bytes]) -> bytes:
    """An object with these sections in the form of `/bigobj`."""
    strings, headers, contents = b"", b"", b""
    start = 56 + 40 * len(sections)
    for name, content in sections:
        short = name.ljust(8, b"\0")
        if len(name) > 8:
            short = f"/{4 + len(strings)}".encode().ljust(8, b"\0")
            strings += name + b"\0"
        headers += struct.pack("<8s6I2HI", short, 0, 0, len(content), start + len(contents), 0, 0, 0, 0, 0x100000)
        contents += content
    identifier = bytes.fromhex("c7a1bad1eebaa94baf20faf86aa4dcb8")
    end = start + len(contents)
    header = struct.pack("<HHHHI16s4I3I", 0, 0xFFFF, 2, 0x8664, 0, identifier, 0, 0, 0, 0, len(sections), end, 0)
    return header + headers + contents + struct.pack("<I", 4 + len(strings)) + strings


@cache
def embedded_objects() -> list[bytes]:
    targets = ["arm64-apple-macosx13.0.0", "armv7k-apple-watchos8.0.0", "x86_64-pc-windows-msvc", "wasm32-wasi"]
    with tempfile.TemporaryDirectory() as directory:
        return [embed(Path(directory), "e.o", "all", target).read_bytes() for target in targets]


@settings(max_examples=600, deadline=None)
@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.one_of(st.integers(0, 400), st.integers(0, 1 << 16)), st.integers(0, 255)), max_size=6),
    st.one_of(st.just(0), st.integers(0, 1 << 16)),
)
def test_damaged_objects_of_other_formats(which: int, flips: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(embedded_objects()[which])
    for position, value in flips:
        data[position % len(data)] = value
    data = data[: len(data) - cut % len(data)]
    try:
        object_type(bytes(data))
        place = find_bitcode(bytes(data))
    except ObjectError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert place is None or sum(place) <= len(data)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6), st.integers(0, 1 << 16))
def test_damaged_objects_give_a_place_inside_or_a_clear_error(flips: list[tuple[int, int]], size: int) -> None:
    data = bytearray(elf((b".text", b"x" * 16), (b".llvmbc", b"BC\xc0\xde" + bytes(16))))
    for position, value in flips:
        # Headers and tables, where damage matters.
        data[position % len(data)] = value
    data = data[: len(data) - size % 64]
    try:
        place = find_bitcode(bytes(data))
    except ObjectError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert place is None or sum(place) <= len(data)

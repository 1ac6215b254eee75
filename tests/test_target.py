"""Layer: pure. Triples are cut up as LLVM cuts them, and targets are told apart by named flags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.target import TargetFlags, Triple, parse_triple, same_target

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("triple", "expected"),
    [
        ("x86_64-unknown-linux-gnu", Triple("x86_64", "unknown", "linux", "gnu")),
        ("x86_64-linux-gnu", Triple("x86_64", "", "linux", "gnu")),
        ("x86_64-unknown-linux5.10.0-gnu2.31.0", Triple("x86_64", "unknown", "linux", "gnu")),
        ("aarch64-linux-gnu_ilp32", Triple("aarch64", "", "linux", "gnu_ilp32")),
        ("mips64-unknown-linux-gnuabi64", Triple("mips64", "unknown", "linux", "gnuabi64")),
        ("aarch64-unknown-linux-android21", Triple("aarch64", "unknown", "linux", "android")),
        ("arm64-apple-macosx14.0.0", Triple("arm64", "apple", "macosx", "")),
        ("x86_64-apple-macos13", Triple("x86_64", "apple", "macosx", "")),
        ("arm64-apple-ios17.0-simulator", Triple("arm64", "apple", "ios", "simulator")),
        ("arm64-apple-xros1.0", Triple("arm64", "apple", "visionos", "")),
        ("wasm32-wasi", Triple("wasm32", "", "wasi", "")),
        ("wasm32-wasip1-threads", Triple("wasm32", "", "wasip1", "threads")),
        ("wasm32-unknown-unknown", Triple("wasm32", "unknown", "unknown", "")),
        ("x86_64-pc-windows-msvc19.33.0", Triple("x86_64", "pc", "windows", "msvc")),
        ("x86_64-w64-mingw32", Triple("x86_64", "w64", "windows", "gnu")),
        ("x86_64-pc-win32", Triple("x86_64", "pc", "windows", "")),
        ("powerpc64-ibm-aix7.2.0.0", Triple("powerpc64", "ibm", "aix", "")),
        ("amdgcn-amd-amdhsa", Triple("amdgcn", "amd", "amdhsa", "")),
        ("amdgcn--amdhsa", Triple("amdgcn", "", "amdhsa", "")),
        ("nvptx64-nvidia-cuda", Triple("nvptx64", "nvidia", "cuda", "")),
        ("spirv64", Triple("spirv64", "", "", "")),
        ("arm-none-eabi", Triple("arm", "none", "", "eabi")),
        ("aarch64-unknown-none", Triple("aarch64", "unknown", "none", "")),
        ("x86_64-none", Triple("x86_64", "", "none", "")),
        ("riscv64-unknown-elf", Triple("riscv64", "unknown", "", "elf")),
        ("x86_64-scei-ps4", Triple("x86_64", "scei", "ps4", "")),
        ("", Triple("", "", "", "")),
    ],
)
def test_parts_of_a_triple(triple: str, expected: Triple) -> None:
    assert parse_triple(triple) == expected


@given(st.text(max_size=60))
def test_any_text_is_cut_up_without_an_error(text: str) -> None:
    assert parse_triple(text).arch == text.split("-")[0]
    TargetFlags.from_triple(text)
    assert same_target(text, text)


@pytest.mark.parametrize(
    ("triple", "family"),
    [
        ("x86_64-unknown-linux-gnu", ""),
        ("aarch64-unknown-none-elf", ""),
        ("arm64-apple-macosx14.0.0", "darwin"),
        ("x86_64-apple-darwin", "darwin"),
        ("arm64-apple-ios", "darwin"),
        ("x86_64-pc-windows-msvc", "windows"),
        ("x86_64-w64-mingw32", "windows"),
        ("x86_64-unknown-uefi", "windows"),
        ("wasm32-wasi", "wasm"),
        ("wasm64-unknown-unknown", "wasm"),
        ("powerpc64-ibm-aix7.2", "aix"),
        ("amdgcn-amd-amdhsa", "gpu"),
        ("nvptx64-nvidia-cuda", "gpu"),
        ("spirv64", "gpu"),
        ("", ""),
    ],
)
def test_a_target_is_like_its_family_and_no_other(triple: str, family: str) -> None:
    flags = TargetFlags.from_triple(triple)
    assert {
        "darwin": flags.is_like_darwin,
        "windows": flags.is_like_windows,
        "wasm": flags.is_like_wasm,
        "aix": flags.is_like_aix,
        "gpu": flags.is_like_gpu,
    } == {name: name == family for name in ("darwin", "windows", "wasm", "aix", "gpu")}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("x86_64-unknown-linux-gnu", "x86_64-pc-linux-gnu"),
        ("x86_64-unknown-linux-gnu", "x86_64-unknown-linux5.10.0-gnu2.31.0"),
        ("amd64-unknown-freebsd14.1", "x86_64-unknown-freebsd"),
        ("arm64-apple-macosx14.0.0", "aarch64-apple-darwin23.5.0"),
        ("i386-pc-linux-gnu", "i686-unknown-linux-gnu"),
        ("thumbv7-linux-gnueabihf", "armv7-unknown-linux-gnueabihf"),
        ("x86_64-w64-mingw32", "x86_64-pc-windows-gnu"),
        ("armv7-linux-androideabi21", "armv7-none-linux-android"),
        ("x86_64-unknown-linux", "x86_64-linux-gnu"),
        ("", "x86_64-linux-gnu"),
    ],
)
def test_triples_that_may_be_in_one_program(a: str, b: str) -> None:
    assert same_target(a, b)
    assert same_target(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("x86_64-linux-gnu", "aarch64-linux-gnu"),
        ("x86_64-linux-gnu", "i386-linux-gnu"),
        ("x86_64-linux-gnu", "x86_64-linux-musl"),
        ("x86_64-linux-gnu", "x86_64-linux-gnux32"),
        ("x86_64-linux-gnu", "x86_64-unknown-freebsd"),
        ("x86_64-pc-windows-msvc", "x86_64-pc-windows-gnu"),
        ("arm64-apple-ios17.0", "arm64-apple-ios17.0-simulator"),
        ("powerpc64-linux-gnu", "powerpc64le-linux-gnu"),
    ],
)
def test_triples_that_may_not(a: str, b: str) -> None:
    assert not same_target(a, b)
    assert not same_target(b, a)

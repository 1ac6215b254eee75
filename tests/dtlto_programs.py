"""Small projects that the README's recipes build: each is what a user has before anything of ltod is added."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

__all__ = ["ANSWER", "PROJECTS", "Project"]

ANSWER = "385\n"
"""What every program prints."""

_C = {
    "main.c": """\
#include <stdio.h>

int total(int);

int main(void) {
    printf("%d\\n", total(10));
    return 0;
}
""",
    "total.c": """\
int square(int);

int total(int n) {
    int sum = 0;
    for (int i = 0; i <= n; i++) sum += square(i);
    return sum;
}
""",
    "square.c": "int square(int n) { return n * n; }\n",
}

_MAKEFILE = """\
CFLAGS = -O2

prog: main.o libtotal.a
	$(CC) $(CFLAGS) $(LDFLAGS) $^ -o $@

libtotal.a: total.o square.o
	$(AR) rcs $@ $^
"""

_CMAKE_LISTS = """\
cmake_minimum_required(VERSION 3.13)
project(sample C)
add_library(total STATIC total.c square.c)
add_executable(prog main.c)
target_link_libraries(prog total)
"""

_MESON_BUILD = """\
project('sample', 'c')
total = static_library('total', 'total.c', 'square.c')
executable('prog', 'main.c', link_with: total)
"""

_RUST = {
    "Cargo.toml": """\
[package]
name = "prog"
version = "0.1.0"
edition = "2021"

[dependencies]
total = { path = "total" }
""",
    "build.rs": 'fn main() {\n    println!("cargo:rerun-if-changed=build.rs");\n}\n',
    "src/main.rs": 'fn main() {\n    println!("{}", total::total(10));\n}\n',
    "total/Cargo.toml": '[package]\nname = "total"\nversion = "0.1.0"\nedition = "2021"\n',
    "total/src/lib.rs": "#[inline(never)]\npub fn total(n: u32) -> u32 {\n    (0..=n).map(|i| i * i).sum()\n}\n",
}

_CLANG = ("clang-22", "ld.lld-22")


@frozen
class Project:
    """What a recipe finds, the tools that it takes, and the `program` that it makes.

    Each of `environments` is one way to run the recipe. At least so many `modules` take part in LTO.
    """

    files: Mapping[str, str]
    tools: tuple[str, ...]
    program: str = "prog"
    modules: int = 3
    environments: tuple[Mapping[str, str], ...] = ({},)


PROJECTS = {
    "clang": Project(_C, _CLANG),
    "make": Project({**_C, "Makefile": _MAKEFILE}, (*_CLANG, "make", "llvm-ar-22")),
    "CMake": Project(
        {**_C, "CMakeLists.txt": _CMAKE_LISTS},
        (*_CLANG, "cmake", "make", "ninja"),
        program="build/prog",
        environments=({"CMAKE_GENERATOR": "Unix Makefiles"}, {"CMAKE_GENERATOR": "Ninja"}),
    ),
    "Meson": Project(
        {**_C, "meson.build": _MESON_BUILD}, (*_CLANG, "meson", "ninja", "llvm-ar-22"), program="build/prog"
    ),
    "Cargo, with clang and lld": Project(_RUST, (*_CLANG, "cargo", "rustc"), program="target/release/prog", modules=2),
    "Cargo, with Rust's own lld": Project(_RUST, ("cargo", "rustc", "cc"), program="target/release/prog", modules=2),
    "The wheel's clang and lld": Project(_C, ("gcc",)),
    "The wheel alone": Project(_C, (), modules=10),
    "Options of the distributor": Project(_C, _CLANG),
}
"""What to run each recipe on, by the README's headings."""

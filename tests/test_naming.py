"""Layer: pure. How modules get their names from where they came."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.llvm.naming import Origin, module_names

pytestmark = pytest.mark.pure


def names(*origins: str) -> list[str]:
    """Names of inputs written as a user would write them, `archive(member)` included."""
    parsed = []
    for origin in origins:
        path, _, member = origin.removesuffix(")").partition("(")
        parsed.append(Origin(Path("/w", path), member or None))
    return module_names(parsed)


@pytest.mark.parametrize(
    ("origins", "expected"),
    [
        (["a/b/x.bc", "y.ll"], ["x", "y"]),
        (["c/dec/static_init.bc", "c/enc/static_init.bc", "c/x.bc"], ["dec/static_init", "enc/static_init", "x"]),
        (["x.bc", "sub/x.bc"], ["x", "sub/x"]),
        (["x.bc", "x.ll"], ["x.bc", "x.ll"]),
        (["a/x.bc", "a/x.ll", "b/x.bc"], ["a/x.bc", "a/x.ll", "b/x"]),
        (["libx.a(m.o)", "libx.a(n.o)", "libx.a(m.o)", "libx.a(m.bc)"], ["libx/m", "libx/n", "libx/m.2", "libx/m.3"]),
        (["a/libx.a(m.o)", "b/libx.a(m.o)"], ["a/libx/m", "b/libx/m"]),
        (["libx.a(m.o)", "libx/m.bc", "q/m.bc"], ["libx.a/m.o", "libx/m.bc", "q/m"]),
        (["libx.a(../../etc/m.o)", "libx.a(C:\\obj\\w.obj)", "libx.a(/abs/)"], ["libx/m", "libx/w", "libx/_"]),
        (["..bc", "...", "a/.hidden"], ["..bc", "...", ".hidden"]),
        (["liba.a(..)", "a\nb.bc"], ["liba/__", "a_b"]),
        (["noext", "two.dots.bc"], ["noext", "two.dots"]),
    ],
)
def test_names_are_short_where_unique(origins: list[str], expected: list[str]) -> None:
    assert names(*origins) == expected


def test_a_name_too_long_for_a_file_system_is_cut_and_stays_unique() -> None:
    first, second = names(f"x.a({'m' * 300}1.o)", f"x.a({'m' * 300}2.o)")
    assert first != second
    assert all(len(part) <= 200 for part in (*first.split("/"), *second.split("/")))


PARTS = st.text(st.sampled_from("ab.\0/\\é"), max_size=5)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.lists(PARTS, min_size=1, max_size=3), st.none() | PARTS), max_size=8))
def test_names_are_unique_and_lead_nowhere_else(inputs: list[tuple[list[str], str | None]]) -> None:
    found = module_names([Origin(Path("/", *(part.strip("/") for part in path)), member) for path, member in inputs])
    assert len(set(found)) == len(found) == len(inputs)
    for name in found:
        assert "\0" not in name
        assert not PurePosixPath(name).is_absolute()
        assert not {"", ".", ".."} & set(name.split("/"))


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["w/stdin.bc"], ["w/stdin"]),
        (["w/x/stdin.bc"], ["x/stdin"]),
        (["w/stdin.bc", "w/x/stdin.ll"], ["w/stdin", "w/x/stdin"]),
        (["stdin.bc"], ["stdin.bc"]),
        (["stdin"], ["stdin.2"]),
        (["w/other.bc"], ["other"]),
    ],
)
def test_standard_input_keeps_its_name(files: list[str], names: list[str]) -> None:
    origins = [Origin(Path("/", file)) for file in files]
    assert module_names([Origin(None), *origins]) == ["stdin", *names]
    assert module_names([*origins, Origin(None)]) == [*names, "stdin"]

"""The programs that are built again, and the edits of them: one function body, in two places each.

A leaf has functions that no other module imports. A popular module is the one that most others import from (in the
generated program: all of them). Edits change a constant, to another one each time, and no interface; what comes of them
does the same work, and the programs' own checks hold for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from attrs import evolve, frozen

from coordinator import FatLto, ThinLto
from tests.bench.contestants import LtoSet, pre_linked, real_set, small_set, small_sources
from tests.projects import Form, cache_dir, compile_project, fetch
from tests.recipes import PROJECTS

__all__ = ["LEAF", "POPULAR", "REAL", "Edit", "Subject", "real_subject", "small_subject"]

LEAF = "leaf edit"
POPULAR = "popular edit"


@frozen
class Edit:
    """`bitcode` makes the bitcode of an input as it is after the edit with a number."""

    input: Path
    bitcode: Callable[[int], bytes]

    @contextmanager
    def made(self, number: int) -> Iterator[None]:
        """While this lasts, the input is another."""
        unedited, edited = self.input.read_bytes(), self.bitcode(number)
        assert edited != unedited, "the edit changes nothing"
        self._put(edited)
        try:
            yield
        finally:
            self._put(unedited)

    def _put(self, content: bytes) -> None:
        """As compilers do it, so that nobody sees half of it."""
        new = self.input.with_suffix(".new")
        new.write_bytes(content)
        new.replace(self.input)


@frozen
class Subject:
    """What is built, and its edits by scenario."""

    one: LtoSet
    edits: Mapping[str, Edit]


@frozen
class _Change:
    """A place in a source: `old` becomes `new`, in which `{number}` is another one each time."""

    source: str
    old: str
    new: str

    def of(self, text: str, number: int) -> str:
        assert self.old in text, f"{self.source} is not what it was"
        return text.replace(self.old, self.new.format(number=number))


REAL: Mapping[str, Mapping[str, _Change]] = {
    "brotli": {
        LEAF: _Change("c/enc/literal_cost.c", "prologue_length = 2000;", "prologue_length = 2000 + {number};"),
        POPULAR: _Change(
            "c/enc/memory.c", "m->alloc_func(m->opaque, n);", "m->alloc_func(m->opaque, n + 16 * {number});"
        ),
    },
    "zstd": {
        LEAF: _Change(
            "zstd/lib/compress/zstd_fast.c",
            "kStepIncr = 1 << kSearchStrength;",
            "kStepIncr = (1 << kSearchStrength) + {number};",
        ),
        POPULAR: _Change(
            "zstd/lib/compress/zstd_compress.c",
            "if (r==0) return ERROR(srcSize_wrong);\n    return r;",
            "if (r==0) return ERROR(srcSize_wrong);\n    return r + {number};",
        ),
    },
}


def real_subject(name: str, lto: ThinLto | FatLto, root: Path) -> Subject:
    """A real program, below `root`."""
    # A copy, as it is edited in its place: bitcode knows where its source is.
    sources = root / "sources"
    shutil.copytree(fetch(PROJECTS[name], cache_dir()), sources)
    one = real_set(name, sources, lto, root)
    form = Form.THIN if isinstance(lto, ThinLto) else Form.FAT
    edits = {}
    for scenario, change in REAL[name].items():
        (path,) = (path for path in one.inputs if path.stem == "_".join(Path(change.source).with_suffix("").parts))
        edits[scenario] = Edit(path, cache(partial(_recompiled, name, sources, change, form, root / "edited")))
    return Subject(one, edits)


def _recompiled(name: str, sources: Path, change: _Change, form: Form, scratch: Path, number: int) -> bytes:
    source = sources / change.source
    text = source.read_text()
    source.write_text(change.of(text, number))
    try:
        only = evolve(PROJECTS[name], library=(change.source,), leave_out=(), program=(), drivers={})
        (output,) = compile_project(only, sources, scratch, form)
        return output.read_bytes()
    finally:
        source.write_text(text)


def small_subject(count: int, root: Path) -> Subject:
    """The program of small modules, all of which import from one more, and which has one that nobody imports."""
    sources = small_sources(count)
    main = sources.pop("main").replace(") & 0;", " + leaf(1)) & 0;")
    sources = {name: f"int popular(int);\n{text.replace('p->x', 'popular(p->x)')}" for name, text in sources.items()}
    sources["main"] = f"int leaf(int);\n{main}"
    changes = {
        LEAF: ("leaf", "__attribute__((noinline)) int leaf(int n) {{ return n ^ {number}; }}\n"),
        POPULAR: ("popular", "int popular(int n) {{ return n ^ {number}; }}\n"),
    }
    sources |= {name: text.format(number=0) for name, text in changes.values()}
    one = small_set(sources, root)

    def recompiled(name: str, text: str, number: int) -> bytes:
        (output,) = pre_linked({name: text.format(number=number)}, root / "edited", root / "raw")
        return output.read_bytes()

    paths = {path.stem: path for path in one.inputs}
    edits = {
        scenario: Edit(paths[name], cache(partial(recompiled, name, text)))
        for scenario, (name, text) in changes.items()
    }
    return Subject(one, edits)

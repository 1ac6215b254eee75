"""Forms of real shards: equal ones stand for equal objects, and lld would not compile less. Layer: process."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from attrs import frozen

from tests.edited_program import Program
from tests.samples import zig
from workers.ingredients import Ingredient, IngredientKind
from workers.llvm.bitstream import BitcodeError
from workers.llvm.index_shard import guid_of, index_frame, read_index
from workers.llvm.irsymtab import value_names
from workers.llvm.record_reader import block_records
from workers.llvm.shard_form import Shard, read_shard
from workers.llvm.thin_key import shard_facts
from workers.llvm.thin_plan import LinkIndex, ThinPlan, shard_source
from workers.llvm.written_numbers import number
from workers.thin import ThinCompile
from workers.work import Estimate

pytestmark = pytest.mark.process

ANALYZER = shutil.which("llvm-bcanalyzer-22")
ASSEMBLER = shutil.which("opt-22")

MAIN = "int f(int); int g(int); int main(int c, char **v) { return f(c) + g(c); }"
F = "static int t[4] = {1, 2, 3, 4}; int f(int x) { return t[x & 3] + 5; }"
G = "int g(int x) { return x * 3; } int unused(int x) { return x - 1; }"


@frozen
class Answer:
    """What is known of one module after a link."""

    shard: Shard
    form: str
    ingredients: tuple[Ingredient, ...]
    object: bytes

    def of_kind(self, kind: IngredientKind) -> dict[str, tuple[str, ...]]:
        return {
            one.name: one.symbols or tuple(filter(None, [one.value])) for one in self.ingredients if one.kind is kind
        }


class Link:
    """A program, linked again and again in a directory; modules are compiled when their text has changed."""

    def __init__(self, directory: Path, flags: Sequence[str] = (), suffix: str = "c", line: Sequence[str] = ()) -> None:
        self.directory = directory
        self._flags = flags
        self._suffix = suffix
        self._line = line
        self._texts: dict[str, str] = {}
        (directory / "objects").mkdir(parents=True)
        (directory / "index").mkdir()

    def __call__(self, texts: Mapping[str, str], order: Sequence[str] | None = None) -> dict[str, Answer]:
        running = [self._start(name, text) for name, text in texts.items() if self._texts.get(name) != text]
        assert [process.wait() for process in running] == [0] * len(running)
        self._texts = dict(texts)
        paths = [f"{name}.bc" for name in order or texts]
        self.lld(*paths, "-o", "objects/program", "--lto-obj-path=objects/o")
        self.lld(
            *paths, "-o", "index/program", "--thinlto-index-only=index/list", "--thinlto-prefix-replace=;index/",
            "--save-temps=combinedindex",
        )  # fmt: skip
        return self.answers(paths)

    def answers(self, paths: Sequence[str]) -> dict[str, Answer]:
        files = {path: self.directory / path for path in paths}
        digests = {path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in files.items()}
        names = {path: path.removesuffix(".bc") for path in paths}
        plan = cast(ThinPlan, SimpleNamespace(paths={names[path]: Path(path) for path in paths}, names=names))
        made = {}
        for place, path in enumerate(paths, 1):
            shard = self.directory / "index" / f"{path}.thinlto.bc"
            compile_ = ThinCompile(names[path], files[path], shard, Estimate(1.0, 1), plan)
            facts = shard_facts(shard_source(compile_, plan, self.index()), digests)
            made[names[path]] = Answer(
                read_shard(shard.read_bytes(), path.encode()),
                facts.form_digest,
                facts.ingredients(lambda path: value_names(files[path].read_bytes())),
                (self.directory / f"objects/o{place}").read_bytes(),
            )
        return made

    def index(self) -> LinkIndex:
        return LinkIndex(read_index((self.directory / "index/program.index.bc").read_bytes()))

    def shard(self, name: str) -> bytes:
        return (self.directory / "index" / f"{name}.bc.thinlto.bc").read_bytes()

    def lld(self, *arguments: str) -> None:
        line = [zig(), "ld.lld", "-pie", "-e", "main", "--thinlto-jobs=1", *self._line, *arguments]
        subprocess.run(line, cwd=self.directory, check=True, timeout=60)

    def _start(self, name: str, text: str) -> subprocess.Popen[bytes]:
        source = self.directory / f"{name}.{self._suffix}"
        source.parent.mkdir(exist_ok=True)
        source.write_text(text)
        flags = ["--target=x86_64-linux-gnu", "-O2", "-flto=thin", "-w", "-fno-sanitize=all", *self._flags]
        return subprocess.Popen(
            [zig(), "clang", "-c", *flags, source.name, "-o", f"{Path(name).name}.bc"], cwd=source.parent
        )


def changed(before: Mapping[str, Answer], after: Mapping[str, Answer]) -> set[str]:
    return {name for name in after if name not in before or before[name].form != after[name].form}


def test_edits_change_the_keys_of_exactly_those_that_see_them(tmp_path: Path) -> None:
    link = Link(tmp_path)
    texts = {"main": MAIN, "f": F, "g": G, "other": "int lonely(int x) { return x; }"}
    first = link(texts)
    assert changed(first, link(texts)) == set()
    assert changed(first, link({**texts, "other": "int lonely(int x) { return x + 1; }"})) == {"other"}
    body = link({**texts, "f": F.replace("5", "6")})
    assert changed(first, body) == {"f", "main"}
    assert changed(first, link({**texts, "g": G.replace("- 1", "- 2")})) == {"g", "main"}
    no_import = link({**texts, "main": MAIN.replace(" + g(c)", "")})
    assert changed(first, no_import) == {"main", "g"}  # which is dead now
    alive = link({**texts, "other": "int unused(int); int lonely(int x) { return unused(x); } "
                  "__attribute__((constructor)) void begin(void) { lonely(1); }"})  # fmt: skip
    assert changed(first, alive) == {"other", "g"}
    assert first["g"].of_kind(IngredientKind.SYMBOL) == {"unused": ("dead",)}
    assert alive["g"].of_kind(IngredientKind.SYMBOL) == {}
    assert [answer["g"].of_kind(IngredientKind.EXPORT) for answer in (first, alive)] == [
        {"g": ("g",)},
        {"g": ("g", "unused")},
    ]


def test_ingredients_tell_what_is_imported(tmp_path: Path) -> None:
    main = Link(tmp_path)({"main": MAIN, "f": F, "g": G})["main"]
    assert main.of_kind(IngredientKind.IMPORT) == {"f": ("f", "t"), "g": ("g",)}
    assert main.of_kind(IngredientKind.EXPORT) == {"main": ("main",)}
    names = value_names((tmp_path / "f.bc").read_bytes())
    assert (names[guid_of("f")], names[guid_of("f.c;t")]) == ("f", "t")


def test_names_are_without_the_mark_that_they_are_complete() -> None:
    text = 'define i32 @"\\01another"(i32 %x) { ret i32 %x }\ndeclare void @declared()\n'
    argv = [zig(), "clang", "-c", "-x", "ir", "--target=x86_64-linux-gnu", "-emit-llvm", "-", "-o", "-"]
    bitcode = subprocess.run(argv, input=text.encode(), check=True, capture_output=True).stdout
    assert value_names(bitcode) == {guid_of(name): name for name in ("another", "declared")}


HELPED = """
static int state; static __attribute__((noinline)) int help(int x) { return state += x; }
int f(int x) { return help(x); }
"""


def test_what_others_import_makes_the_list_of_exports_grow(tmp_path: Path) -> None:
    link = Link(tmp_path)
    sources = {"main": "int f(int); int main(int c, char **v) { return c; }", "f": HELPED}
    alone = link(sources)["f"]
    assert alone.of_kind(IngredientKind.EXPORT) == {"f": ()}
    used = link({**sources, "main": sources["main"].replace("return c", "return f(c)")})["f"]
    assert used.of_kind(IngredientKind.EXPORT) == {"f": ("f", "help")}
    assert set(alone.of_kind(IngredientKind.SYMBOL)) == {"f", "help", "state"}
    assert used.of_kind(IngredientKind.SYMBOL) == {}


@pytest.mark.parametrize("flags", [[], ["-g"], ["-fPIC"]])
def test_equal_forms_mean_equal_objects_and_lld_compiles_no_less(tmp_path: Path, flags: list[str]) -> None:
    program = Program(random.Random(5))
    link = Link(tmp_path, flags)
    objects: dict[str, bytes] = {}
    forms: dict[tuple[Ingredient, ...], str] = {}
    ingredients: dict[str, tuple[Ingredient, ...]] = {}
    for round_ in range(6):
        what = program.edit() if round_ else "first"
        texts = program.sources()
        answers = link(texts)
        new = 0
        for name, answer in answers.items():
            new += answer.form not in objects
            assert objects.setdefault(answer.form, answer.object) == answer.object, (what, name)
            assert forms.setdefault(answer.ingredients, answer.form) == answer.form, (what, name)
            assert ingredients.setdefault(answer.form, answer.ingredients) == answer.ingredients, (what, name)
        before = len(list(tmp_path.glob("cache/llvmcache-*")))
        link.lld(*(f"{name}.bc" for name in texts), "-o", "unused", "--thinlto-cache-dir=cache")
        assert new <= len(list(tmp_path.glob("cache/llvmcache-*"))) - before, what


def test_directories_and_the_order_of_inputs_do_not_matter(tmp_path: Path) -> None:
    texts = {"main": MAIN, "f": F, "g": G}
    link = Link(tmp_path / "one")
    first = link(texts)
    again = link(texts, order=["g", "main", "f"])
    assert {name: answer.form for name, answer in first.items()} == {
        name: answer.form for name, answer in again.items()
    }
    moved = Link(tmp_path / "two")
    assert changed(first, moved(texts)) == set()


def test_archive_members_have_the_keys_of_files(tmp_path: Path) -> None:
    link = Link(tmp_path)
    first = link({"main": MAIN, "f": F, "g": G})
    subprocess.run([zig(), "ar", "rc", "lib.a", "f.bc", "g.bc"], cwd=tmp_path, check=True)
    link.lld(
        "main.bc",
        "lib.a",
        "-o",
        "index/program",
        "--thinlto-index-only=index/list",
        "--thinlto-prefix-replace=;index/",
        "--save-temps=combinedindex",
    )
    shard = read_shard(link.shard("main"), b"main.bc")
    digests = {}
    for module in (shard.own, *shard.imports):
        found = re.search(r"(\w+)\.bc", module.file.replace("lib.a", ""))
        assert found
        digests[module.file] = hashlib.sha256((tmp_path / f"{found[1]}.bc").read_bytes()).hexdigest()
    form = shard.form(digests, link.index().missing(b"main.bc", shard.defined()))
    assert hashlib.sha256(form).hexdigest() == first["main"].form


VTABLES = {
    "main": "struct A { virtual int f(int); virtual ~A(); }; A *make(int); "
    "void operator delete(void *, unsigned long) {} "
    "int main(int c, char **) { return make(c)->f(c); }",
    "a": "struct A { virtual int f(int); virtual ~A(); }; int A::f(int x) { return x; } A::~A() {} "
    "static A one; A *other(int); A *make(int c) { return c > 5 ? other(c) : &one; }",
    "b": "struct A { virtual int f(int); virtual ~A(); }; A *other(int c) { return 0; }",
}
VTABLE_FLAGS = ["-fwhole-program-vtables", "-fvisibility=hidden", "-fno-rtti", "-fno-exceptions"]
OVERRIDDEN = (
    "struct A { virtual int f(int); virtual ~A(); }; struct B : A { int f(int x) override { return x + 1; } }; "
    "static B two; A *other(int c) { return &two; }"
)


def test_another_override_changes_who_calls(tmp_path: Path) -> None:
    link = Link(tmp_path, VTABLE_FLAGS, "cpp", ["--unresolved-symbols=ignore-all"])
    first = link(VTABLES)
    second = link({**VTABLES, "b": OVERRIDDEN})
    assert first["main"].shard.types
    assert first["main"].shard.types != second["main"].shard.types
    assert changed(first, second) >= {name for name in first if first[name].object != second[name].object} >= {"main"}


def test_profiles_show(tmp_path: Path) -> None:
    profile = tmp_path / "p.txt"
    keys = []
    for name, count in (("one", 1), ("two", 900000)):
        profile.write_text(
            f"main:{count * 3}:{count}\n 0: {count}\n 0.1: {count} f:{count}\nf:{count}:{count}\n 0: {count}\n"
        )
        link = Link(tmp_path / name, [f"-fprofile-sample-use={profile}", "-gline-tables-only"])
        keys.append({name: answer.form for name, answer in link({"main": MAIN, "f": F, "g": G}).items()})
    assert keys[0]["main"] != keys[1]["main"]


MEMPROF = """
target datalayout = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128"
target triple = "x86_64-unknown-linux-gnu"
define i32 @main() {
  %a = call ptr @foo(), !callsite !0
  %b = call ptr @foo(), !callsite !1
  ret i32 0
}
define ptr @foo() {
  %call = call ptr @bar(), !callsite !2
  ret ptr %call
}
define internal ptr @bar() noinline {
  %call = call ptr @_Znam(i64 10) #1, !memprof !3, !callsite !8
  ret ptr %call
}
declare ptr @_Znam(i64)
attributes #1 = { builtin }
!0 = !{i64 101}
!1 = !{i64 102}
!2 = !{i64 103}
!3 = !{!4, !6}
!4 = !{!5, !"notcold"}
!5 = !{i64 104, i64 103, i64 101}
!6 = !{!7, !"cold"}
!7 = !{i64 104, i64 103, i64 102}
!8 = !{i64 104}
"""


@pytest.mark.skipif(ASSEMBLER is None, reason="there is no opt-22")
@pytest.mark.parametrize("flags", [[], ["--mllvm=-combined-index-memprof-context"]])
def test_memory_profiles_are_understood(tmp_path: Path, flags: list[str]) -> None:
    assert ASSEMBLER is not None
    forms: list[bytes] = []
    for text in (MEMPROF, MEMPROF.replace('"cold"', '"notcold"')):
        link = Link(
            tmp_path / str(len(forms)),
            line=[
                "--unresolved-symbols=ignore-all",
                "--mllvm=-enable-memprof-context-disambiguation",
                "--mllvm=-supports-hot-cold-new",
                *flags,
            ],
        )
        (link.directory / "m.ll").write_text(text)
        subprocess.run([ASSEMBLER, "-thinlto-bc", "m.ll", "-o", "m.bc"], cwd=link.directory, check=True)
        link.lld("m.bc", "-o", "index/program", "--thinlto-index-only=index/list", "--thinlto-prefix-replace=;index/")
        if not forms:
            assert {28, 30} <= {code for code, _, _ in summaries(link.shard("m"))}
        forms.append(read_shard(link.shard("m"), b"m.bc").form({"m.bc": "same"}))
    assert forms[0] != forms[1]


def summaries(shard: bytes) -> list[tuple[int, list[int], list[bytes]]]:
    return list(block_records(shard, index_frame(shard).summaries))


@pytest.mark.skipif(ANALYZER is None, reason="there is no llvm-bcanalyzer-22")
def test_records_are_what_llvm_reads(tmp_path: Path) -> None:
    assert ANALYZER is not None
    c = Link(tmp_path / "c")
    c(Program(random.Random(9)).sources())
    vtables = Link(tmp_path / "cpp", VTABLE_FLAGS, "cpp", ["--unresolved-symbols=ignore-all"])
    vtables(VTABLES)
    count = 0
    for path in [*tmp_path.glob("*/index/*.thinlto.bc"), *tmp_path.glob("*/index/*.index.bc")]:
        text = subprocess.run([ANALYZER, "-dump", str(path)], check=True, capture_output=True).stdout.decode("latin-1")
        inside = text[text.index("<GLOBALVAL_SUMMARY_BLOCK") : text.index("</GLOBALVAL_SUMMARY_BLOCK")]
        want = [list(map(int, re.findall(r"op\d+=(-?\d+)", line))) for line in inside.splitlines()[1:] if "<" in line]
        want = [[value % (1 << 64) for value in values] for values in want]
        got = [values + [number(chunks) for chunks in rest] for _, values, rest in summaries(path.read_bytes())]
        assert got == want
        count += len(got)
    assert count > 500


def test_real_shards_with_flipped_bytes_raise_nothing_else(tmp_path: Path) -> None:
    link = Link(tmp_path)
    link(Program(random.Random(3)).sources())
    rng = random.Random(1)
    digests = {f"m{n:02}.bc": "0" for n in range(12)}
    combined = link.index()
    refused = 0
    for _ in range(2000):
        own = f"m{rng.randrange(12):02}"
        data = bytearray(link.shard(own))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            shard = read_shard(bytes(data[: rng.choice((len(data), rng.randrange(len(data))))]), f"{own}.bc".encode())
            shard.form(digests, combined.missing(shard.own.path, shard.defined()))
        except BitcodeError:
            refused += 1
    assert 0 < refused < 2000

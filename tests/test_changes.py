"""Layer: pure. Why something was made again, in words: each cause, several at once, and ingredients in records."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator._reasons import reason_for
from coordinator._records import ItemRecord
from workers.changes import changes, option_text, what_changed
from workers.ingredients import Ingredient, IngredientKind, decode, encode
from workers.work import CacheOutcome, CacheUse, Step

pytestmark = pytest.mark.pure

K = IngredientKind
OLD, NEW = "a" * 64, "b" * 64


def tool(name: str, version: str, digest: str = OLD) -> Ingredient:
    return Ingredient(K.COMPILER, name, f"{version} {digest}")


def option(name: str, value: str = "") -> Ingredient:
    return Ingredient(K.OPTION, name, value)


def file(name: str, digest: str = OLD) -> Ingredient:
    return Ingredient(K.FILE, name, digest)


def module(name: str, digest: str = OLD) -> Ingredient:
    return Ingredient(K.MODULE, name, digest)


def imports(name: str, *symbols: str, digest: str = OLD) -> Ingredient:
    return Ingredient(K.IMPORT, name, digest, symbols)


def exports(*symbols: str) -> Ingredient:
    return Ingredient(K.EXPORT, "", "", symbols)


def symbol(name: str, words: str) -> Ingredient:
    return Ingredient(K.SYMBOL, name, words)


def summary(digest: str, about: str = "") -> Ingredient:
    return Ingredient(K.SUMMARY, about, digest)


Lists = tuple[list[Ingredient], list[Ingredient]]
SENTENCES: dict[str, Lists] = {
    # The tools
    "the compiler changed (clang 22.1.8 became 22.1.9)": ([tool("clang", "22.1.8")], [tool("clang", "22.1.9", NEW)]),
    "the compiler changed (another build of clang 22.1.8)": (
        [tool("clang", "22.1.8")],
        [tool("clang", "22.1.8", NEW)],
    ),
    "the linker changed (ld.lld 22.1.8 became 23.0.0)": ([tool("ld.lld", "22.1.8")], [tool("ld.lld", "23.0.0")]),
    "ltod changed (another build of ltod)": ([tool("ltod", "")], [tool("ltod", "", NEW)]),
    "it is made with `clang` now, not with `llvmlite`": ([tool("llvmlite", "22")], [tool("clang", "22")]),
    "`ld.lld` is used now": ([], [tool("ld.lld", "22")]),
    "`ld.lld` is no longer used": ([tool("ld.lld", "22")], []),
    # Options
    "-O2 became -O3": ([option("-O", "2")], [option("-O", "3")]),
    "-mllvm -x=1 became -mllvm -x=2": ([option("-mllvm -x=", "1")], [option("-mllvm -x=", "2")]),
    "-target-cpu x86-64 became -target-cpu x86-64-v3": (
        [option("-target-cpu", "x86-64")],
        [option("-target-cpu", "x86-64-v3")],
    ),
    "-g was added": ([option("-O", "2")], [option("-O", "2"), option("-g")]),
    "-g was dropped": ([option("-g")], []),
    "-a, -b and -c were added": ([], [option("-a"), option("-b"), option("-c")]),
    "-a, -b, -c and 2 more options were dropped": ([option(f"-{name}") for name in "abcde"], []),
    "-mllvm -y was added": ([option("-mllvm", "-x")], [option("-mllvm", "-x"), option("-mllvm", "-y")]),
    "the order of its options changed": ([option("-a"), option("-b")], [option("-b"), option("-a")]),
    # Files
    "the profile `p.profdata` changed": ([file("p.profdata")], [file("p.profdata", NEW)]),
    "the profile `p.profdata` is used now": ([], [file("p.profdata")]),
    "the profile `p.profdata` is no longer used": ([file("p.profdata")], []),
    "the profile is now `q.profdata`, not `p.profdata`": ([file("p.profdata")], [file("q.profdata")]),
    "the profile changed": ([file("profile")], [file("profile", NEW)]),
    "the profile is used now": ([], [file("profile")]),
    "the library `libz.so.1` changed": ([file("libz.so.1")], [file("libz.so.1", NEW)]),
    "the libraries `liba.a` and `libb.a` changed": (
        [file("liba.a"), file("libb.a")],
        [file("liba.a", NEW), file("libb.a", NEW)],
    ),
    "the object `crt1.o` changed": ([file("crt1.o")], [file("crt1.o", NEW)]),
    "the file `list.txt` changed": ([file("list.txt")], [file("list.txt", NEW)]),
    "the order of its files changed": ([file("a.o"), file("b.o")], [file("b.o"), file("a.o")]),
    # Code
    "its own code changed": ([module("foo")], [module("foo", NEW)]),
    "the code of `bar` changed": ([module("bar")], [module("bar", NEW)]),
    "the code of `m0`, `m1`, `m2` and 5 more modules changed": (
        [module(f"m{number}") for number in range(8)],
        [module(f"m{number}", NEW) for number in range(8)],
    ),
    "the module `bar` was added": ([module("a")], [module("a"), module("bar", NEW)]),
    "the modules `a` and `b` were removed": ([module("a"), module("b")], []),
    "the module `old` is now called `new`": ([module("old")], [module("new")]),
    "the order of its modules changed": ([module("a"), module("b", NEW)], [module("b", NEW), module("a")]),
    # Imports
    "`foo` imports `bar` from `b.bc`, whose code changed": (
        [imports("b.bc", "bar")],
        [imports("b.bc", "bar", digest=NEW)],
    ),
    "`foo` imports `a`, `b` and `c` from `m`, whose code changed": (
        [imports("m", "c", "b", "a")],
        [imports("m", "a", "b", "c", digest=NEW)],
    ),
    "`foo` imports `a`, `b`, `c` and 2 more functions from `m`, whose code changed": (
        [imports("m", *"abcde")],
        [imports("m", *"abcde", digest=NEW)],
    ),
    "`foo` imports from `b`, whose code changed": ([imports("b")], [imports("b", digest=NEW)]),
    "`foo` imports from `a`, `b` and `c`, whose code changed": (
        [imports(name, "f" + name) for name in "abc"],
        [imports(name, "f" + name, digest=NEW) for name in "abc"],
    ),
    "it now imports `bar` from `b`": ([], [imports("b", "bar")]),
    "it no longer imports `bar` from `b`": ([imports("b", "bar")], []),
    "it now imports `baz` from `b`": ([imports("b", "bar")], [imports("b", "bar", "baz")]),
    "it now imports `baz` from `b`, and no longer `bar`": ([imports("b", "bar")], [imports("b", "baz")]),
    "it now imports `baz` from `b`, whose code changed": (
        [imports("b", "bar")],
        [imports("b", "bar", "baz", digest=NEW)],
    ),
    "it now imports from `b`": ([], [imports("b")]),
    # Functions that come from elsewhere
    "it imports `bar` from `c` now, not from `b`": ([imports("b", "bar")], [imports("c", "bar")]),
    "`f`, which it exported, comes from `c` now": ([exports("f", "g")], [exports("g"), imports("c", "f")]),
    "`f` and `g`, which came from `b`, are its own now": ([imports("b", "f", "g")], [exports("f", "g")]),
    # Exports and symbols
    "its export list grew by `baz`": ([exports("bar")], [exports("bar", "baz")]),
    "its export list shrank by `a`, `b`, `c` and `d`": ([exports(*"abcd")], []),
    "its export list grew by `baz` and shrank by `bar`": ([exports("bar")], [exports("baz")]),
    "`f` is now dead": ([], [symbol("f", "dead")]),
    "`f` is alive again": ([symbol("f", "dead")], [symbol("f", "")]),
    "`f` is now defined elsewhere, no longer dead": ([symbol("f", "dead")], [symbol("f", "defined elsewhere")]),
    "`f` is no longer local": ([symbol("f", "local, used")], [symbol("f", "used")]),
    "`f` and `g` are now dead": ([], [symbol("g", "dead"), symbol("f", "dead")]),
    # The rest
    "what the link knows about the rest of the program changed": ([summary(OLD)], [summary(NEW)]),
    "what the link knows about its functions and types changed": (
        [summary(OLD, "types"), summary(OLD, "its functions"), summary(OLD, "its variables")],
        [summary(NEW, "types"), summary(OLD, "its variables")],
    ),
    "": ([module("foo")], [module("foo")]),
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_each_cause_has_its_words(sentence: str) -> None:
    before, after = SENTENCES[sentence]
    assert what_changed(before, after, "foo") == sentence


def test_two_causes() -> None:
    before, after = [module("foo"), option("-O", "2")], [module("foo", NEW), option("-O", "3")]
    assert what_changed(before, after, "foo") == "-O2 became -O3 and its own code changed"


def test_causes_with_commas_are_kept_apart() -> None:
    before = [module("foo"), imports("b", "bar"), exports("x")]
    after = [module("foo", NEW), imports("b", "bar", digest=NEW), exports("x", "y")]
    assert what_changed(before, after, "foo") == (
        "its own code changed; `foo` imports `bar` from `b`, whose code changed; and its export list grew by `y`"
    )


def test_more_causes_than_anybody_reads() -> None:
    before = [option("-O", "2"), module("foo"), symbol("z", ""), summary(OLD)]
    after = [option("-O", "3"), module("foo", NEW), imports("b", "c"), exports("y"), symbol("z", "dead"), summary(NEW)]
    everything = changes(before, after, "foo")
    assert everything == [
        "-O2 became -O3",
        "its own code changed",
        "it now imports `c` from `b`",
        "its export list grew by `y`",
        "`z` is now dead",
        "what the link knows about the rest of the program changed",
    ]
    # What changes along with almost everything is not even counted.
    assert what_changed(before, after, "foo") == f"{', '.join(everything[:3])} (and 2 more)"


def test_symbols_that_came_with_new_code_are_no_news() -> None:
    before = [module("foo"), symbol("old", "local"), symbol("both", "local")]
    after = [module("foo", NEW), symbol("new", "local"), symbol("both", "dead")]
    assert changes(before, after, "foo") == ["its own code changed", "`both` is now dead, no longer local"]


def test_in_full_nothing_is_left_out() -> None:
    long = "_ZN" + "x" * 200
    symbols = tuple(f"f{number}" for number in range(20))
    (change,) = changes([imports("m", long, *symbols)], [imports("m", long, *symbols, digest=NEW)], "foo")
    assert long in change
    assert all(f"`{name}`" in change for name in symbols)
    several = [imports(f"m{number}", "f") for number in range(5)]
    assert len(changes(several, [imports(f"m{number}", "f", digest=NEW) for number in range(5)], "foo")) == 5


def test_in_short_names_are_cut_in_the_middle() -> None:
    text = what_changed([], [exports("_ZN" + "x" * 200 + "Ev")], "foo")
    assert text.startswith("its export list grew by `_ZNxxx")
    assert text.endswith("xxxEv`")
    assert "..." in text
    assert len(text) < 120


def test_names_cannot_end_a_line() -> None:
    assert what_changed([], [exports("a\nb\x1b[2J")], "foo") == "its export list grew by `a\\nb\\x1b[2J`"


def test_an_option_as_written() -> None:
    assert [option_text(option(*words)) for words in (("-O", "2"), ("-g",), ("-x=", "1"), ("-cpu", "z"))] == [
        "-O2",
        "-g",
        "-x=1",
        "-cpu z",
    ]


names = st.text(max_size=8) | st.sampled_from(["foo", "b", "f", "-O", "\ud8ff"])
ingredients = st.lists(
    st.builds(
        Ingredient,
        st.sampled_from(IngredientKind),
        names,
        st.sampled_from(["", "dead", OLD, NEW]) | names,
        st.lists(names, max_size=6).map(tuple),
    ),
    max_size=8,
)


@given(ingredients, ingredients)
def test_there_are_words_for_whatever_changed(before: list[Ingredient], after: list[Ingredient]) -> None:
    text = what_changed(before, after, "foo")
    assert text.isprintable()
    assert len(text) < 3000
    everything = changes(before, after, "foo")
    assert bool(text) == bool(everything)
    assert not changes(before, before, "foo")


@given(ingredients)
def test_records_keep_ingredients(some: list[Ingredient]) -> None:
    assert decode(encode(some)) == tuple(some)


def test_many_ingredients_take_few_bytes() -> None:
    some = [imports(f"module_{number}", *(f"function_{number}_{other}" for other in range(10))) for number in range(50)]
    data = encode(some)
    assert decode(data) == tuple(some)
    assert len(data) < len(json.dumps([[one.name, one.symbols] for one in some])) / 3


@pytest.mark.parametrize(
    "data",
    [b"", b"[", b"{}", b"[1]", b"[[]]", b'[["module"]]', b"x", b"[" * 100_000, b"null", zlib.compress(b"[1")],
    ids=lambda data: repr(data[:8]),
)
def test_damaged_records_hold_nothing(data: bytes) -> None:
    assert decode(data) == ()


def test_what_a_later_version_knows_is_left_out() -> None:
    assert decode(b'[["aura","x","y"],["module","m","1"]]') == (module("m", "1"),)


# What the user is told about an item


def item(key: str, *made_of: Ingredient, ok: bool = True) -> ItemRecord:
    return ItemRecord("foo", "codegen", CacheOutcome.MISS, key, "", 0.1, ok, made_of=made_of)


def reason(
    before: ItemRecord | None, outcome: CacheOutcome, *made_of: Ingredient, step: Step = Step.CODEGEN, note: str = ""
) -> str:
    return reason_for(before, CacheUse(outcome, "new", made_of, note), "foo", step, known=True)


def test_reasons_of_hits() -> None:
    assert reason(item("new"), CacheOutcome.HIT) == "nothing it is made of has changed"
    assert reason(item("old"), CacheOutcome.HIT) == "it changed since the last build, to what was made before"
    assert reason(None, CacheOutcome.HIT) == "the same was made before, in another build"


def test_reasons_where_the_cache_had_no_say() -> None:
    assert reason(item("old"), CacheOutcome.SHARED) == "another build was making the same at that time"
    assert reason(item("old"), CacheOutcome.OFF, note="it reads the clock") == "it reads the clock"
    assert reason(None, CacheOutcome.OFF) == "the cache was not asked"


def test_reasons_of_misses_without_a_comparison() -> None:
    miss = CacheUse(CacheOutcome.MISS, "new", (module("foo"),))
    assert reason_for(None, miss, "foo", Step.CODEGEN, known=False) == "not built before"
    assert reason(None, CacheOutcome.MISS) == "new in this build"
    assert reason(item("new"), CacheOutcome.MISS) == "its result was no longer in the cache"
    assert reason(item("new", ok=False), CacheOutcome.MISS) == "it failed the last time"
    assert reason(item(""), CacheOutcome.MISS) == "the last build did not use the cache for it"
    assert reason(item("old"), CacheOutcome.MISS, module("foo")).endswith("is not on record any more")
    assert reason(item("old", module("foo")), CacheOutcome.MISS) == (
        "recompiled because something that it is made of changed"
    )


@pytest.mark.parametrize("step", Step)
def test_reasons_of_misses(step: Step) -> None:
    text = reason(item("old", option("-O", "2")), CacheOutcome.MISS, option("-O", "3"), step=step)
    verb = "linked again" if "link" in step.value and step is not Step.PRE_LINK else "recompiled"
    assert text == f"{verb} because -O2 became -O3"

"""What the thin link says of a backend compile is told in ingredients: all that matters, in words. Layer: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard_samples import (
    A_PATH,
    CHANGES,
    DIGESTS,
    FLAGS,
    GUIDS,
    HELPER,
    MAIN,
    MODULES,
    NAMES,
    ONE,
    SUMMARIES,
    TABLE,
    THREE,
    TWO,
    VERSION,
    Record,
    shard,
    swapped,
)
from workers.errors import ModuleError
from workers.ingredients import Ingredient, IngredientKind
from workers.llvm.bitstream import BitcodeError
from workers.llvm.index_shard import guid_of, read_index
from workers.llvm.thin_key import ShardFacts, ShardSource, shard_facts
from workers.llvm.thin_plan import LinkIndex, ThinPlan, shard_source
from workers.thin import ThinCompile
from workers.work import Estimate

pytestmark = pytest.mark.pure

KNOWN = dict(zip(GUIDS, NAMES, strict=True))
COMBINED = shard()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


def facts(
    place: Path, data: bytes, digests: Mapping[str, str] = DIGESTS, combined: bytes = COMBINED, own: str = "a/a.bc"
) -> ShardFacts:
    path = place / "a.thinlto.bc"
    path.write_bytes(data)
    # Only these of a plan are of interest here.
    plan = SimpleNamespace(paths={"a": Path(own)}, names={"a/a.bc": "a", "a/b.bc": "b", "a/c.bc": "c"})
    compile_ = ThinCompile("a", Path(own), path, Estimate(1.0, 1), plan)
    return shard_facts(shard_source(compile_, cast(ThinPlan, plan), LinkIndex(read_index(combined))), digests)


def nothing(_: str) -> Mapping[int, str]:
    return {}


def told(found: ShardFacts, names: Mapping[int, str] = KNOWN) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Everything but digests of the rest."""
    return [
        (one.kind.value, one.name, one.value, one.symbols)
        for one in found.ingredients(lambda _: names)
        if one.kind is not IngredientKind.SUMMARY
    ]


def rest(found: ShardFacts) -> dict[str, str]:
    return {one.name: one.value for one in found.ingredients(nothing) if one.kind is IngredientKind.SUMMARY}


def test_modules_imports_and_exports_are_told_by_name(place: Path) -> None:
    assert told(facts(place, shard())) == [
        ("module", "a", "aa", ()),
        ("import", "b", "bb", ("helper", "table")),
        ("import", "c", "cc", ()),
        ("export", "a", "", ("main",)),
    ]


def test_of_modules_that_are_imported_from_what_matters_is_told(place: Path) -> None:
    def source(data: bytes) -> ShardSource:
        path = place / f"{hash(data)}.thinlto.bc"
        path.write_bytes(data)
        names = {"a/a.bc": "a", "a/b.bc": "b", "a/c.bc": "c"}
        return ShardSource("a", "a/a.bc", path, names, as_imports={"a/b.bc": "what matters"})

    other = [(number, path, [7] * 5 if path == b"a/b.bc" else words) for number, path, words in MODULES]
    found = [
        shard_facts(source(shard()), DIGESTS, 100),
        shard_facts(source(shard(modules=other)), {**DIGESTS, "a/b.bc": "ab"}),
    ]
    assert found[0].kept > found[1].kept == 0
    assert found[0].form_digest == found[1].form_digest
    assert found[0].ingredients(nothing) == found[1].ingredients(nothing)
    assert ("import", "b", "what matters", ("helper", "table")) in told(found[0])
    assert found[0].form_digest != facts(place, shard()).form_digest


# Of the module itself: a function, and a variable that is no constant.
TWO_OWN: list[Record] = [VERSION, FLAGS, ONE, TWO, THREE, MAIN, (6, [2, 0, 0x67, 0]), TABLE]


@pytest.mark.parametrize(
    ("old", "new", "exports", "words"),
    [
        (MAIN, MAIN, ("main",), {}),
        (MAIN, (5, [1, 0, 0x67, *MAIN[1][3:]]), (), {}),
        (MAIN, (5, [1, 0, 0x47, *MAIN[1][3:]]), (), {"main": "dead"}),
        (MAIN, (5, [1, 0, 0x61, *MAIN[1][3:]]), (), {"main": "defined elsewhere"}),
        (MAIN, (5, [1, 0, 0x41, *MAIN[1][3:]]), (), {"main": "dead, defined elsewhere"}),
        (MAIN, (5, [1, 0, 0x65, *MAIN[1][3:]]), ("main",), {"main": "weak_odr"}),
        (MAIN, (5, [1, 0, 0x6F, *MAIN[1][3:]]), ("main",), {"main": "linkage 15"}),
        (TWO_OWN[-2], (6, [2, 0, 0x60, 0]), ("helper", "main"), {}),
        (TWO_OWN[-2], (6, [2, 0, 0x67, 1]), ("main",), {"helper": "never written"}),
        (TWO_OWN[-2], (6, [2, 0, 0x67, 2]), ("main",), {"helper": "never read"}),
        (TWO_OWN[-2], (6, [2, 0, 0x67, 3]), ("main",), {"helper": "never written, never read"}),
    ],
)
def test_what_the_link_found_out_is_told_by_symbol_and_nowhere_else(
    old: Record, new: Record, exports: tuple[str, ...], words: Mapping[str, str], place: Path
) -> None:
    remaining = rest(facts(place, shard(TWO_OWN)))
    found = facts(place, shard(swapped(TWO_OWN, old, new)))
    assert [row for row in told(found) if row[0] in ("export", "symbol")] == [
        ("export", "a", "", exports),
        *(("symbol", name, value, ()) for name, value in words.items()),
    ]
    assert rest(found) == remaining


@pytest.mark.parametrize(
    ("linkage", "exports", "words"),
    [
        (7, ("main",), ""),
        (1, ("helper", "main"), ""),
        (0, ("helper", "main"), "external"),
    ],
)
def test_what_a_module_keeps_to_itself_is_exported_where_the_link_gives_it_another_name(
    linkage: int, exports: tuple[str, ...], words: str, place: Path
) -> None:
    guid = guid_of("a.c;helper")
    named = (16, [2, guid >> 32, guid & 0xFFFFFFFF])
    records = [VERSION, FLAGS, ONE, named, THREE, MAIN, (6, [2, 0, 0x60 | linkage, 0]), TABLE]
    found = told(facts(place, shard(records)), {GUIDS[0]: "main", guid: "helper"})
    assert [row for row in found if row[0] in ("export", "symbol")] == [
        ("export", "a", "", exports),
        *(("symbol", "helper", word, ()) for word in [words] if word),
    ]


@pytest.mark.parametrize(
    ("change", "about"),
    [
        ("function flags", {"its functions"}),
        ("callee", {"its functions"}),
        ("not local", {"its functions"}),
        ("order of imports", {"its imports"}),
        ("hash", {"its imports"}),
        ("variable's nature", {"its imports"}),
        ("own hash", {"the whole program"}),
        ("index flags", {"the whole program"}),
    ],
)
def test_what_is_told_of_no_symbol_is_told_by_what_it_is_about(change: str, about: set[str], place: Path) -> None:
    before = facts(place, shard())
    plain, words = rest(before), told(before)
    after = facts(place, shard(*CHANGES[change]))
    assert {name for name, value in rest(after).items() if plain.get(name) != value} == about
    assert told(after) == words


def test_types_are_told(place: Path) -> None:
    plain = rest(facts(place, shard()))
    typed = rest(facts(place, shard([*SUMMARIES, (21, [0, 3, 0, 1, 2, 3, 4, 5])], strings=b"typ")))
    assert {name for name, value in typed.items() if plain.get(name) != value} == {"types"}


MORE: list[Record] = [VERSION, FLAGS, ONE, TWO, THREE, (16, [4, 44, 444]), MAIN, (6, [4, 2, 0x60, 0])]


@pytest.mark.parametrize(
    ("combined", "is_told"),
    [
        ([*MORE, HELPER], False),
        (swapped([*MORE, HELPER], MAIN, (5, [1, 0, 0x60, 9, 0, 0, 1, 0, 0, 4, 2, 8])), True),
        ([*MORE, (5, [2, 1, 0x60, 4, 0, 0, 1, 0, 0, 4])], True),
        ([*MORE, (5, [2, 2, 0x60, 4, 0, 0, 1, 0, 0, 4])], False),  # not the one that is imported
        ([*MORE, (5, [2, 1, 0x60, 4, 0, 0, 1, 0, 0, 3])], False),  # which the shard says itself
        ([*MORE, (6, [4, 1, 0x20, 0]), (5, [2, 1, 0x60, 4, 0, 0, 1, 0, 0, 4])], False),  # in one of two only
    ],
)
def test_what_is_used_and_in_the_program_itself_is_told(combined: list[Record], is_told: bool, place: Path) -> None:
    """The combined index has the uses that the shard does not say."""
    plain = facts(place, shard(), combined=shard([*MORE, HELPER]))
    before = rest(plain)
    found = facts(place, shard(), combined=shard(combined))
    assert {name for name, value in rest(found).items() if before.get(name) != value} == (
        {"other modules' symbols"} if is_told else set()
    )
    assert (found.form_digest != plain.form_digest) == is_told


def test_symbols_that_nobody_knows_or_that_share_a_name_are_kept_apart(place: Path) -> None:
    found = facts(place, shard(TWO_OWN))
    exported = swapped(TWO_OWN, TWO_OWN[-2], (6, [2, 0, 0x60, 0]))
    assert [one.symbols for one in found.ingredients(nothing) if one.kind is IngredientKind.EXPORT] == [
        (f"symbol {GUIDS[0]:016x}",)
    ]
    found = facts(place, shard(exported))
    assert [one.symbols for one in found.ingredients(lambda _: dict.fromkeys(GUIDS, "same")) if one.name == "a"] == [
        (),
        tuple(f"same ({guid:016x})" for guid in sorted(GUIDS[:2])),
    ]


def multiset(found: Sequence[Ingredient]) -> list[str]:
    return sorted(f"{one.kind} {one.name!r} {one.value!r} {one.symbols!r}" for one in found)


@pytest.mark.parametrize("names", [{}, KNOWN, dict.fromkeys(GUIDS, "same")])
def test_ingredients_differ_wherever_forms_do(names: Mapping[int, str], place: Path) -> None:
    found = {}
    for name, change in {"none": (SUMMARIES, MODULES), **CHANGES}.items():
        one = facts(place, shard(*change))
        found[name] = one.form_digest, multiset(one.ingredients(lambda _: names))
    for (one_name, one_told), (other_name, other_told) in combinations(found.items(), 2):
        assert one_told[0] != other_told[0], (one_name, other_name)
        assert one_told[1] != other_told[1], (one_name, other_name)


_FLAGS = st.sampled_from([0x60, 0x20, 0x40, 0x67, 0x68, 0x61, 0x47, 0x48, 0x65, 0x62, 0x6F, 0x460, 0x0])
_DEFINITION = st.one_of(
    st.tuples(st.just(5), st.tuples(_FLAGS, st.integers(1, 2), st.integers(0, 1)).map(lambda t: (*t, 0, 0, 0, 0))),
    st.tuples(st.just(6), st.tuples(_FLAGS, st.integers(0, 7))),
    st.tuples(st.just(8), st.tuples(_FLAGS, st.just(1))),
)
_DEFINITIONS = st.dictionaries(st.tuples(st.integers(1, 3), st.integers(0, 2)), _DEFINITION, max_size=4)
_SHARDS = st.tuples(
    st.permutations(MODULES), st.sampled_from([("1", "2", "3"), ("1", "1", "1"), ("1", "2", "2"), ("2", "1", "3")])
)
Definitions = dict[tuple[int, int], tuple[int, tuple[int, ...]]]
Surroundings = tuple[list[tuple[int, bytes, list[int]]], tuple[str, ...]]


@given(
    definitions=_DEFINITIONS,
    edit=st.dictionaries(st.tuples(st.integers(1, 3), st.integers(0, 2)), _DEFINITION, max_size=1),
    surroundings=st.lists(_SHARDS, min_size=1, max_size=2),
    names=st.dictionaries(st.sampled_from(GUIDS), st.sampled_from(["x", "y"])),
)
def test_equal_ingredients_mean_equal_forms_and_the_other_way_round(
    definitions: Definitions, edit: Definitions, surroundings: list[Surroundings], names: Mapping[int, str], place: Path
) -> None:
    made = []
    for rows, (modules, digests) in ((definitions, surroundings[0]), ({**definitions, **edit}, surroundings[-1])):
        records: list[Record] = [(code, [*at, *values]) for at, (code, values) in rows.items()]
        data = shard([VERSION, FLAGS, ONE, TWO, THREE, *records], modules)
        found = facts(place, data, dict(zip(DIGESTS, digests, strict=True)))
        made.append((found.form_digest, multiset(found.ingredients(lambda _: names))))
    assert (made[0][0] == made[1][0]) == (made[0][1] == made[1][1])


def test_what_cannot_be_read_or_understood_is_told(place: Path) -> None:
    found = facts(place, shard())
    path = place / "a.thinlto.bc"
    path.write_bytes(shard(*CHANGES["dead"]))
    with pytest.raises(ModuleError, match="changed after the thin link"):
        found.ingredients(nothing)
    path.unlink()
    with pytest.raises(ModuleError, match="cannot be read"):
        found.ingredients(nothing)
    with pytest.raises(BitcodeError, match="unknown in shards"):
        facts(place, shard([*SUMMARIES, (63, [0])]))
    with pytest.raises(BitcodeError, match="another module"):
        facts(place, shard(), own="a/d.bc")
    with pytest.raises(BitcodeError, match="not known"):
        facts(place, shard(), digests={A_PATH.decode(): "aa"})

"""The canonical form of index shards says all that matters, and nothing else. Layer: pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard_samples import (
    A_PATH,
    B_PATH,
    CHANGES,
    DIGESTS,
    FLAGS,
    GUIDS,
    HELPER,
    MAIN,
    MODULES,
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
from workers.llvm.bitstream import BitcodeError
from workers.llvm.shard_form import read_shard

pytestmark = pytest.mark.pure


def form(data: bytes) -> bytes:
    return read_shard(data, A_PATH).form(DIGESTS)


def test_paths_do_not_matter() -> None:
    """Nor does where among the others the module itself stands."""
    paths = [b"elsewhere/x", b"elsewhere/y", b"elsewhere/z"]
    modules = [(number, path, words) for (number, _, words), path in zip(MODULES, paths, strict=True)]
    digests = {"elsewhere/x": "aa", "elsewhere/y": "bb", "elsewhere/z": "cc"}
    for rows in (modules, [*modules[1:], modules[0]], [modules[1], modules[0], modules[2]]):
        assert read_shard(shard(modules=rows), b"elsewhere/x").form(digests) == form(shard())


def test_numbers_of_values_and_modules_do_not_matter() -> None:
    renumbered: list[Record] = [
        VERSION, FLAGS, (16, [900, *ONE[1][1:]]), (16, [7, *TWO[1][1:]]), (16, [1, *THREE[1][1:]]),
        (5, [900, 8, 0x60, 9, 0, 0, 1, 0, 0, 1, 7, 8]), (5, [7, 4, 0x60, 4, 0, 0, 0, 0, 0]), (6, [1, 4, 0x60, 5]),
    ]  # fmt: skip
    modules = [(number, path, words) for number, (_, path, words) in zip((8, 4, 5), MODULES, strict=True)]
    assert form(shard(renumbered, modules)) == form(shard())


def test_the_order_of_summaries_does_not_matter() -> None:
    assert form(shard([VERSION, FLAGS, THREE, ONE, TWO, TABLE, HELPER, MAIN])) == form(shard())


def test_every_change_shows_and_no_two_look_alike() -> None:
    forms = {name: form(shard(*change)) for name, change in CHANGES.items()} | {"none": form(shard())}
    assert len(set(forms.values())) == len(forms)


def test_digests_own_module_and_local_symbols_show() -> None:
    data = shard()
    answers = {
        read_shard(data, own).form(digests, local)
        for digests, own, local in (
            (DIGESTS, A_PATH, ()),
            ({**DIGESTS, "a/a.bc": "ab"}, A_PATH, ()),
            ({**DIGESTS, "a/b.bc": "ab"}, A_PATH, ()),
            (DIGESTS, B_PATH, ()),
            (DIGESTS, A_PATH, (5,)),
            (DIGESTS, A_PATH, (5, 6)),
        )
    }
    assert len(answers) == 6
    read = read_shard(data, A_PATH)
    assert read.form(DIGESTS, [6, 5, 6]) == read.form(DIGESTS, (5, 6))
    with pytest.raises(BitcodeError, match=r"not known: a/c\.bc"):
        read.form({"a/a.bc": "aa", "a/b.bc": "bb"})


def test_of_modules_that_are_imported_from_what_matters_shows() -> None:
    as_imports = {"a/b.bc": "what matters"}
    told = read_shard(shard(), A_PATH).form(DIGESTS, (), as_imports)
    assert told != form(shard())
    # Neither its digest nor its HASH is in it then; those of the module itself are, whatever is known of it.
    other = [(number, path, [7] * 5 if path == B_PATH else words) for number, path, words in MODULES]
    read = read_shard(shard(modules=other), A_PATH)
    assert read.form({**DIGESTS, "a/b.bc": "ab"}, (), {**as_imports, "a/a.bc": "own"}) == told
    assert read.form(DIGESTS, (), {"a/b.bc": "what matters now"}) != told


def test_call_stacks_are_told_by_their_frames() -> None:
    """However the tree of them was laid out, and their frames numbered."""
    one: list[Record] = [(30, [0, 100, 0, 200, 0, 300]), (32, [2, 0, 1, 2, 2, 1]), (29, [2, 1, 1, 0, 2, 3, 2])]
    # Behind its first frame, the first stack goes on where the second one ends.
    two: list[Record] = [
        (30, [0, 300, 0, 200, 0, 100]), (32, [2, 2, (1 << 32) - 3, 2, 0, 1]), (29, [2, 1, 1, 0, 2, 3, 2]),
    ]  # fmt: skip
    other = [one[0], (32, [2, 0, 1, 2, 2, 0]), one[2]]
    made = [form(shard(swapped(SUMMARIES, MAIN, *records, MAIN))) for records in (one, two, other)]
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_names_of_types_and_functions_are_told_by_their_text() -> None:
    first: list[Record] = [
        (21, [0, 3, 0, 1, 2, 3, 4, 5, 16, 1, 3, 4, 1, 2, 6, 7, 0, 0, 0, 0]),
        (17, [3, 4]),
        (18, [7, 1]),
    ]
    second: list[Record] = [
        (18, [0, 1]),
        (17, [5, 4]),
        (21, [1, 3, 0, 1, 2, 3, 4, 5, 16, 1, 5, 4, 1, 2, 6, 7, 0, 0, 0, 0]),
    ]
    one, two = shard([*SUMMARIES, *first], strings=b"typnamex"), shard([*SUMMARIES, *second], strings=b"xtyp_name")
    other = shard([*SUMMARIES, *first], strings=b"tipnamex")
    assert form(one) == form(two)
    assert form(one) != form(other)
    assert list(read_shard(one, A_PATH).types) == [b"typ"]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 7, 9, 19, 22, 23, 26, 27, 31, 34, 63, 70])
def test_what_no_shard_has_is_refused(code: int) -> None:
    with pytest.raises(BitcodeError, match="unknown"):
        form(shard([*SUMMARIES, (code, [0, 0, 0, 0])]))


@pytest.mark.parametrize(
    "records",
    [
        swapped(SUMMARIES, VERSION, (10, [11])),
        swapped(SUMMARIES, VERSION, (10, [13])),
        swapped(SUMMARIES, VERSION),
        [*SUMMARIES, MAIN],
        [*SUMMARIES, (11, [7])],
        swapped(SUMMARIES, TWO),
        swapped(SUMMARIES, HELPER, (5, [2, 9, 0x60, 4, 0, 0, 0, 0, 0])),
        swapped(SUMMARIES, MAIN, (5, [1, 0, 0x60, 9, 0, 0, 9, 0, 0, 3, 2, 8])),
        swapped(SUMMARIES, MAIN, (5, [1, 0, 0x60])),
        [*SUMMARIES, (17, [0, 500])],
        [*SUMMARIES, (17, [0])],
        [*SUMMARIES, (21, [0, 0, 1])],
        swapped(SUMMARIES, MAIN, (28, [2, 1, 1, 5, 0]), MAIN),
    ],
)
def test_damage_is_refused(records: list[Record]) -> None:
    with pytest.raises(BitcodeError):
        form(shard(records))


def test_what_is_in_it_can_be_told() -> None:
    read = read_shard(shard(), A_PATH)
    assert (read.own.file, [module.file for module in read.imports]) == ("a/a.bc", ["a/b.bc", "a/c.bc"])
    assert set(read.defined()) == {(A_PATH, GUIDS[0]), (B_PATH, GUIDS[1]), (B_PATH, GUIDS[2])}
    own, *others = read.definitions
    assert (own.place, own.linkage, own.is_live, own.is_variable) == (0, 0, True, False)
    assert {(row.place, row.is_variable, row.is_constant) for row in others} == {(1, False, False), (1, True, True)}


def test_another_modules_shard_is_refused() -> None:
    with pytest.raises(BitcodeError, match="another module"):
        read_shard(shard(), b"c")
    with pytest.raises(BitcodeError, match="another module"):
        read_shard(shard(modules=[*MODULES, (3, A_PATH, [])]), A_PATH)


def test_a_part_that_no_index_has_is_refused() -> None:
    with pytest.raises(BitcodeError, match="two modules with the same number"):
        read_shard(shard(modules=[MODULES[0], (0, *MODULES[1][1:])]), A_PATH)
    with pytest.raises(BitcodeError, match="not an index"):
        read_shard(shard()[:4], A_PATH)
    with pytest.raises(BitcodeError, match="which no index has"):
        read_shard(shard(version=3), A_PATH)


@given(st.data())
def test_damaged_bytes_are_an_error_or_another_form(data: st.DataObject) -> None:
    whole = bytearray(shard([*SUMMARIES, (21, [0, 3, 0, 1, 2, 3, 4, 5]), (17, [3, 4])], strings=b"typnamex"))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(0, 2 * len(whole))) :]
    try:
        read = read_shard(bytes(whole), A_PATH)
        read.form({module.file: "" for module in (read.own, *read.imports)})
    except BitcodeError:
        pass


@pytest.mark.parametrize("value", [0, 31, 32, 1 << 31, 1 << 33, (1 << 64) - 1])
def test_numbers_of_every_size_are_read(value: int) -> None:
    assert read_shard(shard([VERSION, (20, [value]), *SUMMARIES[2:]]), A_PATH).settings == (b"flags %d" % value,)

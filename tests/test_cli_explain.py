"""Layer: e2e. `ltod explain` over a history that the test writes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from coordinator._records import FILE_NAME
from tests.command import LTOD, ltod
from tests.past_builds import LINKER, History, use
from workers.ingredients import Ingredient, IngredientKind
from workers.work import CacheOutcome, CacheUse

pytestmark = pytest.mark.e2e

MISS, HIT, SHARED, OFF = CacheOutcome.MISS, CacheOutcome.HIT, CacheOutcome.SHARED, CacheOutcome.OFF
K = IngredientKind


def made(name: str, *, level: str = "2", imported: str = "1", exports: tuple[str, ...] = ()) -> tuple[Ingredient, ...]:
    return (
        Ingredient(K.COMPILER, "clang", "22.1.8"),
        Ingredient(K.OPTION, "-O", level),
        Ingredient(K.MODULE, name, "d" * 64),
        Ingredient(K.IMPORT, "b", imported * 64, ("bar", "baz")),
        Ingredient(K.EXPORT, "", "", exports),
        Ingredient(K.SYMBOL, "main", "exported"),
        Ingredient(K.SUMMARY, "", imported),
    )


@pytest.fixture
def history(place: Path, monkeypatch: pytest.MonkeyPatch) -> History:
    monkeypatch.setenv("LTOD_CACHE_DIR", str(place / "cache"))
    monkeypatch.setenv("TZ", "UTC")
    history = History(place / "cache")
    history.add(place / "app", *((name, use(MISS, name + "1", *made(name))) for name in ("foo", "util", "main")))
    history.add(
        place / "app",
        ("foo", use(MISS, "foo2", *made("foo", imported="2", exports=("qux",)))),
        ("main", use(HIT, "main1")),
        ("new", use(MISS, "new1", *made("new"))),
        ("util", CacheUse(note="it has a secret")),
    )
    history.add(place / "other", ("only", use(SHARED, "only1")), ok=False)
    return history


def lines(*arguments: str | Path, code: int = 0) -> list[str]:
    process = ltod("explain", *arguments)
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    return (process.stdout if code == 0 else process.stderr).splitlines()


def answer(*arguments: str | Path) -> dict[str, Any]:
    process = ltod("explain", "--json", *arguments)
    assert process.returncode == 0, process.stderr
    assert process.stdout.isascii()
    found: dict[str, Any] = json.loads(process.stdout)
    return found


FOO = "recompiled because `foo` imports `bar` and `baz` from `b`, whose code changed; and its export list grew by `qux`"


def test_the_latest_build_of_a_link(history: History, place: Path) -> None:
    assert lines("--link", "app") == [
        f"build 2 of {place}/app (thin), 2027-01-15 08:00:00, 1.2 s: 1 hit, 2 misses, 1 without the cache",
        f"thin-backend  foo: {FOO}",
        "thin-backend  new: new in this build",
        "thin-backend  util: it has a secret",
    ]


def test_the_latest_build_of_all(history: History, place: Path) -> None:
    assert lines() == [
        f"build 3 of {place}/other (thin), 2027-01-15 08:00:00, 1.2 s, which failed: 0 hits, 0 misses, 1 shared"
    ]


def test_a_build_by_its_number(history: History, place: Path) -> None:
    assert lines("1")[1:] == [f"thin-backend  {name}: not built before" for name in ("foo", "main", "util")]


def test_a_module_in_full(history: History, place: Path) -> None:
    expected = [
        f"foo, thin-backend: miss, 0.25 s: {FOO}",
        "    since build 1:",
        "        `foo` imports `bar` and `baz` from `b`, whose code changed",
        "        its export list grew by `qux`",
        "        what the link knows about the rest of the program changed",
        "    made of:",
        "        clang 22.1.8",
        "        -O2",
        "        module foo dddddddddddddddd",
        "        imports bar, baz from b 2222222222222222",
        "        exports qux",
        "        main is exported",
    ]
    assert lines("2", "foo")[1:] == expected
    assert lines("foo", "--link", "app")[1:] == expected
    assert lines("2", "main")[1:3] == [
        "main, thin-backend: hit, 0.25 s: nothing it is made of has changed",
        "    made of:",
    ]


def test_many_with_one_reason_are_told_together(history: History, place: Path) -> None:
    names = [f"m{number}" for number in range(6)]
    for level in "23":
        history.add(place / "big", *((name, use(MISS, name + level, *made(name, level=level))) for name in names))
    assert lines()[1:] == ["thin-backend  m0, m1, m2 and 3 more: recompiled because -O2 became -O3"]


def test_the_list(history: History, place: Path) -> None:
    assert lines("--list") == [
        f"3  2027-01-15 08:00:00  failed  0 hits, 0 misses, 1 shared  {place}/other (thin)",
        f"2  2027-01-15 08:00:00  ok      1 hit, 2 misses, 1 without the cache  {place}/app (thin)",
        f"1  2027-01-15 08:00:00  ok      0 hits, 3 misses  {place}/app (thin)",
    ]
    assert [build["id"] for build in answer("--list", "--link", "app")["builds"]] == [2, 1]


def test_objects(history: History, place: Path) -> None:
    found = answer("2")
    assert found["build"] == {
        "id": 2,
        "path": str(place / "app"),
        "kind": "thin",
        "started": 1.8e9,
        "seconds": 1.25,
        "ok": True,
        "counts": {"hit": 1, "miss": 2, "shared": 0, "off": 1},
    }
    assert found["items"][0] == {
        "module": "foo",
        "stage": "thin-backend",
        "cache": "miss",
        "reason": FOO,
        "seconds": 0.25,
        "ok": True,
        "key": "foo2",
        "compared_with": 1,
    }
    (foo,) = answer("2", "foo")["items"]
    assert len(foo["changes"]) == 3
    assert foo["made_of"][3] == {"kind": "import", "name": "b", "value": "2" * 64, "symbols": ["bar", "baz"]}


def test_what_a_linker_had_done(history: History, place: Path) -> None:
    member = "libz.a(bar.o)"
    history.add(place / "a.out", ("lib/foo.o", use(MISS, "f1", *made("lib/foo.o"))), kind=LINKER)
    history.add(
        place / "a.out",
        ("lib/foo.o", use(MISS, "f2", *made("lib/foo.o", imported="2"))),
        (member, use(HIT, "b1", saved=2.5)),
        ("main.o", CacheUse(note="-mllvm -debug is not among the options whose effect is known")),
        kind=LINKER,
    )
    assert lines("--link", "a.out") == [
        f"build 5 of {place}/a.out ({LINKER}), 2027-01-15 08:00:00, 1.2 s: 1 hit, 1 miss, 1 without the cache",
        "thin-backend  lib/foo.o: recompiled because `lib/foo.o` imports `bar` and `baz` from `b`, whose code changed",
        "thin-backend  main.o: -mllvm -debug is not among the options whose effect is known",
    ]
    told = f"{member}, thin-backend: hit, 0.25 s: the same was made before, in another build"
    assert lines("--link", "a.out", member)[1:] == lines("5", member)[1:] == [told]
    assert lines("--link", str(place / "a.out"), "lib/foo.o")[2] == "    since build 4:"
    assert lines("foo.o", code=2)[0].endswith("has no module 'foo.o': did you mean lib/foo.o?")
    assert {item["module"]: item["cache"] for item in answer("--link", "a.out")["items"]} == {
        "lib/foo.o": "miss",
        member: "hit",
        "main.o": "off",
    }


def test_the_other_name_that_cargo_gives_a_program(history: History, place: Path) -> None:
    deps = place / "target" / "deps"
    deps.mkdir(parents=True)
    (deps / "prog-0123").write_bytes(b"a program")
    (place / "target" / "prog").hardlink_to(deps / "prog-0123")
    history.add(deps / "prog-0123", ("src/main.o", use(MISS, "k")), kind=LINKER)
    assert f" of {deps}/prog-0123 (" in lines("--link", "target/prog")[0]
    (place / "stranger").write_bytes(b"a program")
    assert "no build of" in lines("--link", "stranger", code=2)[0]


def test_a_module_whose_name_is_a_number(history: History, place: Path) -> None:
    history.add(place / "app", ("7", use(MISS, "k", *made("7"))))
    assert lines("7")[1].startswith("7, thin-backend: miss")
    assert lines("4", "7")[1].startswith("7, thin-backend: miss")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["99"], "no build '99' is on record: the latest are 3, 2, 1 (see 'ltod explain --list')"),
        (["9" * 30], "build 3 of {place}/other (thin) has no module '" + "9" * 30 + "': there are only"),
        (["foo", "bar"], "no build 'foo' is on record: the latest are 3, 2, 1 (see 'ltod explain --list')"),
        (["2", "fo"], "build 2 of {place}/app (thin) has no module 'fo': did you mean foo?"),
        (["2", "xyz"], "build 2 of {place}/app (thin) has no module 'xyz': there are foo, main, new, util"),
        (
            ["3", "--link", "app"],
            "build 3 is of {place}/other (thin), not of {place}/app: leave out --link or the number",
        ),
        (["--link", "no"], "no build of {place}/no is on record: there are builds of {place}/other, {place}/app"),
        (["--list", "2"], "--list takes no BUILD and no MODULE: leave one of them out"),
    ],
)
def test_what_is_not_there(history: History, place: Path, arguments: list[str], message: str) -> None:
    assert lines(*arguments, code=2) == [f"error: {message.format(place=place)}"]


def test_nothing_is_on_record(place: Path) -> None:
    message = f"no build is on record in {place}/none"
    assert lines("--list", "--cache-dir", "none") == [message]
    (error,) = lines("--cache-dir", "none", code=2)
    assert error.startswith(f"error: {message}: build something with the cache")
    assert not Path("none").exists()


def test_a_damaged_history(history: History, place: Path) -> None:
    Path("cache", FILE_NAME).write_bytes(b"nonsense" * 1000)
    (error,) = lines(code=2)
    assert error.startswith("error: the build history cannot be read: ")
    assert error.endswith("it was put aside, and the next build begins a new one")


def test_names_of_strangers(history: History, place: Path) -> None:
    history.add(place / "app", ("a\x1b[2J\nb\udcff", use(MISS, "k", *made("x"))))
    assert lines()[1:] == ["thin-backend  a\\x1b[2J\\nb\\udcff: new in this build"]
    assert answer()["items"][0]["module"] == "a\x1b[2J\nb\udcff"


def test_a_reader_that_leaves(history: History) -> None:
    script = '"$@" explain --list | true; exit "${PIPESTATUS[0]}"'
    process = subprocess.run(["bash", "-c", script, "bash", *LTOD], capture_output=True, timeout=60)
    assert (process.returncode, process.stderr) == (0, b"")

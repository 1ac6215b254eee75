"""Layer: e2e. `ltod stats` over a history that the test writes, and after real builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coordinator._records import FILE_NAME
from tests.command import function, ltod, ltod_json, write
from tests.past_builds import LINKER, STARTED, History, use
from workers.work import CacheOutcome, CacheUse, Step

pytestmark = pytest.mark.e2e

MISS, HIT, SHARED = CacheOutcome.MISS, CacheOutcome.HIT, CacheOutcome.SHARED
NOTHING = {
    "modules": 0,
    "hits": 0,
    "shared": 0,
    "misses": 0,
    "uncached": 0,
    "failed": 0,
    "seconds": 0.0,
    "saved_seconds": 0.0,
}


@pytest.fixture
def history(place: Path, monkeypatch: pytest.MonkeyPatch) -> History:
    """A program that `ltod build` made once, and one that a linker made twice."""
    monkeypatch.setenv("LTOD_CACHE_DIR", str(place / "cache"))
    monkeypatch.setenv("TZ", "UTC")
    history = History(place / "cache")
    history.add(place / "app", ("m", use(MISS, "m1")), ok=False, seconds=4000.0)
    names = ("main.o", "lib/foo.o", "libz.a(bar.o)", "libz.a(gone.o)")
    history.add(place / "a.out", *((name, use(MISS, name)) for name in names), kind=LINKER, seconds=70.0)
    history.add(
        place / "a.out",
        ("main.o", CacheUse(note="-mllvm -debug is not among the options whose effect is known")),
        ("lib/foo.o", use(HIT, "lib/foo.o", saved=2.25)),
        ("libz.a(bar.o)", use(SHARED, "other", saved=100.0)),
        kind=LINKER,
        seconds=0.1,
    )
    return history


def lines(*arguments: str | Path, code: int = 0) -> list[str]:
    process = ltod("stats", *arguments)
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    return (process.stdout if code == 0 else process.stderr).splitlines()


def answer(*arguments: str | Path) -> dict[str, Any]:
    process = ltod("stats", "--json", *arguments)
    assert process.returncode == 0, process.stderr
    assert process.stdout.isascii()
    assert process.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(process.stdout)
    return found


def test_the_table(history: History, place: Path) -> None:
    a_out, app = f"{place}/a.out ({LINKER})", f"{place}/app (thin)"
    assert lines() == [
        "build  started              modules  hits  shared  misses  uncached  failed        took       saved  of",
        f"    3  2027-01-15 08:00:00        3     1       1       0         1       0       0.1 s  1 min 42 s  {a_out}",
        f"    2  2027-01-15 08:00:00        4     0       0       4         0       0  1 min 10 s       0.0 s  {a_out}",
        f"    1  2027-01-15 08:00:00        1     0       0       1         0       1  1 h 07 min       0.0 s  {app}",
        "total  3 builds                   8     1       1       5         1       1  1 h 08 min  1 min 42 s",
    ]


def test_an_object(history: History, place: Path) -> None:
    found = answer()
    assert [build["id"] for build in found["builds"]] == [3, 2, 1]
    assert found["builds"][0] == {
        "id": 3,
        "path": str(place / "a.out"),
        "kind": LINKER,
        "started": STARTED,
        "seconds": 0.1,
        "ok": True,
        "modules": 3,
        "hits": 1,
        "shared": 1,
        "misses": 0,
        "uncached": 1,
        "failed": 0,
        "saved_seconds": 102.25,
    }
    assert (found["builds"][2]["ok"], found["builds"][2]["failed"]) == (False, 1)
    assert found["totals"] == {
        "builds": 3,
        "modules": 8,
        "hits": 1,
        "shared": 1,
        "misses": 5,
        "uncached": 1,
        "failed": 1,
        "seconds": 4070.1,
        "saved_seconds": 102.25,
    }


def test_builds_of_one_thing(history: History, place: Path) -> None:
    assert [build["id"] for build in answer("--link", "a.out")["builds"]] == [3, 2]
    assert [build["id"] for build in answer("--link", place / "sub" / ".." / "app")["builds"]] == [1]
    assert [line.split()[0] for line in lines("--link", "a.out")] == ["build", "3", "2", "total"]


def test_so_many_builds(history: History) -> None:
    found = answer("-n", "2")
    assert [build["id"] for build in found["builds"]] == [3, 2]
    assert (found["totals"]["builds"], found["totals"]["misses"]) == (2, 4)
    assert len(answer("-n", "9" * 30)["builds"]) == 3
    assert len(answer("-n", "1", "--link", "app")["builds"]) == 1
    assert lines("-n", "1")[-1].split()[:3] == ["total", "1", "build"]
    (error,) = lines("-n", "0", code=2)
    assert error.startswith("error: Invalid value for '-n'")


def test_steps_of_a_module_and_links_make_no_more_modules(history: History, place: Path) -> None:
    history.add(place / "one", ("m", use(MISS, "m1")), step=Step.PRE_LINK)
    history.add(place / "one", ("m", use(MISS, "m2")), step=Step.LINK)
    assert [(build["modules"], build["misses"]) for build in answer("--link", "one")["builds"]] == [(0, 1), (1, 1)]


def test_nothing_is_on_record(history: History, place: Path) -> None:
    message = f"no build is on record in {place}/none: build something with the cache, or name another --cache-dir"
    assert lines("--cache-dir", "none") == [message]
    assert not Path("none").exists()
    assert lines("--link", "x") == [
        f"no build of {place}/x is on record: there are builds of {place}/a.out, {place}/app"
    ]
    nothing = {"builds": [], "totals": {"builds": 0, **NOTHING}}
    assert answer("--cache-dir", "none") == answer("--link", "x") == nothing
    assert isinstance(answer("--link", "x")["totals"]["saved_seconds"], float)


def test_a_damaged_history(history: History) -> None:
    Path("cache", FILE_NAME).write_bytes(b"nonsense" * 1000)
    (error,) = lines(code=2)
    assert error.startswith("error: the build history cannot be read: ")


def test_names_of_strangers(history: History, place: Path) -> None:
    history.add(place / "a\x1b[2J\nb\udcff", ("m", use(MISS, "k")))
    assert lines("-n", "1")[1].endswith(f"  {place}/a\\x1b[2J\\nb\\udcff (thin)")
    assert answer("-n", "1")["builds"][0]["path"] == f"{place}/a\x1b[2J\nb\udcff"


def test_of_real_builds(place: Path) -> None:
    write("f.ll", function("f"))
    write("g.ll", function("g"))
    for out in ("one", "two"):
        ltod_json("-q", "--out-dir", out, "f.ll", "g.ll")
    second, first = answer()["builds"]
    assert (first["path"], first["modules"], first["hits"], first["misses"]) == (str(place / "one"), 2, 0, 2)
    assert (second["path"], second["modules"], second["hits"], second["misses"]) == (str(place / "two"), 2, 2, 0)
    assert first["saved_seconds"] == 0.0
    assert second["saved_seconds"] > 0.0

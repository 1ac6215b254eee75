"""Layer: process. The build history: what it keeps, several processes at once, and files in whatever state."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from coordinator import _record_file, _records
from coordinator._records import FILE_NAME, BuildRecord, ItemRecord, Records, Thing
from tests.leftovers import descriptors
from workers.errors import RequestError
from workers.ingredients import Ingredient, IngredientKind
from workers.work import CacheOutcome, CacheUse, Engine, Failed, Step

pytestmark = pytest.mark.process

APP = Thing(Path("/p/app"), "thin")
MISS, HIT, OFF = CacheOutcome.MISS, CacheOutcome.HIT, CacheOutcome.OFF


def made(name: str, digest: str) -> tuple[Ingredient, ...]:
    return (
        Ingredient(IngredientKind.OPTION, "-O", "2"),
        Ingredient(IngredientKind.MODULE, name, digest),
        Ingredient(IngredientKind.EXPORT, "", "", ("f", "\udcff")),
    )


def item(name: str, key: str, outcome: CacheOutcome = MISS, *, ok: bool = True) -> ItemRecord:
    made_of = made(name, key) if outcome is MISS else ()
    return ItemRecord(name, "codegen", outcome, key, "because", 0.5, ok, made_of=made_of)


def build(*items: ItemRecord, thing: Thing = APP, ok: bool = True) -> BuildRecord:
    return BuildRecord(thing=thing, started=1000.0, seconds=2.5, ok=ok, items=items)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    before = descriptors()
    yield Records(tmp_path)
    assert descriptors() == before


# What is kept


def test_before_the_first_build_there_is_nothing(records: Records, tmp_path: Path) -> None:
    assert records.previous(APP) == {}
    assert records.builds() == []
    assert records.build(1) is None
    assert records.problem == ""
    assert list(tmp_path.iterdir()) == []


def test_a_build_is_kept(records: Records) -> None:
    assert records.add(build(item("a", "ka"), item("b", "kb"), ok=False)) == 1
    (kept,) = records.builds()
    assert (kept.id, kept.thing, kept.started, kept.seconds, kept.ok) == (1, APP, 1000.0, 2.5, False)
    assert kept.items == (attrs.evolve(item("a", "ka"), build=1), attrs.evolve(item("b", "kb"), build=1))
    assert records.build(1) == kept
    assert records.build(2) is None
    assert records.build(10**30) is None
    earlier = records.previous(APP)
    assert set(earlier) == {("a", "codegen"), ("b", "codegen")}
    assert earlier["a", "codegen"].ingredients == made("a", "ka")
    assert records.previous(attrs.evolve(APP, kind="fat")) == {}
    assert records.builds(Path("/p/other")) == []


def test_the_record_of_a_result() -> None:
    use = CacheUse(MISS, "k", made("m", "d"), reason="new", saved_seconds=2.0)
    record = ItemRecord.of(Failed("m", Engine.AUTO, 1.5, 0, (), step=Step.LINK, cache=use))
    assert record == ItemRecord("m", "link", MISS, "k", "new", 1.5, False, saved=2.0)
    assert record.ingredients == made("m", "d")


def test_what_the_cache_saved_is_kept(records: Records) -> None:
    records.add(build(attrs.evolve(item("a", "k", HIT), saved=12.3456), item("b", "b1")))
    records.add(build(item("b", "b2")))
    assert [(one.module, one.saved) for one in records.builds()[0].items] == [("b", 0.0), ("a", 12.346)]


def test_a_build_has_items_of_its_own(records: Records) -> None:
    assert [one.module for one in build(item("a", "k")).own_items] == ["a"]
    records.add(build(item("a", "a1"), item("b", "b1")))
    records.add(build(item("b", "b2")))
    latest, first = records.builds()
    assert {one.module for one in latest.items} == {"a", "b"}
    assert [one.module for one in latest.own_items] == ["b"]
    assert [one.module for one in first.own_items] == ["a", "b"]


def rows_of(path: Path, rows: list[list[object]]) -> None:
    """Have the only build consist of these items."""
    connection = sqlite3.connect(path)
    connection.execute("UPDATE build SET items = ?", (zlib.compress(json.dumps(rows).encode()),))
    connection.commit()
    connection.close()


FIRST_VERSION: list[object] = ["a", "codegen", "hit", "k", "because", 0.5, True, 0, "j", 7]


@pytest.mark.parametrize(
    ("more", "saved"),
    [
        ([], 0.0),
        ([1.5], 1.5),
        ([1.5, "of a later version", {}], 1.5),
        (["1.5"], 0.0),
        ([None], 0.0),
        ([-1.0], 0.0),
        ([1e300], 0.0),
        ([float("nan")], 0.0),
    ],
)
def test_items_of_other_versions(records: Records, tmp_path: Path, more: list[object], saved: float) -> None:
    records.add(build(item("a", "k")))
    rows_of(tmp_path / FILE_NAME, [[*FIRST_VERSION, *more], FIRST_VERSION[:-1]])
    (kept,) = records.builds()
    assert kept.items == (ItemRecord("a", "codegen", HIT, "k", "because", 0.5, True, 1, "j", 7, saved),)
    assert records.add(build(item("b", "k"))) == 2
    assert [one.saved for one in records.builds()[0].items] == [0.0, saved]


def test_ingredients_of_a_hit_are_those_of_its_key(records: Records) -> None:
    records.add(build(item("a", "k1")))
    records.add(build(item("a", "k2")))
    records.add(build(item("a", "k1", HIT)))
    (last,) = records.previous(APP).values()
    assert (last.outcome, last.key, last.build) == (HIT, "k1", 3)
    assert last.ingredients == made("a", "k1")
    assert (last.compared, last.compared_build) == ("k2", 2)


def test_what_a_build_did_not_come_to_is_known_from_earlier_ones(records: Records) -> None:
    records.add(build(item("a", "a1"), item("b", "b1")))
    records.add(build(item("a", "a2"), ok=False))
    records.add(build(item("c", "c1"), ok=False))
    earlier = records.previous(APP)
    assert {name: (one.key, one.build) for (name, _), one in earlier.items()} == {
        "a": ("a2", 2),
        "b": ("b1", 1),
        "c": ("c1", 3),
    }
    assert earlier["b", "codegen"].ingredients == made("b", "b1")
    records.add(build(item("b", "b2")))
    assert records.previous(APP)["b", "codegen"].compared_build == 1


def test_a_module_that_is_gone_for_long_is_forgotten(records: Records) -> None:
    records.add(build(item("gone", "k"), item("a", "k0")))
    for number in range(19):
        records.add(build(item("a", f"k{number}")))
    assert ("gone", "codegen") in records.previous(APP)
    records.add(build(item("a", "k")))
    assert ("gone", "codegen") not in records.previous(APP)


def test_the_oldest_builds_go(records: Records) -> None:
    other = Thing(Path(os.fsdecode(b"/p/\xff?%41#")), "fat")
    records.add(build(item("x", "kx"), thing=other))
    for number in range(25):
        assert records.add(build(item("a", f"k{number}"))) == number + 2
    assert [one.id for one in records.builds()] == [*range(26, 6, -1), 1]
    assert [one.id for one in records.builds(most=2)] == [26, 25]
    assert [one.thing for one in records.builds(other.path)] == [other]


def test_so_many_builds_and_no_more(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_records, "_BUILDS", 5)
    for number in range(8):
        records.add(build(item("a", "k"), thing=Thing(Path(f"/p/{number}"), "thin")))
    assert [one.id for one in records.builds()] == [8, 7, 6, 5, 4]


def test_ingredients_used_least_recently_go(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_records, "_MOST_BYTES", 0)
    monkeypatch.setattr(_records, "_USE_BUILDS", 1)
    records.add(build(*(item(f"m{number}", f"k{number}") for number in range(3))))
    records.add(build(*(item(f"m{number}", f"k{number}") for number in range(3))))
    assert len(records.made_of(["k0", "k1", "k2"])) < 3
    assert [len(one.ingredients) for one in records.previous(APP).values()].count(0) > 0


def test_nothing_changed_writes_next_to_nothing(records: Records, tmp_path: Path) -> None:
    names = [f"module{number}" for number in range(40)]
    records.add(build(*(item(name, f"{name:0>64}") for name in names)))
    size = (tmp_path / FILE_NAME).stat().st_size
    records.add(build(*(item(name, f"{name:0>64}", HIT) for name in names)))
    assert (tmp_path / FILE_NAME).stat().st_size - size <= 8192
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


# Several processes


def in_children(work: Callable[[int], None], number: int) -> list[int]:
    """Run `work` in forked processes at once, for a minute at most. Returns their exit codes."""
    children = []
    for each in range(number):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            code = 1
            try:
                work(each)
                code = 0
            except BaseException as error:
                os.write(2, f"{error!r}\n".encode())
            finally:
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def assert_whole(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_several_processes_at_once(tmp_path: Path) -> None:
    def work(process: int) -> None:
        records = Records(tmp_path)
        thing = Thing(Path(f"/p/{process % 2}"), "thin")
        numbers = []
        for number in range(8):
            records.previous(thing)
            numbers.append(records.add(build(item("a", f"k{process}"), item("b", f"{number}"), thing=thing)))
        (tmp_path / f"{process}.txt").write_text(" ".join(str(number) for number in numbers if number is not None))

    assert in_children(work, 5) == [0] * 5
    numbers = [int(word) for path in tmp_path.glob("*.txt") for word in path.read_text().split()]
    assert len(numbers) == len(set(numbers)) > 0
    # Of each of the two things, the last 20 builds are kept.
    kept = [one.id for one in Records(tmp_path).builds()]
    assert set(kept) <= set(numbers)
    assert max(kept) == max(numbers)
    assert_whole(tmp_path / FILE_NAME)


def test_killed_while_writing(tmp_path: Path) -> None:
    for round_ in range(12):
        pid = os.fork()
        if pid == 0:
            records = Records(tmp_path)
            number = 0
            while True:
                number += 1
                records.add(build(*(item(f"m{each}", f"{os.getpid()}-{number}-{each}") for each in range(20))))
        time.sleep(0.02 + 0.01 * round_)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        records = Records(tmp_path)
        assert len(records.previous(APP)) in (0, 20)
        assert records.add(build(item("m0", "k"))) is not None, records.problem
    assert_whole(tmp_path / FILE_NAME)
    assert not list(tmp_path.glob("*.damaged*"))


# Files in whatever state


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(100_000))


def cut_short(path: Path) -> None:
    os.truncate(path, 5000)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\x55" * 8192)


def foreign(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE build (id INTEGER, nonsense TEXT)")
    connection.commit()
    connection.close()


def undecodable(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE build SET kind = CAST(x'ff' AS TEXT)")
    connection.commit()
    connection.close()


def other_tables(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE build")
    connection.commit()
    connection.close()


DAMAGES = [garbage, cut_short, overwritten, foreign, other_tables]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("first", ["previous", "add"])
def test_a_damaged_file_is_put_aside(
    records: Records, tmp_path: Path, damage: Callable[[Path], None], first: str
) -> None:
    for number in range(30):
        records.add(build(*(item(f"m{each}", f"{number}-{each}") for each in range(5))))
    damage(tmp_path / FILE_NAME)
    damaged = (tmp_path / FILE_NAME).read_bytes()
    if first == "previous":
        assert records.previous(APP) == {}
        assert "put aside" in records.problem
    assert records.add(build(item("a", "k"))) is not None, records.problem
    assert (tmp_path / f"{FILE_NAME}.damaged").read_bytes() == damaged
    assert set(records.previous(APP)) >= {("a", "codegen")}
    assert_whole(tmp_path / FILE_NAME)


def test_several_processes_find_it_damaged(tmp_path: Path) -> None:
    garbage(tmp_path / FILE_NAME)

    def work(process: int) -> None:
        records = Records(tmp_path)
        for number in range(5):
            records.previous(APP)
            records.add(build(item("a", f"{process}-{number}")))

    assert in_children(work, 5) == [0] * 5
    assert len(Records(tmp_path).builds()) > 0
    assert_whole(tmp_path / FILE_NAME)
    assert (tmp_path / f"{FILE_NAME}.damaged").stat().st_size == 100_000


def test_texts_that_are_none(records: Records, tmp_path: Path) -> None:
    records.add(build(item("a", "k")))
    undecodable(tmp_path / FILE_NAME)
    assert records.previous(APP) == {}
    with pytest.raises(RequestError, match="put aside"):
        records.builds()
    assert records.add(build(item("a", "k"))) == 1


def test_an_empty_file_is_a_new_one(records: Records, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    assert records.previous(APP) == {}
    assert records.builds() == []
    assert records.add(build()) == 1


@pytest.mark.parametrize(
    "rows", ["items = 'text'", "items = x'00'", "path = 7", "started = 9e999", "seconds = 'x'", "seconds = 1e300"]
)
def test_rows_that_make_no_sense(records: Records, tmp_path: Path, rows: str) -> None:
    records.add(build(item("a", "k")))
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute(f"UPDATE build SET {rows}")  # noqa: S608
    connection.execute("UPDATE made SET ingredients = 5, used = 'text'")
    connection.commit()
    connection.close()
    assert records.previous(APP) == {}
    assert all(not one.items for one in records.builds())
    assert records.add(build(item("a", "k"))) == 2


@pytest.mark.parametrize("what", ["directory", "fifo", "lost link", "circle"])
def test_what_is_no_file_stays(records: Records, tmp_path: Path, what: str) -> None:
    path = tmp_path / FILE_NAME
    match what:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "lost link":
            path.symlink_to("nowhere/at/all")
        case _:
            path.symlink_to(path)
    assert records.previous(APP) == {}
    assert records.add(build(item("a", "k"))) is None
    assert records.problem
    assert [each.name for each in tmp_path.iterdir()] == [FILE_NAME]


def test_a_file_that_took_the_place_of_a_damaged_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    file = _record_file.RecordFile(path, ["CREATE TABLE t (x INTEGER)"])
    file.write(lambda connection: connection.execute("INSERT INTO t VALUES (1)"))

    def work(connection: sqlite3.Connection) -> int:
        if not (tmp_path / "old").exists():
            # Another process is quicker.
            path.rename(tmp_path / "old")
            file.write(lambda connection: connection.execute("INSERT INTO t VALUES (2)"))
            connection.execute("SELECT nonsense FROM nowhere")
        (found,) = connection.execute("SELECT x FROM t").fetchone()
        return int(found)

    assert file.write(work) == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "old"]


def test_no_directory(tmp_path: Path) -> None:
    records = Records(tmp_path / "none")
    assert records.previous(APP) == {}
    assert records.add(build()) is None
    assert list(tmp_path.iterdir()) == []


def test_a_later_version_is_left_alone(records: Records, tmp_path: Path) -> None:
    records.add(build(item("a", "k")))
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("DROP TABLE build")
    connection.execute("PRAGMA user_version = 2")
    connection.commit()
    connection.close()
    content = (tmp_path / FILE_NAME).read_bytes()
    assert records.previous(APP) == {}
    assert records.add(build(item("a", "k"))) is None
    assert "later version" in records.problem
    with pytest.raises(RequestError, match="later version"):
        records.builds()
    assert (tmp_path / FILE_NAME).read_bytes() == content


@pytest.mark.parametrize("lock", ["EXCLUSIVE", "IMMEDIATE"])
def test_a_lock_that_somebody_holds_for_long(records: Records, tmp_path: Path, lock: str) -> None:
    records.add(build(item("a", "k")))
    connection = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    connection.execute(f"BEGIN {lock}")

    def work(_: int) -> None:
        # Whoever waited for the lock would be ended by the alarm.
        assert len(records.previous(APP)) == (0 if lock == "EXCLUSIVE" else 1)
        assert records.add(build(item("a", "k"))) is None
        assert "locked" in records.problem

    assert in_children(work, 1) == [0]
    connection.close()
    assert records.add(build(item("a", "k"))) == 2


def test_what_takes_too_long_is_given_up(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    assert records.add(build(item("a", "k"))) == 1
    monkeypatch.setattr(_record_file, "_WORK_SECONDS", -1.0)
    monkeypatch.setattr(_record_file, "_STEPS_BETWEEN_LOOKS", 1)
    assert records.previous(APP) == {}
    assert records.add(build(item("a", "k"))) is None
    monkeypatch.undo()
    assert [one.id for one in records.builds()] == [1]


@pytest.mark.parametrize("room", [0, 10_000, 40_000])
def test_no_room_for_the_file(tmp_path: Path, room: int) -> None:
    def work(_: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        records = Records(tmp_path)
        outcomes = [records.add(build(item(f"m{number}", f"k{number}" * 1000))) for number in range(30)]
        assert outcomes[-1] is None
        assert records.problem

    assert in_children(work, 1) == [0]
    records = Records(tmp_path)
    kept = len(records.builds())
    assert records.add(build(item("a", "k"))) is not None
    assert len(records.builds()) == kept + 1
    assert_whole(tmp_path / FILE_NAME)


def test_a_full_disk(small_disk: Path) -> None:
    records = Records(small_disk)
    outcomes = [records.add(build(item(f"m{number}", f"{os.urandom(5000).hex()}"))) for number in range(60)]
    assert outcomes[0] == 1
    assert outcomes[-1] is None
    assert "full" in records.problem
    assert len(records.previous(APP)) > 0


def test_a_directory_that_must_not_be_written(tmp_path: Path) -> None:
    # Where others may look: the user that the child becomes has no way into this test's own directory.
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        empty = directory / "empty"
        empty.mkdir()
        Records(directory).add(build(item("a", "k")))
        for path in (directory, empty):
            path.chmod(0o555)
        (directory / FILE_NAME).chmod(0o444)

        def work(_: int) -> None:
            if os.getuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            for place, known in ((directory, 1), (empty, 0)):
                records = Records(place)
                assert len(records.previous(APP)) == known
                assert len(records.builds()) == known
                assert records.add(build(item("a", "k"))) is None
                assert records.problem

        assert in_children(work, 1) == [0]
        directory.chmod(0o755)
        assert sorted(path.name for path in directory.iterdir()) == ["empty", FILE_NAME]


def test_a_python_without_sqlite(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['sqlite3'] = None\n"
        "from pathlib import Path\n"
        "from coordinator._records import *\n"
        "thing = Thing(Path('/p'), 'thin')\n"
        "records = Records(Path(sys.argv[1]))\n"
        "build = BuildRecord(thing=thing, started=0.0, seconds=0.0, ok=True, items=())\n"
        "print(records.previous(thing), records.add(build), records.problem)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert run.stdout == "{} None this Python has no sqlite3\n"


def test_what_takes_long_to_load_is_not_loaded() -> None:
    program = "import sys, coordinator._records; print({'sqlite3', 'trio', 'workers.work'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert run.stdout == "set()\n"

"""What earlier builds made, and of what, so that a build can say why something was made again.

Two tables. A build is one row, its items a blob that is read and written whole; items that it did not come to are
carried over from the build before, so that the newest row knows the last of each. Ingredients are kept once by key:
a build in which nothing has changed writes its own row and no more.

A link that finds everything in the cache takes hardly longer than loading does: no trio here, no `workers.work`.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
from attrs import field, frozen

from coordinator._record_file import NothingRecordedError, RecordFile, UnusableError
from workers.errors import RequestError
from workers.ingredients import Ingredient, decode, encode
from workers.outcome import CacheOutcome

if TYPE_CHECKING:
    import sqlite3

    from workers.work import WorkResult

__all__ = ["FILE_NAME", "BuildRecord", "ItemRecord", "Records", "Thing"]

FILE_NAME = "history.sqlite"
"""The file in the cache's directory."""

_TABLES = (
    """CREATE TABLE build (id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL, kind TEXT NOT NULL,
       started REAL NOT NULL, seconds REAL NOT NULL, ok INTEGER NOT NULL, items BLOB NOT NULL)""",
    "CREATE INDEX build_of_thing ON build (path, kind, id)",
    "CREATE TABLE made (key TEXT PRIMARY KEY, used INTEGER NOT NULL, ingredients BLOB NOT NULL)",
    "CREATE INDEX made_last_used ON made (used)",
)
_ROW = "SELECT id, path, kind, started, seconds, ok, items FROM build"

_BUILDS_OF_ONE_THING = 20
_BUILDS = 200
# Of the file: 40 modules make about 100 kB when each of them has changed.
_MOST_BYTES = 32 * 1024 * 1024
_MOST_BLOB_BYTES = 64 * 1024 * 1024
# How many builds old the note of a last use may be: most builds then leave it alone.
_USE_BUILDS = 16
_VARIABLES = 500
# Thirty years; what is more is damage, and cannot be added up.
_MOST_SECONDS = 1e9

_T = TypeVar("_T")


@frozen
class Thing:
    """What is built again and again: the absolute `path` of what is linked, else of the output directory.

    `kind` tells apart what different kinds of build make at one place.
    """

    path: Path
    kind: str

    def __str__(self) -> str:
        return f"{self.path} ({self.kind})"


@frozen
class ItemRecord:
    """What became of one item: `key` is '' where the cache was not asked.

    `build` is the build that it was in, 0 as long as that has no number. `compared` is the key of the item that the
    reason compares with, and `compared_build` the build that this was in, if there was one. `saved` is how many
    seconds of making it the cache spared this build, as far as that is known.
    """

    module: str
    step: str
    outcome: CacheOutcome
    key: str
    reason: str
    seconds: float
    ok: bool
    build: int = 0
    compared: str = ""
    compared_build: int = 0
    saved: float = 0.0
    made_of: bytes | tuple[Ingredient, ...] = field(default=(), repr=False, eq=False)
    """The ingredients, perhaps still encoded."""

    @classmethod
    def of(cls, result: WorkResult) -> ItemRecord:
        """The record of a result whose `cache` has its reason."""
        from workers.work import Failed  # whoever has a result has loaded it

        use = result.cache
        ok = not isinstance(result, Failed)
        return cls(
            result.module,
            result.step.value,
            use.outcome,
            use.key,
            use.reason,
            result.seconds,
            ok,
            saved=use.saved_seconds,
            made_of=use.ingredients,
        )

    @property
    def encoded(self) -> bytes:
        """The ingredients as bytes; none where there are none."""
        return self.made_of if isinstance(self.made_of, bytes) else encode(self.made_of) if self.made_of else b""

    @property
    def ingredients(self) -> tuple[Ingredient, ...]:
        """What the result was made of; nothing where that is not on record."""
        return decode(self.made_of) if isinstance(self.made_of, bytes) else self.made_of


@frozen(kw_only=True)
class BuildRecord:
    """One build: `started` is in seconds since the epoch; `id` is 0 as long as it is not recorded."""

    thing: Thing
    started: float
    seconds: float
    ok: bool
    items: tuple[ItemRecord, ...] = field(repr=False)
    id: int = 0

    @property
    def own_items(self) -> tuple[ItemRecord, ...]:
        """The items that the build came to; the others are only carried along."""
        return tuple(item for item in self.items if item.build == self.id)


class Records:
    """The history in the cache directory `directory`, shared by any number of processes.

    Builds use `previous` and `add`, which never fail and never wait for long; the rest is for who wants to look.
    """

    def __init__(self, directory: Path) -> None:
        self._file = RecordFile(directory / FILE_NAME, _TABLES)
        self.problem = ""
        """What was wrong with the history the last time that a build could not use it, for a log."""

    def previous(self, thing: Thing) -> Mapping[tuple[str, str], ItemRecord]:
        """The last of each item that builds of `thing` had, by module and step; nothing on any trouble."""

        def read(connection: sqlite3.Connection) -> dict[tuple[str, str], ItemRecord]:
            items = _newest_items(connection, thing)
            made = _made(connection, {item.key for item in items if item.key})
            return {(item.module, item.step): attrs.evolve(item, made_of=made.get(item.key, ())) for item in items}

        try:
            return self._file.read(read)
        except NothingRecordedError:
            return {}
        except UnusableError as error:
            self.problem = str(error)
            return {}

    def add(self, build: BuildRecord) -> int | None:
        """Record a build that has ended, and forget the oldest ones. Returns its number; `None` on any trouble."""
        # These are new for certain. Encoding takes a while, in which others need not wait for the file.
        fresh = [
            attrs.evolve(item, made_of=item.encoded) if item.outcome is CacheOutcome.MISS else item
            for item in build.items
        ]
        build = attrs.evolve(build, items=tuple(fresh))
        try:
            return self._file.write(lambda connection: _add(connection, build))
        except UnusableError as error:
            self.problem = str(error)
            return None

    def builds(self, path: Path | None = None, most: int | None = None) -> list[BuildRecord]:
        """At `most` so many builds, the newest first; only those of what is at `path`, if that is given.

        Raises `RequestError` where the history cannot be read; nothing recorded yet is no error.
        """
        limit = -1 if most is None else most
        if path is None:
            return self._ask(_rows(f"{_ROW} ORDER BY id DESC LIMIT ?", limit), [])
        return self._ask(_rows(f"{_ROW} WHERE path = ? ORDER BY id DESC LIMIT ?", os.fsencode(path), limit), [])

    def build(self, number: int) -> BuildRecord | None:
        """The build with this number, if it is on record. Raises `RequestError` as `builds` does."""
        if number >= 2**63:
            return None
        found: list[BuildRecord] = self._ask(_rows(f"{_ROW} WHERE id = ?", number), [])
        return found[0] if found else None

    def made_of(self, keys: Iterable[str]) -> Mapping[str, tuple[Ingredient, ...]]:
        """The ingredients behind `keys`, of those that are on record. Raises `RequestError` as `builds` does."""

        def read(connection: sqlite3.Connection) -> dict[str, tuple[Ingredient, ...]]:
            return {key: decode(made) for key, made in _made(connection, set(keys)).items()}

        return self._ask(read, {})

    def _ask(self, read: Callable[[sqlite3.Connection], _T], nothing: _T) -> _T:
        try:
            return self._file.read(read)
        except NothingRecordedError:
            return nothing
        except UnusableError as error:
            raise RequestError(f"the build history cannot be read: {error}") from error


def _add(connection: sqlite3.Connection, build: BuildRecord) -> int:
    path, kind = os.fsencode(build.thing.path), build.thing.kind
    earlier = {(item.module, item.step): item for item in _newest_items(connection, build.thing)}
    oldest = connection.execute(
        "SELECT id FROM build WHERE path = ? AND kind = ? ORDER BY id DESC LIMIT 1 OFFSET ?",
        (path, kind, _BUILDS_OF_ONE_THING - 1),
    ).fetchone()
    items = [_compared(item, earlier.pop((item.module, item.step), None)) for item in build.items]
    items += [item for item in earlier.values() if oldest is None or item.build > oldest[0]]
    cursor = connection.execute(
        "INSERT INTO build (path, kind, started, seconds, ok, items) VALUES (?, ?, ?, ?, ?, ?)",
        (path, kind, build.started, build.seconds, build.ok, _packed(items)),
    )
    number = cursor.lastrowid or 0
    added = _add_made(connection, build.items, number)
    if oldest is not None:
        connection.execute("DELETE FROM build WHERE path = ? AND kind = ? AND id <= ?", (path, kind, oldest[0]))
    connection.execute(
        "DELETE FROM build WHERE id IN (SELECT id FROM build ORDER BY id DESC LIMIT -1 OFFSET ?)", (_BUILDS,)
    )
    _forget_made(connection, added)
    return number


def _compared(item: ItemRecord, earlier: ItemRecord | None) -> ItemRecord:
    if earlier is None or earlier.key in ("", item.key):
        return item
    return attrs.evolve(item, compared=earlier.key, compared_build=earlier.build)


def _add_made(connection: sqlite3.Connection, items: Sequence[ItemRecord], number: int) -> int:
    """Record the ingredients that are not on record yet. Returns how many there were."""
    keys = {item.key for item in items if item.key}
    known: dict[str, int] = {}
    for some in _portions(keys):
        query = f"SELECT key, used FROM made WHERE key IN ({_marks(some)})"  # noqa: S608  # question marks
        known.update((key, used) for key, used in connection.execute(query, some) if isinstance(used, int))
    stale = [key for key, used in known.items() if used < number - _USE_BUILDS]
    for some in _portions(stale):
        query = f"UPDATE made SET used = ? WHERE key IN ({_marks(some)})"  # noqa: S608
        connection.execute(query, (number, *some))
    new = {item.key: item for item in items if item.key and item.key not in known and item.made_of}
    connection.executemany(
        "INSERT OR IGNORE INTO made (key, used, ingredients) VALUES (?, ?, ?)",
        ((key, number, item.encoded) for key, item in new.items()),
    )
    return len(new)


def _forget_made(connection: sqlite3.Connection, added: int) -> None:
    """Keep the file to its size. A few more go than came, so that no build has to clear away much at once."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    if (pages - free) * size > _MOST_BYTES:
        connection.execute(
            "DELETE FROM made WHERE key IN (SELECT key FROM made ORDER BY used LIMIT ?)", (2 * added + _USE_BUILDS,)
        )


def _newest_items(connection: sqlite3.Connection, thing: Thing) -> list[ItemRecord]:
    query = f"{_ROW} WHERE path = ? AND kind = ? ORDER BY id DESC LIMIT 1"
    return [
        item
        for build in _builds(connection.execute(query, (os.fsencode(thing.path), thing.kind)))
        for item in build.items
    ]


def _rows(query: str, *values: object) -> Callable[[sqlite3.Connection], list[BuildRecord]]:
    return lambda connection: list(_builds(connection.execute(query, values)))


def _made(connection: sqlite3.Connection, keys: set[str]) -> dict[str, bytes]:
    made: dict[str, bytes] = {}
    for some in _portions(keys):
        query = f"SELECT key, ingredients FROM made WHERE key IN ({_marks(some)})"  # noqa: S608
        made.update((key, data) for key, data in connection.execute(query, some) if isinstance(data, bytes))
    return made


def _portions(keys: Iterable[str]) -> Iterator[list[str]]:
    ordered = sorted(keys)
    for start in range(0, len(ordered), _VARIABLES):
        yield ordered[start : start + _VARIABLES]


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def _builds(rows: Iterable[tuple[object, ...]]) -> Iterator[BuildRecord]:
    """The builds in rows of the table, without those that make no sense."""
    for number, path, kind, started, seconds, ok, items in rows:
        match number, path, kind, started, seconds, items:
            case int(), bytes(), str(), float(), float(), bytes() if (
                math.isfinite(started) and abs(seconds) <= _MOST_SECONDS
            ):
                thing = Thing(Path(os.fsdecode(path)), kind)
                yield BuildRecord(
                    id=number,
                    thing=thing,
                    started=started,
                    seconds=seconds,
                    ok=bool(ok),
                    items=_unpacked(items, number),
                )


def _packed(items: Sequence[ItemRecord]) -> bytes:
    rows = [
        [
            item.module,
            item.step,
            item.outcome.value,
            item.key,
            item.reason,
            round(float(item.seconds), 3),
            item.ok,
            item.build,
            item.compared,
            item.compared_build,
            round(float(item.saved), 3),
        ]
        for item in items
    ]
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode("ascii"), 1)


def _unpacked(data: bytes, number: int) -> tuple[ItemRecord, ...]:
    """The items of build `number`, those that were carried over included, without those that make no sense."""
    try:
        rows = json.loads(zlib.decompressobj().decompress(data, _MOST_BLOB_BYTES))
    except (ValueError, RecursionError, zlib.error):
        return ()
    return tuple(_item(row, number) for row in rows if _is_item(row)) if isinstance(rows, list) else ()


def _is_item(row: object) -> bool:
    """Whether a row has what the first version wrote. Later ones put more behind it."""
    match row:
        case [str(), str(), str(), str(), str(), float(seconds), bool(), int(), str(), int(), *_]:
            return math.isfinite(seconds)
    return False


def _item(row: Sequence[Any], number: int) -> ItemRecord:
    module, step, outcome, key, reason, seconds, ok, build, compared, compared_build, *more = row
    use = _OUTCOMES.get(outcome, CacheOutcome.OFF)
    match more:
        case [float(saved), *_] if 0.0 <= saved <= _MOST_SECONDS:
            pass
        case _:
            saved = 0.0
    return ItemRecord(module, step, use, key, reason, seconds, ok, build or number, compared, compared_build, saved)


_OUTCOMES = {outcome.value: outcome for outcome in CacheOutcome}

"""One SQLite file that may be in any state, and that nobody's work depends on.

Whatever is wrong with it (locked, full disk, no permission, garbage, made by a later version), the answer comes soon
and is `UnusableError`. A damaged file is put aside, as `NAME.damaged`, and begun anew.

The rollback journal, not a write-ahead log: the latter needs shared memory, which network file systems have not, and
a writable directory even to be read. Nothing is synced: what a power failure leaves is damaged at worst.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import sqlite3

__all__ = ["NothingRecordedError", "RecordFile", "UnusableError"]

_APPLICATION = 0x6C746F64
"""Marks our files: "ltod"."""
_SCHEMA = 1
# Once in a reading transaction and twice in a writing one: a build has both, and waits for half a second in all.
_WAIT_SECONDS = 0.15
# From the beginning of a transaction: what SQLite has not done by then is given up.
_WORK_SECONDS = 0.4
_STEPS_BETWEEN_LOOKS = 10_000

_T = TypeVar("_T")


class UnusableError(Exception):
    """The file cannot be used; the message says why."""


class NothingRecordedError(UnusableError):
    """Nobody has written to it yet."""


class _DamagedError(UnusableError):
    """The file with this inode, if there was one, has never been one of ours, or is none any more."""

    def __init__(self, message: str, inode: int | None) -> None:
        super().__init__(message)
        self.inode = inode


class RecordFile:
    """The file at `path`, made with `tables`, which are SQL statements."""

    def __init__(self, path: Path, tables: Sequence[str]) -> None:
        # SQLite finds a journal by its name, which must not follow the current directory.
        self._path = Path(os.path.abspath(path))  # noqa: PTH100  # no directory need be there
        self._tables = tables

    def read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do `work` in one transaction that only reads. Raises `UnusableError`."""
        try:
            return self._attempt(work, write=False)
        except _DamagedError as error:
            if self._put_aside(error.inode):
                raise UnusableError(f"{error}; it was put aside, and the next build begins a new one") from error
            raise

    def write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do `work` in one transaction, on a new file if there is none. Raises `UnusableError`."""
        try:
            return self._attempt(work, write=True)
        except _DamagedError as error:
            if not self._put_aside(error.inode):
                raise
            return self._attempt(work, write=True)

    def _attempt(self, work: Callable[[sqlite3.Connection], _T], *, write: bool) -> _T:
        try:
            import sqlite3  # 13 ms that not every command need pay, and there are Pythons without it
        except ImportError as error:
            raise UnusableError("this Python has no sqlite3") from error

        inode = self._inode()
        if inode is None and not write:
            raise NothingRecordedError(f"{self._path} is not there")
        damage = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
        try:
            uri = f"{self._path.as_uri()}?mode={'rwc' if write else 'rw'}"
            with closing(sqlite3.connect(uri, uri=True, timeout=_WAIT_SECONDS, isolation_level=None)) as connection:
                return self._transaction(connection, work, write=write)
        except _ForeignError as error:
            raise _DamagedError(f"{self._path} is none of ltod's files", inode) from error
        except sqlite3.Error as error:
            # The low byte is the family. SQL that fails as such was meant for other tables than there are; a text that
            # Python cannot decode has no code.
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in damage:
                raise _DamagedError(f"{self._path} is damaged ({error})", inode) from error
            raise UnusableError(f"{self._path}: {error}") from error
        except MemoryError as error:
            raise UnusableError(f"{self._path}: out of memory") from error

    def _inode(self) -> int | None:
        """Which file is at the path. Raises `UnusableError`."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnusableError(f"{self._path}: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise UnusableError(f"{self._path} is no file")
        return status.st_ino

    def _transaction(
        self, connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], _T], *, write: bool
    ) -> _T:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        deadline = time.monotonic() + _WORK_SECONDS
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_LOOKS)
        self._check_tables(connection, write=write)
        done = work(connection)
        connection.execute("COMMIT")
        return done

    def _check_tables(self, connection: sqlite3.Connection, *, write: bool) -> None:
        """Make the tables in an empty file. Raises `UnusableError` and `_ForeignError`."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application == _APPLICATION and version > _SCHEMA:
            raise UnusableError(f"{self._path} was made by a later version of ltod")
        if (application, version) == (_APPLICATION, _SCHEMA):
            return
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if (application, version, tables) != (0, 0, 0):
            raise _ForeignError
        if not write:
            raise NothingRecordedError(f"{self._path} is empty")
        for statement in (*self._tables, f"PRAGMA application_id = {_APPLICATION}", f"PRAGMA user_version = {_SCHEMA}"):
            connection.execute(statement)

    def _put_aside(self, inode: int | None) -> bool:
        """Rename the damaged file; false if that is impossible, or another process is just doing it.

        The lock is on the damaged file: who gets it later finds that the path leads elsewhere by now.
        """
        try:
            with self._path.open("rb") as damaged:
                fcntl.flock(damaged, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(damaged.fileno()).st_ino == self._path.stat().st_ino == inode:
                    # Its journal must not be taken for that of the new one.
                    with suppress(FileNotFoundError):
                        Path(f"{self._path}-journal").replace(f"{self._path}.damaged-journal")
                    self._path.replace(f"{self._path}.damaged")
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


class _ForeignError(Exception):
    """A database, and not one of ours."""

"""How often the store was of use in the last weeks, added up over all builds of all processes.

Here belongs one small file and who may write to it when. Each line has a time in seconds, hits and misses. Whoever
has something to tell appends a line under a shared lock. Whoever finds the file long writes it anew, with one line
for each day, while nobody else has a lock; so no line is lost. Nothing here raises `OSError`: what cannot be told is
not, and a line that makes no sense is none.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from attrs import frozen

from workers.store.files import Unusable, discard, open_file, read_all, write_all
from workers.store.layout import Layout, Writer
from workers.store.leases import lock, still_there

__all__ = ["Told", "read_tally", "tell"]

_DAY_SECONDS = 24 * 3600
_PERIOD_SECONDS = 30 * _DAY_SECONDS
"""What is older is forgotten."""

_LONG_BYTES = 16 * 1024
_MOST_BYTES = 16 * 1024 * 1024

_ATTEMPTS = 20
_PAUSE_SECONDS = 0.001
"""Writing it anew takes less than a millisecond; who is stopped meanwhile may cost others a line, and no more time."""


@frozen(kw_only=True)
class Told:
    """Hits and misses of all builds since a time, in seconds of the epoch; `None` when there was none."""

    hits: int = 0
    misses: int = 0
    since: int | None = None


def tell(layout: Layout, writer: Writer, *, hits: int, misses: int) -> None:
    """Add to the tally."""
    with suppress(OSError):
        fd = _open_shared(str(layout.tally))
        try:
            write_all(fd, _line(int(time.time()), hits, misses))
            long = os.fstat(fd).st_size > _LONG_BYTES
        finally:
            os.close(fd)
        if long:
            _shorten(layout, writer)


def read_tally(layout: Layout) -> Told:
    """What was told in the last 30 days, to the day."""
    days = _days(_content(str(layout.tally)))
    return Told(
        hits=sum(hits for _, hits, _ in days),
        misses=sum(misses for *_, misses in days),
        since=min((when for when, *_ in days), default=None),
    )


def _open_shared(path: str) -> int:
    """The tally, open for appending, and locked unless somebody takes very long to write it anew. Raises `OSError`."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    for _ in range(_ATTEMPTS):
        fd = os.open(path, flags, 0o644)
        try:
            if lock(fd, shared=True) and still_there(fd, path):
                kept, fd = fd, -1
                return kept
        finally:
            if fd >= 0:
                os.close(fd)
        time.sleep(_PAUSE_SECONDS)
    return os.open(path, flags, 0o644)


def _shorten(layout: Layout, writer: Writer) -> None:
    """Write the tally anew, unless somebody is about to do anything with it. Raises `OSError`."""
    path = str(layout.tally)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not (lock(fd) and still_there(fd, path)):
            return
        lines = b"".join(_line(*day) for day in _days(_content(path)))
        temporary = writer.name()
        try:
            # Others append to it, so it is not read-only as what `Writer` creates.
            target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                write_all(target, lines)
            finally:
                os.close(target)
            os.rename(temporary, path)  # noqa: PTH104
        except OSError:
            discard(temporary)
            raise
    finally:
        os.close(fd)


def _content(path: str) -> bytes:
    try:
        fd, status = open_file(path)
    except Unusable:
        return b""
    try:
        return read_all(fd, status.st_size, path) if status.st_size <= _MOST_BYTES else b""
    except Unusable:
        return b""
    finally:
        os.close(fd)


def _days(content: bytes) -> list[tuple[int, int, int]]:
    """One for each day that counts, with its first time."""
    now = time.time()
    days: dict[int, tuple[int, int, int]] = {}
    for line in content.splitlines():
        words = line.split()
        if len(words) != 3 or not all(word.isdigit() and len(word) < 16 for word in words):
            continue
        when, hits, misses = map(int, words)
        if abs(now - when) < _PERIOD_SECONDS:
            first, more_hits, more_misses = days.get(when // _DAY_SECONDS, (when, 0, 0))
            days[when // _DAY_SECONDS] = (min(first, when), hits + more_hits, misses + more_misses)
    return [days[day] for day in sorted(days)]


def _line(when: int, hits: int, misses: int) -> bytes:
    return f"{when} {hits} {misses}\n".encode("ascii")

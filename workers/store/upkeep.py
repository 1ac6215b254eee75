"""What is done to the store as a whole: pruning, verifying, counting, and removing what the dead left behind.

Here belongs everything that walks over all files. It blocks, so it is called in threads; it takes no lock that a
reader or a writer takes, so it is never in their way. Who meets a file that is being removed sees a miss.

Pruning knows nothing of which entry refers to which blob. A use touches both, so they grow old together, and a blob
that lost its last entry grows old alone; should one go before the other, a reader finds the entry incomplete, which
is a miss, and removes it. So there is no need to read entries, and no moment in which a writer's blobs are in danger
because their entry does not exist yet: they are the youngest of all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

from workers.store.action_result import DecodeError, decode
from workers.store.files import Unusable, discard, hash_file, open_file
from workers.store.interface import is_digest
from workers.store.layout import TOUCH_SECONDS, Layout
from workers.store.leases import lock, seize
from workers.store.tally import Told, read_tally

__all__ = ["Pruned", "Usage", "Verified", "is_there", "prune", "usage", "verify"]

_NANOSECONDS = 1_000_000_000


@frozen(kw_only=True)
class Pruned:
    """What pruning did."""

    files: int = 0
    """Entries, blobs and facts removed."""
    freed_bytes: int = 0
    left_bytes: int = 0
    in_use_bytes: int = 0
    """What is left because running builds may be using it: it was used since the oldest of them began."""
    busy: bool = False
    """Nothing was done, as another process is pruning."""


@frozen(kw_only=True)
class Verified:
    """What `verify` found."""

    entries: int
    """Entries that are right and whole."""
    blobs: int
    """Blobs that are right."""
    facts: int
    """Facts that are right."""
    incomplete: int
    """Entries, removed, of which an output is gone: no harm, a build would have seen a miss."""
    damaged: tuple[str, ...]
    """Everything else that was there: paths in the store's directory, sorted; removed where that was possible."""


@frozen(kw_only=True)
class Usage:
    """What is there, and what it was good for."""

    entries: int
    blobs: int
    facts: int
    bytes: int
    """On the disk, directories not counted."""
    sessions: int
    """Running builds."""
    told: Told
    """Hits and misses of the last weeks."""


@frozen
class _File:
    path: str
    used_ns: int
    size: int


def prune(
    layout: Layout, *, down_to: int, if_above: int | None = None, stopped: Callable[[], bool] = lambda: False
) -> Pruned:
    """Remove what was used least recently until at most `down_to` bytes are left; never what a running build uses.

    Does nothing but look if there are at most `if_above` bytes. What killed processes left is removed as well. Never
    waits for another process that prunes. Ends early when `stopped` says so. Raises `OSError` if there is no store.
    """
    with _pruning(layout) as ours:
        if not ours:
            return Pruned(busy=True)
        with suppress(OSError):
            os.truncate(layout.grown, 0)
        _bury(layout.tmp)
        _bury(layout.locks)
        starts = _running(layout)
        keep_since = min(starts, default=None)
        found = (file for place in (layout.ac, layout.facts, layout.cas) for file in _scan(place, stopped))
        files = sorted(found, key=lambda file: file.used_ns)
        left = sum(file.size for file in files)
        removed = freed = in_use = 0
        if if_above is None or left > if_above:
            for file in files:
                if left <= down_to or stopped():
                    break
                if keep_since is not None and file.used_ns >= keep_since - TOUCH_SECONDS * _NANOSECONDS:
                    # All that follow are younger still.
                    in_use = left
                    break
                if not _unused_since(file) or not discard(file.path):
                    continue
                removed += 1
                freed += file.size
                left -= file.size
        return Pruned(files=removed, freed_bytes=freed, left_bytes=left, in_use_bytes=in_use)


def verify(layout: Layout, stopped: Callable[[], bool] = lambda: False) -> Verified:
    """Look at every blob, entry and fact as a reader would, and remove what no reader would believe."""
    damaged: list[str] = []
    blobs = facts = entries = incomplete = 0

    def condemn(path: str) -> None:
        damaged.append(os.path.relpath(path, layout.base))
        discard(path)

    for file in _scan(layout.cas, stopped):
        try:
            if _right_blob(layout, file.path):
                blobs += 1
            else:
                condemn(file.path)
        except Unusable as error:
            if error.damaged:
                condemn(file.path)
    for file in _scan(layout.facts, stopped):
        try:
            _check_fact(layout, file.path)
            facts += 1
        except Unusable as error:
            if error.damaged:
                condemn(file.path)
    for file in _scan(layout.ac, stopped):
        try:
            whole = _whole_entry(layout, file.path)
        except DecodeError:
            condemn(file.path)
        except Unusable as error:
            if error.damaged:
                condemn(file.path)
        else:
            entries += whole
            incomplete += not whole and discard(file.path)
    return Verified(entries=entries, blobs=blobs, facts=facts, incomplete=incomplete, damaged=tuple(sorted(damaged)))


def is_there(layout: Layout) -> bool:
    """Whether there is a store. Raises `OSError` where that cannot be seen."""
    try:
        os.scandir(layout.root).close()
    except FileNotFoundError:
        return False
    return True


def usage(layout: Layout) -> Usage:
    """Count what is there."""
    entries, blobs, facts = ([*_scan(place)] for place in (layout.ac, layout.cas, layout.facts))
    return Usage(
        entries=len(entries),
        blobs=len(blobs),
        facts=len(facts),
        bytes=sum(file.size for file in (*entries, *blobs, *facts)),
        sessions=len(_running(layout)),
        told=read_tally(layout),
    )


def _right_blob(layout: Layout, path: str) -> bool:
    digest = Path(path).name
    if not is_digest(digest) or path != layout.blob(digest):
        return False
    fd, _ = open_file(path)
    try:
        return hash_file(fd, path)[0] == digest
    finally:
        os.close(fd)


def _check_fact(layout: Layout, path: str) -> None:
    """Raises `Unusable`."""
    key = Path(path).name
    if not is_digest(key) or path != layout.fact(key):
        raise Unusable(path, damaged=True)
    layout.read_fact(key)


def _whole_entry(layout: Layout, path: str) -> bool:
    key = Path(path).name
    if not is_digest(key) or path != layout.entry(key):
        raise Unusable(path, damaged=True)
    message, _ = layout.read_entry(key)
    for output in decode(message).outputs:
        try:
            status = os.lstat(layout.blob(output.digest))
        except OSError:
            return False
        if status.st_size != output.size:
            return False
    return True


@contextmanager
def _pruning(layout: Layout) -> Iterator[bool]:
    """Whether we are the one process that prunes."""
    fd = os.open(layout.pruning, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        yield lock(fd)
    finally:
        os.close(fd)


def _scan(directory: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[_File]:
    """All files two levels below `directory`, whatever they are; what vanishes meanwhile is left out."""
    for shard in _listed(directory):
        if stopped():
            return
        for path in _listed(shard):
            with suppress(OSError):
                status = os.lstat(path)
                # Hard links of blobs are elsewhere, and compressed files may grow when they are moved: what counts is
                # the larger of what it is and what it takes.
                yield _File(path, status.st_mtime_ns, max(status.st_size, status.st_blocks * 512))


def _listed(directory: str | Path) -> list[str]:
    try:
        return [f"{directory}/{name}" for name in os.listdir(directory)]  # noqa: PTH208
    except OSError:
        return []


def _unused_since(file: _File) -> bool:
    try:
        return os.lstat(file.path).st_mtime_ns == file.used_ns
    except OSError:
        return False


def _running(layout: Layout) -> list[int]:
    """When the running builds began, in nanoseconds. What dead ones left is removed."""
    _bury(layout.sessions)
    starts = []
    for path in _listed(layout.sessions):
        with suppress(OSError):
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                starts.append(status.st_mtime_ns)
    return starts


def _bury(directory: Path) -> None:
    """Remove from `directory` what nobody alive has locked."""
    for path in _listed(directory):
        fd = seize(path)
        if fd is not None:
            # Removed before it is let go, so that nobody takes it for alive.
            discard(path)
            os.close(fd)

"""`ltod cache`: what builds have kept for later ones, and looking after it.

Scripts depend on the objects of `--json`: keys are added, never taken away or changed in meaning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from coordinator.cli._exit import ExitCode
from coordinator.cli._signals import StopSignals
from coordinator.cli._terminal import printable, put, say
from coordinator.cli._types import Size
from workers.errors import RequestError
from workers.store import LocalStore, Pruned, Told, Usage, default_directory, default_limit, open_store

__all__ = ["cache"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _options(command: _Command) -> _Command:
    """What all of the commands take."""
    where = click.option(
        "--cache-dir",
        type=click.Path(file_okay=False, readable=False, path_type=Path),
        metavar="DIR",
        help="The directory of the cache [default: $LTOD_CACHE_DIR, else ltod in $XDG_CACHE_HOME or ~/.cache]",
    )
    return where(
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output")(command)
    )


@click.group(short_help="Look after what builds keep for later ones.")
def cache() -> None:
    """Look after the cache: what builds keep for later ones.

    Builds may go on meanwhile. All of it may be removed at any time; it only takes longer to build then.
    """


@cache.command()
@_options
@click.pass_obj
def stats(signals: StopSignals, *, cache_dir: Path | None, as_json: bool) -> int:
    """Say how large the cache is, and how often it was of use.

    Hits and misses are those of all builds of the last 30 days that used this cache.
    """
    limit = default_limit(os.environ)
    with _opened(cache_dir) as (store, directory):
        usage = store.usage()
    signals.defer()
    told = usage.told
    if as_json:
        _put_object(
            directory=str(directory),
            bytes=usage.bytes,
            limit_bytes=limit,
            entries=usage.entries,
            blobs=usage.blobs,
            facts=usage.facts,
            sessions=usage.sessions,
            hits=told.hits,
            misses=told.misses,
            hit_rate=_rate(told),
            since=None if told.since is None else datetime.fromtimestamp(told.since, UTC).isoformat(),
        )
    else:
        put(_as_text(directory, usage, limit))
    return ExitCode.OK


@cache.command()
@_options
@click.option("--size", type=Size(), help="How much may be left [default: its limit, $LTOD_CACHE_SIZE or 10G]")
@click.pass_obj
def prune(signals: StopSignals, *, cache_dir: Path | None, as_json: bool, size: int | None) -> int:
    """Remove what was used least recently.

    What a running build uses is kept. Builds do this by themselves when the cache grows beyond its limit.
    """
    limit = default_limit(os.environ) if size is None else size
    return _remove(signals, cache_dir, as_json, lambda store: store.prune(limit))


@cache.command()
@_options
@click.pass_obj
def clear(signals: StopSignals, *, cache_dir: Path | None, as_json: bool) -> int:
    """Remove everything but what a running build uses."""
    return _remove(signals, cache_dir, as_json, LocalStore.clear)


@cache.command()
@_options
@click.pass_obj
def verify(signals: StopSignals, *, cache_dir: Path | None, as_json: bool) -> int:
    """Read everything, and remove what is damaged.

    No build is ever given anything damaged: this says whether the disk can be trusted. Ends with exit code 1 when
    something was damaged.
    """
    with _opened(cache_dir) as (store, directory):
        found = store.verify()
    signals.defer()
    stuck = [path for path in found.damaged if os.path.lexists(directory / path)]
    checked = found.entries + found.blobs + found.facts + found.incomplete + len(found.damaged)
    if as_json:
        _put_object(
            ok=not found.damaged,
            directory=str(directory),
            checked=checked,
            damaged=list(found.damaged),
            not_removed=stuck,
            incomplete=found.incomplete,
        )
    else:
        put(f"checked {_count(checked, 'file')}: {len(found.damaged) or 'none'} damaged")
        for path in found.damaged:
            put(f"    {printable(path)}{' (cannot be removed)' if path in stuck else ' (removed)'}")
        if found.incomplete:
            put(f"removed {_count(found.incomplete, 'incomplete entry', 'incomplete entries')}, which does no harm")
    return ExitCode.FAILED if found.damaged else ExitCode.OK


def _remove(signals: StopSignals, cache_dir: Path | None, as_json: bool, remove: Callable[[LocalStore], Pruned]) -> int:
    """Remove from the cache, and say what came of it."""
    with _opened(cache_dir) as (store, directory):
        pruned = remove(store) if store.is_there() else Pruned()
        trouble = store.stats.trouble or ("another process is pruning it: try again" if pruned.busy else "")
    signals.defer()
    if trouble:
        say(f"error: the cache {directory} cannot be pruned: {trouble}")
    if as_json:
        _put_object(
            ok=not trouble,
            directory=str(directory),
            removed_files=pruned.files,
            freed_bytes=pruned.freed_bytes,
            left_bytes=pruned.left_bytes,
            in_use_bytes=pruned.in_use_bytes,
        )
    elif not trouble:
        kept = f", {_size(pruned.in_use_bytes)} of it kept for running builds" if pruned.in_use_bytes else ""
        freed = f"removed {_count(pruned.files, 'file')}, {_size(pruned.freed_bytes)}"
        put(f"{freed}; {_size(pruned.left_bytes)} left{kept}")
    return ExitCode.FAILED if trouble else ExitCode.OK


@contextmanager
def _opened(cache_dir: Path | None) -> Iterator[tuple[LocalStore, Path]]:
    """The store that is meant, and its directory, which need not be there. Raises `RequestError`."""
    # As builds find theirs.
    directory = Path(os.path.abspath(cache_dir or default_directory(os.environ)))  # noqa: PTH100
    with open_store(directory, limit_bytes=default_limit(os.environ)) as store:
        try:
            store.is_there()
        except OSError as error:
            raise RequestError(f"the cache {directory} cannot be read: {error.strerror}") from error
        yield store, directory


def _as_text(directory: Path, usage: Usage, limit: int) -> str:
    told = usage.told
    rate = _rate(told)
    files = usage.entries + usage.blobs + usage.facts
    lines = [
        f"directory  {printable(str(directory))}",
        f"size       {_size(usage.bytes)} of {_size(limit)}",
        f"entries    {usage.entries:,} in {_count(files, 'file')}",
    ]
    if usage.sessions:
        lines.append(f"in use     by {_count(usage.sessions, 'running build')}")
    if rate is None or told.since is None:
        lines.append("hits       nobody has asked in the last 30 days")
    else:
        since = datetime.fromtimestamp(told.since).astimezone()
        lines.append(f"hits       {told.hits:,}, misses {told.misses:,} ({rate:.0%} hits) since {since:%Y-%m-%d}")
    return "\n".join(lines)


def _rate(told: Told) -> float | None:
    asked = told.hits + told.misses
    return round(told.hits / asked, 4) if asked else None


def _put_object(**items: object) -> None:
    put(json.dumps(items))


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _size(number: int) -> str:
    size, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}" if unit != "B" else f"{number} B"

"""Builds on record, as the commands that look back tell of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from coordinator._records import BuildRecord, Records
from coordinator.cli._terminal import printable, put
from workers.outcome import CacheOutcome
from workers.store.defaults import default_directory

__all__ = [
    "build_object",
    "history_options",
    "nothing_there",
    "opened",
    "outcomes",
    "put_lines",
    "recorded_path",
    "when",
]

_LISTED = 10

_Command = TypeVar("_Command", bound=Callable[..., Any])


def history_options(link_help: str) -> Callable[[_Command], _Command]:
    """The options of a command that looks back; what `--link` means to it, it says itself."""

    def decorate(command: _Command) -> _Command:
        options = (
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output"),
            click.option(
                "--cache-dir",
                type=click.Path(file_okay=False, readable=False, path_type=Path),
                metavar="DIR",
                help="The directory of the cache [default: $LTOD_CACHE_DIR, else ltod in $XDG_CACHE_HOME or ~/.cache]",
            ),
            click.option("--link", type=click.Path(readable=False, path_type=Path), metavar="PATH", help=link_help),
        )
        for option in options:
            command = option(command)
        return command

    return decorate


def opened(cache_dir: Path | None) -> tuple[Records, Path]:
    """The history that is meant, and the directory that it is in; neither need be there. Raises `RequestError`."""
    directory = (cache_dir if cache_dir is not None else default_directory(os.environ)).absolute()
    return Records(directory), directory


def recorded_path(records: Records, link: Path | None) -> Path | None:
    """The path of what is built, as builds write it. Raises `RequestError`.

    It may have been built under another name, to which this is a link: cargo gives its programs a second one.
    """
    if link is None:
        return None
    path = Path(os.path.abspath(link))  # noqa: PTH100
    if not records.builds(path, most=1) and path.exists():
        for build in records.builds():
            with suppress(OSError):
                if build.thing.path.samefile(path):
                    return build.thing.path
    return path


def nothing_there(records: Records, directory: Path, path: Path | None) -> str:
    """That there is no build on record, or none of what is at `path`. Raises `RequestError`."""
    others = list(dict.fromkeys(str(one.thing.path) for one in records.builds())) if path is not None else []
    if others:
        more = f" and {len(others) - _LISTED} more" if len(others) > _LISTED else ""
        return f"no build of {path} is on record: there are builds of {', '.join(others[:_LISTED])}{more}"
    return f"no build is on record in {directory}: build something with the cache, or name another --cache-dir"


def outcomes(build: BuildRecord) -> Counter[CacheOutcome]:
    """How often the cache did what for the items of a build."""
    return Counter(item.outcome for item in build.own_items)


def when(build: BuildRecord) -> str:
    """When a build began, in words."""
    try:
        return f"{datetime.fromtimestamp(build.started).astimezone():%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return "at no time"


def build_object(build: BuildRecord, **more: object) -> dict[str, object]:
    """What is told of a build in JSON by each of the commands, and `more`."""
    return {
        "id": build.id,
        "path": str(build.thing.path),
        "kind": build.thing.kind,
        "started": build.started,
        "seconds": build.seconds,
        "ok": build.ok,
        **more,
    }


def put_lines(lines: Iterable[str]) -> None:
    """Write lines, each on one line whatever names are in it. Raises `OutputError`."""
    put("\n".join(printable(line).replace("\n", "\\n") for line in lines))

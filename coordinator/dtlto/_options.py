"""The command line of `ltod-dtlto`. lld puts the user's options first, and the job file last."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from workers.errors import RequestError

__all__ = ["USAGE", "Options", "read_options"]

USAGE = """\
Usage: ltod-dtlto [OPTIONS] JOBFILE

Compile the backend jobs of a ThinLTO link, as ld.lld asks its distributor to (--thinlto-distributor=PATH). Give
options through the linker: --thinlto-distributor-arg=OPTION, or with clang -Xthinlto-distributor=OPTION,...

  --cache-dir=DIR  Keep results in DIR [default: $LTOD_CACHE_DIR, else ltod in $XDG_CACHE_HOME or ~/.cache]
  -j N, --jobs=N   At most N compilers at once [default: the jobserver's, else one for each CPU]
  --stats=FILE     Write what was done to FILE, as one JSON object
  --verbose        Say on standard error what becomes of each module
  --version        Show the version and exit
  -h, --help       Show this and exit"""

_VALUES = {"--cache-dir": "cache_dir", "-j": "jobs", "--jobs": "jobs", "--stats": "stats"}


@frozen(kw_only=True)
class Options:
    """What was asked for. Paths are absolute."""

    job_file: Path
    cache_dir: Path | None = None
    jobs: int | None = None
    stats: Path | None = None
    verbose: bool = False


def read_options(arguments: Sequence[str]) -> Options:
    """Read them. Raises `RequestError`."""
    given: dict[str, str] = {}
    files: list[str] = []
    verbose = False
    rest = iter(arguments)
    for word in rest:
        name, equals, value = word.partition("=")
        if word == "--verbose":
            verbose = True
        elif word.startswith("-j") and word[2:].isdecimal():
            given["jobs"] = word[2:]
        elif name in _VALUES:
            given[_VALUES[name]] = value if equals else next(rest, "")
            if not given[_VALUES[name]]:
                raise RequestError(f"{name} has no value: write {name}=VALUE")
        elif word.startswith("-") and word != "-":
            raise RequestError(f"there is no option {word} (see ltod-dtlto --help)")
        else:
            files.append(word)
    if len(files) != 1:
        raise RequestError(f"{len(files)} job files were given, and one is needed: it is lld that runs ltod-dtlto")
    return Options(
        job_file=_absolute(files[0]),
        cache_dir=_absolute(given["cache_dir"]) if "cache_dir" in given else None,
        jobs=_count(given["jobs"]) if "jobs" in given else None,
        stats=_absolute(given["stats"]) if "stats" in given else None,
        verbose=verbose,
    )


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 (`..` goes, too)


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1_000_000:
        raise RequestError(f"-j {text}: give the number of compilers that may run at once")
    return int(text)

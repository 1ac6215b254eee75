"""What `ltod-dtlto` does before it waits for anything: every job's key, and what was compiled before to its place.

Nothing here loads trio: where all was compiled before, that alone would take longer than everything else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from coordinator._reasons import reason_for
from coordinator._records import BuildRecord, ItemRecord, Records, Thing
from coordinator.cli._exit import ExitCode
from coordinator.cli._terminal import open_missing_descriptors, put, say
from coordinator.dtlto._linker import Linker
from coordinator.dtlto._options import USAGE, Options, read_options
from coordinator.dtlto._report import Line, Report
from workers.errors import RequestError
from workers.ingredients import Key, NoKey
from workers.llvm.dtlto.job_file import Job, JobFile, read_job_file
from workers.llvm.dtlto.keys import JobKeys
from workers.notes import seconds_in, unpack
from workers.outcome import CacheOutcome, CacheUse, Step
from workers.store.defaults import default_directory
from workers.store.here import Here

if TYPE_CHECKING:
    from workers.llvm.fork_server import Starter

__all__ = ["run"]

_KIND = "ThinLTO for a linker"
_OBJECT = "obj"

_MANY_JOBS = 6
"""Preparing quicker starts takes as long as two slow ones, or six where nothing is remembered."""


def run(arguments: Sequence[str], mask: Iterable[int], parent: int) -> int:
    """Do what the command line says; gives the exit code. Signals are blocked; `mask` lets them in.

    `parent` is the process that started us.
    """
    started = time.monotonic()
    open_missing_descriptors()
    linker = Linker(parent)
    try:
        if {"-h", "--help"} & set(arguments):
            put(USAGE)
            return ExitCode.OK
        if "--version" in arguments:
            from importlib.metadata import version

            put(f"ltod-dtlto {version('ltod')}")
            return ExitCode.OK
        options = read_options(arguments)
        job_file = read_job_file(options.job_file)
        return _Front(options, job_file, linker, started, mask).run()
    except RequestError as error:
        say(f"ltod-dtlto: error: {error}")
        return ExitCode.USAGE
    except Exception as error:
        from traceback import format_exc

        say(f"this is a bug in ltod, please report it with all of the following:\n{format_exc()}")
        say(f"ltod-dtlto: internal error: {type(error).__name__}: {error}")
        return ExitCode.BUG


class _NoFacts:
    """Remembers nothing, where there is no place for a cache."""

    def recall(self, key: str) -> bytes | None:
        """Nothing was remembered."""
        return None

    def remember(self, key: str, note: bytes) -> None:
        """Nothing is."""


@frozen(eq=False)
class _Front:
    """One link."""

    options: Options
    job_file: JobFile
    linker: Linker
    started: float
    mask: Iterable[int]

    def run(self) -> int:
        """Have everything compiled. Gives the exit code; raises `RequestError`."""
        began = time.time()
        directory = Path(os.getcwd())  # noqa: PTH109
        output = os.path.join(directory, self.job_file.output)  # noqa: PTH118
        cache_dir = self._cache_dir()
        here = Here(cache_dir) if cache_dir is not None else None
        report = Report(output, self.options.verbose)
        records = Records(cache_dir) if cache_dir is not None else None
        thing = Thing(Path(os.path.normpath(output)), _KIND)
        before = records.previous(thing) if records is not None else {}
        items: list[ItemRecord] = []
        left: list[tuple[Job, Key | NoKey]] = []
        code: int = ExitCode.OK
        with here.session() if here is not None else nullcontext():
            keys = JobKeys(self.job_file, directory, here or _NoFacts(), os.environ)
            starter = None
            if self.job_file.jobs and not keys.prepare():
                # A new compiler has compiled nothing yet: what comes next is going to be needed.
                starter = _starter(keys, len(self.job_file.jobs), here)
                import coordinator.dtlto._rest  # noqa: F401
            for job in self.job_file.jobs:
                key = keys.tell(job)
                hit = None
                if here is not None and isinstance(key, Key):
                    try:
                        hit = _hit(here, key, job, directory)
                    except OSError as error:
                        raise RequestError(f"cannot write {error.filename}: {error.strerror or error}") from error
                if hit is None or isinstance(key, NoKey):
                    left.append((job, key))
                    continue
                item = before.get((job.name, Step.THIN_BACKEND.value))
                use = CacheUse(CacheOutcome.HIT, key.digest)
                reason = reason_for(item, use, job.name, Step.THIN_BACKEND, known=bool(before))
                items.append(_recorded(job, key.digest, reason, hit))
                report.add(Line(job.name, CacheOutcome.HIT, True, hit.seconds, reason))
            if left:
                starter = starter or _starter(keys, sum(isinstance(key, Key) for _, key in left), here)
                from coordinator.dtlto._rest import Request, compile_left  # from here on there is time

                request = Request(
                    self.options, self.job_file, directory, cache_dir, keys, tuple(left), before, self.linker, starter
                )
                code, made = compile_left(request, report, self.mask)
                items += made
            if starter is not None:
                starter.close()
        if here is not None:
            here.close()
        if self.linker.is_gone():
            self.linker.remove_leftovers(self.job_file, self.options.job_file, directory)
            code = code or ExitCode.FAILED
        seconds = time.monotonic() - self.started
        if records is not None and items:
            ok = code == ExitCode.OK
            records.add(BuildRecord(thing=thing, started=began, seconds=seconds, ok=ok, items=tuple(items)))
        try:
            report.close(seconds, self.options.stats)
        except OSError as error:
            say(f"ltod-dtlto: warning: {self.options.stats} cannot be written: {error.strerror or error}")
        return code

    def _cache_dir(self) -> Path | None:
        if self.options.cache_dir is not None:
            return self.options.cache_dir
        try:
            return Path(os.path.abspath(default_directory(os.environ)))  # noqa: PTH100 (`..` goes, too)
        except RequestError as error:
            say(f"ltod-dtlto: warning: nothing is kept: {error}")
            return None


@frozen
class _Hit:
    """A result that was there: how long making it took, and what it was made of, encoded."""

    seconds: float
    made_of: bytes


def _starter(keys: JobKeys, jobs: int, here: Here | None) -> Starter | None:
    """What begins the compiler many times, if it has to be."""
    if jobs < _MANY_JOBS or here is None:
        return None
    from workers.llvm.fork_server import Starter

    try:
        # What is loaded must not be older than what its digest was made of.
        return Starter(keys.program()[0], here, before=keys.wait)
    except OSError:
        return None  # there is no such program, which others say


def _hit(here: Here, key: Key, job: Job, directory: Path) -> _Hit | None:
    """Put a result into its place, if it is there. Raises `OSError` where that place is of no use."""
    entry = here.look(key.digest)  # who compiles what is left asks once more, and counts the misses
    if entry is None:
        return None
    try:
        note, made_of = unpack(entry.note)
        said = [(str(severity), str(text)) for severity, text in note["diagnostics"]]
    except (ValueError, KeyError, TypeError):
        return None  # of another version
    if not any(output.name == _OBJECT for output in entry.outputs):
        return None
    if not here.fetch(entry, {_OBJECT: directory / job.output}):
        return None
    for severity, text in said:
        say(f"ltod-dtlto: {severity}: {job.name}: {text}")
    return _Hit(seconds_in(note), made_of)


def _recorded(job: Job, key: str, reason: str, hit: _Hit) -> ItemRecord:
    return ItemRecord(
        module=job.name,
        step=Step.THIN_BACKEND.value,
        outcome=CacheOutcome.HIT,
        key=key,
        reason=reason,
        seconds=0.0,
        ok=True,
        saved=hit.seconds,
        made_of=hit.made_of,
    )

"""The file by which a linker tells its distributor what to compile: one JSON object, written by `llvm/lib/LTO/LTO.cpp`.

Here belongs what it says, and nothing of how it is done.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from workers.errors import RequestError

__all__ = ["Job", "JobFile", "read_job_file"]

_MEMBER = re.compile(r"(?P<archive>.*)\((?P<member>.*) at (?P<offset>\d+)\)\.\d+\.[0-9A-Fa-f]+\.o", re.DOTALL)
"""How lld calls the copy of an archive's member that it makes for the distributor."""

_COPY = re.compile(r"(?P<file>.+)\.\d+\.(?P<process>[0-9A-F]+)\.o", re.DOTALL)
"""How it calls that of an object's bitcode, with the number of its process."""

_OUTPUT = re.compile(r".*\.(?P<process>\d{1,10})\.native\.o", re.DOTALL)


@frozen
class Job:
    """One backend compile. Paths are as the linker spells them, relative to the directory of the link."""

    name: str
    """What to call it, for people: a path, or `archive(member)`."""
    argv: tuple[str, ...] = field(repr=False)
    """The command as it was given."""
    bitcode: str
    shard: str
    imports: tuple[str, ...]
    """Other files that the command reads."""
    output: str
    flags: tuple[str, ...] | None = field(repr=False)
    """The command's arguments that are not about this one job; `None`: they cannot be told apart."""


@frozen
class JobFile:
    """All that one link has to compile. `compiler` is the program, with what tells it to be one."""

    output: str
    """What is linked."""
    compiler: tuple[str, ...]
    jobs: tuple[Job, ...] = field(repr=lambda jobs: str(len(jobs)))

    @property
    def files(self) -> dict[str, str]:
        """What to call the files of modules, by path. Some have no job, as lld has compiled them before."""
        imported = {path: job.output for job in self.jobs for path in job.imports}
        names = {job.bitcode: job.name for job in self.jobs}
        return {path: _name(path, imported[path]) for path in imported.keys() - names.keys()} | names


def read_job_file(path: Path) -> JobFile:
    """Read it. Raises `RequestError` where it cannot be read, or says something else than lld 22 says."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
    except OSError as error:
        raise RequestError(f"the job file {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is no job file of a linker: {error}") from error
    try:
        return _job_file(content)
    except _FormError as error:
        raise RequestError(f"{path} is no job file as LLVM 22 writes it: {error}") from error


class _FormError(Exception):
    """The message says what is not as it should be."""


def _job_file(content: object) -> JobFile:
    common = _object(_object(content, "it").get("common"), "'common'")
    given = _texts(common.get("args"), "the arguments in 'common'")
    if not given:
        raise _FormError("it names no compiler")
    more = _texts(common.get("inputs", []), "the inputs in 'common'")
    output = common.get("linker_output", "")
    jobs = _object(content, "it").get("jobs")
    if not isinstance(output, str) or not Path(output).name or not isinstance(jobs, list):
        raise _FormError("it has no list of jobs, or no name of what is linked")
    # What comes before the first option is the compiler: zig, for one, has to be told to be clang.
    end = next((place for place, word in enumerate(given) if word.startswith("-")), len(given))
    rows = [_object(job, f"job {number}") for number, job in enumerate(jobs)]
    read = [_job(row, given, given[end:], more, f"job {number}") for number, row in enumerate(rows)]
    outputs = Counter(job.output for job in read)
    if repeated := next((path for path, times in outputs.items() if times > 1), None):
        raise _FormError(f"two jobs write {repeated}")
    return JobFile(output, given[:end], tuple(_told_apart(read)))


def _job(row: Mapping[str, Any], given: tuple[str, ...], flags: Sequence[str], more: tuple[str, ...], what: str) -> Job:
    arguments = _texts(row.get("args"), f"the arguments of {what}")
    inputs = _texts(row.get("inputs"), f"the inputs of {what}")
    outputs = _texts(row.get("outputs"), f"the outputs of {what}")
    if len(inputs) < 2 or len(outputs) != 1:
        raise _FormError(f"{what} has not a module, its index shard and one output")
    bitcode, shard, *imports = inputs
    own = list(arguments)
    # Each of these is there once, or this is not how lld puts it.
    for words in ([bitcode], [f"-fthinlto-index={shard}"], ["-o", outputs[0]]):
        place = next((at for at in range(len(own)) if own[at : at + len(words)] == words), None)
        if place is None:
            known = None
            break
        del own[place : place + len(words)]
    else:
        known = (*flags, *own)
    return Job(_name(bitcode, outputs[0]), (*given, *arguments), bitcode, shard, (*imports, *more), outputs[0], known)


def _name(path: str, output: str) -> str:
    if member := _MEMBER.fullmatch(path):
        return f"{member['archive']}({member['member']})"
    copy, made = _COPY.fullmatch(path), _OUTPUT.fullmatch(output)
    # A file of the user's may happen to be called so, but for the process.
    if copy and made and copy["process"] == f"{int(made['process']):X}":
        return copy["file"]
    return path


def _told_apart(jobs: Sequence[Job]) -> list[Job]:
    """With names that are different, as an archive may have two members of one name."""
    names = Counter(job.name for job in jobs)
    told = []
    seen: Counter[str] = Counter()
    for job in jobs:
        if names[job.name] > 1:
            seen[job.name] += 1
            found = _MEMBER.fullmatch(job.bitcode)
            which = f"at {found['offset']}" if found is not None else f"#{seen[job.name]}"
            name = f"{job.name} {which}"
            job = evolve(job, name=name if name not in names else f"{name} #{seen[job.name]}")
        told.append(job)
    return told


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _FormError(f"{what} is not an object")
    return value


def _texts(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) and "\0" not in text for text in value):
        raise _FormError(f"{what} are not a list of texts")
    return tuple(value)

"""Running the jobs of a link: as hermetic actions where it is known what they depend on, else as they were given.

As an action, a job sees its module and those that it imports from under names of ours, which sort as the linker's do,
and a shard that names them so. What comes back is looked at in either case: clang's backend ends with status 0 where it
should not, and linkers take an empty object for none.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import trio
from attrs import define, evolve, field, frozen

from workers.action import Action, ActionResult, run
from workers.errors import ModuleError
from workers.llvm.bitcode import BitcodeError
from workers.llvm.dtlto.checks import wrong_module
from workers.llvm.dtlto.driver import HARMLESS_FILES, Cc1
from workers.llvm.dtlto.job_file import Job, JobFile
from workers.llvm.dtlto.outputs import lacking
from workers.llvm.failures import Message, judge
from workers.llvm.fork_server import Attempt, Starter
from workers.llvm.index_shard import IndexFrame, index_frame, rewrite_index
from workers.llvm.oom import OomWatch
from workers.llvm.reproducer import Reproducer, write_reproducer
from workers.placing import place
from workers.thin import PlannedCompile, ThinCompile, ThinLink, ThinLinked
from workers.work import (
    Artifact,
    Diagnostic,
    EmitKind,
    Engine,
    Estimate,
    Failed,
    Finished,
    Severity,
    Step,
)

__all__ = ["JobBackend", "PlannedJob", "estimate_of"]

_SHARD, _OUTPUT = "shard.thinlto.bc", "output.o"

# Measured on zstd and brotli: seconds and bytes, for each byte of a module's bitcode and of what it imports from.
_SECONDS_AT_LEAST = 0.03
_SECONDS_PER_BYTE = 3e-6
_RSS_AT_LEAST = 80 * 2**20
_RSS_PER_BYTE = 60
_RSS_PER_IMPORTED_BYTE = 4

_VERSION_SECONDS = 60.0


@frozen
class PlannedJob:
    """One job, and how to run it: as cc1's arguments `cc1` say, or as it was given (`None`)."""

    job: Job
    cc1: Cc1 | None


class JobBackend:
    """Compiles the jobs of one link. Keeps the contract of `workers.thin.ThinLtoBackend`; the thin link is done.

    Actions are begun by the `starter`, if there is one.
    """

    def __init__(
        self,
        program: tuple[str, ...],
        job_file: JobFile,
        compiles: Sequence[ThinCompile],
        directory: Path,
        scratch: Path,
        reproducers: Path,
        environ: Mapping[str, str],
        starter: Starter | None,
    ) -> None:
        self._tools = _Tools(program, job_file.files, directory, scratch, reproducers, environ, starter)
        self._compiles = tuple(compiles)

    def thin_estimate(self, item: ThinLink) -> Estimate:
        """There is nothing left to do."""
        return Estimate(0.0, 0)

    async def thin_link(self, item: ThinLink) -> ThinLinked:
        """What the linker has planned."""
        await trio.lowlevel.checkpoint()
        return ThinLinked(item.name, self._compiles, (), None, 0.0, 0)

    async def thin_compile(
        self, batch: Sequence[ThinCompile], *, keep_going: bool = True
    ) -> Sequence[Finished | Failed]:
        """Compile every item; each has a `PlannedCompile`, whose `inner` is a `PlannedJob`."""
        results: list[Finished | Failed] = []
        for one in batch:
            results.append(await _Single(self._tools, one).compile())
            if isinstance(results[-1], Failed) and not keep_going:
                break
        return results


def estimate_of(job: Job, directory: Path) -> Estimate:
    """What a job is expected to need."""
    sizes = [_size(directory / path) for path in (job.bitcode, *job.imports)]
    peak = _RSS_AT_LEAST + sizes[0] * _RSS_PER_BYTE + sum(sizes) * _RSS_PER_IMPORTED_BYTE
    return Estimate(_SECONDS_AT_LEAST + sizes[0] * _SECONDS_PER_BYTE, peak)


@define
class _Tools:
    program: tuple[str, ...]
    names: Mapping[str, str]
    directory: Path
    scratch: Path
    reproducers: Path
    environ: Mapping[str, str]
    starter: Starter | None
    oom: OomWatch = field(factory=OomWatch)
    _version: str | None = None

    async def version(self) -> str:
        """What the compiler says of itself, for reproducers."""
        if self._version is None:
            action = Action(argv=(*self.program, "--version"), inputs={}, time_limit=_VERSION_SECONDS)
            async with run(action, self.scratch) as result:
                self._version = f"{' '.join(self.program)}\n{result.stdout.decode(errors='replace')}"
        return self._version


@frozen
class _Shard:
    """An index shard, and names for its modules that sort as their paths do: in this order modules are imported.

    `own` is the one of the module that it is for, if it is there.
    """

    data: bytes = field(repr=False)
    frame: IndexFrame
    labels: Mapping[int, str] = field(repr=False)
    own: str | None

    @classmethod
    def of(cls, data: bytes, module: str) -> _Shard:
        """Read what is for the module at this path. Raises `BitcodeError`."""
        frame = index_frame(data)
        ranked = sorted(frame.modules, key=lambda row: row.path)
        width = max(5, len(str(len(ranked))))
        labels = {row.id: f"{number:0{width}}.bc" for number, row in enumerate(ranked)}
        return cls(data, frame, labels, next((labels[row.id] for row in ranked if row.file == module), None))

    def rewritten(self) -> bytes:
        """With these names for paths."""
        return rewrite_index(self.data, self.frame, {number: label.encode() for number, label in self.labels.items()})


@define
class _Single:
    """One job through its run."""

    _tools: _Tools
    _item: ThinCompile
    _seconds: float = 0.0
    _peak: int = 0
    _diagnostics: list[Diagnostic] = field(factory=list)

    @property
    def _planned(self) -> PlannedJob:
        planned: PlannedJob = self._item.link.inner
        return planned

    async def compile(self) -> Finished | Failed:
        """Make the object, and put it into its place."""
        planned: PlannedCompile = self._item.link
        job, cc1 = self._planned.job, self._planned.cc1
        try:
            shard = self._checked(job)
            if cc1 is not None and shard is not None:
                return await self._run(self._action(shard, self._cc1_line(cc1), cc1.files), planned.output)
            return await self._run_as_given(job, shard, planned.output)
        except ModuleError as error:
            self._error(error.message)
        except OSError as error:
            self._error(f"{error.filename or planned.output}: {error.strerror or error}")
        return self._failure()

    def _checked(self, job: Job) -> _Shard | None:
        """The job's shard, after a look at whether clang will do with it what it is asked for.

        `None` where it is not understood. Raises `ModuleError` where clang will do something else.
        """
        at = self._tools.directory
        try:
            data = (at / job.shard).read_bytes()
        except OSError as error:
            raise ModuleError(job.name, f"its index shard {job.shard} cannot be read: {error.strerror}") from error
        if not data:
            raise ModuleError(job.name, f"its index shard {job.shard} is empty: it would be compiled without ThinLTO")
        try:
            shard = _Shard.of(data, job.bitcode)
        except BitcodeError:
            return None  # of another version, perhaps
        paths = {module.file for module in shard.frame.modules}
        if shard.own is None:
            raise ModuleError(
                job.name, f"its index shard {job.shard} is of another module: {_some(paths)}{_garbled(paths)}"
            )
        if unknown := paths - {job.bitcode, *job.imports}:
            raise ModuleError(
                job.name,
                f"its index shard names what the linker does not give it: {_some(unknown)}{_garbled(unknown)}",
            )
        for module in shard.frame.modules:
            wrong = wrong_module(at / module.file, module)
            if wrong is not None:
                which = "" if module.file == job.bitcode else f"what it imports from, {self._name(at / module.file)}, "
                raise ModuleError(job.name, f"{which}was changed since the linker read it ({module.file}): {wrong}")
        return shard

    def _cc1_line(self, cc1: Cc1) -> tuple[str, ...]:
        files = (f"{option}{HARMLESS_FILES[option]}" for option in cc1.files)
        return ("-cc1", *cc1.words, *files, "-emit-obj", "-disable-free", "-x", "ir")

    def _action(self, shard: _Shard, words: Sequence[str], files: Mapping[str, str]) -> Action:
        """The job by itself, in a directory of its own; `words` are all that is not about its files."""
        at = self._tools.directory
        return Action(
            argv=(*self._tools.program, *words, f"-fthinlto-index={_SHARD}", "-o", _OUTPUT, shard.own or ""),
            inputs={
                _SHARD: shard.rewritten(),
                **{shard.labels[module.id]: at / module.file for module in shard.frame.modules},
                **{HARMLESS_FILES[option]: at / path for option, path in files.items()},
            },
            outputs=(_OUTPUT,),
            time_limit=math.inf,
        )

    async def _run(self, action: Action, output: Path) -> Finished | Failed:
        named = {name: content for name, content in action.inputs.items() if isinstance(content, Path)}
        names = {name: self._name(path) for name, path in named.items()}
        if self._tools.starter is not None:
            attempt = Attempt(self._tools.starter)
            async with run(action, self._tools.scratch, start=attempt) as result:
                # Whatever is wrong with a fork is not wrong before it is so without one.
                if result.succeeded or not attempt.is_forked:
                    return await self._taken(result, names, action, output)
        async with run(action, self._tools.scratch) as result:
            return await self._taken(result, names, action, output)

    async def _taken(
        self, result: ActionResult, names: Mapping[str, str], action: Action, output: Path
    ) -> Finished | Failed:
        made = result.directory / _OUTPUT
        if await self._is_good(result, made, names, action):
            return self._finished(output, place(made, output))
        return self._failure()

    async def _run_as_given(self, job: Job, shard: _Shard | None, output: Path) -> Finished | Failed:
        """In the directory and the environment of the link; the compiler itself puts the object into its place."""
        at, program = self._tools.directory, self._tools.program
        # The tool's own directory is not where the linker's relative paths lead from.
        action = Action(
            argv=("/bin/sh", "-c", 'cd -- "$0" && exec "$@"', str(at), *program, *job.argv[len(program) :]),
            inputs={},
            environment=self._tools.environ,
            time_limit=math.inf,
        )
        given = at / job.output
        given.unlink(missing_ok=True)
        good = False
        try:
            async with run(action, self._tools.scratch) as result:
                if not _is_output(given):
                    result = evolve(result, missing=(job.output,))
                alone = None
                if shard is not None and job.flags is not None:
                    alone = self._action(shard, job.flags, {})  # to be shown again, the job has to be moved
                good = await self._is_good(result, given, self._tools.names, alone)
            if good:
                if given != output:
                    place(given, output)
                return self._finished(output, output.stat().st_size)
        finally:
            if not good:
                _remove(given)
        return self._failure()

    async def _is_good(self, result: ActionResult, made: Path, names: Mapping[str, str], action: Action | None) -> bool:
        """Whether a run has ended well. Else it is told what is wrong, which `action` shows again."""
        self._seconds += result.seconds
        self._peak = max(self._peak, result.peak_rss_bytes)
        fault = lacking(made, self._planned.job.argv) if result.succeeded else None
        if fault is not None:
            result = evolve(result, missing=(_OUTPUT,))
        killed = result.signal is not None and self._tools.oom.killed_again()
        verdict = judge(
            result,
            tool=self._tools.program[-1].rpartition("/")[2],
            names=names,
            time_limit=math.inf,
            memory_limit=None,
            out_of_memory=killed,
        )
        messages = verdict.messages
        if fault is not None and verdict.fault:
            messages = (Message(Severity.ERROR, f"the compiler ended with status 0, but its output {fault}"),)
        if verdict.failed and not verdict.passing and action is not None:
            await self._reproduce(action, result, messages)
        else:
            self._diagnostics += [Diagnostic(one.severity, self._item.name, one.text) for one in messages]
        return not verdict.failed

    async def _reproduce(self, action: Action, result: ActionResult, messages: Sequence[Message]) -> None:
        """What is wrong, with what it takes to see it again."""
        text = "\n".join(one.text for one in messages)
        reproducer = Reproducer(
            module=self._item.name,
            message=text,
            argv=action.argv,
            inputs=action.inputs,
            stderr=result.stderr,
            versions=await self._tools.version(),
        )
        try:
            where = await trio.to_thread.run_sync(write_reproducer, self._tools.reproducers, reproducer)
        except OSError as error:
            self._error(f"{text}\n(no reproducer: {error.strerror or error}, {self._tools.reproducers})")
        else:
            self._diagnostics.append(Diagnostic(Severity.ERROR, self._item.name, text, where))

    def _name(self, path: Path) -> str:
        given = os.path.relpath(path, self._tools.directory)
        return self._tools.names.get(given) or self._tools.names.get(str(path), given)

    def _error(self, message: str) -> None:
        self._diagnostics.append(Diagnostic(Severity.ERROR, self._item.name, message))

    def _failure(self) -> Failed:
        return Failed(
            self._item.name,
            Engine.TOOLCHAIN,
            self._seconds,
            self._peak,
            tuple(dict.fromkeys(self._diagnostics)),
            Step.THIN_BACKEND,
        )

    def _finished(self, output: Path, size: int) -> Finished:
        return Finished(
            self._item.name,
            (Artifact(self._item.name, EmitKind.OBJECT, output, size),),
            Engine.TOOLCHAIN,
            self._seconds,
            self._peak,
            tuple(dict.fromkeys(self._diagnostics)),
            step=Step.THIN_BACKEND,
        )


def _is_output(path: Path) -> bool:
    with suppress(OSError):
        return path.stat().st_size > 0
    return False


def _remove(output: Path) -> None:
    """Remove what a compiler that was stopped has left, also under the name that it has until it is whole."""
    with suppress(OSError):
        output.unlink(missing_ok=True)
        for path in output.parent.iterdir():
            if path.name.startswith(f"{output.stem}-") and path.name.endswith(f"{output.suffix}.tmp"):
                path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _garbled(paths: set[str]) -> str:
    """What to do about paths that the linker may have meant otherwise."""
    if all(path.isascii() for path in paths):
        return ""
    return " (LLVM 22 garbles what is not ASCII in paths of shards: rename it, or link without a distributor)"


def _some(paths: set[str]) -> str:
    first, *more = sorted(paths)
    return f"{first} and {len(more)} more" if more else first

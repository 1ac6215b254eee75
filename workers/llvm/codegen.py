"""The LLVM backend: the engines behind one seam, and what happens to their outputs.

The engine is chosen from the module's size and the options alone, never from how busy anything is: the two engines'
bytes differ, and the same request must give the same bytes. Outputs grow in a staging directory and move to their
destinations when all of them are there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from attrs import frozen

from workers.backend import Inspection
from workers.errors import ModuleError, RequestError
from workers.keeper import Keeper
from workers.llvm.cc1 import SUFFIX, check_options, check_triple, options_key
from workers.llvm.choice import LLVMLITE_BYTES, choose, estimate, host_triple, own_triple
from workers.llvm.failures import describe_signal, of_another_target, parse_messages
from workers.llvm.inputs import inspect_content, llvm_content
from workers.llvm.link import link
from workers.llvm.link_driver import DriverError, check_link
from workers.llvm.llvmlite_pool import Compiled, Died, LlvmlitePool, Outcome, Rejected, Unsuitable
from workers.llvm.llvmlite_request import Job, reproduce_argv, unsupported
from workers.llvm.oom import OomWatch
from workers.llvm.planner import NotNowError, Planner
from workers.llvm.profile import check_profile
from workers.llvm.reproducer import Reproducer, reproduced
from workers.llvm.toolchain import LLVM_MAJOR, Toolchain, ask_toolchain
from workers.llvm.toolchain_engine import Report, Task, ToolchainEngine
from workers.placing import place
from workers.work import (
    Artifact,
    CodegenOptions,
    Diagnostic,
    EmitKind,
    Engine,
    Failed,
    Finished,
    Link,
    Linked,
    LinkOptions,
    Module,
    Optimize,
    Severity,
    Target,
    artifact_path,
)

__all__ = ["LlvmBackend", "open_llvm_backend"]

_STEM_BYTES = 64 * 1024


@frozen
class _Work:
    """One item of a batch on its way: which engine gets it, and where its outputs grow."""

    index: int
    task: Task
    engine: Engine


class LlvmBackend:
    """Compiles modules with clang and llvmlite. Made by `open_llvm_backend`; any number of tasks may use it at once."""

    def __init__(
        self,
        toolchain: Toolchain,
        pool: LlvmlitePool,
        scratch: Path,
        environ: Mapping[str, str],
        llvmlite_bytes: int,
    ) -> None:
        self.toolchain = toolchain
        self._pool = pool
        self._llvmlite_bytes = llvmlite_bytes
        self._scratch = scratch
        self._environ = environ
        self._oom = OomWatch()
        self._versions = partial(_versions, toolchain)
        self._planner = Planner(toolchain, scratch)
        self._tools = ToolchainEngine(toolchain, self._planner, scratch, self._versions, self._oom)

    def check(self, options: CodegenOptions) -> None:
        """Refuse options that cannot be honoured whatever the modules. Raises `RequestError`."""
        check_options(options)
        if options.extra_passes and self.toolchain.lld is None:
            raise RequestError(f"extra passes need ld.lld, and there is none beside {self.toolchain.clang[0]}")
        if options.profile_use is not None:
            check_profile(options.profile_use)
        if options.engine is Engine.LLVMLITE:
            reason = unsupported(options, options.target_triple or host_triple())
            if reason is not None:
                raise RequestError(f"{reason}: leave the engine to ltod, or ask for the toolchain")

    async def prepare(self, target: Target, options: CodegenOptions) -> None:
        """Ask the toolchain whether modules of `target` can be compiled with `options`.

        Finds, before anything is compiled, what `check` cannot know: CPUs, features, code models, sanitizers and
        passes that the target or clang does not have. Raises `RequestError` in clang's words.
        """
        # A question that could not be asked (its process was killed, say) is no fault of the request: the first
        # item asks it again.
        with suppress(NotNowError):
            await self._planner.plan(options.target_triple or target.triple, options)

    def check_link(self, link: LinkOptions, target: Target) -> None:
        """Refuse what cannot be linked for `target` whatever the objects. Raises `RequestError`."""
        try:
            check_link(link, self.toolchain, target.triple)
        except DriverError as error:
            raise RequestError(str(error)) from error

    def inspect(self, module: Module, options: CodegenOptions) -> Inspection:
        """Look at a module's header. Raises `ModuleError`."""
        header = inspect_content(module, max_major=LLVM_MAJOR)
        triple = options.target_triple or own_triple(header.triple)
        try:
            check_triple(triple)
        except RequestError as error:
            raise ModuleError(module.name, str(error)) from error
        expected = estimate(self._llvmlite_bytes, header.size, triple, options)
        return Inspection(Target(triple, header.data_layout), header.size, expected)

    async def compile(self, batch: Sequence[Optimize]) -> Sequence[Finished | Failed]:
        """Compile every item; the contract is `workers.backend.CodegenBackend`'s."""
        results: dict[int, Finished | Failed] = {}
        try:
            staging = Path(tempfile.mkdtemp(prefix="staging-", dir=self._scratch))
        except OSError as error:
            message = f"cannot make temporary files in {self._scratch}: {error.strerror}"
            return [Failed(item.name, item.options.engine, 0.0, 0, (_error(item, message),)) for item in batch]
        try:
            for group in _grouped(self._start(batch, staging, results)):
                for work, report, engine in await self._compile_group(group):
                    results[work.index] = _finish(work.task, report, engine)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return [results[index] for index in range(len(batch))]

    async def link(self, item: Link) -> Linked | Failed:
        """Make one program or library of objects; the contract is `workers.backend.Linker`'s."""
        return await link(item, self.toolchain, self._scratch, self._environ)

    def _start(
        self, batch: Sequence[Optimize], staging: Path, results: dict[int, Finished | Failed]
    ) -> Iterable[_Work]:
        """Say of every item who compiles it and where its outputs grow; of what cannot start, add the result."""
        for index, item in enumerate(batch):
            triple = item.options.target_triple or own_triple(item.target.triple)
            engine = choose(self._llvmlite_bytes, item.size, triple, item.options)
            try:
                self.check(item.options)
                if engine is Engine.LLVMLITE and (reason := unsupported(item.options, triple)) is not None:
                    raise ModuleError(item.name, reason)
                content = llvm_content(item.module)
                for kind in item.options.emit:
                    _check_destination(item, _destination(item, kind))
            except (ModuleError, RequestError) as error:
                message = error.message if isinstance(error, ModuleError) else str(error)
                results[index] = Failed(item.name, engine, 0.0, 0, (_error(item, message),))
                continue
            outputs = {kind: staging / f"{index}{SUFFIX[kind]}" for kind in item.options.emit}
            expected = estimate(self._llvmlite_bytes, item.size, triple, item.options).seconds
            yield _Work(index, Task(item, content, _stem(content), triple, outputs, expected), engine)

    async def _compile_group(self, group: Sequence[_Work]) -> list[tuple[_Work, Report, Engine]]:
        """Compile works that have one engine, one triple and equal options."""
        if group[0].engine is Engine.TOOLCHAIN:
            reports = await self._tools.compile_batch([work.task for work in group])
            return [(work, report, Engine.TOOLCHAIN) for work, report in zip(group, reports, strict=True)]
        done: list[tuple[_Work, Report, Engine]] = []
        unsuitable: list[_Work] = []
        outcomes = await self._pool.compile_batch([_job(work.task) for work in group])
        for work, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Unsuitable) and work.task.item.options.engine is Engine.AUTO:
                unsuitable.append(work)
            else:
                done.append((work, await self._report(work.task, outcome), Engine.LLVMLITE))
        if unsuitable:
            reports = await self._tools.compile_batch([work.task for work in unsuitable])
            done += [(work, report, Engine.TOOLCHAIN) for work, report in zip(unsuitable, reports, strict=True)]
        return done

    async def _report(self, task: Task, outcome: Outcome) -> Report:
        """What llvmlite did, in the toolchain engine's words."""
        item = task.item
        match outcome:
            case Compiled():
                messages = of_another_target(parse_messages(outcome.stderr, {}))
                warnings = tuple(Diagnostic(one.severity, item.name, one.text) for one in messages)
                failed = any(one.severity is Severity.ERROR for one in messages)
                return Report(failed, outcome.seconds, outcome.peak_rss_bytes, warnings)
            case Rejected():
                return Report(True, outcome.seconds, outcome.peak_rss_bytes, (_error(item, outcome.message),))
            case Unsuitable():
                return Report(True, 0.0, 0, (_error(item, outcome.reason),))
            case Died():
                return Report(True, outcome.seconds, 0, (await self._post_mortem(task, outcome),))

    async def _post_mortem(self, task: Task, died: Died) -> Diagnostic:
        item = task.item
        message = f"llvmlite: {died.description}"
        if died.returncode == -signal.SIGKILL and not died.timed_out:
            killed = describe_signal(signal.SIGKILL, out_of_memory=self._oom.killed_again(), peak_rss_bytes=0)
            message = f"llvmlite {killed}"
        errors = [one.text for one in parse_messages(died.stderr, {}) if one.severity is Severity.ERROR]
        if errors and errors[0] not in message:
            message += f": {errors[0]}"
        if died.returncode is None and not died.timed_out:
            return _error(item, message)
        outputs = {kind: f"output{SUFFIX[kind]}" for kind in task.outputs}
        try:
            argv = reproduce_argv(item.options, task.triple, "module.ir", outputs)
        except OSError as error:
            return _error(item, f"{message}\n(no reproducer: {error})")
        reproducer = Reproducer(
            module=item.name,
            message=message,
            argv=argv,
            inputs={"module.ir": task.content},
            stderr=died.stderr.encode(errors="replace"),
            versions=self._versions(),
            hang=item.options.time_limit if died.timed_out else None,
        )
        return await reproduced(item, message, reproducer)


@asynccontextmanager
async def open_llvm_backend(
    *,
    toolchain: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    scratch_dir: Path | None = None,
    limit: int | None = None,
    llvmlite_bytes: int = LLVMLITE_BYTES,
) -> AsyncIterator[LlvmBackend]:
    """Find the toolchain and make a backend; on leaving, all its processes and files are gone.

    They are also gone soon after this process is killed: see `workers.keeper`.

    `toolchain` is a configured directory, before `LTOD_TOOLCHAIN`. Temporary files go below `scratch_dir`, else
    below `TMPDIR`: a real disk by default, for intermediate files of large builds do not fit into memory beside the
    compilers that make them. At most `limit` batches are expected at a time (default: one per CPU).
    Left to choose, the backend gives llvmlite modules of at most `llvmlite_bytes`.

    Raises `RequestError` where there is no toolchain, or no place for temporary files.
    """
    parent = scratch_dir or Path(environ.get("TMPDIR") or tempfile.gettempdir())
    try:
        scratch = Path(tempfile.mkdtemp(prefix="ltod-", dir=parent.absolute()))
    except OSError as error:
        raise RequestError(f"cannot make temporary files in {parent}: {error.strerror}; set TMPDIR") from error
    keeper = Keeper(scratch)
    try:
        found = await ask_toolchain(toolchain, environ, scratch)
        async with LlvmlitePool(limit or os.cpu_count() or 1, scratch) as pool:
            yield LlvmBackend(found, pool, scratch, environ, llvmlite_bytes)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        await keeper.close()


def _grouped(works: Iterable[_Work]) -> list[list[_Work]]:
    groups: dict[tuple[Engine, str, str], list[_Work]] = {}
    for work in works:
        key = (work.engine, work.task.triple, options_key(work.task.item.options))
        groups.setdefault(key, []).append(work)
    return list(groups.values())


def _stem(content: Path | bytes) -> str:
    """A file name for a module that follows from the beginning and the size of its content."""
    if isinstance(content, bytes):
        head, size = content[:_STEM_BYTES], len(content)
    else:
        try:
            with content.open("rb") as file:
                head, size = file.read(_STEM_BYTES), os.fstat(file.fileno()).st_size
        except OSError:
            return "module"  # whoever compiles it will say what is wrong
    return hashlib.blake2b(head, digest_size=12, key=size.to_bytes(8, "little")).hexdigest()


def _job(task: Task) -> Job:
    return Job(task.item.name, task.content, task.triple, task.item.options, task.outputs)


def _finish(task: Task, report: Report, engine: Engine) -> Finished | Failed:
    """Move the outputs of a task to their destinations."""
    item = task.item
    if report.failed:
        return Failed(item.name, engine, report.seconds, report.peak_rss_bytes, report.diagnostics)
    artifacts = []
    for kind in sorted(task.outputs, key=list(EmitKind).index):
        destination = _destination(item, kind)
        try:
            size = place(task.outputs[kind], destination)
        except OSError as error:
            problem = _error(item, f"cannot write {destination}: {error.strerror or error}")
            return Failed(item.name, engine, report.seconds, report.peak_rss_bytes, (*report.diagnostics, problem))
        artifacts.append(Artifact(item.name, kind, destination, size))
    return Finished(
        item.name,
        tuple(artifacts),
        engine,
        report.seconds,
        report.peak_rss_bytes,
        report.diagnostics,
        report.passes,
    )


def _destination(item: Optimize, kind: EmitKind) -> Path:
    return artifact_path(item.out_dir, item.name, kind)


def _check_destination(item: Optimize, destination: Path) -> None:
    """A name must not lead out of the output directory, nor onto the module itself. Raises `ModuleError`."""
    parts = item.name.split("/")
    if "\0" in item.name or any(part in ("", ".", "..") for part in parts):
        raise ModuleError(item.name, "its name cannot be a path below the output directory; rename it")
    content = item.module.content
    try:
        same = isinstance(content, Path) and destination.samefile(content)
    except OSError:
        same = False
    if same:
        raise ModuleError(item.name, f"{destination} would overwrite its input; choose another output directory")


def _versions(toolchain: Toolchain) -> str:
    """For reproducers; what it takes to find out is imported only when one is written."""
    import platform
    from importlib import metadata

    lines = [toolchain.describe()]
    for name in ("ltod", "llvmlite", "ziglang"):
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} not installed")
    return "\n".join([*lines, f"Python {sys.version}", platform.platform(), ""])


def _error(item: Optimize, message: str) -> Diagnostic:
    return Diagnostic(Severity.ERROR, item.name, message)

"""The LLVM backend: the engines behind one seam, and what happens to their outputs.

The engine is chosen from the module's size and the options alone, never from how busy anything is: the two engines'
bytes differ, and the same request must give the same bytes. Outputs grow in a staging directory and move to their
destinations when all of them are there.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from workers.backend import Inspection
from workers.digests import State, is_settled, state_of
from workers.errors import ModuleError, RequestError
from workers.fat import FatLink, FatLinked, FatPartition
from workers.keeper import kept_directory
from workers.llvm.bitcode import Header
from workers.llvm.cc1 import SUFFIX, check_options, check_triple, options_key
from workers.llvm.choice import LLVMLITE_BYTES, choose, estimate, host_triple, own_triple
from workers.llvm.content import stamp_of
from workers.llvm.inputs import inspect_content, llvm_content
from workers.llvm.link import link
from workers.llvm.link_driver import DriverError, check_link
from workers.llvm.lld_line import LldLines
from workers.llvm.llvmlite_engine import LlvmliteEngine
from workers.llvm.llvmlite_pool import LlvmlitePool
from workers.llvm.llvmlite_request import unsupported
from workers.llvm.oom import OomWatch
from workers.llvm.outputs import finish, stem
from workers.llvm.planner import NotNowError, Planner
from workers.llvm.pre_link import AS_IS, PreLinked, check_lto, finish_pre_link, is_as_is, take_as_is, take_file
from workers.llvm.profile import check_profile
from workers.llvm.toolchain import LLVM_MAJOR, Toolchain, ask_toolchain
from workers.llvm.toolchain_engine import Report, Task, ToolchainEngine
from workers.placing import check_destinations
from workers.store import Store
from workers.thin import ThinCompile, ThinLink, ThinLinked
from workers.work import (
    CodegenOptions,
    Diagnostic,
    EmitKind,
    Engine,
    Estimate,
    Failed,
    Finished,
    Link,
    Linked,
    LinkOptions,
    Module,
    NeedsFatLto,
    NeedsThinLto,
    Optimize,
    PreLink,
    Severity,
    Step,
    Target,
)

if TYPE_CHECKING:
    from workers.llvm.fat_engine import FatEngine
    from workers.llvm.keys import LlvmKeys
    from workers.llvm.thin_engine import ThinEngine

__all__ = ["LlvmBackend", "open_llvm_backend"]

_HEADERS = 10_000
"""Of files that are remembered in a backend that lives on."""

_Result = Finished | NeedsThinLto | NeedsFatLto | Failed


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
        self._versions = partial(_versions, toolchain)
        self._oom = OomWatch()
        self._llvmlite_bytes = llvmlite_bytes
        self._scratch = scratch
        self._environ = environ
        self._headers: dict[str, tuple[State, Header]] = {}
        self._planner = Planner(toolchain, scratch)
        self._lines = LldLines(toolchain, scratch, environ)
        self._tools = ToolchainEngine(toolchain, self._planner, scratch, self._versions, self._oom)
        self._llvmlite = LlvmliteEngine(pool, self._versions, self._oom)

    @cached_property
    def _thin(self) -> ThinEngine:
        from workers.llvm.thin_engine import ThinEngine  # a build has one kind of LTO at the most

        return ThinEngine(self.toolchain, self._planner, self._lines, self._scratch, self._versions, self._oom)

    @cached_property
    def _fat(self) -> FatEngine:
        from workers.llvm.fat_engine import FatEngine  # as above

        return FatEngine(self.toolchain, self._planner, self._lines, self._scratch, self._versions, self._oom)

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

    def check_lto(self, options: CodegenOptions, target: Target) -> None:
        """Refuse what cannot be done with LTO for `target` whatever the modules. Raises `RequestError`."""
        check_lto(options, target, self.toolchain)

    async def prepare(self, target: Target, options: CodegenOptions) -> None:
        """Ask the toolchain whether modules of `target` can be compiled with `options`.

        Finds, before anything is compiled, what `check` cannot know: CPUs, features, code models, sanitizers and
        passes that the target or clang does not have. Raises `RequestError` in clang's words.
        """
        # A question that could not be asked (its process was killed, say) is no fault of the request: the first
        # item asks it again.
        with suppress(NotNowError):
            await self._tools.prepare(options.target_triple or target.triple, options)

    def check_link(self, link: LinkOptions, target: Target) -> None:
        """Refuse what cannot be linked for `target` whatever the objects. Raises `RequestError`."""
        try:
            check_link(link, self.toolchain, target.triple)
        except DriverError as error:
            raise RequestError(str(error)) from error

    def inspect(self, module: Module, options: CodegenOptions, pre_link: PreLink | None = None) -> Inspection:
        """Look at a module's header. Raises `ModuleError`."""
        stamp = None
        with suppress(OSError):  # said by who opens it
            stamp = stamp_of(module.content) if isinstance(module.content, Path) else None
        header = self._header(module)
        triple = options.target_triple or own_triple(header.triple)
        try:
            check_triple(triple)
        except RequestError as error:
            raise ModuleError(module.name, str(error)) from error
        pre_linked = PreLinked(header, stamp) if header.has_summary else None
        if pre_link is not None and is_as_is(pre_linked, options):
            expected = AS_IS
        else:
            expected = estimate(self._llvmlite_bytes, header.size, triple, options, pre_link)
        return Inspection(Target(triple, header.data_layout), header.size, expected, pre_linked)

    def _header(self, module: Module) -> Header:
        """What inspection sees, remembered for files that did not change. Raises `ModuleError`."""
        if not isinstance(module.content, Path):
            return inspect_content(module, max_major=LLVM_MAJOR)
        path = str(module.content)
        state = None
        with suppress(OSError):
            state = state_of(path)
            known = self._headers.get(path)
            if known is not None and known[0] == state:
                return known[1]
        header = inspect_content(module, max_major=LLVM_MAJOR)
        if state is not None and is_settled(state):
            if len(self._headers) >= _HEADERS:
                self._headers.clear()
            self._headers[path] = (state, header)
        return header

    def keys(self, store: Store) -> LlvmKeys:
        """The keys of what this backend makes; what takes long to find out is kept in `store`."""
        from workers.llvm.keys import LlvmKeys  # builds without a cache need none

        return LlvmKeys(self.toolchain, self._planner, self._lines, self._scratch, self._llvmlite_bytes, store)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A directory for the files that pass between the steps of one build. Raises `RequestError`."""
        try:
            path = Path(tempfile.mkdtemp(prefix="build-", dir=self._scratch))
        except OSError as error:
            raise RequestError(f"cannot make temporary files in {self._scratch}: {error.strerror}") from error
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def at_once(self, item: Optimize) -> NeedsThinLto | None:
        """The result of an item that is prepared for ThinLTO, and can be taken where it lies."""
        return take_file(item) if _is_as_is(item) else None

    async def compile(self, batch: Sequence[Optimize]) -> Sequence[_Result]:
        """Compile every item; the contract is `workers.backend.CodegenBackend`'s."""
        as_is = [index for index, item in enumerate(batch) if _is_as_is(item)]
        taken = await take_as_is([batch[index] for index in as_is])
        results: dict[int, _Result] = dict(zip(as_is, taken, strict=True))
        if len(results) == len(batch):
            return taken
        try:
            staging = Path(tempfile.mkdtemp(prefix="staging-", dir=self._scratch))
        except OSError as error:
            message = f"cannot make temporary files in {self._scratch}: {error.strerror}"
            return [
                results.get(index) or _failed(item, item.options.engine, message) for index, item in enumerate(batch)
            ]
        try:
            for group in _grouped(self._start(batch, staging, results)):
                for work, report, engine in await self._compile_group(group):
                    results[work.index] = await _finish(work.task, report, engine)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return [results[index] for index in range(len(batch))]

    async def link(self, item: Link) -> Linked | Failed:
        """Make one program or library of objects; the contract is `workers.backend.Linker`'s."""
        return await link(item, self.toolchain, self._scratch, self._environ, self._lines)

    def thin_estimate(self, item: ThinLink) -> Estimate:
        """What a thin link is expected to need."""
        return self._thin.thin_estimate(item)

    async def thin_link(self, item: ThinLink) -> ThinLinked | Failed:
        """Plan a link; the contract is `workers.thin.ThinLtoBackend`'s."""
        return await self._thin.thin_link(item)

    async def thin_compile(
        self, batch: Sequence[ThinCompile], *, keep_going: bool = True
    ) -> Sequence[Finished | Failed]:
        """Compile modules with what they import; the contract is `workers.thin.ThinLtoBackend`'s."""
        return await self._thin.thin_compile(batch, keep_going=keep_going)

    def fat_estimate(self, item: FatLink) -> Estimate:
        """What a merge is expected to need."""
        return self._fat.fat_estimate(item)

    async def fat_link(self, item: FatLink, ready: Callable[[FatPartition], None]) -> FatLinked | Failed:
        """Merge and optimise modules; the contract is `workers.fat.FatLtoBackend`'s."""
        return await self._fat.fat_link(item, ready)

    async def fat_codegen(self, partition: FatPartition) -> Finished | Failed:
        """Generate code for a partition; the contract is `workers.fat.FatLtoBackend`'s."""
        return await self._fat.fat_codegen(partition)

    def _start(self, batch: Sequence[Optimize], staging: Path, results: dict[int, _Result]) -> Iterable[_Work]:
        """Say of every item without a result who compiles it and where its outputs grow, or add its result."""
        for index, item in enumerate(batch):
            if index in results:
                continue
            triple = item.options.target_triple or own_triple(item.target.triple)
            engine = choose(self._llvmlite_bytes, item.size, triple, item.options, item.pre_link)
            try:
                self.check(item.options)
                reason = unsupported(item.options, triple, item.pre_link) if engine is Engine.LLVMLITE else None
                if reason is not None:
                    raise ModuleError(item.name, reason)
                content = llvm_content(item.module)
                if item.pre_link is None:  # else nothing of it goes into the output directory here
                    check_destinations(item)
            except (ModuleError, RequestError) as error:
                message = error.message if isinstance(error, ModuleError) else str(error)
                results[index] = _failed(item, engine, message)
                continue
            kinds = item.options.emit if item.pre_link is None else {EmitKind.BITCODE}
            outputs = {kind: staging / f"{index}{SUFFIX[kind]}" for kind in kinds}
            expected = estimate(self._llvmlite_bytes, item.size, triple, item.options, item.pre_link).seconds
            yield _Work(index, Task(item, content, stem(content), triple, outputs, expected), engine)

    async def _compile_group(self, group: Sequence[_Work]) -> list[tuple[_Work, Report, Engine]]:
        """Compile works that have one engine, one triple, equal options and one aim."""
        if group[0].engine is Engine.TOOLCHAIN:
            reports = await self._tools.compile_batch([work.task for work in group])
            return [(work, report, Engine.TOOLCHAIN) for work, report in zip(group, reports, strict=True)]
        done: list[tuple[_Work, Report, Engine]] = []
        unsuitable: list[_Work] = []
        answers = await self._llvmlite.compile_batch([work.task for work in group])
        for work, answer in zip(group, answers, strict=True):
            item = work.task.item
            if isinstance(answer, Report):
                done.append((work, answer, Engine.LLVMLITE))
            elif item.options.engine is Engine.AUTO:
                unsuitable.append(work)
            else:
                refused = Diagnostic(Severity.ERROR, item.name, answer.reason)
                done.append((work, Report(True, 0.0, 0, (refused,)), Engine.LLVMLITE))
        if unsuitable:
            reports = await self._tools.compile_batch([work.task for work in unsuitable])
            done += [(work, report, Engine.TOOLCHAIN) for work, report in zip(unsuitable, reports, strict=True)]
        return done


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
    with ExitStack() as stack:
        try:
            scratch = stack.enter_context(kept_directory(parent, "ltod-"))
        except OSError as error:
            raise RequestError(f"cannot make temporary files in {parent}: {error.strerror}; set TMPDIR") from error
        found = await ask_toolchain(toolchain, environ, scratch)
        async with LlvmlitePool(limit or os.cpu_count() or 1, scratch) as pool:
            yield LlvmBackend(found, pool, scratch, environ, llvmlite_bytes)


def _grouped(works: Iterable[_Work]) -> list[list[_Work]]:
    groups: dict[tuple[Engine, str, str, PreLink | None], list[_Work]] = {}
    for work in works:
        item = work.task.item
        key = (work.engine, work.task.triple, options_key(item.options), item.pre_link)
        groups.setdefault(key, []).append(work)
    return list(groups.values())


def _is_as_is(item: Optimize) -> bool:
    return item.pre_link is not None and is_as_is(item.pre_linked, item.options)


async def _finish(task: Task, report: Report, engine: Engine) -> _Result:
    if task.item.pre_link is None:
        return finish(task, report, engine)
    return await finish_pre_link(task.item, report, task.outputs[EmitKind.BITCODE])


def _failed(item: Optimize, engine: Engine, message: str) -> Failed:
    step = Step.CODEGEN if item.pre_link is None else Step.PRE_LINK
    return Failed(item.name, engine, 0.0, 0, (Diagnostic(Severity.ERROR, item.name, message),), step)


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

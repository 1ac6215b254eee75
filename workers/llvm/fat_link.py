"""The first step of fat LTO: ld.lld merges the modules, optimises them as a whole, and splits the program.

It is a link that resolves symbols as the last one will. Generating code is not its business: `--save-temps=precodegen`
keeps the parts as they are before that, and `-stop-before` ends code generation before its first pass. lld believes
that it has made assembly (`--lto-emit-asm`), so it links nothing and ends with status 0. A part is handed on as soon
as it is whole, while lld is still busy with others.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import trio
from attrs import define, evolve, field

from workers.action import Action, ActionResult, run
from workers.errors import ModuleError, RequestError
from workers.fat import FatLink, FatLinked, FatPartition, partition_name
from workers.llvm.bitcode import is_complete
from workers.llvm.content import ContentError, open_file
from workers.llvm.failures import judge
from workers.llvm.fat_codegen import FatProgram
from workers.llvm.fat_crash import Place, place_of_crash
from workers.llvm.fat_inputs import Survey, code_bytes, estimate_part, path_of, survey
from workers.llvm.fat_options import lto_options, own_options, partition_count, relocation_options
from workers.llvm.fat_pipeline import Halves, level_options
from workers.llvm.fat_question import Pipelines
from workers.llvm.inputs import inspect_content, read_inputs
from workers.llvm.link_driver import DriverError
from workers.llvm.link_key import LinkLog
from workers.llvm.link_messages import explain_link
from workers.llvm.lld_line import LldLine, LldLines, in_directory
from workers.llvm.one_module import Tools
from workers.llvm.passes import PassReader
from workers.llvm.reproducer import Reproducer, taken_along, write_reproducer
from workers.llvm.toolchain import LLVM_MAJOR
from workers.target import same_target
from workers.work import (
    CodegenOptions,
    Diagnostic,
    Engine,
    Failed,
    LinkFile,
    NeedsFatLto,
    Severity,
    Step,
)

__all__ = ["fat_link"]

_POLL_SECONDS = 0.02

_HOUR = 3600.0

_USERS = 20
"""Modules that are remembered for a symbol that nobody defines."""

_PROGRAM = "program"
_PART = re.compile(rf"{_PROGRAM}\.(\d+)\.\d+\.precodegen\.bc")
_EXTRACTED = "extracted.txt"

_NO_MODULE = "//no module//"
_NO_THIN_LTO = b"warning: [ThinLTO] No module compiled"
"""What lld says if it meets modules for ThinLTO and may compile none, as it is told: nobody would collect them."""

_TWO_TARGETS = re.compile(
    r"^\S+ warning: Linking two modules of different target triples: .* is '(\S*)' whereas .* is '(\S*)'\n*",
    re.MULTILINE,
)


async def fat_link(
    item: FatLink, ready: Callable[[FatPartition], None], lines: LldLines, pipelines: Pipelines, tools: Tools
) -> FatLinked | Failed:
    """Merge, optimise and split; the contract is `workers.fat.FatLtoBackend`'s."""
    merge = _Merge(item, ready, tools)
    try:
        await merge.prepare(lines, pipelines)
        return await merge.run()
    except (DriverError, RequestError) as error:
        message = str(error)
    except ModuleError as error:
        message = f"{error.module}: {error.message}"
    except OSError as error:
        message = f"{error.filename or item.directory}: {error.strerror or error}"
    return merge.failed(Diagnostic(Severity.ERROR, item.name, message))


@define
class _Merge:
    item: FatLink
    ready: Callable[[FatPartition], None]
    tools: Tools
    started: float = field(factory=trio.current_time)
    peak: int = 0
    directory: Path = Path()
    count: int = 1
    line: LldLine = field(init=False)
    program: FatProgram = field(init=False)
    survey: Survey = field(factory=Survey)
    halves: Halves | None = None
    handed_on: set[int] = field(factory=set)

    async def prepare(self, lines: LldLines, pipelines: Pipelines) -> None:
        """Find out how to merge. Raises `DriverError`, `RequestError`, `OSError`."""
        item, options = self.item, self.item.options
        triple = options.target_triple or item.target.triple
        self.directory = Path(tempfile.mkdtemp(prefix="fat-", dir=item.directory.absolute()))
        self.count = item.partitions or partition_count(code_bytes(item))
        failure: Exception | None = None

        async def look() -> None:
            self.survey = await trio.to_thread.run_sync(survey, item)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            nursery.start_soon(pipelines.prepare, triple)
            try:
                paths = [path_of(file) for file in item.files]
                self.line = await lines.line(item.link, item.exports, paths, options, item.target)
            except (DriverError, OSError) as error:
                failure = error
        if failure is not None:
            raise failure
        self.line.check_members(file.module for file in item.files if file.lazy and isinstance(file, NeedsFatLto))
        if item.partitions is None and self.survey.together is not None:
            self.count = 1
        arguments = (*lto_options(options), *own_options(self.line))
        # With one part there is nothing that could be done at the same time.
        if self.survey.is_ordinary and self.count > 1:
            self.halves = await pipelines.halves(triple, arguments)
        if self.halves is not None:
            arguments += level_options(options.opt_level)
        self.program = FatProgram(
            options=options,
            arguments=(*arguments, *relocation_options(options, item.link, self.line)),
            pipeline=None if self.halves is None else self.halves.part,
            names=self.survey.names if self.count > 1 else None,
            owners=self.survey.owners,
            triple=triple,
            out_dir=item.out_dir,
            reproducer_dir=item.reproducer_dir,
            time_limit=_time_limit(options, -(-len(item.files) // self.count)),
        )

    async def run(self) -> FatLinked | Failed:
        """Perform the merge. Raises `OSError`, `ModuleError`, `RequestError`."""
        item, reader = self.item, PassReader()
        own = [str(path_of(file)) for file in item.files]
        log = LinkLog(self.line, own)
        printed = item.options.print_passes
        argv = self.argv(own, self.directory, self.directory / "files.rsp")
        action = Action(
            argv=in_directory(self.line.directory, argv if printed else (*argv, "--verbose")),
            inputs={},
            environment=self.line.environment,
            time_limit=_time_limit(item.options, len(item.files)),
            memory_limit=item.options.memory_limit,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch)
            async with run(action, self.tools.scratch, stderr_to=reader.read if printed else log.read) as result:
                pass
            nursery.cancel_scope.cancel()
        result = evolve(result, stderr=reader.diagnostics() if printed else log.said())
        result = evolve(result, stderr=_of_one_target(result.stderr))
        self.peak = result.peak_rss_bytes
        problem = await self.problem(action, result)
        if problem is not None:
            return self.failed(problem)
        if _NO_THIN_LTO in result.stderr:
            return self.failed(self.error(await trio.to_thread.run_sync(self.not_merged)))
        unneeded = self.unneeded()
        parts = self.parts()
        if not parts and len(unneeded) == sum(isinstance(file, NeedsFatLto) for file in item.files):
            self.count = 0
        reason = self.incomplete(parts)
        if reason is not None:
            return self.failed(self.error(reason))
        for number in range(self.count):
            self.hand_on(number, parts[number])
        for path in self.directory.glob(f"{_PROGRAM}*.s"):
            path.unlink()
        texts = [await trio.to_thread.run_sync(self.explained, result)]
        if self.count > 1 and self.survey.together is not None:
            texts.append(f"it is split as asked for, and might be another program: {self.survey.together}")
        reads = None if printed else await trio.to_thread.run_sync(log.reads)
        return FatLinked(
            module=item.name,
            partitions=self.count,
            unneeded=unneeded,
            seconds=trio.current_time() - self.started,
            peak_rss_bytes=self.peak,
            diagnostics=tuple(Diagnostic(Severity.WARNING, item.name, text) for text in texts if text),
            passes=tuple(reader.passes),
            needs=self.needs(unneeded),
            reads=None if reads is None else reads.to_bytes(),
        )

    def argv(self, files: Sequence[str], directory: Path, response: Path | None) -> tuple[str, ...]:
        """The command that merges `files`, with its outputs in `directory`. Raises `OSError`."""
        item = self.item
        extra = [
            *lto_options(item.options),
            "--lto-emit-asm",
            "--save-temps=precodegen",
            f"--lto-partitions={self.count}",
            "--mllvm=-stop-before=pre-isel-intrinsic-lowering",
            f"--thinlto-single-module={_NO_MODULE}",
            f"--why-extract={directory / _EXTRACTED}",
        ]
        if self.halves is not None:
            extra += [f"--lto-newpm-passes={self.halves.whole}", *level_options(item.options.opt_level)]
        pairs = [(path, file.lazy) for path, file in zip(files, item.files, strict=True)]
        return self.line.argv(pairs, str(directory / _PROGRAM), extra, response)

    async def watch(self) -> None:
        """Hand parts on while lld is running."""
        while True:
            await trio.sleep(_POLL_SECONDS)
            with suppress(OSError):
                for number, path in self.parts().items():
                    if number < self.count and _is_whole(path):
                        self.hand_on(number, path)

    def hand_on(self, number: int, path: Path) -> None:
        """Tell of a part, once."""
        if number not in self.handed_on:
            self.handed_on.add(number)
            estimate = estimate_part(path.stat().st_size)
            self.ready(FatPartition(partition_name(number), path, estimate, self.program))

    def parts(self) -> dict[int, Path]:
        """What lld has written so far, by number."""
        found = ((_PART.fullmatch(path.name), path) for path in self.directory.iterdir())
        return {int(match[1]): path for match, path in found if match is not None}

    def incomplete(self, parts: dict[int, Path]) -> str | None:
        """Why the parts are not the program."""
        lost = [number for number in range(self.count) if number not in parts or not _is_whole(parts[number])]
        return f"ld.lld ended with status 0 and did not write part {lost[0]} of {self.count}" if lost else None

    def unneeded(self) -> tuple[str, ...]:
        """The lazy modules that lld took nothing of, by its own account. Raises `OSError`."""
        lazy = [file for file in self.item.files if isinstance(file, NeedsFatLto) and file.lazy]
        if self.line.takes_all or not lazy:
            return ()
        rows = (self.directory / _EXTRACTED).read_bytes().split(b"\n")[1:]
        taken = {row.split(b"\t")[1] for row in rows if row.count(b"\t") >= 2}
        return tuple(file.module for file in lazy if bytes(path_of(file)) not in taken)

    def needs(self, unneeded: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """What the modules that take part need and none of them defines."""
        idle = frozenset(unneeded)
        rows = self.survey.needs.items()
        left = {symbol: tuple(user for user in users if user not in idle)[:_USERS] for symbol, users in rows}
        return {symbol: users for symbol, users in left.items() if users}

    async def problem(self, action: Action, result: ActionResult) -> Diagnostic | None:
        """What is wrong with the merge, in terms of modules."""
        verdict = judge(
            result,
            tool="ld.lld",
            names={str(path_of(file)): file.module for file in self.item.files},
            time_limit=action.time_limit,
            memory_limit=action.memory_limit,
            out_of_memory=result.signal is not None and self.tools.oom.killed_again(),
        )
        if not verdict.failed:
            return None
        if verdict.fault:
            place = await self.place_of_crash(action, result)
            message = verdict.messages[0].text + (f"\n{place.described(self.survey.owners)}" if place else "")
            return await trio.to_thread.run_sync(self.reproduced, message, action, result)
        if verdict.passing:
            return self.error(verdict.messages[0].text)
        return self.error(await trio.to_thread.run_sync(self.explained, result))

    async def place_of_crash(self, action: Action, result: ActionResult) -> Place | None:
        """Where lld was when it crashed. Raises `OSError`."""
        place = Path(tempfile.mkdtemp(prefix="again-", dir=self.directory))  # parts that are there may be in use
        argv = self.argv([str(path_of(file)) for file in self.item.files], place, place / "files.rsp")
        again = evolve(action, argv=in_directory(self.line.directory, argv))
        return await place_of_crash(again, result, self.tools.scratch)

    def not_merged(self) -> str:
        """Which modules that lld found itself may be for ThinLTO."""
        named = [file.path for file in self.item.files if isinstance(file, LinkFile) and file.given]
        named += () if self.item.link is None else self.item.link.inputs
        found = [
            module.name
            for module in read_inputs(list(dict.fromkeys(named)), lambda: b"").modules
            if inspect_content(module, max_major=LLVM_MAJOR).has_summary
        ]
        which = f": {', '.join(sorted(found))}" if found else ""
        return (
            f"archives or objects that the link names bring modules that are prepared for ThinLTO{which}; "
            "name their files as inputs instead"
        )

    def explained(self, result: ActionResult) -> str:
        """What lld said, '' for nothing."""
        files = self.item.files
        modules = {file.module: file.bitcode for file in files if isinstance(file, NeedsFatLto)}
        return explain_link(result.stderr, {str(path_of(file)): file.module for file in files}, modules)

    def reproduced(self, message: str, action: Action, result: ActionResult) -> Diagnostic:
        """The diagnostic of a fault, with the modules and the command in its reproducer."""
        item = self.item
        modules = {f"modules/{number}{path_of(file).suffix}": path_of(file) for number, file in enumerate(item.files)}
        argv, inputs = taken_along(self.argv(list(modules), Path(), None), self.tools.scratch)
        reproducer = Reproducer(
            module=item.name,
            message=message,
            argv=argv,
            inputs={**modules, **inputs},
            stderr=result.stderr,
            versions=self.tools.versions(),
            hang=action.time_limit if result.timed_out else None,
            memory_limit=action.memory_limit,
        )
        try:
            where = write_reproducer(item.reproducer_dir, reproducer)
        except OSError as error:
            return self.error(f"{message}\n(no reproducer: {error.strerror or error}, {item.reproducer_dir})")
        return Diagnostic(Severity.ERROR, item.name, message, where)

    def error(self, message: str) -> Diagnostic:
        return Diagnostic(Severity.ERROR, self.item.name, message)

    def failed(self, diagnostic: Diagnostic) -> Failed:
        seconds = trio.current_time() - self.started
        return Failed(self.item.name, Engine.TOOLCHAIN, seconds, self.peak, (diagnostic,), Step.FAT_LINK)


def _time_limit(options: CodegenOptions, modules: int) -> float:
    """Seconds for what is made of so many modules: their limits together, but when no one may take an hour, no more."""
    return min(options.time_limit * max(1, modules), max(options.time_limit, _HOUR))


def _is_whole(path: Path) -> bool:
    try:
        with open_file(path) as view:
            return is_complete(view)
    except ContentError:
        return False


def _of_one_target(stderr: bytes) -> bytes:
    """Without lld's warnings about targets that differ in nothing but the spelling of their triples."""

    def kept(found: re.Match[str]) -> str:
        return "" if same_target(found[1], found[2]) else found[0]

    return _TWO_TARGETS.sub(kept, stderr.decode(errors="surrogateescape")).encode(errors="surrogateescape")

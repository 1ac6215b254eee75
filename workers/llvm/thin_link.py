"""The thin link: lld resolves symbols over all modules and writes what each backend compile is to know.

lld runs in the user's working directory, for arguments are the user's own words. Under which names it gets the modules
is decided in `workers.llvm.thin_layout`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Set
from pathlib import Path

import trio
from attrs import evolve

from workers.action import Action, ActionResult, run
from workers.llvm.failures import foreign_output, judge, parse_messages
from workers.llvm.link_driver import DriverError
from workers.llvm.link_key import LinkLog
from workers.llvm.link_messages import explain_link
from workers.llvm.lld_line import LldLines, in_directory
from workers.llvm.oom import OomWatch
from workers.llvm.thin_crash import CrashedLink
from workers.llvm.thin_layout import Layout, lay_out
from workers.llvm.thin_options import equals_lld, lto_arguments, relocation_of
from workers.llvm.thin_plan import ThinPlan
from workers.placing import place
from workers.thin import REGULAR_PART, ThinCompile, ThinLink, ThinLinked
from workers.work import (
    Artifact,
    CodegenOptions,
    Diagnostic,
    EmitKind,
    Engine,
    Estimate,
    Failed,
    Finished,
    LinkKind,
    NeedsThinLto,
    OptLevel,
    Severity,
    Step,
    artifact_path,
)

__all__ = ["link_estimate", "thin_link"]

_LINK_SECONDS = 3600.0
"""When lld counts as hung: the options' limit is for one module, and this is all of them."""

_MODULES, _INDEXES, _OUTPUT, _REGULAR = "modules", "indexes", "link", "regular.o"
"""What is in the item's directory. Indexes are not beside what they are of: that may be a user's directory."""

_ALL_VISIBLE = (
    "--mllvm=-enable-lto-internalization=false",
    "--mllvm=-compute-dead=false",
    "--mllvm=-propagate-attrs=false",
)
"""Symbols are resolved as in the link, and that is all: none is made local or constant, none left out as unused."""

_SHARD_SUFFIX = ".thinlto.bc"

# Measured on brotli with clang 22.1.8: own functions, and what is imported, which shows in the shard's size. Half of
# the modules are within a tenth, nine of ten within a third. What no function is, is next to free.
_SECONDS_PER_CODE_BYTE = 6.4e-6
_SECONDS_PER_SHARD_BYTE = 2.3e-5
_SECONDS_AT_LEAST = 0.006
_LEVEL = {OptLevel.O0: 0.5, OptLevel.O1: 0.7, OptLevel.O2: 1.0, OptLevel.O3: 1.1, OptLevel.SIZE: 0.9}
_LEVEL[OptLevel.MIN_SIZE] = 0.8

# 22 ms for brotli's 36 modules with the C library, 66 ms for 400 modules of three functions. It is not what a run took
# that counts, for that is long on a busy machine, where everything else is long, too.
_LINK_START_SECONDS = 0.015
_LINK_SECONDS_PER_MODULE = 1.2e-4
_LINK_SECONDS_PER_INDEX_BYTE = 1.5e-7

_INDEX_BYTES = 512 * 1024
"""With larger indexes (here 0.5 s), reading them costs more than doing the thin link again for a single module."""

# Seen: 47 MiB for the least, 55 for a module with 250 functions in it, 90 with imports from 15 modules; a process that
# does the thin link again takes 7 MiB more for 36 modules.
_RSS_AT_LEAST = 60 * 2**20
_RSS_PER_CODE_BYTE = 90
_RSS_PER_SHARD_BYTE = 12 * 2**10
_RSS_PER_MODULE = 256 * 2**10


def link_estimate(item: ThinLink) -> Estimate:
    """What the thin link is expected to need."""
    return Estimate(
        _LINK_START_SECONDS + len(item.files) * _LINK_SECONDS_PER_MODULE,
        _RSS_AT_LEAST + len(item.files) * _RSS_PER_MODULE,
    )


async def thin_link(
    item: ThinLink, lines: LldLines, scratch: Path, oom: OomWatch, versions: Callable[[], str]
) -> ThinLinked | Failed:
    """Do it; the contract is `workers.thin.ThinLtoBackend`'s."""
    started = trio.current_time()
    directory = item.directory.absolute()
    try:
        layout = await trio.to_thread.run_sync(lay_out, item, directory / _MODULES)
        line = await lines.line(
            item.link,
            item.exports,
            [file.bitcode if isinstance(file, NeedsThinLto) else file.path for file in item.files],
            item.options,
            item.target,
        )
        line.check_members(file.module for file in item.files if file.lazy and isinstance(file, NeedsThinLto))
        output, regular = directory / _OUTPUT, directory / _REGULAR
        files = tuple((path, lazy and not _takes_all(item)) for path, lazy in layout.files)
        extra = lto_arguments(item.options, item.link)
        if item.local and not _takes_all(item):
            extra += _ALL_VISIBLE
        argv = line.argv(files, str(output), extra, directory / "files.rsp")
        action = Action(
            argv=in_directory(
                line.directory,
                (
                    *argv,
                    f"--thinlto-index-only={directory / 'list'}",
                    f"--thinlto-prefix-replace=;{directory / _INDEXES}/",
                    "--save-temps=combinedindex",
                    f"--lto-obj-path={regular}",
                    "--verbose",
                ),
            ),
            inputs={},
            environment={**line.environment, "TMPDIR": str(scratch)},
            time_limit=_LINK_SECONDS,
            memory_limit=item.options.memory_limit,
        )
        log = LinkLog(line, [path for path, _ in files])
        async with run(action, scratch, stderr_to=log.read) as result:
            result = evolve(result, stderr=log.said())
            killed = result.signal is not None and oom.killed_again()
        said = explain_link(result.stderr, layout.names, layout.paths)
        problem, is_fault = _problem(result, said, layout.names, item.options, killed)
        if is_fault:
            crashed = CrashedLink(item, line, files, layout.labels, extra, scratch, versions)
            diagnostic = await crashed.reproduced(problem, action, result)
            return _failed(item, diagnostic, started, result.peak_rss_bytes)
        if problem:
            return _failed(item, _error(item, problem), started, result.peak_rss_bytes)
        words = (*line.head, *line.tail)
        plan = ThinPlan(
            item=item,
            line=line,
            argv=argv,
            paths=layout.paths,
            labels=layout.labels,
            order={},
            names=layout.names,
            combined=directory / f"{_OUTPUT}.index.bc",
            relocation=relocation_of(words, item.options, item.link),
            by_clang=equals_lld(words, item.options, item.options.target_triple or item.target.triple),
            again_seconds=0.0,
            stamps=layout.stamps,
            warned=frozenset(
                message.text for message in parse_messages(result.stderr.decode(errors="replace"), layout.names)
            ),
        )
        remarks = [text for text in (line.remarks, said) if text]
        diagnostics = tuple(Diagnostic(Severity.WARNING, item.name, text) for text in remarks)
        finish = await trio.to_thread.run_sync(_finish, item, layout, plan, directory, result)
        reads = await trio.to_thread.run_sync(log.reads)
        return evolve(
            finish,
            seconds=trio.current_time() - started,
            diagnostics=(*finish.diagnostics, *diagnostics),
            reads=None if reads is None else reads.to_bytes(),
        )
    except DriverError as error:
        return _failed(item, _error(item, str(error)), started)
    except OSError as error:
        return _failed(item, _error(item, f"{error.filename or directory}: {error.strerror or error}"), started)


def _takes_all(item: ThinLink) -> bool:
    """Whether nothing is linked to the end, so that there is no telling what is needed."""
    return item.link is None or item.link.kind is LinkKind.STATIC


def _problem(
    result: ActionResult, said: str, names: Mapping[str, str], options: CodegenOptions, killed: bool
) -> tuple[str, bool]:
    """What is wrong, '' for nothing, and whether lld is to blame."""
    if result.status is not None and result.status != 0 and said and not result.disk_full:
        return said, False
    verdict = judge(
        result,
        tool="ld.lld",
        names=names,
        time_limit=_LINK_SECONDS,
        memory_limit=options.memory_limit,
        out_of_memory=killed,
    )
    if not verdict.failed:
        return "", False
    return "; ".join(one.text for one in verdict.messages if one.severity is Severity.ERROR), verdict.fault


def _finish(item: ThinLink, layout: Layout, plan: ThinPlan, directory: Path, result: ActionResult) -> ThinLinked:
    """Read what lld wrote. Raises `DriverError`, `OSError` where it is not what it should be."""
    # lld puts the directory's name before a path, and a slash between them.
    parent = os.fsencode(directory / _INDEXES)
    listed = (directory / "list").read_bytes().replace(parent + b"//", parent + b"/").splitlines()
    modules = {parent + os.fsencode(path): module for module, path in layout.paths.items()}
    _refuse_others(parent, modules.keys(), frozenset(listed), plan.line.directory)
    plan.order = {modules[path]: position for position, path in enumerate(listed)}
    shards = {module: Path(os.fsdecode(path) + _SHARD_SUFFIX) for path, module in modules.items()}
    compiles, unneeded = [], []
    for file in item.files:
        if not isinstance(file, NeedsThinLto):
            continue
        shard = shards[file.module]
        if file.module in plan.order:
            compiles.append(_compile(file, shard, layout, plan))
        elif shard.stat().st_size:  # without anything in it, lld took the module for the regular part
            if not file.lazy or _takes_all(item):
                raise OSError(0, f"ld.lld left {file.module} out", str(shard))
            unneeded.append(file.module)
    finished: Finished | None = None
    diagnostics: tuple[Diagnostic, ...] = ()
    if len(unneeded) < len(layout.paths):  # else lld had nothing to compile, and wrote nothing
        finished, diagnostics = _regular(item, directory / _REGULAR, result)
    size = plan.combined.stat().st_size if compiles else 0
    plan.by_clang &= size <= _INDEX_BYTES
    plan.again_seconds = link_estimate(item).seconds + size * _LINK_SECONDS_PER_INDEX_BYTE
    if finished is not None:
        plan.again_seconds = max(plan.again_seconds, result.seconds)  # it is compiled each time
    return ThinLinked(
        module=item.name,
        compiles=tuple(compiles),
        unneeded=tuple(sorted(unneeded)),
        regular=finished,
        seconds=result.seconds,
        peak_rss_bytes=result.peak_rss_bytes,
        diagnostics=diagnostics,
    )


def _refuse_others(parent: bytes, own: Set[bytes], listed: Set[bytes], working: Path) -> None:
    """Refuse bitcode that came into the link by another way, for nobody would compile it. Raises `DriverError`."""
    suffix = _SHARD_SUFFIX.encode()
    for directory, _, files in os.walk(parent):
        for name in files:
            path = os.path.join(directory, name).removesuffix(suffix)  # noqa: PTH118 (a `Path` for each takes longer)
            # lld has left out what is neither for ThinLTO nor for the regular part.
            if path in own or (path not in listed and os.path.getsize(path + suffix)):  # noqa: PTH202
                continue
            # The indexes of absolute and relative paths are in one place.
            shown = os.fsdecode(path.removeprefix(parent + b"/"))
            is_relative = (working / shown.partition("(")[0]).exists()
            raise DriverError(
                f"{'' if is_relative else '/'}{shown} is bitcode that an argument for the linker brings in (a library, "
                "a script): name its file as an input instead"
            )


def _compile(file: NeedsThinLto, shard: Path, layout: Layout, plan: ThinPlan) -> ThinCompile:
    size = shard.stat().st_size
    options = plan.item.options
    batch = "thin" if EmitKind.OBJECT in options.emit and not options.print_passes else None
    work = file.code_bytes * _SECONDS_PER_CODE_BYTE + size * _SECONDS_PER_SHARD_BYTE
    seconds = (_SECONDS_AT_LEAST + work * _LEVEL[options.opt_level]) * len(options.emit)
    peak = _RSS_AT_LEAST + file.code_bytes * _RSS_PER_CODE_BYTE
    peak += size * _RSS_PER_SHARD_BYTE + len(layout.paths) * _RSS_PER_MODULE
    return ThinCompile(file.module, layout.paths[file.module], shard, Estimate(seconds, peak, batch), plan)


def _regular(item: ThinLink, path: Path, result: ActionResult) -> tuple[Finished | None, tuple[Diagnostic, ...]]:
    """What lld compiled itself; it always writes an object, with nothing in it if there was nothing."""
    data = path.read_bytes()
    if foreign_output(EmitKind.OBJECT, data[:64]):
        raise OSError(0, "ld.lld ended with status 0 and did not write the object of the regular part", str(path))
    if not _has_content(data):
        return None, ()
    if EmitKind.OBJECT not in item.options.emit:
        message = f"what is not for ThinLTO comes as an object, which is not asked for: {REGULAR_PART} is left out"
        return None, (Diagnostic(Severity.WARNING, item.name, message),)
    destination = artifact_path(item.out_dir, REGULAR_PART, EmitKind.OBJECT)
    artifact = Artifact(REGULAR_PART, EmitKind.OBJECT, destination, place(path, destination))
    done = Finished(REGULAR_PART, (artifact,), Engine.TOOLCHAIN, 0.0, result.peak_rss_bytes, step=Step.THIN_LINK)
    return done, ()


def _has_content(data: bytes) -> bool:
    """Whether an object, which lld has just written, has bytes to load or symbols that others can see."""
    order = "<" if data[5] == 1 else ">"
    if data[4] == 2:
        table, stride, count = struct.unpack_from(order + "Q10xHH", data, 40)
        section = struct.Struct(order + "4xIQ16xQ4xI8xQ")
    else:
        table, stride, count = struct.unpack_from(order + "I10xHH", data, 32)
        section = struct.Struct(order + "4xII8xI4xI4xI")
    for number in range(count):
        kind, flags, size, info, entry = section.unpack_from(data, table + number * stride)
        if (flags & 2 and size) or (kind == 2 and size // entry > info):  # SHF_ALLOC; SHT_SYMTAB, first global symbol
            return True
    return bool(count == 0)  # so many sections that their number is elsewhere


def _error(item: ThinLink, message: str) -> Diagnostic:
    return Diagnostic(Severity.ERROR, item.name, message)


def _failed(item: ThinLink, diagnostic: Diagnostic, started: float, peak_rss_bytes: int = 0) -> Failed:
    seconds = trio.current_time() - started
    return Failed(item.name, Engine.TOOLCHAIN, seconds, peak_rss_bytes, (diagnostic,), Step.THIN_LINK)

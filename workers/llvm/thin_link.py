"""The thin link: lld resolves symbols over all modules and writes what each backend compile is to know.

Modules get names of our own, because lld compares them: numbers of one width, so that none is a part of another, in the
order in which lld would sort the names that linkers know them by. In that order a backend imports from modules, which
shows in objects: in tables of symbols, for one. lld runs in the user's working directory, for arguments are the user's
own words.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import trio
from attrs import evolve, frozen

from workers.action import Action, ActionResult, run
from workers.llvm.content import Stamp, stamp_of
from workers.llvm.failures import foreign_output, judge, parse_messages
from workers.llvm.link_driver import DriverError
from workers.llvm.link_messages import explain_link
from workers.llvm.lld_line import LldLines, in_directory
from workers.llvm.oom import OomWatch
from workers.llvm.thin_crash import CrashedLink
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
_LISTED = re.compile(rb"/(\d+)\.bc$", re.MULTILINE)

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


@frozen
class _Layout:
    """Where the modules' files are, and what lld is given: paths and whether they are lazy, in link order."""

    files: tuple[tuple[str, bool], ...]
    paths: Mapping[str, Path]
    names: Mapping[str, str]
    numbers: Mapping[int, str]
    stamps: Mapping[str, Stamp]


async def thin_link(
    item: ThinLink, lines: LldLines, scratch: Path, oom: OomWatch, versions: Callable[[], str]
) -> ThinLinked | Failed:
    """Do it; the contract is `workers.thin.ThinLtoBackend`'s."""
    started = trio.current_time()
    directory = item.directory.absolute()
    try:
        layout = await trio.to_thread.run_sync(_lay_out, item, directory)
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
                ),
            ),
            inputs={},
            environment={**line.environment, "TMPDIR": str(scratch)},
            time_limit=_LINK_SECONDS,
            memory_limit=item.options.memory_limit,
        )
        async with run(action, scratch) as result:
            killed = result.signal is not None and oom.killed_again()
        said = explain_link(result.stderr, layout.names, layout.paths)
        problem, is_fault = _problem(result, said, layout.names, item.options, killed)
        if is_fault:
            crashed = CrashedLink(item, line, files, extra, scratch, versions)
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
        return evolve(finish, seconds=trio.current_time() - started, diagnostics=(*finish.diagnostics, *diagnostics))
    except DriverError as error:
        return _failed(item, _error(item, str(error)), started)
    except OSError as error:
        return _failed(item, _error(item, f"{error.filename or directory}: {error.strerror or error}"), started)


def _takes_all(item: ThinLink) -> bool:
    """Whether nothing is linked to the end, so that there is no telling what is needed."""
    return item.link is None or item.link.kind is LinkKind.STATIC


def _lay_out(item: ThinLink, directory: Path) -> _Layout:
    modules = directory / _MODULES
    modules.mkdir(parents=True, exist_ok=True)
    thin = [file for file in item.files if isinstance(file, NeedsThinLto)]
    ranked = sorted(range(len(thin)), key=lambda index: (os.fsencode(thin[index].origin or thin[index].module), index))
    width = max(5, len(str(len(thin))))
    paths: dict[str, Path] = {}
    numbers: dict[int, str] = {}
    for number, index in enumerate(ranked):
        file = thin[index]
        path = modules / f"{number:0{width}}.bc"
        path.unlink(missing_ok=True)
        path.symlink_to(file.bitcode.absolute())
        paths[file.module] = path
        numbers[number] = file.module
    files: list[tuple[str, bool]] = []
    names: dict[str, str] = {}
    for one in item.files:
        path = paths[one.module] if isinstance(one, NeedsThinLto) else one.path.absolute()
        files.append((str(path), one.lazy))
        names[str(path)] = one.module
    stamps = {}
    for one, (shown, _) in zip(item.files, files, strict=True):
        try:
            stamps[shown] = stamp_of(shown)
        except OSError as error:
            what, path = ("bitcode", one.bitcode) if isinstance(one, NeedsThinLto) else ("object", one.path)
            raise OSError(error.errno, f"the {what} of {one.module} is gone: {error.strerror}", str(path)) from error
    return _Layout(tuple(files), paths, names, numbers, stamps)


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


def _finish(item: ThinLink, layout: _Layout, plan: ThinPlan, directory: Path, result: ActionResult) -> ThinLinked:
    """Read what lld wrote. Raises `DriverError`, `OSError` where it is not what it should be."""
    indexes = _under(directory / _INDEXES, directory / _MODULES)
    listed = (directory / "list").read_bytes()
    _refuse_others(directory / _INDEXES, indexes, listed, plan.line.directory)
    names = [layout.numbers[int(number)] for number in _LISTED.findall(listed)]
    plan.order = {name: position for position, name in enumerate(names)}
    compiles, unneeded = [], []
    for file in item.files:
        if not isinstance(file, NeedsThinLto):
            continue
        shard = indexes / f"{layout.paths[file.module].name}{_SHARD_SUFFIX}"
        if file.module in plan.order:
            compiles.append(_compile(file, shard, layout, plan))
        elif shard.stat().st_size:  # without anything in it, lld took the module for the regular part
            if not file.lazy or _takes_all(item):
                raise OSError(0, f"ld.lld left {file.module} out", str(shard))
            unneeded.append(file.module)
    finished: Finished | None = None
    diagnostics: tuple[Diagnostic, ...] = ()
    if len(unneeded) < len(layout.numbers):  # else lld had nothing to compile, and wrote nothing
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


def _under(parent: Path, path: Path) -> Path:
    """Where lld puts the index of what is at an absolute path."""
    return Path(f"{parent}/{path}")


def _refuse_others(parent: Path, own: Path, listed: bytes, working: Path) -> None:
    """Refuse bitcode that came into the link by another way, for nobody would compile it. Raises `DriverError`."""
    for directory, _, files in os.walk(parent):
        for name in files if Path(directory) != own else ():
            path = Path(directory) / name
            if not name.endswith(_SHARD_SUFFIX):
                continue
            shown = str(path).removesuffix(_SHARD_SUFFIX)
            # lld has left out what is neither for ThinLTO nor for the regular part.
            if not path.stat().st_size or os.fsencode(Path(shown).name) + b"\n" in listed:
                # The indexes of absolute and relative paths are in one place.
                shown = shown.removeprefix(f"{parent}/")
                file = shown.partition("(")[0]
                shown = shown if (working / file).exists() else f"/{shown}"
                raise DriverError(
                    f"{shown} is bitcode that an argument for the linker brings in (a library, a script): "
                    "name its file as an input instead"
                )


def _compile(file: NeedsThinLto, shard: Path, layout: _Layout, plan: ThinPlan) -> ThinCompile:
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

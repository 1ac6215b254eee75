"""Modules on their way into LTO: what is asked of them, and what becomes of one that has arrived.

A raw module goes through one of LLVM's pre-link pipelines (`workers.llvm.toolchain_engine`). One that clang or rustc
has already taken through one is taken as it is. For ThinLTO that mostly is its own file: there may be hundreds, and
whoever reads one later sees whether it changed. For fat LTO every module must end up in the part that is merged,
whatever it was prepared for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import trio
from attrs import evolve, frozen

from workers.errors import InternalError, ModuleError, RequestError
from workers.llvm.bitcode import BitcodeError, Header, read_header
from workers.llvm.content import ContentError, Stamp, open_file, stamp_of
from workers.llvm.fat_bitcode import make_regular
from workers.llvm.inputs import inspect_content, llvm_content
from workers.llvm.thin_bitcode import make_plain
from workers.llvm.toolchain import LLVM_MAJOR, Toolchain
from workers.llvm.toolchain_engine import Report
from workers.target import TargetFlags, parse_triple
from workers.work import (
    CodegenOptions,
    Diagnostic,
    EmitKind,
    Engine,
    Estimate,
    Failed,
    NeedsFatLto,
    NeedsThinLto,
    Optimize,
    OptLevel,
    PreLink,
    Severity,
    Step,
    Target,
)

__all__ = ["AS_IS", "PreLinked", "check_lto", "finish_pre_link", "is_as_is", "take_as_is", "take_file"]

_Needs = TypeVar("_Needs", NeedsThinLto, NeedsFatLto)

AS_IS = Estimate(0.0, 0, "as is")
"""What it costs to take a module as it is: next to nothing, and least when many are taken at once."""


@frozen
class PreLinked:
    """What inspection saw of a module that went through a pipeline: its header, and the stamp of its file if any."""

    header: Header
    stamp: Stamp | None


_LLD_ARCHITECTURES = re.compile(
    r"aarch64(_be)?|amd64|arm.*|avr|hexagon|i[3-9]86|loongarch(32|64)|mips.*|msp430|powerpc.*|ppc.*|riscv(32|64)|s390x|"
    r"sparc64|sparcv9|thumb.*|x86_64h?"
)
"""What ld.lld links, as far as bitcode is concerned."""

_OTHER_FORMATS = frozenset({"coff", "goff", "macho", "wasm", "xcoff"})


def check_lto(options: CodegenOptions, target: Target, toolchain: Toolchain) -> None:
    """Refuse what cannot be honoured with LTO. Raises `RequestError`."""
    if options.engine is Engine.LLVMLITE:
        raise RequestError("LTO needs the toolchain, llvmlite has no such pipelines: leave the engine to ltod")
    if EmitKind.FATOBJ in options.emit:
        raise RequestError("an object with bitcode is made for a later LTO: ask for one of LTO and fatobj")
    if not options.prepopulate_passes:
        raise RequestError("LTO is done by the ordinary passes, which are switched off")
    if toolchain.lld is None:
        raise RequestError(f"LTO needs ld.lld, and there is none beside {toolchain.clang[0]} ({toolchain.origin})")
    if options.unroll_loops is False:
        raise RequestError("LLVM's linkers unroll loops in LTO, it cannot be switched off there")
    wants_vectors = options.vectorize_loops or options.vectorize_slp
    if wants_vectors and options.opt_level in (OptLevel.O0, OptLevel.O1):
        raise RequestError("LLVM's linkers vectorise in LTO from -O2 on, and not below")
    if options.merge_functions:
        raise RequestError("LLVM's linkers do not merge functions in LTO")
    triple = options.target_triple or target.triple
    flags, parts = TargetFlags.from_triple(triple), parse_triple(triple)
    is_elf = not (flags.is_like_darwin or flags.is_like_windows or flags.is_like_wasm or flags.is_like_aix)
    if not is_elf or parts.environment in _OTHER_FORMATS or not _LLD_ARCHITECTURES.fullmatch(parts.arch):
        raise RequestError(f"LTO is done by ld.lld, which links ELF only and does not know '{triple}'")


def is_as_is(pre_linked: object | None, options: CodegenOptions) -> bool:
    """Whether a module needs no process on its way: it went through a pipeline, and nothing is asked beyond."""
    return pre_linked is not None and not options.extra_passes and options.target_triple is None


async def take_as_is(items: Sequence[Optimize]) -> list[NeedsThinLto | NeedsFatLto | Failed]:
    """Take pre-linked modules as they are; one result each, in the order of `items`."""
    taken = [take_file(item) for item in items]
    if all(taken):
        return [one for one in taken if one is not None]
    return await trio.to_thread.run_sync(lambda: [one or _take(item) for one, item in zip(taken, items, strict=True)])


async def finish_pre_link(item: Optimize, report: Report, output: Path) -> NeedsThinLto | NeedsFatLto | Failed:
    """What has become of a module that the toolchain took through a pipeline, into `output`."""
    if report.failed:
        return _failed(item, report.seconds, report.peak_rss_bytes, report.diagnostics)
    return await trio.to_thread.run_sync(_arrive, item, report, output)


def _arrive(item: Optimize, report: Report, output: Path) -> NeedsThinLto | NeedsFatLto | Failed:
    try:
        content = output.read_bytes()
        return _settle(item, content, read_header(content).code_bytes, report)
    except BitcodeError as error:
        message = f"what clang made of it cannot be used: {error}"
    except OSError as error:
        message = f"cannot write {error.filename or item.bitcode}: {error.strerror or error}"
    problem = Diagnostic(Severity.ERROR, item.name, message)
    return _failed(item, report.seconds, report.peak_rss_bytes, (*report.diagnostics, problem))


def take_file(item: Optimize) -> NeedsThinLto | None:
    """Take a module's own file, where that is bitcode as a thin link needs it, and is what inspection saw."""
    path, seen = item.module.content, item.pre_linked
    if item.pre_link is not PreLink.THIN or not isinstance(path, Path) or not isinstance(seen, PreLinked):
        return None
    try:
        # An object with bitcode inside is larger than that.
        if seen.stamp != stamp_of(path) or seen.header.size != seen.stamp[0] or seen.header.is_unified:
            return None
    except OSError:
        return None
    return _result(NeedsThinLto, item, path.absolute(), seen.header.code_bytes, Report(False, 0.0, 0))


def _take(item: Optimize) -> NeedsThinLto | NeedsFatLto | Failed:
    started = time.perf_counter()
    try:
        content = llvm_content(item.module)
        if isinstance(content, Path):
            with open_file(content) as view:
                content = view[:]
        # What was seen when the module was inspected may have been another content.
        header = inspect_content(evolve(item.module, content=content), max_major=LLVM_MAJOR)
        if not header.has_summary:
            raise ModuleError(item.name, "it was changed during the build: it is no longer prepared for LTO")
        return _settle(item, content, header.code_bytes, Report(False, time.perf_counter() - started, 0))
    except ModuleError as error:
        message = error.message
    except (ContentError, BitcodeError) as error:
        message = f"the bitcode cannot be used: {error}"
    except OSError as error:
        message = f"cannot write {error.filename or item.bitcode}: {error.strerror or error}"
    return _failed(item, time.perf_counter() - started, 0, (Diagnostic(Severity.ERROR, item.name, message),))


def _settle(item: Optimize, content: bytes, code_bytes: int, report: Report) -> NeedsThinLto | NeedsFatLto:
    """Put bitcode where the build wants it. Raises `BitcodeError`, `OSError`."""
    if item.bitcode is None:
        raise InternalError("a module is to be prepared for LTO, and nobody says where")
    is_fat = item.pre_link is PreLink.FAT
    content = make_regular(content) if is_fat else make_plain(content)
    item.bitcode.parent.mkdir(parents=True, exist_ok=True)
    item.bitcode.write_bytes(content)
    if is_fat:
        return _result(NeedsFatLto, item, item.bitcode, code_bytes, report)
    return _result(NeedsThinLto, item, item.bitcode, code_bytes, report)


def _result(kind: type[_Needs], item: Optimize, bitcode: Path, code_bytes: int, report: Report) -> _Needs:
    module = item.module
    return kind(
        module=item.name,
        bitcode=bitcode,
        code_bytes=code_bytes,
        lazy=module.lazy,
        origin=module.linker_name,
        engine=Engine.TOOLCHAIN,
        seconds=report.seconds,
        peak_rss_bytes=report.peak_rss_bytes,
        diagnostics=report.diagnostics,
        passes=report.passes,
    )


def _failed(item: Optimize, seconds: float, peak: int, diagnostics: tuple[Diagnostic, ...]) -> Failed:
    return Failed(item.name, Engine.TOOLCHAIN, seconds, peak, diagnostics, Step.PRE_LINK)

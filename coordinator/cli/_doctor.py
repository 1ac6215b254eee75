"""`ltod doctor` and `ltod --version`: what ltod would build with here, and what is wrong with it."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import trio

from coordinator._memory import memory_limit
from coordinator._tokens import Jobserver, token_source, usable_cpus
from coordinator.cli._exit import ExitCode
from coordinator.cli._signals import StopSignals
from coordinator.cli._terminal import put
from workers.errors import InternalError, RequestError
from workers.keeper import kept_directory
from workers.llvm.choice import host_triple
from workers.llvm.link_driver import Driver, DriverError, choose_driver
from workers.llvm.toolchain import Finding, Toolchain, find_toolchain, survey

__all__ = ["doctor", "print_version"]


def print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    """Handle `--version`."""
    if not wanted or ctx.resilient_parsing:
        return
    put(f"ltod {_own_version()}")
    for finding in survey(os.environ).findings:
        put(f"{finding.name} {finding.version or f'unknown: {finding.problem}'}")
    ctx.exit()


@click.command(short_help="Say what builds would run with, and what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output")
@click.option(
    "--toolchain",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Look at this toolchain [default: $LTOD_TOOLCHAIN]",
)
@click.pass_obj
def doctor(signals: StopSignals, *, as_json: bool, toolchain: Path | None) -> int:
    """Say what builds would run with here, whether it fits together, and what is missing.

    Ends with exit code 0 when builds can run, and 1 otherwise.
    """
    findings = [*_machine(), *survey(os.environ, toolchain).findings, *_linker(toolchain, signals)]
    signals.defer()
    ok = not any(finding.problem is not None for finding in findings)
    if as_json:
        put(json.dumps({"ok": ok, "findings": [_as_object(finding) for finding in findings]}))
    else:
        for finding in findings:
            put(_as_text(finding))
        put("builds can run" if ok else "builds cannot run as things are")
    return ExitCode.OK if ok else ExitCode.FAILED


def _machine() -> Iterator[Finding]:
    """Python and ltod, CPUs, jobs and memory."""
    python = platform.python_version()
    yield Finding("python", f"{python} on {platform.machine()}", sys.executable)
    yield Finding("ltod", _own_version(), str(Path(__file__).parents[2]))
    try:
        with token_source(None, os.environ) as tokens:
            jobs = f"{tokens.limit} at once on {usable_cpus()} usable CPUs"
            origin = tokens.warning or ("make's jobserver" if isinstance(tokens, Jobserver) else None)
        yield Finding("jobs", jobs, origin=origin)
    except RequestError as error:
        yield Finding("jobs", problem=str(error), mend="start ltod without MAKEFLAGS")
    yield Finding("memory", f"{memory_limit() / 2**30:.1f} GiB", origin="the smaller of RAM and control group limits")


def _linker(configured: Path | None, signals: StopSignals) -> Iterator[Finding]:
    """What links programs for this machine; nothing where there is no toolchain, which is a finding already."""
    mend = "install a C compiler (on Debian: apt-get install gcc libc6-dev), or use the ziglang wheel"
    try:
        toolchain = find_toolchain(configured, os.environ)
        signals.defer()
        driver = trio.run(_choose_driver, toolchain, signals)
    except RequestError:
        return
    except (DriverError, OSError) as error:
        yield Finding("linker", problem=str(error), mend=mend)
    else:
        kind = "zig with a C library of its own" if driver.note is not None else "the compiler driver, with ld.lld"
        yield Finding("linker", kind, driver.argv[0], driver.note)


async def _choose_driver(toolchain: Toolchain, signals: StopSignals) -> Driver:
    with trio.CancelScope() as scope, kept_directory(Path(tempfile.gettempdir()), "ltod-") as directory:
        signals.cancels(scope)
        return await choose_driver(toolchain, host_triple(), (), frozenset(), directory, os.environ)
    raise signals.received or InternalError("nobody has cancelled the question for a linker")


def _as_text(finding: Finding) -> str:
    details = [f"({finding.origin})"] if finding.origin else []
    if finding.location:
        details.insert(0, finding.location)
    mark = "ok" if finding.problem is None else "!!"
    line = f"{mark}  {finding.name:<9} {'  '.join([finding.version or '-', *details])}"
    if finding.problem is not None:
        line += f"\n    problem: {finding.problem}\n    mend: {finding.mend}"
    return line


def _as_object(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "version": finding.version,
        "location": finding.location,
        "origin": finding.origin,
        "problem": finding.problem,
        "mend": finding.mend,
    }


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # ten milliseconds that a build need not pay

    try:
        return version("ltod")
    except PackageNotFoundError:
        return "from a checkout that is not installed"

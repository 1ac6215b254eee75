"""The last step: objects become a program, a shared library or a static archive.

Here belong how the linker is run and how its output gets to its place. The linker's command line is made in
`workers.llvm.lld_line`, what it says is put in terms of modules in `workers.llvm.link_messages`.

The linker sees each object under a path that ends with its module's name. It runs in our working directory, because
arguments for it (`-Lx`, `-Wl,--version-script=x.map`) are the user's own words. The output grows in a directory of its
own beside its destination (beside what a symbolic link points to) and is moved there when it is whole.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio
from attrs import evolve, frozen

from workers.action import Action, ActionResult, run
from workers.keeper import unused_name, watched
from workers.landing import landing
from workers.llvm.elf import is_shared_library, symbol_names
from workers.llvm.failures import describe_signal
from workers.llvm.link_driver import DriverError, check_link, choose_archiver
from workers.llvm.link_key import LinkLog
from workers.llvm.link_messages import explain_link
from workers.llvm.link_words import expanded, is_verbose
from workers.llvm.lld_line import LldLine, LldLines, in_directory, through_file
from workers.llvm.sections import ObjectError
from workers.llvm.toolchain import Toolchain
from workers.placing import place
from workers.work import Diagnostic, Engine, Failed, Link, Linked, LinkKind, Severity, Step

__all__ = ["link"]

_LINK_SECONDS = 3600.0
"""When a linker counts as hung. The limit of the options is for one module; a link may be all of them at once."""

_PREFIX = ".ltod-link-"

_FULL_BYTES = 1024 * 1024
"""A disk with less than this is as good as full."""

_NOTEWORTHY_SECONDS = 5.0
"""From here on a link is explained."""

_MAX_ARGUMENTS = 64 * 1024
"""Bytes of members' paths that an archiver is given directly; more go through a file."""


_AT_DIRECTORY = ("/bin/sh", "-c", 'exec 9<"$0" && exec "$@"')
"""Begins a command that finds a directory, the next word, at `_DIRECTORY`, wherever it is."""

_DIRECTORY = Path("/proc/self/fd/9")


@frozen
class _Command:
    """`output` is the path that the command writes to."""

    argv: tuple[str, ...]
    output: Path
    directory: Path
    environment: Mapping[str, str]
    remarks: str = ""
    note: str | None = None
    log: LinkLog | None = None
    """What takes apart the words of a linker that was made to say what it reads."""


async def link(
    item: Link, toolchain: Toolchain, scratch_dir: Path, environ: Mapping[str, str], lines: LldLines | None = None
) -> Linked | Failed:
    """Link the objects of `item`; what was at the output's path before stays there unless this succeeds.

    Everything that goes wrong is told by a `Failed`. `environ` is asked for PATH and for where caches are; `lines`
    remembers what was learnt from it. The same objects and libraries give the same bytes. When cancelled, nothing is
    left of the attempt.
    """
    started = trio.current_time()
    try:
        check_link(item.link, toolchain, item.target.triple)
        async with _directory(scratch_dir) as scratch, _beside(item, scratch) as beside:
            output = beside / item.link.output.name
            files, names = await trio.to_thread.run_sync(_lay_out, item, scratch)
            if item.link.kind is LinkKind.STATIC:
                command = _archive(item, toolchain, files, output, scratch, environ)
            else:
                command = await _program(item, lines or LldLines(toolchain, scratch, environ), files, output, scratch)
            log = command.log
            async with run(_action(command, item), scratch, stderr_to=log.read if log is not None else None) as result:
                if log is not None:
                    result = evolve(result, stderr=log.said())
                problem = _problem(result, output)
                known = {**names, str(command.output): str(item.link.output)}
                text = await trio.to_thread.run_sync(
                    partial(explain_link, result.stderr, known, item.modules, needs=item.needs, made=item.from_lto)
                )
                if problem is not None:
                    return _failed(item, f"{problem}{': ' if text else ''}{text}", started, result.peak_rss_bytes)
                size = output.stat().st_size
                reads = await trio.to_thread.run_sync(_reads, command, item.link.output)
                _put(output, item.link.output)
                seconds = trio.current_time() - started
                note = command.note if seconds > _NOTEWORTHY_SECONDS else None
                diagnostics = _remarks(item, (command.remarks, text), note)
                return Linked(
                    item.name,
                    item.link.output,
                    size,
                    Engine.TOOLCHAIN,
                    seconds,
                    result.peak_rss_bytes,
                    diagnostics,
                    reads,
                )
    except DriverError as error:
        return _failed(item, str(error), started)
    except OSError as error:
        return _failed(item, f"{error.filename or item.link.output}: {error.strerror or error}", started)


@asynccontextmanager
async def _beside(item: Link, scratch: Path) -> AsyncIterator[Path]:
    """Where the output grows. Raises `OSError` in terms of the output."""
    target = landing(item.link.output.absolute())
    if target is None:
        yield _make_directory(scratch)  # removed with it
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(item.link.output)) from error
    path = unused_name(target.parent, _PREFIX)
    with watched(path):
        try:
            path.mkdir(mode=0o700)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(item.link.output)) from error
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@asynccontextmanager
async def _directory(parent: Path) -> AsyncIterator[Path]:
    try:
        path = _make_directory(parent.absolute())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(parent)) from error
    try:
        yield path
    finally:
        # The linker is dead by now, and removing a few files does not wait for anything.
        shutil.rmtree(path, ignore_errors=True)


def _make_directory(parent: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))


def _put(output: Path, destination: Path) -> None:
    try:
        place(output, destination, mode=0o777)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(destination)) from error


def _lay_out(item: Link, scratch: Path) -> tuple[list[str], dict[str, str]]:
    """Give every module's object a path that ends with its name: paths in the order of linking, and names by path."""
    files: list[str] = []
    names: dict[str, str] = {}
    flat = item.link.kind is LinkKind.STATIC
    for number, file in enumerate(item.objects):
        name, path = file.module, file.path
        if file.given:
            # Where a shared library is ends up in programs, and a thin archive refers to files beside it.
            files.append(str(path.absolute()))
            continue
        # Members of an archive have no directories. A module may be called anything, `../x` for one.
        parts = name.split("/")
        shown_already = path.is_absolute() and str(path).endswith(f"/{name}.o")
        usable = all(part not in ("", ".", "..") and part.isprintable() and len(part.encode()) <= 200 for part in parts)
        shown = (".".join(parts) if flat else name) if usable else f"module-{number}"
        place = path if usable and shown_already and not flat else scratch / "m" / f"{shown}.o"
        if str(place) in names:
            place = scratch / "m" / f"{shown}.{number}.o"
        if not path.is_file():
            raise FileNotFoundError(2, f"the object of {name} is gone", str(path))
        if place is not path:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.absolute())
        files.append(str(place))
        names[str(place)] = name
    return files, names


async def _program(item: Link, lines: LldLines, files: Sequence[str], output: Path, scratch: Path) -> _Command:
    paths = [Path(path) for path in files]
    line = await lines.line(item.link, item.exports, paths, item.options, item.target)
    line.check_members(file.module for file in item.objects if file.lazy and not file.given)
    pairs = [(path, file.lazy) for path, file in zip(files, item.objects, strict=True)]
    wanted = await trio.to_thread.run_sync(_wrappers, item, line.option("wrap"))
    extra = [f"--undefined={name}" for name in wanted]
    # Who asks for it himself wants to see it.
    log = None if is_verbose(expanded((*line.head, *line.tail), line.directory)) else LinkLog(line, files)
    if log is not None:
        extra.append("--verbose")
    prefix: tuple[str, ...] = ()
    if _shows_path(item, line):
        prefix, output = (*_AT_DIRECTORY, str(output.parent)), _DIRECTORY / output.name
    argv = (*prefix, *line.argv(pairs, str(output), extra, scratch / "objects.rsp"))
    environment = {**line.environment, "TMPDIR": str(scratch)}
    return _Command(argv, output, line.directory, environment, line.remarks, line.note, log)


def _shows_path(item: Link, line: LldLine) -> bool:
    """Whether the path that lld writes to may be in what it writes.

    That is so where symbols have versions and the library has no name of its own: then the first version is called
    after the path.
    """
    scripts = len(line.option("version-script")) - bool(item.exports)
    return scripts > 0 and not line.option("soname")


def _wrappers(item: Link, wrapped: Sequence[str]) -> list[str]:
    """The wrappers (`--wrap`) of symbols in objects out of LTO.

    LTO makes wrapped symbols weak, lest it draws conclusions from them, and so a linker that sees its objects would
    neither look for the wrapper in archives nor miss it. A linker that does LTO itself knows better.
    """
    named: set[bytes] = set()
    for file in item.objects if wrapped else ():
        if file.module in item.from_lto:
            try:
                named |= symbol_names(file.path.read_bytes())
            except ObjectError as error:
                raise OSError(errno.EIO, f"the object of {file.module} is {error}", str(file.path)) from error
    return [f"__wrap_{name}" for name in dict.fromkeys(wrapped) if os.fsencode(name) in named]


def _archive(
    item: Link, toolchain: Toolchain, files: Sequence[str], output: Path, scratch: Path, environ: Mapping[str, str]
) -> _Command:
    archiver = choose_archiver(toolchain, environ)
    inputs = [path.absolute() for path in item.link.inputs]
    for path in (*(file.path.absolute() for file in item.objects if file.given), *inputs):
        with path.open("rb") as file:
            magic = file.read(18)
        if magic.startswith(b"!<") and not archiver.flattens:
            raise DriverError(f"{archiver.argv[0]} cannot put the members of {path} into another archive")
        if is_shared_library(magic):
            raise DriverError(f"{path} is a shared library, which cannot be put into a static archive")
    # q, not r: members with equal names stay both. D: no times, no owners.
    operation = "qcsDL" if archiver.flattens else "qcsD"
    members = [*files, *map(str, inputs)]
    if sum(map(len, members)) > _MAX_ARGUMENTS:
        members = [through_file(members, scratch / "members.rsp")]
    return _Command((*archiver.argv, operation, str(output), *members), output, Path.cwd(), {"LC_ALL": "C.UTF-8"})


def _action(command: _Command, item: Link) -> Action:
    return Action(
        argv=in_directory(command.directory, command.argv),
        inputs={},
        environment=command.environment,
        time_limit=_LINK_SECONDS,
        memory_limit=item.options.memory_limit,
    )


def _problem(result: ActionResult, output: Path) -> str | None:
    if result.not_started is not None:
        return f"the linker could not be started: {result.not_started}"
    if result.timed_out:
        return f"the linker was still running after {_LINK_SECONDS:g} s"
    if result.signal is not None:
        if result.signal == signal.SIGBUS and _is_full(output.parent):
            return f"no space left on {output.parent.parent}"  # lld writes into memory that stands for the file
        how = describe_signal(result.signal, out_of_memory=False, peak_rss_bytes=result.peak_rss_bytes)
        return f"the linker {how}"
    if result.status != 0:
        return f"linking failed (exit status {result.status})"
    return None if output.is_file() else "the linker ended with status 0 and did not write its output"


def _is_full(directory: Path) -> bool:
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize < _FULL_BYTES


def _reads(command: _Command, output: Path) -> bytes | None:
    """What the link read, as long as its output is not in its place; `None` where there is no telling."""
    reads = command.log.reads() if command.log is not None else None
    if reads is None:
        return None
    with suppress(FileNotFoundError):
        replaced = output.stat()
        if any(os.path.samestat(path.stat(), replaced) for path in reads.paths(command.directory)):
            return None
    return reads.to_bytes()


def _remarks(item: Link, texts: Sequence[str], note: str | None) -> tuple[Diagnostic, ...]:
    warnings = [Diagnostic(Severity.WARNING, item.name, text) for text in texts if text]
    return (*warnings, *([Diagnostic(Severity.NOTE, item.name, note)] if note is not None else []))


def _failed(item: Link, message: str, started: float, peak_rss_bytes: int = 0) -> Failed:
    diagnostics = (Diagnostic(Severity.ERROR, item.name, message),)
    return Failed(item.name, Engine.TOOLCHAIN, trio.current_time() - started, peak_rss_bytes, diagnostics, Step.LINK)

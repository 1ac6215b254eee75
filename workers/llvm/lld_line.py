"""ld.lld's own command line for a link, as a compiler driver makes it.

A driver knows start files, libraries and their order, but runs the linker once. LTO runs it several times on one link,
with other options and other files each time; so the driver is only asked, with one file in the place of all others.
gcc and clang are made to start a program that writes its arguments down instead of a linker. zig starts its own lld,
prints the command, and fails because the file is none that links.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import trio
from attrs import field, frozen

from workers.action import Action, ActionResult, run
from workers.llvm.failures import describe_signal
from workers.llvm.link_driver import TELLTALE, Driver, DriverError, Drivers, check_link, kind_flags
from workers.llvm.toolchain import LLVM_MAJOR, Toolchain
from workers.work import CodegenOptions, LinkKind, LinkOptions, Target, count

__all__ = ["LldLine", "LldLines", "check_exports", "in_directory", "through_file"]

_ANSWERS = 256
"""Answers of drivers that are remembered: a long-lived service meets many links."""

_DRIVER_SECONDS = 3600.0
"""When a driver counts as hung: zig may build a C library and a C++ library first."""

_MAX_ARGUMENTS = 64 * 1024
"""Bytes of files' paths that are given directly; more go through a file."""

_MAX_MESSAGE = 16_000

_NO_OBJECT = b"\x7fELF"
_WILDCARDS = frozenset("?*[")


@frozen
class LldLine:
    """ld.lld's command line for one link, with a gap where its modules and files go; to be run in `directory`.

    `environment` is all that lld needs. `remarks` is what the driver said, '' mostly; `note` explains a slow driver.
    Where `takes_all`, nothing is linked to the end, and there are no lazy files: each is taken.
    """

    directory: Path
    environment: Mapping[str, str]
    head: tuple[str, ...] = field(repr=count)
    tail: tuple[str, ...] = field(repr=count)
    remarks: str = ""
    note: str | None = None
    takes_all: bool = False

    def option(self, name: str) -> list[str]:
        """The values of an option that takes one, in the spellings that lld knows, in order."""
        found = []
        words = iter((*self.head, *self.tail))
        for word in words:
            key, equals, value = word.partition("=")
            if key in (f"--{name}", f"-{name}"):
                found.append(value if equals else next(words, ""))
        return found

    def check_members(self, modules: Iterable[str]) -> None:
        """Refuse what is about archives and would have no effect on `modules`, members that are linked one by one.

        Raises `DriverError`.
        """
        excluded = {word for value in self.option("exclude-libs") for word in re.split("[,:]", value)}
        for module in modules if excluded else ():
            archives = {f"{part}.a" for part in module.split("/")[:-1]}
            if "ALL" in excluded or archives & excluded:
                raise DriverError(
                    f"--exclude-libs would have no effect on {module}, which is linked by itself and not as a member "
                    "of its archive: say what is to be visible with --export, or with a version script"
                )

    def argv(
        self,
        files: Sequence[tuple[str, bool]],
        output: str,
        extra: Sequence[str] = (),
        response: Path | None = None,
    ) -> tuple[str, ...]:
        """The command that links `files`, path and lazy each, in this order, to `output`; `extra` are more options.

        Where there are very many files and a place for it, their paths are written to `response`. Raises `OSError`.
        """
        paths: list[str] = []
        library = False
        for path, lazy in files:
            if not self.takes_all and lazy is not library:
                paths.append("--start-lib" if lazy else "--end-lib")
                library = lazy
            paths.append(path)
        if library:
            paths.append("--end-lib")
        if response is not None and sum(map(len, paths)) > _MAX_ARGUMENTS:
            paths = [through_file(paths, response)]
        return (*self.head, "-o", output, *paths, *self.tail, *extra)


@frozen
class _Answer:
    """What a driver gave: the linker's arguments before and behind the gap, and the files that they rely on."""

    head: tuple[str, ...]
    tail: tuple[str, ...]
    remarks: str
    files: tuple[Path, ...]


class LldLines:
    """Asks drivers, and remembers what they answered. One for a backend; any number of tasks may use it at once.

    Lines refer to files in `scratch`, which must stay as long as they are used.
    """

    def __init__(self, toolchain: Toolchain, scratch: Path, environ: Mapping[str, str]) -> None:
        self._toolchain = toolchain
        self._scratch = scratch.absolute()
        self._drivers = Drivers(toolchain, self._scratch, environ)
        self._answers: dict[tuple[str, ...], _Answer] = {}
        self._asking: dict[tuple[str, ...], trio.Lock] = {}

    async def line(
        self,
        link: LinkOptions | None,
        exports: tuple[str, ...],
        files: Sequence[Path],
        options: CodegenOptions,
        target: Target,
    ) -> LldLine:
        """The line for a link of `files`, which are looked through for signs of C++.

        Without `link`, or for a static library, nothing is linked to the end: `exports`, if given, are all that is
        visible, else everything is. Raises `DriverError`, in terms of the request, and `OSError`.
        """
        check_exports(exports)
        if self._toolchain.lld is None:
            raise DriverError(f"there is no ld.lld-{LLVM_MAJOR} beside {self._toolchain.clang[0]}")
        lld = (*self._toolchain.lld, "--error-limit=0")
        directory = Path.cwd()
        environment = {"LC_ALL": "C.UTF-8"}
        inputs = () if link is None else tuple(path.absolute() for path in link.inputs)
        if link is None or link.kind is LinkKind.STATIC:
            if not exports:
                return LldLine(directory, environment, (*lld, "-r"), (), takes_all=True)
            head = (*lld, "-shared", *self._exports(exports, LinkKind.SHARED))
            return LldLine(directory, environment, head, tuple(map(str, inputs)), takes_all=True)
        check_link(link, self._toolchain, target.triple)
        signs = [*files, *(path for path in inputs if path.suffix in (".o", ".a"))]
        driver = await self._drivers.choose(options.target_triple or target.triple, signs, options.sanitizers)
        flags = kind_flags(link.kind, options.relocation_model)
        answer = await self._ask(driver, flags, link.arguments, directory)
        visible = self._exports(exports, link.kind) if exports else ()
        head = (*lld, *answer.head, *visible)
        tail = (*map(str, inputs), *answer.tail)
        return LldLine(directory, environment, head, tail, answer.remarks, driver.note)

    async def _ask(self, driver: Driver, flags: Sequence[str], arguments: Sequence[str], directory: Path) -> _Answer:
        key = (str(directory), *driver.argv, *flags, "", *arguments, "", *driver.libraries)
        lock = self._asking.setdefault(key, trio.Lock())
        try:
            async with lock:
                answer = self._answers.get(key)
                if answer is None or not all(map(_is_file, answer.files)):
                    self._answers.pop(key, None)
                    answer = await _question(driver, flags, arguments, directory, self._scratch)
                    if len(self._answers) >= _ANSWERS:
                        del self._answers[next(iter(self._answers))]
                    self._answers[key] = answer
                return answer
        finally:
            if not lock.locked():
                self._asking.pop(key, None)

    def _exports(self, names: tuple[str, ...], kind: LinkKind) -> tuple[str, ...]:
        """Options that keep the symbols, show nothing else, and make it an error if one is not defined.

        The list of symbols alone would be content with names that nothing defines; a version script is not.
        """
        # lld reads a name as bytes up to the closing quote: there is nothing to escape.
        listed = "".join(f'"{name}";\n' for name in sorted(set(names)))
        digest = hashlib.sha256(os.fsencode(listed)).hexdigest()[:32]
        stem = self._scratch / f"exports-{digest}"
        rest = "local: *;\n" if kind is LinkKind.SHARED else ""
        script = _written(stem.with_suffix(f".{kind.value}"), f"{{ global:\n{listed}{rest}}};\n")
        options = [f"--version-script={script}"]
        if kind is LinkKind.EXECUTABLE:
            options.append(f"--export-dynamic-symbol-list={_written(stem.with_suffix('.list'), f'{{ {listed} }};')}")
        roots = _written(stem.with_suffix(".roots"), _quoted(f"--undefined={name}" for name in sorted(set(names))))
        return (*options, f"@{roots}")


def check_exports(names: Iterable[str]) -> None:
    """Refuse names that lld would not take literally. Raises `DriverError`."""
    for name in names:
        if not name:
            raise DriverError("the name of a symbol to export is empty")
        odd = next((character for character in name if character == '"' or not _is_plain(character)), None)
        if odd is not None:
            raise DriverError(f"a symbol with {odd!r} in its name cannot be exported: {name!r}")


def in_directory(directory: Path, argv: Sequence[str]) -> tuple[str, ...]:
    """A command that runs `argv` in `directory`, for an action, whose working directory is its own."""
    return ("/bin/sh", "-c", 'cd -- "$0" && exec "$@"', str(directory), *argv)


def _is_plain(character: str) -> bool:
    return character not in _WILDCARDS and character >= " " and character != "\x7f"


def _written(path: Path, text: str) -> Path:
    """A file whose name follows from its content: a linker may be reading it, so it is written only once."""
    if not path.exists():
        growing = path.with_name(f"{path.name}.new")
        growing.write_bytes(os.fsencode(text))
        growing.replace(path)
    return path


def through_file(arguments: Iterable[str], file: Path) -> str:
    """Write arguments into `file`, and give the `@file` that stands for them. Raises `OSError`."""
    file.write_bytes(os.fsencode(_quoted(arguments)))
    return f"@{file}"


def _quoted(arguments: Iterable[str]) -> str:
    quoted = ('"' + argument.replace("\\", "\\\\").replace('"', '\\"') + '"' for argument in arguments)
    return "\n".join(quoted) + "\n"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


async def _question(
    driver: Driver, flags: Sequence[str], arguments: Sequence[str], directory: Path, scratch: Path
) -> _Answer:
    """Ask a driver what it would have ld.lld do."""
    place = Path(tempfile.mkdtemp(prefix="line-", dir=scratch))
    try:
        gap, output, told = place / "gap.o", place / "output", place / "arguments"
        gap.write_bytes(_NO_OBJECT)
        argv = (*driver.argv, *flags, "-o", str(output), str(gap), *arguments, *driver.libraries)
        environment = {**driver.environment, "LC_ALL": "C.UTF-8", "TMPDIR": str(place)}
        if driver.telltale is not None:
            environment[TELLTALE] = str(told)
        else:
            environment |= {"ZIG_VERBOSE_LINK": "1", "ZIG_LOCAL_CACHE_DIR": str(place / "zig")}
        action = Action(
            argv=in_directory(directory, argv), inputs={}, environment=environment, time_limit=_DRIVER_SECONDS
        )
        async with run(action, scratch) as result:
            said = os.fsdecode(result.stderr)
            if driver.telltale is not None:
                words = _told(told) if result.status == 0 else None
            else:
                words = _printed(said, str(gap), [*argv, *driver.environment.values(), str(directory)])
                said = "" if words is not None else said
            if words is None or str(gap) not in words:
                raise DriverError(_refusal(driver, result, _readable(said)))
        head, tail = _parted(words, str(gap), driver.telltale)
        paths = (directory / word for word in (*head, *tail) if not word.startswith("-"))
        return _Answer(head, tail, _readable(said), tuple(filter(_is_file, paths)))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _refusal(driver: Driver, result: ActionResult, said: str) -> str:
    name = driver.argv[0] if driver.telltale is not None else " ".join(driver.argv[:2])
    if result.not_started is not None:
        return result.not_started
    if result.timed_out:
        return f"{name} was still running after {_DRIVER_SECONDS:g} s"
    if result.signal is not None:
        how = describe_signal(result.signal, out_of_memory=False, peak_rss_bytes=result.peak_rss_bytes)
        return f"{name} {how}"
    if result.status:
        return f"linking failed (exit status {result.status} of {name}): {said or 'it does not say why'}"
    return f"{name} did not start ld.lld: leave out arguments such as -c and -fuse-ld{f': {said}' if said else ''}"


def _told(file: Path) -> list[str] | None:
    """The arguments that the telltale wrote down; `None` if it was not called."""
    try:
        words = os.fsdecode(file.read_bytes()).split("\0")[:-1]
    except FileNotFoundError:
        return None
    expanded: list[str] = []
    for word in words:
        if word.startswith("@"):
            response = file.with_name(f"{file.name}.response")
            expanded += shlex.split(os.fsdecode(response.read_bytes()))
        else:
            expanded.append(word)
    return expanded


def _printed(text: str, gap: str, known: Iterable[str]) -> list[str] | None:
    """The arguments of the ld.lld command in zig's output that has `gap` among them.

    zig puts spaces between arguments and leaves spaces within them as they are: `known` are strings that may have some.
    """
    # `-Lmy libs` shows again in the paths of libraries that zig finds there.
    parts = (part for word in known for part in (word, word[2:], *word.split(","), *word.split("=")))
    spaced = {part for part in parts if len(part.split()) > 1}
    codes: dict[str, str] = {}
    for number, part in enumerate(sorted(spaced, key=len, reverse=True)):
        codes[f"\x1f{number}\x1f"] = part
        text = text.replace(part, f"\x1f{number}\x1f")
    for line in reversed(text.split("\n")):
        words = line.split(" ")
        for code, part in codes.items():
            words = [word.replace(code, part) for word in words]
        if words[0] == "ld.lld" and gap in words:
            return words[1:]
    return None


def _parted(words: Sequence[str], gap: str, telltale: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What stands before and behind the gap, without the output and without what is for the driver alone."""
    kept: list[str] = []
    place = 0
    rest = iter(words)
    for word in rest:
        if word == gap:
            place = len(kept)
        elif word in ("-o", "-plugin"):
            next(rest, None)
        elif not _is_drivers_own(word, telltale):
            kept.append(word)
    return tuple(kept[:place]), tuple(kept[place:])


def _is_drivers_own(word: str, telltale: Path | None) -> bool:
    """Words of gcc for its LTO plugin, one with a temporary file; and where it found its linker."""
    if telltale is not None and word.startswith(f"-L{telltale}"):
        return True
    return word.startswith(("-plugin-opt=-fresolution=", "-plugin-opt=-pass-through=")) or (
        word.startswith("-plugin-opt=") and word.endswith("/lto-wrapper")
    )


def _readable(said: str) -> str:
    """A driver's words without the commands that zig prints."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(("ld.lld ", "ar "))]
    return "\n".join(lines)[:_MAX_MESSAGE].encode(errors="replace").decode()

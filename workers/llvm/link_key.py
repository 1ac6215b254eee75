"""Keys of whole links, in two levels: what a link is given, and what ld.lld found by itself with that.

lld looks for libraries in directories, and in scripts that it finds there, so nobody knows beforehand what it reads. It
says so with `--verbose`. What it read once is remembered under the first key; the second key is made of that and of the
digests that the files have now. Where a file has come up that lld would have taken instead, there is none.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from attrs import field, frozen

from workers.ingredients import Ingredient, IngredientKind, Key, NoKey
from workers.llvm.archive import ArchiveError, read_members
from workers.llvm.content import ContentError, open_file
from workers.llvm.link_words import INPUT, LinkWords, divided, expanded, link_words
from workers.llvm.lld_line import LldLine
from workers.work import Step, count

__all__ = ["LinkInput", "LinkLog", "LinkReads", "first_key", "line_words", "second_key"]

_CAPTURE_BYTES = 128 * 1024
"""How much of what lld says is kept from its beginning, and as much again from its end."""

_SETTLED_SECONDS = 0.1
"""What was changed later than this before the link began, may have been changed behind lld's back."""

_MODULES = "(modules)"
"""Stands among a line's words where its modules go."""

_OF_PROGRESS = re.compile(
    r"set maximum concurrency to \d+, specify --threads= to change|ICF needed \d+ iterations|relaxation passes: \d+"
    r"|detected cortex-\S+ erratum sequence starting at .* in unpatched output\."
)
"""What lld says besides, with `--verbose`."""

_HAS_TO_SAY = re.compile(rb"(fatal error|error|warning|note|remark): ")
_THIN_ARCHIVE = b"!<thin>\n"
_NO_SCRIPTS = (b"\x7fELF", b"!<arch>\n", _THIN_ARCHIVE, b"BC\xc0\xde", b"\xde\xc0\x17\x0b")
_OTHER_DIRECTORIES = b"SEARCH_DIR"


@frozen
class LinkInput:
    """A file of a link: what it is called, SHA-256 of what is in it, and how it is linked (see `LinkFile`)."""

    name: str
    digest: str
    lazy: bool = False
    given: bool = False


@frozen
class LinkReads:
    """What lld read besides what it was given by name, and which files were not there that it would have preferred.

    Paths are as lld knows them, relative to the link's directory where they are below it.
    """

    files: tuple[str, ...] = field(repr=count)
    absent: tuple[str, ...] = field(repr=count)

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        return json.dumps([self.files, self.absent]).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> LinkReads | None:
        """`None` where it is damaged, or of another version."""
        try:
            match json.loads(data):
                case [list(files), list(absent)] if all(isinstance(path, str) for path in (*files, *absent)):
                    return cls(tuple(files), tuple(absent))
        except (ValueError, RecursionError):
            pass
        return None

    def paths(self, directory: Path) -> tuple[Path, ...]:
        """Where the files are for a link in `directory`, in the order of `files`."""
        return tuple(directory / path for path in self.files)

    def holds(self, directory: Path) -> bool:
        """Whether what was not there still is not. What was read may be gone or be another file all the same."""
        # There are hundreds, and a `Path` for each takes longer than asking.
        return not any(os.path.lexists(os.path.join(directory, path)) for path in self.absent)  # noqa: PTH118


class LinkLog:
    """Takes lld's standard error, when it is `--verbose`, apart into the files that it reads and what it has to say.

    It is for one link with `line`, in which `own` are the paths of modules and files. The link begins after this.
    """

    def __init__(self, line: LldLine, own: Collection[str]) -> None:
        names = {os.fsencode(Path(word).name) for word in line.head[: _program_words(line.head)]}
        self._line = line
        self._own = own
        self._since = time.time()
        self._entry = re.compile(rb"(?:%b): (.*)" % b"|".join(map(re.escape, sorted(names))))
        self._said: list[bytes] = []
        self._files: list[str] = []

    def read(self, file: IO[bytes]) -> None:
        """Read all of it."""
        data = file.read()
        for path in self._own:
            if "\n" in path:
                data = data.replace(b": %b\n" % os.fsencode(path), b": \n")
        for line in io.BytesIO(data):
            found = self._entry.fullmatch(line.rstrip(b"\n"))
            if found is None or _HAS_TO_SAY.match(found[1]):
                self._said.append(line)
            elif found[1]:
                self._files.append(os.fsdecode(found[1]))

    def said(self) -> bytes:
        """What it has to say: beginning and end."""
        said = b"".join(self._said)
        left_out = len(said) - 2 * _CAPTURE_BYTES
        if left_out <= 0:
            return said
        return said[:_CAPTURE_BYTES] + b"\n[... %d bytes left out ...]\n" % left_out + said[-_CAPTURE_BYTES:]

    def reads(self) -> LinkReads | None:
        """What lld read; `None` where there is no telling, or where some of it may have changed meanwhile."""
        try:
            return _reads(self._files, line_words(self._line), self._own, self._line.directory, self._since)
        except (ArchiveError, ContentError, OSError):
            return None


def line_words(line: LldLine, *, final: bool = False) -> LinkWords:
    """The words that a link with `line` depends on, see `link_words`. Reads response files; raises `OSError`.

    lld's own path is not among them, nor is anything that leads to outputs: that is the caller's to leave out.
    """
    words = line.head[_program_words(line.head) :], line.tail
    before, behind = (
        link_words(expanded(one, line.directory), line.directory, Path.is_file, final=final) for one in words
    )
    return LinkWords(
        (*before.words, _MODULES, *behind.words),
        before.files + behind.files,
        before.directories + behind.directories,
        behind.root or before.root,
        before.problem or behind.problem,
    )


def first_key(
    step: Step,
    line: LldLine,
    words: LinkWords,
    inputs: Sequence[LinkInput],
    digests: Mapping[str, str],
    more: Sequence[Ingredient] = (),
) -> Key | NoKey:
    """The key of what a link is given: `line`, whose `words` are (with all that is behind them) what matters of it.

    `digests` are SHA-256 of the words' files, by path. `more` is what else the result depends on: at least what lld is.
    """
    if words.problem is not None:
        return NoKey(words.problem, warn=True)
    lost = [path for _, path in words.files if path not in digests]
    if lost:
        return NoKey(f"{lost[0]} cannot be read")
    order = [[one.name, one.lazy, one.given] for one in inputs]
    parts = (
        step.value,
        line.takes_all,
        sorted(line.environment.items()),
        words.words,
        [digests[path] for _, path in words.files],
        order,
        [one.digest for one in inputs],
        [[one.kind.value, one.name, one.value, one.symbols] for one in more],
    )

    def ingredients() -> tuple[Ingredient, ...]:
        return (
            *more,
            *(
                Ingredient(IngredientKind.OPTION, *divided(word))
                for word in words.words
                if word not in (INPUT, _MODULES)
            ),
            *(Ingredient(IngredientKind.FILE, name, digests[path]) for name, path in words.files),
            *(
                Ingredient(IngredientKind.FILE if one.given else IngredientKind.MODULE, one.name, one.digest)
                for one in inputs
            ),
            Ingredient(IngredientKind.SUMMARY, "the order of its files", _digest(order)),
        )

    return Key(_digest(parts), ingredients)


def second_key(first: Key, reads: LinkReads, digests: Sequence[str]) -> Key:
    """The key of a link with the key `first`, when it reads `reads.files`, which have these `digests` now."""
    names = [Path(path).name for path in reads.files]
    files = tuple(Ingredient(IngredientKind.FILE, name, digest) for name, digest in zip(names, digests, strict=True))
    return Key(_digest([first.digest, names, list(digests)]), lambda: (*first.ingredients(), *files))


def _reads(
    log: Iterable[str], words: LinkWords, own: Collection[str], directory: Path, since: float
) -> LinkReads | None:
    """As `LinkLog.reads`. Raises `ArchiveError`, `ContentError`, `OSError` for what has no form that is known."""
    named = {*own, *(path for _, path in words.files)}
    found: list[str] = []
    members: list[str] = []
    places = dict.fromkeys((*words.directories, ""))
    for name in dict.fromkeys(log):
        path = directory / name
        if _OF_PROGRESS.fullmatch(name) and not os.path.lexists(path):
            continue
        with open_file(path) as view:
            head = view[:8]
            if head == _THIN_ARCHIVE:
                # lld does not say that it reads these.
                members += (str(member.path) for member in read_members(view, path) if member.path != path)
            elif not head.startswith(_NO_SCRIPTS):
                if _OTHER_DIRECTORIES in view[:]:
                    return None
                places[str(Path(name).parent)] = None
        if name not in named:
            found.append(name)
    files = list(dict.fromkeys((*found, *members)))
    latest = (since - _SETTLED_SECONDS) * 1e9
    for name in files:
        state = (directory / name).stat()
        if max(state.st_mtime_ns, state.st_ctime_ns) > latest:
            return None
    wanted = dict.fromkeys(other for name in found for other in _spellings(Path(name).name))
    sought = dict.fromkeys(str(Path(place, name)) for place in places for name in wanted)
    if words.root:  # in a script below it, an absolute path means another file, if that is there
        sought |= dict.fromkeys(words.root + name for name in found if name.startswith("/"))
    absent = (path for path in sought if not os.path.lexists(directory / path))
    return LinkReads(
        tuple(_relative(path, directory) for path in files), tuple(_relative(path, directory) for path in absent)
    )


def _program_words(argv: Sequence[str]) -> int:
    """How many words of a command name its program."""
    return next((number for number, word in enumerate(argv) if word.startswith("-")), len(argv))


def _spellings(name: str) -> tuple[str, ...]:
    """The names of files that lld might have taken where it took this.

    It looks for either kind of library in one directory after the other, and takes what an object says that it depends
    on (`.deplibs`) for the name of a library before that of a file.
    """
    stem = name.removesuffix(".a").removesuffix(".so")
    if stem != name and stem.startswith("lib"):
        return (f"{stem}.so", f"{stem}.a")
    return (name, f"lib{name}.so", f"lib{name}.a")


def _relative(path: str, directory: Path) -> str:
    if not path.startswith("/"):
        return path
    try:
        return str(Path(path).relative_to(directory))
    except ValueError:
        return path


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode("ascii")).hexdigest()

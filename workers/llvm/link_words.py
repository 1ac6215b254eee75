"""What a link depends on among ld.lld's words: generating code, the resolution of symbols, and the link as a whole.

Keys are made of words, so a word must not be dropped unless it is known not to matter. One that nobody knows makes
whoever asks do without a key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from attrs import frozen

from workers.llvm.lld_options import Effect, Word, parsed

__all__ = [
    "INPUT",
    "CodeWords",
    "LinkWords",
    "code_words",
    "divided",
    "expanded",
    "is_plain_llvm_option",
    "is_verbose",
    "link_words",
]

INPUT = "(input)"
"""Stands for an input among words."""

_NO_FILES = frozenset({"all", "none", "labels"})
"""Values of `--lto-basic-block-sections` that name no file."""

_LLVM_OPTION = re.compile(r"--?([A-Za-z][A-Za-z0-9_.-]*)(?:=(.*))?", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(\.\d+)?|true|false|")
# Names of files have dots or slashes in them; features of CPUs (`sse4.2`) have dots between digits only.
_LLVM_WORDS = re.compile(r"(?:[A-Za-z0-9_+,:=-]|(?<=\d)\.(?=\d))*")
_AT_LARGE = re.compile(
    r"file|path|output|dump|print|prof|pgo|remark|plugin|replay|debug|bisect|workload|statistics|sections|embed"
    r"|(?<![a-z])(stats|dir|directory|dot|view|show|time|load|log|logging|trace|tracing|track|save|temps?|cache|record"
    r"|report|write|counter|crash|config|seed|rng|random|train|training|help|version|color)(?![a-z])"
)
"""What is in the names of LLVM options by which it may read, write or count beyond the module that it compiles."""
_MAY_NAME_A_FILE = re.compile(r"(?<![a-z])(map|list|model|input|source|spec|table|name|summary)(?![a-z])")
_NAMES_NONE = frozenset({"code-model", "relocation-model", "thread-model"})


@frozen
class CodeWords:
    """What code generation depends on among a line's words.

    `words` are for a key, in order. They name the options only of what is in `files`, whose contents are for it, too.
    With a `problem` there is no telling.
    """

    words: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    problem: str | None = None


@frozen
class LinkWords:
    """What the resolution of symbols, and LTO, or the linked file depend on among a line's words; as `CodeWords`.

    `files` have with them what to call them: the option, or an input's own name. `directories` are searched for
    libraries, in this order; `root` is what the system's paths are below.
    """

    words: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    directories: tuple[str, ...] = ()
    root: str = ""
    problem: str | None = None


def expanded(words: Iterable[str], directory: Path) -> tuple[str, ...]:
    """`words` with those of response files (`@file`) in their places. Raises `OSError`."""
    return tuple(_expanded(words, directory, frozenset()))


def _expanded(words: Iterable[str], directory: Path, inside: frozenset[Path]) -> Iterator[str]:
    for word in words:
        path = directory / word[1:]
        if word.startswith("@") and path not in inside and path.exists():
            yield from _expanded(_tokens(os.fsdecode(path.read_bytes())), directory, inside | {path})
        else:
            yield word


def _tokens(text: str) -> Iterator[str]:
    """The words of a response file: a backslash takes the next character as it is, within quotes as well."""
    word: list[str] | None = None
    quote = ""
    characters = iter(text)
    for character in characters:
        if character == "\\":
            word = [*(word or ()), next(characters, "")]
        elif character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote, word = character, word or []
        elif not quote and character.isspace():
            if word is not None:
                yield "".join(word)
            word = None
        else:
            word = word or []
            word.append(character)
    if word is not None:
        yield "".join(word)


def is_plain_llvm_option(option: str) -> bool:
    """Whether an option of LLVM's own (`-name=value`) changes what is made of a module and does nothing else.

    There are thousands, most of them numbers for heuristics. So it is told by shape: what may read or write files,
    print, or count across modules has names that say so.
    """
    found = _LLVM_OPTION.fullmatch(option)
    if found is None:
        return False
    name, value = found[1].lower(), found[2] or ""
    if _AT_LARGE.search(name):
        return False
    if _NUMBER.fullmatch(value):
        return True
    names_file = name not in _NAMES_NONE and _MAY_NAME_A_FILE.search(name)
    return not names_file and value != "native" and _LLVM_WORDS.fullmatch(value) is not None


def code_words(words: Iterable[str]) -> CodeWords:
    """What code generation depends on; response files must be `expanded`."""
    kept: list[str] = []
    files: list[str] = []
    for word in parsed(words):
        problem = _problem(word)
        if problem is not None:
            return CodeWords(problem=problem)
        if word.effect is Effect.CODE_FILE and word.value not in _NO_FILES:
            kept.append(word.text)
            files.append(word.value or "")
        elif word.effect in (Effect.CODE, Effect.CODE_FILE, Effect.LLVM):
            kept.append(_spelled(word))
    return CodeWords(tuple(kept), tuple(files))


def link_words(
    words: Iterable[str], directory: Path, is_file: Callable[[Path], bool], *, final: bool = False
) -> LinkWords:
    """What a link in `directory` depends on; response files must be `expanded`.

    Paths below the directory become relative to it. What only shows in the linked file is left out unless the link is
    the `final` one, which may not be told to write or say anything else, for that would be missed.
    """
    kept: list[str] = []
    files: list[tuple[str, str]] = []
    places: list[str] = []
    root = ""
    for word in parsed(words):
        problem = _problem(word)
        if final and word.effect is Effect.REPORT:
            problem = f"{word} asks for more than what is linked"
        if problem is not None:
            return LinkWords(problem=problem)
        value = word.value or ""
        match word.effect:
            case Effect.FILE | Effect.CODE_FILE | Effect.LINK_FILE if value and is_file(directory / value):
                kept.append(word.text or INPUT)
                files.append((word.text or Path(value).name, value))
            case Effect.LINK_PLACE:
                if "sysroot" in word.text:
                    root = value
                else:
                    places.append(value)
                kept.append(f"{word.text}={_relative(value, directory)}")
            case Effect.OUTPUT if final:
                kept.append(_spelled(word))
            case Effect.NOTHING | Effect.OUTPUT | Effect.REPORT:
                pass
            case _:
                kept.append(_spelled(word))
    directories = (root + one[1:] if one.startswith("=") else one for one in places)
    return LinkWords(tuple(kept), tuple(files), tuple(directories), root)


def is_verbose(words: Iterable[str]) -> bool:
    """Whether lld is told to say what it does; response files must be `expanded`."""
    return any(word.text.lstrip("-") == "verbose" for word in parsed(words))


def divided(word: str) -> tuple[str, str]:
    """The name and the value of one of `CodeWords` or `LinkWords`, for people."""
    end = word.find("=") + 1
    return (word[:end], word[end:]) if end else (word, "")


def _problem(word: Word) -> str | None:
    """Why there is no telling what a word is about."""
    if word.effect is Effect.UNKNOWN:
        return f"there is no telling what {word} does"
    if word.effect is Effect.OUTSIDE:
        return f"{word} reads or writes more than is known"
    if word.effect is Effect.CODE and word.value == "native":
        return f"{word} depends on the machine"
    if word.effect is Effect.LLVM and not is_plain_llvm_option(_llvm_option(word)):
        return f"LLVM's option {_llvm_option(word)} may read or write more than is known"
    return None


def _spelled(word: Word) -> str:
    return f"-mllvm {_llvm_option(word)}" if word.effect is Effect.LLVM else str(word)


def _llvm_option(word: Word) -> str:
    return f"-{word.value}" if word.text.endswith("=-") else word.value or ""


def _relative(path: str, directory: Path) -> str:
    """`path`, relative to `directory` if it is below."""
    above = f"{directory}/"
    return f"./{path.removeprefix(above)}" if path.startswith(above) else path

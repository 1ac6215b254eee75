"""What a linker's compiler makes of the arguments that it is to be given: its driver is asked, once.

Arguments are clang's, and may have come through several hands. What they mean (CPUs and features, what is the default
here, what files of configuration say) shows in the cc1 line that the driver would run. So this line is what results
follow from, and what is run: by itself, which is a little quicker, and away from whatever else a driver looks at.
The answer is remembered in the store as long as what it may depend on is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import field, frozen

from workers.digests import Facts
from workers.meanwhile import Meanwhile

__all__ = ["HARMLESS_FILES", "Cc1", "Driver"]

_FORMAT = 1

_QUESTION_SECONDS = 60.0

_INDEX = "-fthinlto-index=shard.thinlto.bc"
_OWN_ARGUMENTS = (_INDEX, "-o", "output.o")

HARMLESS_FILES = {"-fprofile-sample-use=": "sample.prof", "-fprofile-remapping-file=": "remapping"}
"""Arguments of cc1 that name a file for it to read, and what the file is called where it is run."""

_SPELLINGS_OF_OUTPUT = frozenset({"-fcolor-diagnostics", "-fansi-escape-codes"})
"""They only change how messages look."""

_PLAIN = frozenset({"-no-pgo-warn-mismatch", "-sample-profile-use-profi"})
"""Options of LLVM's own that lld and the driver give, and that do no more than they say, whatever their names have."""

_MEANINGFUL = re.compile(
    r"CCC_|CLANG_|QA_|SOURCE_DATE_EPOCH|SDKROOT|\w+_DEPLOYMENT_TARGET|GCC_EXEC_PREFIX|COMPILER_PATH"
)
"""The variables of the environment that change what the driver does. Where one is set, nothing is remembered."""

_DIRECTORY = re.compile(r"^(?:InstalledDir|(?:System|User) configuration file directory): (.+)$", re.MULTILINE)
_CONFIGURATION = re.compile(r"^Configuration file: ", re.MULTILINE)


@frozen
class Cc1:
    """What follows the program, for any job: cc1's arguments less those that are about one job.

    `files` are what it reads besides modules, by option. With a `problem`, there is no telling what results follow
    from: the command can only be run as it was given.
    """

    words: tuple[str, ...] = field(default=(), repr=False)
    files: Mapping[str, str] = field(factory=dict)
    problem: str | None = None


class Driver:
    """The driver of the compiler `program`, as it is asked in `directory`. For one thread."""

    def __init__(self, program: Sequence[str], directory: str, facts: Facts, environ: Mapping[str, str]) -> None:
        self._program = tuple(program)
        self._directory = directory
        self._facts = facts
        self._environ = environ
        self._asked: dict[tuple[str, ...], Meanwhile[str]] = {}

    def ask(self, flags: tuple[str, ...], example: str) -> None:
        """Begin to ask what it makes of `flags`, with the module `example`, as nobody is going to remember."""
        if flags not in self._asked:
            argv = [*self._program, "-###", *flags, example, *_OWN_ARGUMENTS]
            self._asked[flags] = Meanwhile(lambda: _ask(argv, self._directory, self._environ))

    def cc1(self, flags: tuple[str, ...], example: str, identity: str) -> Cc1:
        """What it makes of `flags`, for any module; the compiler's identity has the digest `identity`.

        Waits for the program if the answer is not remembered. Raises `OSError` where it does not answer.
        """
        environ = self._environ
        volatile = any("native" in flag for flag in flags) or any(_MEANINGFUL.match(name) for name in environ)
        asked = json.dumps([_FORMAT, identity, self._program, flags, environ.get("HOME", "")])
        key = hashlib.sha256(f"cc1 {asked}".encode("utf-8", "surrogateescape")).hexdigest()
        known = None if volatile else _recalled(self._facts.recall(key))
        if known is not None:
            return known
        self.ask(flags, example)
        answer = self._asked[flags].result()
        cc1 = _read(answer)
        if not volatile and cc1.problem is None and not _CONFIGURATION.search(answer):
            # A file of configuration may appear in one of these.
            states = [[path, _state(path)] for path in _DIRECTORY.findall(answer)]
            note = {"words": cc1.words, "files": dict(cc1.files), "directories": states}
            self._facts.remember(key, json.dumps(note).encode("utf-8", "surrogateescape"))
        return cc1


def _recalled(note: bytes | None) -> Cc1 | None:
    if note is None:
        return None
    try:
        content = json.loads(note)
        if any(_state(path) != state for path, state in content["directories"]):
            return None
        return Cc1(tuple(content["words"]), content["files"])
    except (ValueError, KeyError, TypeError):
        return None


def _state(path: str) -> list[int] | None:
    """What changes when a file is added to a directory."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _ask(argv: Sequence[str], directory: str, environ: Mapping[str, str]) -> str:
    """What the driver says that it would do. Raises `OSError` where it does not answer."""
    import subprocess  # only where there is something to ask

    try:
        done = subprocess.run(
            argv,
            cwd=directory,
            env={**environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_QUESTION_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(0, f"it does not answer within {_QUESTION_SECONDS:g} s", argv[0]) from error
    return done.stderr.decode("utf-8", "surrogateescape")


def _read(answer: str) -> Cc1:
    from workers.errors import RequestError
    from workers.llvm.cc1 import parse_driver
    from workers.llvm.cc1_words import unknown_word

    commands = [line for line in answer.splitlines() if line.startswith(' "')]
    if len(commands) > 1 or not all('"-emit-obj"' in line for line in commands):
        return Cc1(problem="its arguments ask for more than an object")
    try:
        words = parse_driver(answer)
    except RequestError as error:
        return Cc1(problem=str(error))
    except ValueError:  # it prints names as they are, also one with a newline in it
        return Cc1(problem="the compiler's driver does not say clearly what it would do")
    kept: list[str] = []
    files: dict[str, str] = {}
    for word in words:
        option = next((option for option in HARMLESS_FILES if word.startswith(option)), None)
        if option is not None:
            files[option] = word[len(option) :]
        elif word not in _SPELLINGS_OF_OUTPUT and word != _INDEX:
            kept.append(word)
    unknown = unknown_word(tuple(_without_plain_options(kept)))
    if unknown is not None:
        return Cc1(problem=f"there is no telling what the compiler's argument {unknown} does")
    return Cc1((*kept, "-fdebug-compilation-dir=."), files)


def _without_plain_options(words: Iterable[str]) -> Iterator[str]:
    """Without those of LLVM's own options that do nothing but what they say."""
    from workers.llvm.link_words import is_plain_llvm_option

    rest = iter(words)
    for word in rest:
        if word == "-mllvm":
            option = next(rest, "")
            if option not in _PLAIN and not is_plain_llvm_option(option):
                yield from (word, option)
        else:
            yield word

"""The keys of the jobs of one link, without waiting for anything: digests of all that their results follow from.

That is the compiler that the linker names, what it is told, what the index shard says, and the modules. Paths, numbers
of processes and offsets in archives, which are in the names of files and in shards, are not among it; so the same
module of the same library is the same job in every program that links it in the same way.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from attrs import field, frozen

from workers.digests import Digests, Facts, Witness
from workers.errors import ModuleError
from workers.ingredients import Ingredient, IngredientKind, Key, NoKey
from workers.llvm.bitstream import BitcodeError
from workers.llvm.dtlto.driver import Cc1, Driver
from workers.llvm.dtlto.job_file import Job, JobFile
from workers.llvm.identity import Identity, IdentityError, program_identity_now
from workers.llvm.import_digest import MOST_BYTES, import_digest
from workers.llvm.thin_key import ShardFacts, ShardSource, shard_facts
from workers.meanwhile import Meanwhile

__all__ = ["JobKey", "JobKeys"]

_FORMAT = 1

_SOURCES = (
    "../bitcode.py",
    "../bitstream.py",
    "../cc1.py",
    "../cc1_words.py",
    "../import_digest.py",
    "../index_shard.py",
    "../record_reader.py",
    "../shard_form.py",
    "../shard_rows.py",
    "../written_numbers.py",
)
"""What decides how a job is read and run, beside this directory."""


_KEPT_DEFINITIONS = 100_000
"""Of shards that need not be read a second time, in all: 30 MB."""


@frozen
class JobKey(Key):
    """A key that knows the files that it was made of."""

    witnesses: tuple[Witness, ...] = field(default=(), repr=False, eq=False)

    def holds(self) -> bool:
        """Whether these files are what they were."""
        return all(witness.holds() for witness in self.witnesses)


@frozen
class _Compiler:
    """What the jobs of one link are compiled with."""

    program: tuple[str, ...]
    driver: Driver
    identity: Identity


@frozen
class _Reading:
    """What a job compiles, apart from how: its shard, and the modules that it reads, by path."""

    shard: ShardFacts
    modules: Mapping[str, Witness]


@frozen
class _Noticing:
    """Facts that call `missed` when there is none."""

    _facts: Facts
    _missed: Callable[[], object]

    def recall(self, key: str) -> bytes | None:
        """See `Facts`."""
        note = self._facts.recall(key)
        if note is None:
            self._missed()
        return note

    def remember(self, key: str, note: bytes) -> None:
        """See `Facts`."""
        self._facts.remember(key, note)


class JobKeys:
    """Tells the keys of the jobs of one link in `directory`, one after the other. For one thread.

    From the beginning on, a thread finds out what the compiler is, which takes long where nobody remembers.
    """

    def __init__(self, job_file: JobFile, directory: Path, facts: Facts, environ: Mapping[str, str]) -> None:
        self._job_file = job_file
        self._directory = directory
        self._facts = facts
        self._environ = environ
        self._digests = Digests(facts)
        self._files: dict[str, Witness] = {}
        self._names = job_file.files
        self._room = _KEPT_DEFINITIONS
        self._readings: dict[str, _Reading | NoKey] = {}
        self._cc1: dict[tuple[str, ...], Cc1] = {}
        self._as_imports: dict[str, str | None] = {}
        self._symbols: dict[str, Mapping[int, str]] = {}
        self._driver: Driver | None = None
        self._is_new = False
        self._is_noticed = threading.Event()
        self._compiler = Meanwhile(self._identified)

    def program(self) -> tuple[str, ...]:
        """What to run, so that it runs from everywhere. Raises `OSError` where there is no such program."""
        name, *rest = self._job_file.compiler or ("",)
        if "/" in name:
            return (str(self._directory / name), *rest)
        from shutil import which

        found = which(name, path=self._environ.get("PATH"))
        if found is None:
            raise FileNotFoundError(2, "there is no such program", name)
        return (str(self._directory / found), *rest)

    def cc1(self, job: Job) -> Cc1:
        """What the compiler makes of a job's arguments. For one that has a key."""
        return self._cc1[job.flags or ()]

    def prepare(self) -> bool:
        """Do what can be done before the compiler is known; gives whether it is known by then, or is about to be."""
        for job in self._job_file.jobs:
            self._read(job)
        self._is_noticed.wait()
        if not self._is_new:
            return True
        # Nobody remembers what it is, so nobody remembers what it said either.
        example = self._job_file.jobs[0]
        if example.flags is not None and self._driver is not None:
            self._driver.ask(example.flags, example.bitcode)
        return False

    def wait(self) -> None:
        """Wait until it is known what the compiler is, or that there is no telling. In any thread."""
        self._compiler.result()

    def tell(self, job: Job) -> JobKey | NoKey:
        """The key of a job's object."""
        compiler = self._compiler.result()
        if isinstance(compiler, NoKey):
            return compiler
        if job.flags is None:
            return NoKey("its command is not as LLVM 22 writes it", warn=True)
        try:
            cc1 = self._cc1.get(job.flags)
            if cc1 is None:
                cc1 = self._cc1[job.flags] = compiler.driver.cc1(job.flags, job.bitcode, compiler.identity.digest)
            if cc1.problem is not None:
                return NoKey(cc1.problem, warn=True)
            reading = self._read(job)
            return reading if isinstance(reading, NoKey) else self._told(compiler, cc1, reading)
        except OSError as error:
            return _untold(error)

    def _read(self, job: Job) -> _Reading | NoKey:
        known = self._readings.get(job.output)
        if known is None:
            try:
                modules = {path: self._witness(path) for path in (job.bitcode, *job.imports)}
                digests = {path: witness.digest for path, witness in modules.items()}
                as_imports = {path: told for path in job.imports if (told := self._as_import(path)) is not None}
                shard = self._directory / job.shard
                source = ShardSource(job.name, job.bitcode, shard, self._names, as_imports=as_imports)
                facts = shard_facts(source, digests, self._room)
                self._room -= facts.kept
                known = _Reading(facts, {path: modules[path] for path in facts.files})
            except BitcodeError as error:
                known = NoKey(f"its index shard is not understood: {error}", warn=True)
            except (ModuleError, OSError) as error:
                known = _untold(error)
            self._readings[job.output] = known
        return known

    def _identified(self) -> _Compiler | NoKey:
        try:
            program = self.program()
            driver = self._driver = Driver(program, str(self._directory), self._facts, self._environ)
            digests = Digests(_Noticing(self._facts, self._notice))
            return _Compiler(program, driver, program_identity_now(Path(program[0]), digests))
        except IdentityError as error:
            return NoKey(str(error), warn=True)
        except OSError as error:
            return NoKey(f"the compiler {error.filename}: {error.strerror}", warn=True)
        finally:
            self._is_noticed.set()

    def _notice(self) -> None:
        """Something of the compiler has to be read as nobody remembers it."""
        self._is_new = True
        self._is_noticed.set()

    def _told(self, compiler: _Compiler, cc1: Cc1, reading: _Reading) -> JobKey:
        more = {option: self._witness(path) for option, path in cc1.files.items()}
        facts = reading.shard
        made_of = {
            "format": _FORMAT,
            "step": "distributed thin-backend",
            "ltod": _identity(),
            "compiler": [compiler.identity.digest, *compiler.program[1:]],
            "words": cc1.words,
            "files": {option: witness.digest for option, witness in more.items()},
            "form": facts.form_digest,
        }
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()

        def ingredients() -> tuple[Ingredient, ...]:
            return self._ingredients(compiler, cc1, more, facts)

        return JobKey(digest, ingredients, (*compiler.identity.witnesses, *more.values(), *reading.modules.values()))

    def _ingredients(
        self, compiler: _Compiler, cc1: Cc1, more: Mapping[str, Witness], facts: ShardFacts
    ) -> tuple[Ingredient, ...]:
        return (
            Ingredient(IngredientKind.COMPILER, Path(compiler.program[-1]).name, compiler.identity.digest[:16]),
            *(Ingredient(IngredientKind.OPTION, *_divided(word)) for word in _joined(cc1.words)),
            *(Ingredient(IngredientKind.FILE, option, witness.digest) for option, witness in more.items()),
            *facts.ingredients(self._symbols_of),
        )

    def _witness(self, path: str) -> Witness:
        """What a file of the link is. All of a link is told of one moment, so it is read once. Raises `OSError`."""
        witness = self._files.get(path)
        if witness is None:
            witness = self._files[path] = self._digests.now(os.path.join(self._directory, path))  # noqa: PTH118
        return witness

    def _as_import(self, path: str) -> str | None:
        """What of a module matters to those that import from it; `None`: all of it. Raises `OSError`."""
        if path not in self._as_imports:
            self._as_imports[path] = None
            if self._witness(path).state[0] <= MOST_BYTES:
                data = (self._directory / path).read_bytes()
                if hashlib.sha256(data).hexdigest() == self._witness(path).digest:
                    self._as_imports[path] = import_digest(data)
        return self._as_imports[path]

    def _symbols_of(self, path: str) -> Mapping[int, str]:
        from workers.llvm.content import ContentError, open_file
        from workers.llvm.irsymtab import value_names

        if path not in self._symbols:
            try:
                with open_file(self._directory / path) as view:
                    self._symbols[path] = value_names(view)
            except (ContentError, BitcodeError):
                self._symbols[path] = {}
        return self._symbols[path]


@cache
def _identity() -> str:
    """What changes with how ltod itself goes about jobs."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for name in (*sorted(path.name for path in here.glob("*.py")), *_SOURCES):
        content = (here / name).read_bytes()
        digest.update(b"%b %d\n" % (name.encode(), len(content)))
        digest.update(content)
    return digest.hexdigest()


def _untold(error: Exception) -> NoKey:
    return NoKey(f"its key cannot be told: {error}", warn=True)


def _joined(words: tuple[str, ...]) -> list[str]:
    """cc1's words, each option with the value that follows it."""
    joined: list[str] = []
    for word in words:
        if joined and not word.startswith("-"):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def _divided(word: str) -> tuple[str, str]:
    for mark in (" ", "="):
        name, found, value = word.partition(mark)
        if found:
            return name + mark, value
    return word, ""

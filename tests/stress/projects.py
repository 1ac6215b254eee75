"""Real programs, built in every way that ltod has, and then made to work.

    python -m tests.stress.projects [--only NAME] [-j JOBS]

Each program is compiled natively first, by clang alone: that is the recipe's own proof, and what the program then says
is what every other build of it must say. ltod builds it without LTO, with thin, thin-local and fat LTO, from raw and
from pre-linked bitcode, and from objects that carry bitcode. The objects of thin LTO must be those of ld.lld running
by itself, byte for byte; the code of fat LTO must be about as large as ld.lld's. Seconds include what a way is the
first to need compiled. Sources come from PyPI the first time.
"""

from __future__ import annotations

import argparse
import enum
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from attrs import define, field, frozen

from tests.lld import LldCommand, lld_command, text_size, wheel_lld
from tests.projects import Form, Project, cache_dir, compile_project, fetch
from tests.recipes import PROJECTS

__all__ = ["QUICK", "check_project"]

_SECONDS = 1200.0
_MAX_MESSAGE = 1500
_TEXT_TOLERANCE = 0.01


class _By(enum.Enum):
    """Who links, and does what LTO there is."""

    COMPILER = "cc"
    LLD = "ld.lld"
    LTOD = "ltod"


@frozen
class _Way:
    """A way to build. Without `inputs`, they are objects that ltod made with bitcode in them.

    With `like`, the code must be about as large as in the way of that name, and if the inputs are the same, the objects
    of thin LTO must be the same, byte for byte.
    """

    name: str
    by: _By
    inputs: Form | None
    options: tuple[str, ...] = ()
    like: str = ""


_WAYS = (
    _Way("native", _By.COMPILER, Form.OBJECT),
    _Way("no LTO", _By.LTOD, Form.RAW),
    _Way("thin, ld.lld", _By.LLD, Form.THIN),
    _Way("thin", _By.LTOD, Form.THIN, ("--lto=thin",), like="thin, ld.lld"),
    _Way("thin, raw", _By.LTOD, Form.RAW, ("--lto=thin",), like="thin, ld.lld"),
    _Way("thin-local, raw", _By.LTOD, Form.RAW, ("--lto=thin-local",)),
    _Way("fat, ld.lld", _By.LLD, Form.FAT),
    _Way("fat", _By.LTOD, Form.FAT, ("--lto=fat",), like="fat, ld.lld"),
    _Way("fat, raw", _By.LTOD, Form.RAW, ("--lto=fat",), like="fat, ld.lld"),
    _Way("fatobj, native", _By.COMPILER, None),
    _Way("fatobj, thin, ld.lld", _By.LLD, None, ("--fat-lto-objects", "--lto=thin")),
    _Way("fatobj, thin", _By.LTOD, None, ("--lto=thin",), like="fatobj, thin, ld.lld"),
    _Way("fatobj, fat, ld.lld", _By.LLD, None, ("--fat-lto-objects", "--lto=full")),
    _Way("fatobj, fat", _By.LTOD, None, ("--lto=fat",), like="fatobj, fat, ld.lld"),
)


QUICK = ("native", "thin, ld.lld", "thin", "thin-local, raw", "fat, ld.lld", "fat", "fatobj, native")
"""A choice of ways that leaves out what takes long and adds little."""


class _Wrong(Exception):
    """Something is not as it should be; the message says what."""


@frozen
class _Built:
    """What became of a way: the size of the program's code, and the objects of thin LTO, in the order of the inputs."""

    text: int
    objects: tuple[Path, ...]


@define
class _Work:
    """One project, as a program or as a shared library; `expected` is what the native build says."""

    project: Project
    sources: Path
    shared: bool
    jobs: int
    directory: Path
    expected: str | None = None
    _compiled: dict[Form | None, list[Path]] = field(factory=dict)
    _command: LldCommand | None = None
    _built: dict[str, _Built] = field(factory=dict)

    def build(self, way: _Way) -> _Built:
        """Build, and compare. Raises `_Wrong` and whatever comes from the tools and checks that are run."""
        inputs = self._inputs(way.inputs)
        directory = self.directory / f"{len(self._built)}-{way.by.value}"
        directory.mkdir()
        output = directory / self.project.name
        objects: tuple[Path, ...] = ()
        match way.by:
            case _By.COMPILER:
                self._command = self._native(inputs, output)
            case _By.LLD:
                objects = self._lld(way, inputs, output)
            case _By.LTOD:
                objects = self._ltod(way, inputs, output)
        self._built[way.name] = built = _Built(text_size(output), objects)
        said = self._run(output, directory)
        if self.expected is None:
            self.expected = said
        elif said != self.expected:
            raise _Wrong("it does not say what the native build says")
        if way.like:
            self._compare(way, built)
        return built

    def _inputs(self, form: Form | None) -> list[Path]:
        if form not in self._compiled:
            if form is None:
                raw = self._inputs(Form.RAW)
                directory = self.directory / "fatobj"
                self._call_ltod(["--emit=fatobj", f"--out-dir={directory}", *map(str, raw)])
                made = [directory / f"{path.stem}.o" for path in raw]
            else:
                place = self.directory / form.name
                made = compile_project(self.project, self.sources, place, form, shared=self.shared, jobs=self.jobs)
            self._compiled[form] = made
        return self._compiled[form]

    def _native(self, inputs: Sequence[Path], output: Path) -> LldCommand:
        return lld_command(
            inputs, output, self.project.link_arguments, cplusplus=self.project.cplusplus, shared=self.shared
        )

    def _lld(self, way: _Way, inputs: Sequence[Path], output: Path) -> tuple[Path, ...]:
        if self._command is None:
            raise _Wrong("there is no native build to follow")
        directory = output.parent / "objects"
        directory.mkdir()
        options = ["--lto-O2", f"--thinlto-jobs={self.jobs}", f"--lto-obj-path={directory}/o", *way.options]
        subprocess.run(self._command.argv(wheel_lld(), inputs, output, options), check=True, capture_output=True)
        # o1, o2, ...; `o` alone is of regular LTO.
        numbered = (path for path in directory.iterdir() if path.name != "o")
        return tuple(sorted(numbered, key=lambda path: int(path.name[1:])))

    def _ltod(self, way: _Way, inputs: Sequence[Path], output: Path) -> tuple[Path, ...]:
        kind = "shared" if self.shared else "exe"
        arguments = [f"--link-arg={argument}" for argument in self.project.link_arguments]
        out_dir = output.parent / "out"
        options = [*way.options, f"--link={kind}", "-o", str(output), f"--out-dir={out_dir}", *arguments]
        self._call_ltod([*options, *map(str, inputs)])
        return tuple(out_dir / f"{path.stem}.o" for path in inputs)

    def _call_ltod(self, arguments: Sequence[str]) -> None:
        environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-m", "coordinator", "build", "-q", "--json", f"-j{self.jobs}", *arguments]
        done = subprocess.run(command, capture_output=True, env=environ, timeout=_SECONDS, check=False)
        if done.returncode != 0:
            raise _Wrong(f"ltod ended with status {done.returncode}: {done.stderr.decode()[-_MAX_MESSAGE:]}")
        answer = json.loads(done.stdout)
        if answer["diagnostics"]:
            raise _Wrong(f"ltod has something to say: {str(answer['diagnostics'])[:_MAX_MESSAGE]}")

    def _run(self, output: Path, directory: Path) -> str:
        check = self.project.check_shared if self.shared else self.project.check
        assert check is not None
        scratch = directory / "scratch"
        scratch.mkdir()
        return check(output, self.sources, scratch)

    def _compare(self, way: _Way, ours: _Built) -> None:
        theirs = self._built.get(way.like)
        if theirs is None:
            raise _Wrong(f"there is no {way.like} to compare with")
        peer = next(each for each in _WAYS if each.name == way.like)
        if theirs.objects and peer.inputs is way.inputs:
            inputs = self._inputs(way.inputs)
            if len(theirs.objects) != len(inputs):
                raise _Wrong(f"ld.lld makes {len(theirs.objects)} objects of {len(inputs)} modules")
            pairs = zip(inputs, ours.objects, theirs.objects, strict=True)
            different = [path.stem for path, one, other in pairs if one.read_bytes() != other.read_bytes()]
            if different:
                raise _Wrong(f"{len(different)} of {len(inputs)} objects are not ld.lld's: {' '.join(different)}")
        if abs(ours.text / theirs.text - 1) > _TEXT_TOLERANCE:
            raise _Wrong(f"{ours.text} bytes of code, but {theirs.text} in {way.like}")


def check_project(
    project: Project,
    sources: Path,
    root: Path,
    *,
    shared: bool = False,
    jobs: int = 2,
    only: Sequence[str] | None = None,
) -> list[str]:
    """Build the project's program (or its library, as a shared one) in every way below `root`, and check each result.

    `only` names the ways to take; those that others are compared with have to be among them. Prints a line for each
    way; returns what is wrong.
    """
    work = _Work(project, sources, shared, jobs, root)
    what = f"{project.name}.so" if shared else project.name
    wrong = []
    for way in _WAYS:
        if only is not None and way.name not in only:
            continue
        started = time.perf_counter()
        text, verdict = 0, "ok"
        try:
            text = work.build(way).text
        except subprocess.CalledProcessError as error:
            verdict = f"{error}: {(error.stderr or b'')[-_MAX_MESSAGE:]!r}"
        except Exception as error:  # whatever it is, the other ways are still to be tried
            verdict = f"{type(error).__name__}: {error}"
        if verdict != "ok":
            wrong.append(f"{what}, {way.name}: {verdict}")
        first_line = verdict.partition("\n")[0][:100]
        print(
            f"{what:<12} {way.name:<21} {time.perf_counter() - started:>8.1f} {text or '-':>9}  {first_line}",
            flush=True,
        )
    return wrong


def main() -> None:
    """Check what was asked for, and end with status 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(PROJECTS), action="append", help="check this one (repeatable)")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="leave everything that is built in this directory")
    arguments = parser.parse_args()
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    wrong: list[str] = []
    print(f"{'project':<12} {'build':<21} {'seconds':>8} {'text':>9}")
    for name in arguments.only or sorted(PROJECTS):
        project = PROJECTS[name]
        sources = fetch(project, cache_dir())
        for shared in (False, True) if project.check_shared is not None else (False,):
            directory = Path(tempfile.mkdtemp(prefix=f"ltod-{name}-", dir=arguments.keep))
            try:
                wrong += check_project(project, sources, directory, shared=shared, jobs=arguments.jobs)
            finally:
                if arguments.keep is None:
                    shutil.rmtree(directory, ignore_errors=True)
    print("\n".join(["", *wrong]) if wrong else "everything is as it should be")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

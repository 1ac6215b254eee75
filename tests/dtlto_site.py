"""A place to link in through a distributor: modules made by clang, links by lld, and what they leave behind.

What is compared with is `PLAIN`, a distributor that runs each job as it was given: LLVM's own behaviour.
"""

from __future__ import annotations

import enum
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field, frozen

__all__ = [
    "ANSWER",
    "AR",
    "CLANG",
    "MAIN",
    "PROGRAM",
    "Distributor",
    "DtltoSite",
    "Linked",
    "dtlto_program",
    "needs_lld",
]

CLANG = shutil.which("clang-22") or "clang-22"
AR = shutil.which("llvm-ar-22") or "llvm-ar-22"

MAIN = (
    '#include <stdio.h>\nint one(int);\nint main(int argc, char **argv) { printf("%d\\n", one(argc + 9)); return 0; }\n'
)
PROGRAM = {
    "main.c": MAIN,
    "one.c": "int two(int);\nint one(int x) { int s = 0; for (int k = 0; k < x; k++) s += two(k); return s; }\n",
    "two.c": "int calls;\nint two(int x) { calls += x; return calls * x; }\n",
}
"""Three modules, the first of which imports from the others, and the second from the third."""
ANSWER = "1155\n"
"""What the program prints."""

needs_lld = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("clang-22", "ld.lld-22", "llvm-ar-22")),
    reason="clang-22, ld.lld-22 and llvm-ar-22 are not all there",
)

_SECONDS = 300.0

_PLAIN = """\
import json, subprocess, sys
from concurrent.futures import ThreadPoolExecutor

*options, path = sys.argv[1:]
text = open(path).read()
for option in options:
    open(option, "w").write(text)
work = json.loads(text)
with ThreadPoolExecutor(2) as pool:
    sys.exit(any(pool.map(subprocess.call, [work["common"]["args"] + job["args"] for job in work["jobs"]])))
"""


class Distributor(enum.Enum):
    """Who compiles what a link leaves to be compiled."""

    NONE = "lld itself"
    PLAIN = "each job as it was given"
    LTOD = "ltod-dtlto"


@frozen
class Linked:
    """What came of a link. `left` are the files that were not there before, the output and the site's own aside."""

    output: Path
    status: int
    stderr: str = field(repr=False)
    stats: Mapping[str, Any] | None
    """ltod-dtlto's figures; `None`: it was not called."""
    jobs: Mapping[str, Any] | None = field(repr=False)
    """The job file that the plain distributor was given; `None`: it was not called."""
    left: frozenset[str]

    @property
    def bytes(self) -> bytes:
        return self.output.read_bytes()

    def counts(self) -> tuple[int, int]:
        """Hits and misses, where there was nothing else."""
        assert self.stats is not None, f"ltod-dtlto was not called: {self.stderr}"
        others = {name: self.stats[name] for name in ("shared", "uncached", "failed", "skipped")}
        assert not any(others.values()), (others, self.stderr)
        return self.stats["hits"], self.stats["misses"]


def dtlto_program() -> Path:
    """The distributor as it is installed."""
    program = Path(sys.executable).parent / "ltod-dtlto"
    assert program.exists(), "the environment is older than ltod-dtlto: run ./deploy/venv again"
    return program


@define
class DtltoSite:
    """A directory to work in. Commands run in it, or in one below it; `own` is where the site keeps its own files."""

    root: Path
    own: Path
    clang: str = CLANG

    @classmethod
    def at(cls, root: Path) -> DtltoSite:
        """A site at `root`, which is there; its own files are beside it."""
        own = root.with_name(f"{root.name}-site")
        own.mkdir()
        plain = own / "plain"
        plain.write_text(f"#!{sys.executable} -IS\n{_PLAIN}")
        plain.chmod(0o755)
        return cls(root, own)

    def compile(
        self, sources: Mapping[str, str], *flags: str, directory: str = "in", lto: str = "-flto=thin"
    ) -> list[Path]:
        """Compile each source, by file name; gives the objects in the same order, relative to the site."""

        def one(name: str) -> Path:
            source = self.root / directory / name
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_text(sources[name])
            output = Path(directory) / f"{name.rpartition('.')[0]}.o"
            self.run([self.clang, "-c", "-O2", *lto.split(), *flags, Path(directory) / name, "-o", output])
            return output

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, sources))

    def run(self, command: Sequence[str | Path], *, cwd: Path | None = None) -> str:
        """What a command prints, run in `cwd` below the site. It has to end well."""
        done = subprocess.run(
            command, cwd=self.root / (cwd or ""), capture_output=True, timeout=_SECONDS, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def command(
        self,
        files: Sequence[str | Path],
        *options: str,
        by: Distributor = Distributor.LTOD,
        output: str | Path = "program",
        driver: Sequence[str] = (),
        arguments: Sequence[str] = (),
    ) -> list[str | Path]:
        """The command of a link; `arguments` are the distributor's."""
        argv: list[str | Path] = [*(driver or (self.clang, "-flto=thin", "-O2")), "-fuse-ld=lld"]
        if by is not Distributor.NONE:
            program = dtlto_program() if by is Distributor.LTOD else self.own / "plain"
            argv.append(f"-fthinlto-distributor={program}")
        argv += [f"-Xthinlto-distributor={argument}" for argument in arguments]
        return [*argv, *options, *files, "-o", output]

    def link(
        self,
        files: Sequence[str | Path],
        *options: str,
        by: Distributor = Distributor.LTOD,
        output: str | Path = "program",
        cwd: str | Path = "",
        driver: Sequence[str] = (),
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        fails: bool = False,
    ) -> Linked:
        """Link `files`, spelled as seen from `cwd`, which is below the site. It has to end well unless it `fails`."""
        stats, jobs = self.own / "stats.json", self.own / "jobs.json"
        for path in (stats, jobs):
            path.unlink(missing_ok=True)
        more = {Distributor.LTOD: [f"--stats={stats}"], Distributor.PLAIN: [str(jobs)], Distributor.NONE: []}[by]
        command = self.command(
            files, *options, by=by, output=output, driver=driver, arguments=[*arguments, *more] if more else ()
        )
        at = self.root / cwd
        before = self.files()
        done = subprocess.run(
            command,
            cwd=at,
            env={**os.environ, **(environ or {})},
            capture_output=True,
            timeout=_SECONDS,
            text=True,
            errors="surrogateescape",
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        path = Path(os.path.normpath(at / output))
        left = self.files() - before - {os.path.relpath(path, self.root)}
        return Linked(path, done.returncode, done.stderr, _read(stats), _read(jobs), frozenset(left))

    def same(
        self,
        files: Sequence[str | Path],
        *options: str,
        jobs: int = 3,
        says: str | None = ANSWER,
        output: str | Path = "program",
        cwd: str | Path = "",
        arguments: Sequence[str] = (),
    ) -> Linked:
        """What comes of a link by ltod-dtlto: what comes of it by the plain distributor, and nothing is left.

        There are so many `jobs`, and the program, if it is one, `says` this. The answer has the job file.
        """
        plain = self.link(files, *options, by=Distributor.PLAIN, cwd=cwd, output=output)
        assert plain.jobs is not None
        assert (len(plain.jobs["jobs"]), plain.left) == (jobs, frozenset())
        expected = plain.bytes
        plain.output.unlink()
        ours = self.link(files, *options, cwd=cwd, output=output, arguments=arguments)
        assert ours.stats is not None
        assert (ours.stats["jobs"], ours.left) == (jobs, frozenset())
        assert ours.bytes == expected
        if says is not None:
            assert self.run([ours.output]) == says
        return evolve(ours, jobs=plain.jobs)

    def compiled_once(self, files: Sequence[str | Path], *options: str, **how: Any) -> Linked:
        """As `same`, of a link none of whose jobs was done before. The second time, all of them were."""
        cold = self.same(files, *options, **how)
        assert cold.jobs is not None
        count, expected = len(cold.jobs["jobs"]), cold.bytes
        assert cold.counts() == (0, count)
        cold.output.unlink()
        places = {name: how[name] for name in ("cwd", "output", "arguments") if name in how}
        warm = self.link(files, *options, **places)
        assert (warm.counts(), warm.left) == ((count, 0), frozenset())
        assert warm.bytes == expected
        return cold

    def archive(self, name: str, members: Sequence[str | Path], how: str = "rcs", cwd: str = "") -> str:
        """Make an archive in `cwd`; gives its name."""
        self.run([AR, how, name, *members], cwd=Path(cwd))
        return name

    def files(self) -> set[str]:
        """All files below the site, temporary ones of every kind among them."""
        return {os.path.relpath(path, self.root) for path in self.root.rglob("*") if not path.is_dir()}


def _read(path: Path) -> Mapping[str, Any] | None:
    if not path.exists():
        return None
    content: Mapping[str, Any] = json.loads(path.read_bytes())
    return content

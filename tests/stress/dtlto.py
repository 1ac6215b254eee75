"""Real programs, linked by lld with ltod-dtlto as its distributor, and then made to work.

    python -m tests.stress.dtlto [--only NAME]

Each is linked by lld itself, by the plain distributor, which runs each job as it was given, and by ltod-dtlto, whose
output must be that of the plain one, byte for byte, and for some that of lld itself: of others, LLVM's own distributed
links make something else here and there. The same link in another directory has to compile nothing, and the program has
to do what it is for. Sources come from PyPI the first time. C++ takes the headers of the system's C++ compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attrs import frozen

from tests.dtlto_site import CLANG, Distributor, DtltoSite, Linked, dtlto_program
from tests.lld import lld_command, wheel_lld
from tests.projects import Form, Project, cache_dir, compile_project, fetch
from tests.recipes import PROJECTS, Misbehaved
from tests.samples import zig

__all__ = ["SPLIT", "Build", "check_build", "check_wheel"]

_MAX_MESSAGE = 1500
_AS_BY_LLD = frozenset({"lua", "zstd"})
"""Of these, LLVM's own distributed links make what lld makes by itself, and ltod-dtlto's do, too."""
SPLIT = ("-fsplit-lto-unit", "-fwhole-program-vtables", "-fvisibility=hidden")


@frozen
class Build:
    """A way to build a program: `flags` are for all modules and for the link."""

    project: Project
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return " ".join([self.project.name, *self.flags])

    @property
    def driver(self) -> tuple[str, ...]:
        mode = ("--driver-mode=g++",) if self.project.cplusplus else ()
        return (CLANG, *mode, "-flto=thin", "-O2", *self.flags)


_BUILDS = [
    *(Build(project, flags) for project in PROJECTS.values() for flags in ((), ("-g",)) if not project.cplusplus),
    *(Build(project, SPLIT) for project in PROJECTS.values() if project.cplusplus),
]


def check_build(build: Build, sources: Path, root: Path) -> Linked:
    """Link a program in every way, in new directories below `root`. Gives the cold link by ltod-dtlto.

    Raises `AssertionError`, or what the program's check does.
    """
    dtlto = DtltoSite.at(root)
    first, second = root / "first", root / "second"
    files = _compiled(dtlto, build, sources, first)
    arguments = build.project.link_arguments

    def link(by: Distributor, directory: Path) -> Linked:
        link = dtlto.link(files, *arguments, by=by, cwd=directory.name, driver=build.driver)
        assert link.left == frozenset(), link.left
        return link

    itself = link(Distributor.NONE, first).bytes
    plain = link(Distributor.PLAIN, first)
    expected = plain.bytes
    assert plain.jobs is not None
    # lld compiles nothing of a module that is empty.
    count = len(plain.jobs["jobs"])
    assert 0 < count <= len(files), (count, len(files))
    cold = link(Distributor.LTOD, first)
    assert cold.counts() == (0, count), cold.stats
    assert cold.bytes == expected, "not as by the plain distributor"
    assert cold.bytes == itself or build.project.name not in _AS_BY_LLD, "not as by lld itself"
    shutil.copytree(first, second)
    (second / "program").unlink()
    warm = link(Distributor.LTOD, second)
    assert warm.counts() == (count, 0), warm.stats
    assert warm.bytes == expected, "not as in another directory"
    scratch = root / "scratch"
    scratch.mkdir()
    build.project.check(warm.output, sources, scratch)
    return cold


def _compiled(dtlto: DtltoSite, build: Build, sources: Path, directory: Path) -> list[str]:
    """The program's modules, in `directory`."""
    project = build.project
    directory.mkdir()
    found = {path for pattern in (*project.library, *project.program) for path in sources.glob(pattern)}
    files = sorted(found - {path for pattern in project.leave_out for path in sources.glob(pattern)})
    for name, text in project.drivers.items():
        files.append(dtlto.own / name)
        files[-1].write_text(text)
    flags = [flag.format(sources=sources) for flag in project.flags]

    def one(path: Path) -> str:
        base = sources if path.is_relative_to(sources) else dtlto.own
        output = "_".join(path.relative_to(base).with_suffix(".o").parts)
        dtlto.run([CLANG, "-c", "-O2", "-flto=thin", "-fPIE", *build.flags, *flags, path, "-o", directory / output])
        return output

    with ThreadPoolExecutor(2) as pool:
        outputs = sorted(pool.map(one, sorted(files, key=lambda path: -path.stat().st_size)))
    assert len(set(outputs)) == len(files)
    return outputs


def check_wheel(project: Project, sources: Path, root: Path) -> None:
    """Build a program with nothing but the wheel's clang and lld, where the system's C compiler says how to link it."""
    dtlto = DtltoSite.at(root)
    modules = compile_project(project, sources, root / "modules", Form.THIN)
    reference = root / "reference"
    lld = lld_command(modules, reference, project.link_arguments)
    options = [f"--thinlto-remote-compiler={zig()}", "--thinlto-remote-compiler-prepend-arg=clang"]
    before = dtlto.files()
    stats = dtlto.own / "stats.json"
    options += [f"--thinlto-distributor={dtlto_program()}", f"--thinlto-distributor-arg=--stats={stats}"]
    for hits in (0, len(modules)):
        dtlto.run(lld.argv(wheel_lld(), modules, root / "program", options))
        assert dtlto.files() - before == {"program"}
        assert (root / "program").read_bytes() == reference.read_bytes(), "not as by lld itself"
        said = json.loads(stats.read_text())
        assert (said["hits"], said["misses"]) == (hits, len(modules) - hits), said
    scratch = root / "scratch"
    scratch.mkdir()
    project.check(root / "program", sources, scratch)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.dtlto")
    parser.add_argument("--only", choices=PROJECTS, help="this program alone")
    only = parser.parse_args().only
    status = 0
    with tempfile.TemporaryDirectory() as directory:
        os.environ["LTOD_CACHE_DIR"] = str(Path(directory) / "cache")
        for number, build in enumerate(build for build in _BUILDS if only in (None, build.project.name)):
            root = Path(directory) / str(number)
            root.mkdir()
            started = time.monotonic()
            try:
                check_build(build, fetch(build.project, cache_dir()), root)
                said = "ok"
            except (AssertionError, Misbehaved):
                status, said = 1, f"FAILED\n{traceback.format_exc(chain=False)[-_MAX_MESSAGE:]}"
            print(f"{build.name}: {said}, {time.monotonic() - started:.1f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())

"""What is measured with LTO, and who builds it: sets of modules, ltod as a command and embedded, and ld.lld."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import frozen

from coordinator import (
    BuildConfig,
    BuildResult,
    Cache,
    Coordinator,
    FatLto,
    LinkKind,
    LinkOptions,
    Module,
    ThinLto,
    open_coordinator,
)
from tests.lld import DEBIAN_LLD, LldCommand, lld_command, wheel_lld
from tests.projects import Form, compile_project
from tests.recipes import PROJECTS
from tests.samples import TRIPLE, compile_c, small_c, zig

__all__ = [
    "EMBEDDED",
    "JOBS",
    "LtoSet",
    "build_set",
    "lld_builds",
    "lld_line",
    "ltod_command",
    "ltod_environ",
    "opened_before",
    "pre_linked",
    "real_set",
    "small_set",
    "small_sources",
]

JOBS = 2
EMBEDDED = "ltod, embedded"
_OF_OTHERS = (
    "PYTHONDONTWRITEBYTECODE",  # an installed ltod has its bytecode
    "LTOD_CACHE_DIR",
    "LTOD_CACHE_REMOTE",
    "LTOD_CACHE_SIZE",
)


@frozen
class LtoSet:
    """What is built, and what must hold of the program."""

    title: str
    lto: ThinLto | FatLto
    inputs: tuple[Path, ...]
    arguments: tuple[str, ...]
    check: Callable[[Path], object]

    @property
    def modes(self) -> dict[str, tuple[str, ...]]:
        """The ways in which lld does it, and their options."""
        if isinstance(self.lto, ThinLto):
            return {"ld.lld": (f"--thinlto-jobs={JOBS}",)}
        return {"ld.lld": (), "ld.lld, 2 partitions": ("--lto-partitions=2",)}

    @property
    def name(self) -> str:
        """As `--lto` takes it."""
        return "thin" if isinstance(self.lto, ThinLto) else "fat"


def small_sources(count: int) -> dict[str, str]:
    """Small modules that call each other, and a program that needs all of them: C, by name."""
    sources = {f"m{n:04}": small_c(n, count) for n in range(count)}
    names = [f"pick{n}" for n in range(count)]
    declared = "".join(f"extern int {name}(int *, int);\n" for name in names)
    called = " + ".join(f"{name}(pair, {n})" for n, name in enumerate(names))
    sources["main"] = f"{declared}int main(void) {{ int pair[2] = {{1, 2}}; return ({called}) & 0; }}\n"
    return sources


def pre_linked(sources: dict[str, str], directory: Path, raw: Path) -> list[Path]:
    """The bitcode of C sources in `directory`, through the pre-link pipeline of ThinLTO, sorted by name.

    It knows the sources to have been in `raw`.
    """
    command = [zig(), "clang", "-cc1", "-triple", TRIPLE, "-x", "ir", "-O2", "-flto=thin", "-flto-unit"]
    directory.mkdir(exist_ok=True)
    outputs = []
    for path in compile_c(sources, raw):
        outputs.append(directory / path.name)
        subprocess.run([*command, "-emit-llvm-bc", path, "-o", outputs[-1]], check=True)
    return outputs


def small_set(sources: dict[str, str], root: Path) -> LtoSet:
    """The program that `small_sources` makes."""
    inputs = tuple(pre_linked(sources, root / "small", root / "raw"))
    title = f"{len(sources)} small modules"
    return LtoSet(title, ThinLto(), inputs, (), lambda program: subprocess.run([program], check=True))


def real_set(name: str, sources: Path, lto: ThinLto | FatLto, root: Path) -> LtoSet:
    """A real program, of which `sources` are here."""
    project = PROJECTS[name]
    form = Form.THIN if isinstance(lto, ThinLto) else Form.FAT
    inputs = compile_project(project, sources, root / f"{name}-{form.name}", form)

    def check(program: Path) -> str:
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            return project.check(program, sources, Path(scratch))

    return LtoSet(name, lto, tuple(inputs), project.link_arguments, check)


def lld_builds() -> dict[str, list[str]]:
    """Every ld.lld that is here, by what to call it."""
    return {"wheel": wheel_lld()} | ({"Debian": [DEBIAN_LLD]} if DEBIAN_LLD is not None else {})


def lld_line(one: LtoSet, root: Path) -> LldCommand:
    """What a compiler driver tells ld.lld about the set's link; works in `root`."""
    main = root / "main.c"
    main.write_text("int main(void) { return 0; }\n")
    native = main.with_suffix(".o")
    subprocess.run([zig(), "cc", "-target", "x86_64-linux-gnu", "-O2", "-c", main, "-o", native], check=True)
    return lld_command([native], root / "main", one.arguments)


def ltod_command(one: LtoSet, inputs: Sequence[Path], out: Path, *options: str | Path) -> list[str | Path]:
    """ltod as a command; the program is `out`/program."""
    command: list[str | Path] = [sys.executable, "-m", "coordinator", "build", f"--lto={one.name}", f"-j{JOBS}"]
    command += [*options, "--out-dir", out / "obj", "--link=exe", "-o", out / "program"]
    return [*command, *(f"--link-arg={argument}" for argument in one.arguments), *inputs]


def ltod_environ() -> dict[str, str]:
    """What a process of ltod sees."""
    environ = {name: value for name, value in os.environ.items() if name not in _OF_OTHERS}
    return environ | {"PYTHONPATH": str(Path.cwd())}


@asynccontextmanager
async def opened_before(one: LtoSet, cache: Cache | None) -> AsyncIterator[Coordinator]:
    """A coordinator as in a daemon: it has been open for a while, and has linked something like the set."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(Path.home())}
    async with open_coordinator(jobs=JOBS, cache=cache, environ=environ) as opened:
        with tempfile.TemporaryDirectory() as elsewhere:
            main = compile_c({"main": "int main(void) { return 0; }"}, Path(elsewhere))
            await build_set(opened, one, main, Path(elsewhere))
        yield opened


async def build_set(coordinator: Coordinator, one: LtoSet, inputs: Sequence[Path], out: Path) -> BuildResult:
    """Build `inputs` as the set is built; the program is `out`/program."""
    link = LinkOptions(LinkKind.EXECUTABLE, out / "program", arguments=one.arguments)
    async with coordinator.build(BuildConfig(out_dir=out / "obj", lto=one.lto, link=link)) as build:
        for path in inputs:
            await build.submit(Module(path.stem, path))
        return await build.finish()

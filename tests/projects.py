"""Real C and C++ programs for checks and benchmarks: fetch their sources, compile them to what ltod takes.

The sources come from PyPI, where the source distributions of Python bindings bring whole libraries along; nothing of
them is committed. What there is to build, and how to tell that it works, is in `tests.recipes`.
"""

from __future__ import annotations

import enum
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attrs import field, frozen

from tests.samples import zig

__all__ = ["Check", "FetchError", "Form", "Project", "cache_dir", "compile_project", "fetch"]

_TARGET = "x86_64-linux-gnu"
# Without -O2 and the second flag, zig would add checks and a runtime for them.
_FLAGS = ("-O2", "-g0", "-fno-sanitize=undefined")

Check = Callable[[Path, Path, Path], str]
"""Runs what was built (first argument; then the sources, and a directory to work in) and raises if it does not do
what it should. What it returns is the same for every correct build."""


class FetchError(Exception):
    """The sources are not here and cannot be had; the message is pip's."""


@frozen(kw_only=True)
class Project:
    """One program, and the library that it is made of.

    `requirement` is pinned, for pip. `library` and `program` are patterns below the sources, less `leave_out`; every
    match is a module. `drivers` (file name to text) are modules of the program that are ours. In flags, `{sources}` is
    where the sources are.
    """

    name: str
    requirement: str
    library: tuple[str, ...]
    program: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    drivers: Mapping[str, str] = field(factory=dict)
    flags: tuple[str, ...] = ()
    link_arguments: tuple[str, ...] = ()
    cplusplus: bool = False
    check: Check
    check_shared: Check | None = None
    """Where the library alone makes a shared library."""


class Form(enum.Enum):
    """What a source is compiled to; the value is what the compiler is told."""

    OBJECT = ""
    RAW = "-emit-llvm -Xclang -disable-llvm-passes"
    """Bitcode that no pass has touched."""
    THIN = "-flto=thin"
    """Bitcode through the pre-link pipeline of ThinLTO, with a summary."""
    FAT = "-flto=full"
    """Bitcode through the pre-link pipeline of fat LTO."""

    @property
    def suffix(self) -> str:
        return ".o" if self is Form.OBJECT else ".bc"


def cache_dir() -> Path:
    """Where fetched sources stay: beside other things that are built, out of git's sight."""
    return Path(__file__).parents[1] / "build" / "projects"


def fetch(project: Project, cache: Path) -> Path:
    """The directory of the project's sources below `cache`, from PyPI the first time. Raises `FetchError`."""
    place = cache / project.requirement.replace("==", "-")
    if place.is_dir():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        package = project.requirement.partition("==")[0]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        pip += ["--no-deps", "--no-binary", package, "--dest", directory, project.requirement]
        answer = subprocess.run(pip, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise FetchError(f"{project.requirement}: {answer.stderr.strip()}")
        (sdist,) = Path(directory).glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(directory, filter="data")
        (unpacked,) = (path for path in Path(directory).iterdir() if path.is_dir())
        try:
            unpacked.rename(place)
        except OSError:
            if not place.is_dir():  # else somebody else was quicker
                raise
    return place


def compile_project(
    project: Project, sources: Path, directory: Path, form: Form, *, shared: bool = False, jobs: int = 2
) -> list[Path]:
    """Compile every source in its own way, sorted by name; `shared` takes those of the library only, without `main`."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    files = _files(sources, project.library, project.leave_out)
    if not shared:
        files += _files(sources, project.program, ())
        for name, text in project.drivers.items():
            driver = directory / name
            driver.write_text(text)
            files.append(driver)
    flags = [flag.format(sources=sources) for flag in project.flags]

    def one(file: Path) -> Path:
        relative = file.relative_to(directory if file.parent == directory else sources).with_suffix(form.suffix)
        output = directory / "_".join(relative.parts)
        compiler = "c++" if file.suffix in (".cc", ".cpp") else "cc"
        how = [*_FLAGS, *form.value.split(), "-fPIC" if shared else "-fPIE", *flags]
        subprocess.run([zig(), compiler, "-target", _TARGET, *how, "-c", str(file), "-o", str(output)], check=True)
        return output

    # The longest first, as far as one can tell: nobody waits for one at the end.
    files.sort(key=lambda file: -file.stat().st_size)
    with ThreadPoolExecutor(jobs) as pool:
        outputs = sorted(pool.map(one, files))
    assert len(set(outputs)) == len(files), "two sources of one name"
    return outputs


def _files(sources: Path, patterns: Sequence[str], leave_out: Sequence[str]) -> list[Path]:
    found = {path for pattern in patterns for path in sources.glob(pattern)}
    assert found or not patterns, f"no {patterns} in {os.fspath(sources)}"
    return sorted(found - {path for pattern in leave_out for path in sources.glob(pattern)})

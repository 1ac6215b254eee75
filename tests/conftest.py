"""What tests of several files ask for."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fat_bench import Bench
from tests.thin_site import Site
from workers.llvm.codegen import open_llvm_backend
from workers.llvm.lld_line import LldLines
from workers.llvm.oom import OomWatch
from workers.llvm.planner import Planner
from workers.llvm.thin_engine import ThinEngine
from workers.llvm.toolchain import find_toolchain


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results are kept unless a test says otherwise: not at home, and nothing of another test. Not made."""
    directory = tmp_path.with_name(f"{tmp_path.name}-cache")
    monkeypatch.setenv("LTOD_CACHE_DIR", str(directory))
    for name in ("LTOD_CACHE_SIZE", "LTOD_CACHE_REMOTE"):
        monkeypatch.delenv(name, raising=False)
    return directory


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with temporary files inside of it, and an environment that says nothing."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    for name in ("MAKEFLAGS", "LTOD_TOOLCHAIN", "LTOD_LOG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    path = {"PATH": os.environ["PATH"]}
    async with open_llvm_backend(scratch_dir=scratch, environ=path, limit=2) as backend:
        with backend.workspace() as workspace:
            yield Bench(backend, tmp_path, workspace)
    assert list(scratch.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for an input and no more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system takes more rights than this test has")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    toolchain = find_toolchain(None, {})
    lines = LldLines(toolchain, scratch, dict(os.environ))
    planner = Planner(toolchain, scratch)
    before = descriptors()
    yield Site(tmp_path, toolchain, lines, ThinEngine(toolchain, planner, lines, scratch, lambda: "v", OomWatch()))
    assert [path.name for path in scratch.iterdir() if path.name.startswith(("action-", "thin-"))] == []
    assert descriptors() == before

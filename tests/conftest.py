"""What tests of several files ask for."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fat_bench import Bench
from workers.llvm.codegen import open_llvm_backend


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

"""What tests of several files ask for."""

from __future__ import annotations

from pathlib import Path

import pytest


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

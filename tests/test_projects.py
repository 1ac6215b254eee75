"""End-to-end layer: a real program built with both kinds of LTO, checked by its own tests.

The long form, with more programs and more ways, is `python -m tests.stress.projects`. Sources come from PyPI the first
time; without a network the test is skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.projects import FetchError, cache_dir, fetch
from tests.recipes import PROJECTS
from tests.stress.projects import QUICK, check_project

pytestmark = pytest.mark.e2e


def test_lua_works_however_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAKEFLAGS", "LTOD_TOOLCHAIN", "LTOD_LOG"):
        monkeypatch.delenv(name, raising=False)
    lua = PROJECTS["lua"]
    try:
        sources = fetch(lua, cache_dir())
    except FetchError as error:
        pytest.skip(f"no sources: {error}")
    assert check_project(lua, sources, tmp_path, only=QUICK) == []

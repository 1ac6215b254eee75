"""Stress layer, short: writers killed at any moment. The long form is `python -m tests.stress.store`."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.stress.store import stress

pytestmark = pytest.mark.stress


async def test_kill_at_any_point(tmp_path: Path) -> None:
    with trio.fail_after(120):
        assert await stress(tmp_path, rounds=4, writers=3, seed=1) == []

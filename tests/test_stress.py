"""Stress layer, short: the long form is `python -m tests.stress.builds`."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.stress.builds import stress

pytestmark = pytest.mark.stress


async def test_a_few_dozen_builds_under_fire(tmp_path: Path) -> None:
    with trio.fail_after(300):
        assert await stress(tmp_path, builds=30, seed=1) == []

"""Layer: pure. Where the store is and how large it may become, going by the environment."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from workers.errors import RequestError
from workers.store import default_directory, default_limit

pytestmark = pytest.mark.pure

HOME = {"HOME": "/home/me"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"LTOD_CACHE_DIR": "/disk/ltod", "XDG_CACHE_HOME": "/caches"}, "/disk/ltod"),
        ({"LTOD_CACHE_DIR": "here"}, "here"),
        ({"LTOD_CACHE_DIR": "", "XDG_CACHE_HOME": "/caches"}, "/caches/ltod"),
        ({"XDG_CACHE_HOME": "caches"}, "/home/me/.cache/ltod"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/ltod"),
        ({}, "/home/me/.cache/ltod"),
    ],
)
def test_where_it_is(environ: dict[str, str], expected: str) -> None:
    assert default_directory({**HOME, **environ}) == Path(expected)


def test_without_a_home_in_the_environment() -> None:
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert default_directory({}) == default_directory({"HOME": "."}) == home / ".cache/ltod"


def test_without_any_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    with pytest.raises(RequestError, match="LTOD_CACHE_DIR"):
        default_directory({})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10G", 10 * 2**30),
        ("500M", 500 * 2**20),
        ("1.5k", 1536),
        (" 7 GiB ", 7 * 2**30),
        ("123", 123),
        ("", 10 * 2**30),
        (" ", 10 * 2**30),
    ],
)
def test_how_large_it_may_become(text: str, expected: int) -> None:
    assert default_limit({"LTOD_CACHE_SIZE": text}) == expected
    assert default_limit({}) == 10 * 2**30


@pytest.mark.parametrize("text", ["0", "-1G", "ten", "10X", "1e9", "9" * 15 + "T", "10G please", "\u0661G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(RequestError, match="LTOD_CACHE_SIZE"):
        default_limit({"LTOD_CACHE_SIZE": text})

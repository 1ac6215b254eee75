"""Layer: end-to-end. `ltod cache`: what it says, what it removes, and how it ends."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.command import ltod
from tests.store_samples import ROOMY, child, content_of, key_of, said
from workers.store import open_store

pytestmark = pytest.mark.e2e

TAKES = 2 * 4096
"""An entry and its blob."""


@pytest.fixture
def cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with three results, the first of which was used last; it was asked for them and for one more."""
    monkeypatch.setenv("LTOD_CACHE_DIR", "cache")
    monkeypatch.delenv("LTOD_CACHE_SIZE", raising=False)
    directory = place / "cache"

    async def fill() -> None:
        for number in (2, 1, 0):
            await store.add(key_of(number), {"o": content_of(number)})
            assert await store.find(key_of(number))
            then = 1e9 - 1000 * number
            for path in (directory / "v1/ac" / key_of(number)[:2] / key_of(number), blob_of(directory, number)):
                os.utime(path, (then, then))
        assert await store.find(key_of("miss")) is None

    with open_store(directory, limit_bytes=ROOMY) as store:
        trio.run(fill)
    return directory


def blob_of(directory: Path, number: int) -> Path:
    digest = hashlib.sha256(content_of(number)).hexdigest()
    return directory / "v1/cas" / digest[:2] / digest


def answer(process: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    assert process.stdout.count("\n") == 1
    told: dict[str, Any] = json.loads(process.stdout)
    return told


def test_stats(cache: Path) -> None:
    told = answer(ltod("cache", "stats", "--json"))
    since = datetime.fromisoformat(told.pop("since"))
    assert abs(since.timestamp() - datetime.now().timestamp()) < 3600
    assert told == {
        "directory": str(cache),
        "bytes": 3 * TAKES,
        "limit_bytes": 10 * 2**30,
        "entries": 3,
        "blobs": 3,
        "facts": 0,
        "sessions": 0,
        "hits": 3,
        "misses": 1,
        "hit_rate": 0.75,
    }
    text = ltod("cache", "stats", "--cache-dir", cache).stdout
    assert str(cache) in text
    assert "24.0 KiB of 10.0 GiB" in text
    assert "3 in 6 files" in text
    assert "hits       3, misses 1 (75% hits) since 20" in text
    assert "in use" not in text


def test_stats_beside_a_build(cache: Path) -> None:
    with child("session", cache) as process:
        assert said(process) == "going"
        assert "in use     by 1 running build\n" in ltod("cache", "stats").stdout
        assert answer(ltod("cache", "stats", "--json"))["sessions"] == 1


def test_prune_to_a_size(cache: Path) -> None:
    told = answer(ltod("cache", "prune", "--size", "8K", "--json"))
    assert told == {
        "ok": True,
        "directory": str(cache),
        "removed_files": 4,
        "freed_bytes": 2 * TAKES,
        "left_bytes": TAKES,
        "in_use_bytes": 0,
    }
    assert blob_of(cache, 0).exists()


def test_prune_to_the_limit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ltod("cache", "prune").stdout == "removed 0 files, 0 B; 24.0 KiB left\n"
    monkeypatch.setenv("LTOD_CACHE_SIZE", "16K")
    assert ltod("cache", "prune").stdout == "removed 2 files, 8.0 KiB; 16.0 KiB left\n"


def test_clear(cache: Path) -> None:
    (cache / "mine").write_text("not ltod's")
    assert ltod("cache", "clear").stdout == "removed 6 files, 24.0 KiB; 0 B left\n"
    assert [path.name for path in cache.iterdir() if path.name != "v1"] == ["mine"]
    told = answer(ltod("cache", "stats", "--json"))
    assert (told["bytes"], told["hits"], told["hit_rate"], told["since"]) == (0, 0, None, None)
    assert "nobody has asked" in ltod("cache", "stats").stdout


def test_what_a_build_uses_is_kept(cache: Path) -> None:
    with child("session", cache, key_of(1)) as process:
        assert said(process) == "going"
        process_told = ltod("cache", "clear").stdout
    assert process_told == "removed 4 files, 16.0 KiB; 8.0 KiB left, 8.0 KiB of it kept for running builds\n"
    assert blob_of(cache, 1).exists()


def test_verify_when_all_is_well(cache: Path) -> None:
    process = ltod("cache", "verify")
    assert (process.returncode, process.stdout) == (0, "checked 6 files: none damaged\n")


def test_verify_finds_and_removes(cache: Path) -> None:
    blob = blob_of(cache, 1)
    name = str(blob.relative_to(cache))

    def damage() -> None:
        blob.unlink(missing_ok=True)
        blob.write_bytes(bytes(1000))

    damage()
    process = ltod("cache", "verify")
    assert process.returncode == 1
    assert process.stdout == (
        f"checked 6 files: 1 damaged\n    {name} (removed)\nremoved 1 incomplete entry, which does no harm\n"
    )
    assert not blob.exists()
    damage()
    assert answer(ltod("cache", "verify", "--json"), code=1) == {
        "ok": False,
        "directory": str(cache),
        "checked": 5,
        "damaged": [name],
        "not_removed": [],
        "incomplete": 0,
    }
    assert ltod("cache", "verify").returncode == 0


@pytest.mark.parametrize("what", ["stats", "prune", "verify", "clear"])
def test_a_cache_that_is_not_there_is_an_empty_one(place: Path, what: str) -> None:
    assert answer(ltod("cache", what, "--cache-dir", "none", "--json"))["directory"] == str(place / "none")
    assert not (place / "none").exists()


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("stats", "file"),
        ("stats", "odd"),
        ("stats", "file/below"),
        ("prune", "odd"),
        ("verify", "odd"),
        ("clear", "odd"),
    ],
)
def test_what_is_no_cache(place: Path, what: str, name: str) -> None:
    (place / "file").touch()
    (place / "odd").mkdir()
    (place / "odd/v1").touch()
    process = ltod("cache", what, "--cache-dir", name)
    assert process.returncode == 2
    assert process.stderr.startswith("error: ")
    assert name in process.stderr
    assert process.stdout == ""


@pytest.mark.parametrize("what", ["prune", "clear"])
def test_another_process_prunes(cache: Path, what: str) -> None:
    with child("pruning", cache) as process:
        assert said(process) == "going"
        refused = ltod("cache", what, "--json")
    assert not answer(refused, code=1)["ok"]
    assert "try again" in refused.stderr
    assert answer(ltod("cache", "stats", "--json"))["hits"] == 3


def test_what_is_no_size(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = ltod("cache", "prune", "--size", "much")
    assert process.returncode == 2
    assert "'much'" in process.stderr
    monkeypatch.setenv("LTOD_CACHE_SIZE", "much")
    process = ltod("cache", "stats")
    assert process.returncode == 2
    assert "LTOD_CACHE_SIZE" in process.stderr


def test_help_names_the_commands(place: Path) -> None:
    text = ltod("cache", "--help").stdout
    assert all(f"  {name} " in text for name in ("clear", "prune", "stats", "verify"))

"""Layer: process. Where a coordinator keeps results, and what it does where there is no place for them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from coordinator import BuildConfig, BuildResult, Cache, CacheOutcome, Module, RequestError, open_coordinator
from tests.samples import GOOD_IR

pytestmark = pytest.mark.process


async def build(place: Path, cache: Cache | None, environ: dict[str, str]) -> tuple[BuildResult, str | None]:
    """Build something small; also gives what there is to know about the cache."""
    environ = {"PATH": os.environ["PATH"], "TMPDIR": str(place), **environ}
    async with (
        open_coordinator(jobs=1, cache=cache, environ=environ, short_lived=True) as coordinator,
        coordinator.build(BuildConfig(out_dir=place / "out")) as one,
    ):
        await one.submit(Module("good", GOOD_IR.encode()))
        return await one.finish(), coordinator.cache_warning


@pytest.mark.parametrize("named", [True, False])
async def test_the_directory_is_the_one_that_is_named(named: bool, tmp_path: Path) -> None:
    cache, environ = tmp_path / "one", {"LTOD_CACHE_DIR": str(tmp_path / "other")}
    for outcome in (CacheOutcome.MISS, CacheOutcome.HIT):
        result, warning = await build(tmp_path, Cache(directory=cache if named else None), environ)
        assert [one.cache.outcome for one in result.results] == [outcome]
        assert warning is None
    assert cache.exists() is named
    assert (tmp_path / "other").exists() is not named


async def test_without_a_cache_nothing_is_kept(tmp_path: Path) -> None:
    for _ in range(2):
        result, _ = await build(tmp_path, None, {"LTOD_CACHE_DIR": str(tmp_path / "cache")})
        assert [one.cache.reason for one in result.results] == ["no cache is configured"]
    assert not (tmp_path / "cache").exists()


async def test_without_a_home_builds_do_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    result, warning = await build(tmp_path, Cache(), {})
    assert result.ok
    assert warning is not None
    assert "set LTOD_CACHE_DIR" in warning


async def test_a_directory_that_cannot_be_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result, warning = await build(tmp_path, Cache(directory=tmp_path / "file" / "cache"), {})
    assert result.ok
    assert warning is not None
    assert "the cache cannot be used" in warning


@pytest.mark.parametrize(
    ("cache", "environ", "complaint"),
    [
        (Cache(limit_bytes=0), {}, "give a positive size"),
        (Cache(), {"LTOD_CACHE_SIZE": "much"}, "LTOD_CACHE_SIZE"),
        (Cache(remote="ftp://you:secret@host/"), {}, "the remote cache"),
        (Cache(), {"LTOD_CACHE_REMOTE": "nonsense"}, "the remote cache"),
    ],
)
async def test_what_makes_no_sense_is_a_wrong_request(
    cache: Cache, environ: dict[str, str], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=complaint) as error:
        await build(tmp_path, cache, {"LTOD_CACHE_DIR": str(tmp_path / "cache"), **environ})
    assert "secret" not in str(error.value)

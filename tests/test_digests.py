"""Layer: process. Digests of files: remembered, and noticed to be wrong however a file is changed."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.store_samples import ROOMY
from workers.digests import Digests
from workers.store import NoStore, open_store
from workers.store.here import Here

pytestmark = pytest.mark.process


def settle(path: Path) -> None:
    """Wait until nobody could change the file without a trace."""
    while time.time_ns() - path.stat().st_ctime_ns < 0.2e9:
        time.sleep(0.01)


async def test_a_digest_is_the_content_s(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"small", bytes(300_000), bytes(5_000_000)):
        path.write_bytes(content)
        witness = await Digests(NoStore(), tmp_path / "own").of(path)
        assert witness.digest == hashlib.sha256(content).hexdigest()
        assert witness.holds()


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("size", [1000, 300_000, 5_000_000])
async def test_a_change_is_seen_even_if_size_and_time_stay(settled: bool, size: int, tmp_path: Path) -> None:
    with open_store(tmp_path / "cache", limit_bytes=ROOMY) as store:
        digests = Digests(store, tmp_path / "own")
        path = tmp_path / "file"
        path.write_bytes(bytes(size))
        if settled:
            settle(path)
        before, times = await digests.of(path), path.stat()
        assert before.settled is settled
        with path.open("r+b") as file:
            file.seek(size // 2)
            file.write(b"x")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert not before.holds()
        assert (await digests.of(path)).digest == hashlib.sha256(path.read_bytes()).hexdigest() != before.digest
        assert (await Digests(store, tmp_path).of(path)).digest != before.digest


async def test_another_file_in_its_place_is_seen(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"one")
    other.write_bytes(b"two")
    settle(other)
    witness = await Digests(NoStore(), tmp_path / "own").of(path)
    other.replace(path)
    assert not witness.holds()
    path.unlink()
    assert not witness.holds()


async def test_another_link_to_it_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    settle(path)
    witness = await Digests(NoStore(), tmp_path / "own").of(path)
    (tmp_path / "link").hardlink_to(path)
    assert witness.holds()


async def test_a_large_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(5_000_000))
    settle(path)
    with open_store(tmp_path / "cache", limit_bytes=ROOMY) as store:
        first = await Digests(store, tmp_path / "own").of(path)
    monkeypatch.setattr("workers.digests.digest_of", lambda path: pytest.fail("it is read again"))
    with open_store(tmp_path / "cache", limit_bytes=ROOMY) as store:
        assert await Digests(store, tmp_path / "own").of(path) == first


async def test_who_has_no_event_loop_is_told_the_same(tmp_path: Path) -> None:
    here = Here(tmp_path / "cache")
    with closing(here), open_store(tmp_path / "cache", limit_bytes=ROOMY) as store:
        for size in (0, 1000, 300_000, 5_000_000):
            path = tmp_path / f"{size}"
            path.write_bytes(os.urandom(size))
            settle(path)
            digests = Digests(here)
            witness = digests.now(path)
            assert witness.digest == hashlib.sha256(path.read_bytes()).hexdigest()
            assert await digests.of(path) is witness
            assert await Digests(store).of(path) == witness
    with pytest.raises(FileNotFoundError):
        digests.now(tmp_path / "none")


async def test_a_large_file_is_read_once_by_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(5_000_000))
    settle(path)
    with closing(Here(tmp_path / "cache")) as here:
        witness = Digests(here).now(path)
    monkeypatch.setattr("workers.digests.digest_of", lambda path: pytest.fail("it is read again"))
    with open_store(tmp_path / "cache", limit_bytes=ROOMY) as store:
        assert await Digests(store).of(path) == witness
        assert Digests(store).now(path) == witness


async def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await Digests(NoStore(), tmp_path).of(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        await Digests(NoStore(), tmp_path).of(tmp_path)

"""Contract layer: the local store with a second tier, honest or not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.store_samples import ROOMY, MemoryRemote, content_of, key_of
from workers.store import open_store
from workers.store.action_result import decode

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("size", [0, 2_000, 600_000])
async def test_what_one_machine_added_another_finds(tmp_path: Path, size: int) -> None:
    remote = MemoryRemote()
    content = content_of("x", size)
    with open_store(tmp_path / "one", limit_bytes=ROOMY, remote=remote) as store:
        added = await store.add(key_of(1), {"o": content}, b"note")
    assert decode(remote.actions[key_of(1)]) == added
    assert remote.blobs == {hashlib.sha256(content).hexdigest(): content}
    with open_store(tmp_path / "two", limit_bytes=ROOMY, remote=remote) as store:
        assert await store.find(key_of(1)) == added
        assert await store.find(key_of(1)) == added
        assert (store.stats.hits, store.stats.remote_hits, store.stats.misses) == (2, 1, 0)
        assert added is not None
        assert await store.read(added.outputs[0]) == content
    with open_store(tmp_path / "two", limit_bytes=ROOMY) as store:
        assert await store.find(key_of(1)) == added
        assert store.verify().damaged == ()


async def test_it_is_never_told_of_facts(tmp_path: Path) -> None:
    remote = MemoryRemote()
    with open_store(tmp_path, limit_bytes=ROOMY, remote=remote) as store:
        store.remember(key_of(1), b"fact")
        assert store.recall(key_of(1)) == b"fact"
        assert store.recall(key_of(2)) is None
    assert (remote.actions, remote.blobs, remote.asked) == ({}, {}, 0)


async def test_a_second_tier_that_fails_is_a_miss_and_counted(tmp_path: Path) -> None:
    remote = MemoryRemote()
    remote.broken = True
    with open_store(tmp_path, limit_bytes=ROOMY, remote=remote) as store:
        assert await store.find(key_of(1)) is None
        assert store.stats.remote_failures == 1
        assert await store.add(key_of(1), {"o": b"object"}) is not None
        assert await store.find(key_of(1)) is not None
        assert (store.stats.hits, store.stats.misses, store.stats.not_stored) == (1, 1, 0)
        assert store.stats.remote_failures > 1


@pytest.mark.parametrize("lie", ["blob", "blob gone", "action", "longer"])
async def test_nothing_that_a_second_tier_says_is_believed(tmp_path: Path, lie: str) -> None:
    remote = MemoryRemote()
    with open_store(tmp_path / "one", limit_bytes=ROOMY, remote=remote) as store:
        assert await store.add(key_of(1), {"o": b"object"})
    (digest,) = remote.blobs
    if lie == "blob":
        remote.blobs[digest] = b"tcejbo"
    elif lie == "longer":
        remote.blobs[digest] += b"!"
    elif lie == "blob gone":
        remote.blobs.clear()
    else:
        remote.actions[key_of(1)] = remote.actions[key_of(1)][:-1]
    with open_store(tmp_path / "two", limit_bytes=ROOMY, remote=remote) as store:
        assert await store.find(key_of(1)) is None
        assert store.stats.remote_failures == (lie != "blob gone")
        assert store.usage().blobs == 0
        assert store.verify().entries == 0
        assert not list((tmp_path / "two").glob("v1/tmp/*/*"))

"""Process layer: everything that can go wrong with the store's directory makes misses, and nothing worse."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.store_samples import ROOMY, child, content_of, key_of, said
from workers.store import Entry, LocalStore, open_store

pytestmark = pytest.mark.process

CONTENT = content_of("o", 3000)


def flip(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 0)


def extend(path: Path) -> None:
    path.chmod(0o644)
    with path.open("ab") as file:
        file.write(b"\0")


def become_directory(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def become_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def become_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_socket(path: Path) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.bind(path.name)
    finally:
        os.chdir(here)


DIRECTORIES = ["cas", "ac", "facts", "tmp", "locks", "sessions"]
DAMAGE = [flip, truncate, empty, extend, become_directory, become_link, become_fifo, become_socket]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with open_store(tmp_path / "cache", limit_bytes=ROOMY) as opened:
        yield opened


def only(directory: Path) -> Path:
    (found,) = directory.glob("*/*")
    return found


async def added(store: LocalStore, content: bytes = CONTENT) -> Entry:
    entry = await store.add(key_of(1), {"o": content}, b"note")
    assert entry is not None
    return entry


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_entry_is_a_miss_and_removed(
    store: LocalStore, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    entry = await added(store)
    path = only(tmp_path / "cache/v1/ac")
    damage(path)
    with trio.fail_after(10):
        assert await store.find(key_of(1)) is None
    assert not os.path.lexists(path)
    assert (store.stats.damaged, store.stats.misses, store.stats.hits) == (1, 1, 0)
    assert await added(store) == entry
    assert await store.find(key_of(1)) == entry
    assert store.stats.damaged == 1


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_fact_is_none_and_removed(
    store: LocalStore, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    store.remember(key_of(1), b"fact")
    path = only(tmp_path / "cache/v1/facts")
    damage(path)
    assert store.recall(key_of(1)) is None
    assert not os.path.lexists(path)
    assert store.stats.damaged == 1
    store.remember(key_of(1), b"fact")
    assert store.recall(key_of(1)) == b"fact"


async def test_nothing_is_taken_for_a_fact(store: LocalStore, tmp_path: Path) -> None:
    await added(store)
    store.remember(key_of(2), b"x")
    fact = only(tmp_path / "cache/v1/facts")
    shutil.copy(only(tmp_path / "cache/v1/ac"), fact.with_name(key_of(1)))
    fact.parent.rename(fact.parent.with_name(key_of(1)[:2]))
    assert store.recall(key_of(1)) is None
    fact = only(tmp_path / "cache/v1/facts")
    fact.rename(fact.with_name(key_of(1)))
    assert store.recall(key_of(1)) is None
    assert store.stats.damaged == 2


async def test_an_entry_under_another_key_is_damaged(store: LocalStore, tmp_path: Path) -> None:
    await added(store)
    other = tmp_path / "cache/v1/ac" / key_of(2)[:2] / key_of(2)
    other.parent.mkdir(exist_ok=True)
    shutil.copy(only(tmp_path / "cache/v1/ac"), other)
    assert await store.find(key_of(2)) is None
    assert store.stats.damaged == 1


@pytest.mark.parametrize("size", [3000, 2_000_000])
@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_blob_is_never_placed(
    store: LocalStore, tmp_path: Path, damage: Callable[[Path], None], size: int
) -> None:
    content = content_of("o", size)
    entry = await store.add(key_of(1), {"o": content, "fine": b"fine"})
    assert entry is not None
    path = tmp_path / "cache/v1/cas" / entry.outputs[1].digest[:2] / entry.outputs[1].digest
    damage(path)
    with trio.fail_after(10):
        places = {"fine": tmp_path / "out/fine", "o": tmp_path / "out/o"}
        assert not await store.fetch(entry, places)
    assert not list((tmp_path / "out").iterdir())
    assert not os.path.lexists(path)
    assert store.stats.damaged == 1
    assert await store.find(key_of(1)) is None
    assert await store.add(key_of(1), {"o": content, "fine": b"fine"}) == entry
    assert await store.fetch(entry, {"o": tmp_path / "out/o"})
    assert (tmp_path / "out/o").read_bytes() == content


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_blob_is_not_read(store: LocalStore, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    entry = await added(store)
    damage(only(tmp_path / "cache/v1/cas"))
    with trio.fail_after(10):
        assert await store.read(entry.outputs[0]) is None
    assert store.stats.damaged == 1
    assert store.verify().incomplete == 1


@pytest.mark.parametrize("damage", DAMAGE)
async def test_an_add_heals(store: LocalStore, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    entry = await added(store)
    damage(only(tmp_path / "cache/v1/ac"))
    if damage is not flip:
        # A flipped blob looks right from outside, and is found out by who reads it.
        damage(only(tmp_path / "cache/v1/cas"))
    assert await added(store) == entry
    assert await store.find(key_of(1)) == entry
    assert await store.read(entry.outputs[0]) == CONTENT


async def test_a_found_entry_whose_blob_goes_is_a_miss(store: LocalStore, tmp_path: Path) -> None:
    await added(store)
    entry = await store.find(key_of(1))
    assert entry is not None
    only(tmp_path / "cache/v1/cas").unlink()
    assert not await store.fetch(entry, {"o": tmp_path / "new/o"})
    assert not await store.fetch(entry, {"o": tmp_path / "new2/o"})
    assert (store.stats.damaged, store.stats.lost) == (0, 2)
    assert await store.find(key_of(1)) is None
    assert not list((tmp_path / "cache/v1/ac").glob("*/*"))


@pytest.mark.parametrize("name", [".", "v1", *(f"v1/{name}" for name in DIRECTORIES)])
@pytest.mark.parametrize("when", ["before", "during"])
async def test_a_file_where_a_directory_should_be(tmp_path: Path, name: str, when: str) -> None:
    directory = tmp_path / "cache"
    path = directory / name

    def block() -> None:
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("in the way")

    if when == "before":
        block()
    with open_store(directory, limit_bytes=ROOMY) as store, store.session():
        if when == "during":
            await added(store)
            block()
        entry = await store.add(key_of(2), {"o": CONTENT})
        assert await store.find(key_of(2)) == entry
        assert (store.stats.not_stored, bool(store.stats.trouble)) in ((0, False), (1, True))
        if name in (".", "v1", "v1/cas", "v1/ac", "v1/tmp"):
            assert entry is None
        claim = store.claim(key_of(2))
        assert claim is not None
        assert store.claim(key_of(2)) is None
        claim.close()
        await store.wait(key_of(2))
        store.remember(key_of(2), b"fact")
        assert store.recall(key_of(2)) in (None, b"fact")
        store.prune(0)
        store.verify()
        store.usage()
    assert path.read_text() == "in the way"


async def test_a_directory_removed_while_in_use_comes_back(store: LocalStore, tmp_path: Path) -> None:
    entry = await added(store)
    with store.session():
        claim = store.claim(key_of(1))
        shutil.rmtree(tmp_path / "cache")
        assert await store.find(key_of(1)) is None
        assert not await store.fetch(entry, {"o": tmp_path / "o"})
        assert await added(store) == entry
        assert await store.find(key_of(1)) == entry
        assert claim is not None
        claim.close()
        with store.claim(key_of(2)) or pytest.fail("it is held"):
            assert store.claim(key_of(2)) is None
    assert store.stats.not_stored == 0


@contextmanager
def disk(options: str) -> Iterator[Path]:
    """A small file system of its own; skips where we may not mount."""
    directory = Path(tempfile.mkdtemp(prefix="ltod-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(directory)]
    try:
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("file systems cannot be mounted here")
        try:
            yield directory
        finally:
            subprocess.run(["umount", directory], check=True)
    finally:
        directory.rmdir()


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


@pytest.mark.parametrize("size", [20_000, 300_000])
async def test_a_full_disk(tmp_path: Path, size: int) -> None:
    with disk("size=1m") as directory, open_store(directory / "cache", limit_bytes=ROOMY) as store:
        kept = 0
        for number in range(100):
            if await store.add(key_of(number), {"o": content_of(number, size)}) is None:
                break
            kept += 1
        assert 0 < kept < 100
        assert store.stats.not_stored == 1
        assert "No space left" in store.stats.trouble
        for number in range(kept):
            entry = await store.find(key_of(number))
            assert entry is not None
            assert await store.fetch(entry, {"o": tmp_path / "o"})
            assert (tmp_path / "o").read_bytes() == content_of(number, size)
        assert await store.find(key_of(kept)) is None
        store.remember(key_of("fact"), content_of("fact", 60_000))
        assert store.recall(key_of("fact")) in (None, content_of("fact", 60_000))
        assert not list(directory.glob("cache/v1/tmp/*/*"))
        assert store.verify().damaged == ()


async def test_no_files_left_on_the_disk() -> None:
    with disk("size=10m,nr_inodes=24") as directory, open_store(directory / "cache", limit_bytes=ROOMY) as store:
        for number in range(20):
            await store.add(key_of(number), {"o": content_of(number)})
        assert store.stats.not_stored > 0
        claims = [store.claim(key_of(number)) for number in range(20)]
        assert store.claim(key_of(3)) is None
        for claim in claims:
            assert claim is not None
            claim.close()
        assert store.verify().damaged == ()


async def test_a_read_only_disk_still_gives(tmp_path: Path) -> None:
    with disk("size=1m") as directory:
        with open_store(directory / "cache", limit_bytes=ROOMY) as store:
            await added(store)
            await store.add(key_of(2), {"o": b"to be damaged"})
        flip(directory / "cache/v1/ac" / key_of(2)[:2] / key_of(2))
        make_read_only(directory)
        with open_store(directory / "cache", limit_bytes=ROOMY) as store, store.session():
            entry = await store.find(key_of(1))
            assert entry is not None
            assert not store.stats.trouble
            assert await store.fetch(entry, {"o": tmp_path / "o"})
            assert (tmp_path / "o").read_bytes() == CONTENT
            assert await store.find(key_of(2)) is None
            assert await store.add(key_of(3), {"o": b"new"}) is None
            assert "Read-only" in store.stats.trouble
            assert (store.stats.damaged, store.stats.not_stored) == (1, 1)
            assert store.claim(key_of(3)) is not None
            assert store.claim(key_of(3)) is None
            assert store.clear().files == 0


async def test_an_outputs_bytes_that_do_not_fit(store: LocalStore, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(content_of("big", 600_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        assert await store.add(key_of(1), {"o": source}) is None
        assert await store.add(key_of(2), {"o": b"small"}) is not None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.stats.not_stored == 1
    assert "too large" in store.stats.trouble
    assert not list((tmp_path / "cache/v1/tmp").glob("*/*"))
    assert store.verify().damaged == ()


@pytest.mark.parametrize(("mode", "found"), [(0o555, True), (0o600, False), (0o000, False)])
async def test_permission_denied(mode: int, found: bool) -> None:
    # Not below pytest's own directory, which nobody else may enter.
    top = Path(tempfile.mkdtemp(prefix="ltod-denied-"))
    cache = top / "cache"
    try:
        with open_store(cache, limit_bytes=ROOMY) as store:
            await store.add(key_of("before"), {"o": content_of("before")})
        directories = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
        for path in reversed(directories):
            path.chmod(mode)
        top.chmod(0o755)
        # Root is stopped by nothing, so another user has to try.
        with child("poor", cache, str(os.geteuid() or 65534)) as process:
            line = await trio.to_thread.run_sync(said, process)
        assert line == f"found={found} added=False claim=True pruned=0"
    finally:
        for path in directories:
            path.chmod(0o755)
        shutil.rmtree(top)


async def test_a_blob_that_may_not_be_read_is_replaced() -> None:
    user = os.geteuid() or 65534
    with tempfile.TemporaryDirectory(prefix="ltod-denied-") as directory:
        os.chown(directory, user, -1)
        with child("unreadable", Path(directory) / "cache", str(user)) as process:
            assert await trio.to_thread.run_sync(said, process) == "healed, damaged=1"

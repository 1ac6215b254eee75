"""Process layer: the store without an event loop, beside builds that have one. What it does is in the contract."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import workers.store
from tests.store_samples import ROOMY, content_of, key_of
from workers.store import Told, open_store
from workers.store.here import Here

pytestmark = pytest.mark.process


def test_it_is_loaded_without_anything_slow() -> None:
    slow = "{'trio', 'subprocess', 'socket', 'secrets', 'shutil', 'tempfile', 'workers.work'}"
    program = f"""
import sys
before = set(sys.modules)
import workers.store.here, workers.digests, workers.llvm.identity
print(*sorted({slow} & (set(sys.modules) - before)))
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"\n"


def test_a_hit_loads_nothing_slow_either(tmp_path: Path) -> None:
    content = content_of("o", 300_000)
    with closing(Here(tmp_path / "cache")) as here:
        here.add(key_of(1), {"o": content}, b"note")
    program = f"""
import sys
before = set(sys.modules)
from pathlib import Path
from workers.store.here import Here
here = Here(Path({str(tmp_path / "cache")!r}))
with here.session():
    entry = here.find({key_of(1)!r})
    print(here.fetch(entry, {{"o": Path({str(tmp_path / "o")!r})}}))
here.close()
print(*sorted({{'trio', 'subprocess', 'socket', 'shutil'}} & (set(sys.modules) - before)))
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"True\n\n"
    assert (tmp_path / "o").read_bytes() == content


async def test_what_one_adds_the_other_finds(tmp_path: Path) -> None:
    with closing(Here(tmp_path / "cache")) as here, open_store(tmp_path / "cache", limit_bytes=ROOMY) as store:
        entry = here.add(key_of(1), {"o": b"object"}, b"note")
        here.remember(key_of(1), b"fact")
        assert await store.find(key_of(1)) == entry
        assert store.recall(key_of(1)) == b"fact"
        entry = await store.add(key_of(2), {"o": b"other"})
        assert here.find(key_of(2)) == entry
        assert store.stats.hits == here.stats.hits == 1


async def test_who_asks_others_next_counts_no_miss(tmp_path: Path) -> None:
    with closing(Here(tmp_path / "cache")) as here:
        assert here.look(key_of(1)) is None
        here.add(key_of(1), {"o": b"object"})
        assert here.look(key_of(1)) is not None
        assert here.find(key_of(2)) is None
        assert (here.stats.hits, here.stats.misses) == (1, 1)


async def test_what_it_saw_is_told_once(tmp_path: Path) -> None:
    with closing(Here(tmp_path / "cache")) as here:
        with here.session():
            here.add(key_of(1), {"o": b"object"})
            assert here.find(key_of(1))
        assert here.find(key_of(2)) is None
    with open_store(tmp_path / "cache", limit_bytes=ROOMY) as store:
        told = store.usage().told
        assert (told.hits, told.misses) == (1, 1)
        store.clear()
        assert store.usage().told == Told()


def test_its_session_keeps_what_it_uses(tmp_path: Path) -> None:
    with closing(Here(tmp_path / "cache")) as here, open_store(tmp_path / "cache", limit_bytes=ROOMY) as store:
        with here.session():
            here.add(key_of(1), {"o": b"object"})
            assert store.usage().sessions == 1
            assert store.prune(0).files == 0
        assert store.prune(0).files == 2


def test_new_files_are_made_known(tmp_path: Path) -> None:
    wrote: list[tuple[str, int]] = []
    with closing(Here(tmp_path / "cache", lambda name, size: wrote.append((name, size)))) as here:
        entry = here.add(key_of(1), {"a": b"object", "b": b"object"}, b"note")
        here.remember(key_of(2), b"fact")
    assert entry is not None
    assert wrote == [(entry.outputs[0].digest, 6), (key_of(1), 4), (key_of(2), 4)]


def test_the_public_names_are_all_there_and_an_unknown_one_is_an_error() -> None:
    assert all(hasattr(workers.store, name) for name in workers.store.__all__)
    assert set(workers.store.__all__) <= set(dir(workers.store))
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = workers.store.nonesuch  # type: ignore[attr-defined]

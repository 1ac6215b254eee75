"""The store that is none."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self

import trio

from workers.store.interface import Claim, Entry, Output, Stats, check_key

__all__ = ["NoStore"]


class NoStore:
    """The store of a build without one: always a miss, and everybody may compute everything."""

    def __init__(self) -> None:
        self._misses = 0

    @property
    def stats(self) -> Stats:
        """Only misses."""
        return Stats(misses=self._misses)

    async def find(self, key: str) -> Entry | None:
        """Nothing is ever there."""
        check_key(key)
        await trio.lowlevel.checkpoint()
        self._misses += 1
        return None

    async def fetch(self, entry: Entry, destinations: Mapping[str, Path]) -> bool:
        """Nothing can be placed."""
        del entry, destinations
        await trio.lowlevel.checkpoint()
        return False

    async def read(self, output: Output) -> bytes | None:
        """Nothing can be read."""
        del output
        await trio.lowlevel.checkpoint()
        return None

    async def add(self, key: str, outputs: Mapping[str, Path | bytes], note: bytes = b"") -> Entry | None:
        """Nothing is kept."""
        del outputs, note
        check_key(key)
        await trio.lowlevel.checkpoint()
        return None

    def recall(self, key: str) -> bytes | None:
        """Nothing is ever there."""
        check_key(key)
        return None

    def remember(self, key: str, note: bytes) -> None:
        """Nothing is kept."""
        del note
        check_key(key)

    def claim(self, key: str) -> Claim | None:
        """Always granted: who waited would find nothing afterwards."""
        check_key(key)
        return _NoClaim()

    async def wait(self, key: str) -> None:
        """There is nothing to wait for."""
        check_key(key)
        await trio.lowlevel.checkpoint()

    def session(self) -> AbstractContextManager[None]:
        """Nothing is kept, so nothing is pruned."""
        return nullcontext()


class _NoClaim:
    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

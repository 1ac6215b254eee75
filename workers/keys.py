"""What a backend can say of its items, so that what was made once need not be made again."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from workers.fat import FatLink, FatPartition
from workers.ingredients import Key, NoKey
from workers.store import Store
from workers.thin import ThinCompile, ThinLink
from workers.work import Link, Optimize

__all__ = ["HasKeys", "Keys"]


class Keys(Protocol):
    """The keys of a backend's items.

    It exists beside the backend because a compiler need not be able to tell: its results are made each time then.
    Nothing here raises for what is wrong with an item; that has no key, and whoever does it will say so.
    """

    async def of_module(self, item: Optimize) -> Key | NoKey:
        """The key of what becomes of a module by itself."""
        ...

    async def of_thin_link(self, item: ThinLink) -> Key | NoKey:
        """The key of what was handed to a thin link, which may find and read more by itself."""
        ...

    async def of_thin_compile(self, item: ThinCompile) -> Key | NoKey:
        """The key of a backend compile's outputs."""
        ...

    async def of_fat_link(self, item: FatLink) -> Key | NoKey:
        """The key of what was handed to a fat link, which may find and read more by itself."""
        ...

    async def of_partition(self, partition: FatPartition) -> Key | NoKey:
        """The key of a partition's outputs."""
        ...

    async def of_link(self, item: Link) -> Key | NoKey:
        """The key of what was handed to a final link, which may find and read more by itself."""
        ...

    async def with_reads(self, link: Key, reads: bytes) -> Key | None:
        """The key of a link, when it reads what `reads` says; `None` if it would not do so now.

        `link` is from `of_thin_link`, `of_fat_link` or `of_link`, `reads` from the result of a link with that key.
        """
        ...

    def unchanged(self, key: Key) -> bool:
        """Whether the files that a key was made of are as they were then: else it must not name what was made."""
        ...


@runtime_checkable
class HasKeys(Protocol):
    """A backend that can tell its items' keys."""

    def keys(self, store: Store) -> Keys:
        """The keys; what takes long to find out may be kept in `store`, too."""
        ...

"""Fat LTO's side of the seam: what the fat loop hands to a backend, what comes back, and what a backend must do.

Values and a protocol only. ThinLTO has its own (`workers.thin`); the two have nothing in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import field, frozen

from workers.work import (
    NOT_ASKED,
    CacheUse,
    CodegenOptions,
    Deferred,
    Diagnostic,
    Estimate,
    Failed,
    Finished,
    LinkFile,
    LinkOptions,
    NeedsFatLto,
    Target,
    count,
)

__all__ = ["PARTITION_PREFIX", "FatLink", "FatLinked", "FatLtoBackend", "FatPartition", "partition_name"]

PARTITION_PREFIX = "fat-lto."
"""What the names of partitions begin with; their number follows."""


def partition_name(number: int) -> str:
    """What a partition is called, and its artifacts after it."""
    return f"{PARTITION_PREFIX}{number}"


@frozen
class FatLink:
    """Work item: merge the modules in `files`, internalise, optimise as a whole, and split for codegen.

    `files` are in the order of the link; native ones take part in the resolution of symbols. Without `link` (or for
    a static library) every symbol stays visible, unless `exports` says which; where every symbol stays visible, there
    are only modules and objects of modules. `partitions` is how many to split into, `None` leaves it to the backend,
    which must not look at the machine or its load for that. Partitions go to `directory`, which is the build's own and
    outlives them; artifacts go to `out_dir`.
    """

    files: tuple[NeedsFatLto | LinkFile, ...] = field(repr=count)
    link: LinkOptions | None
    exports: tuple[str, ...]
    partitions: int | None
    options: CodegenOptions
    target: Target
    directory: Path
    out_dir: Path
    reproducer_dir: Path

    @property
    def name(self) -> str:
        """Stands where other items have their module's name."""
        return "fat link" if self.link is None else self.link.output.name


@frozen
class FatPartition:
    """Work item: generate code for one part of the optimised program.

    `link` is what its backend knows of the fat link; nobody else looks into it.
    """

    name: str
    bitcode: Path
    estimate: Estimate
    link: Any = field(repr=False)


@frozen
class FatLinked:
    """Work result: everything is merged and optimised, and the partitions are there.

    `unneeded` are the lazy modules that nothing of was needed. `needs` has each symbol that modules need and none of
    them defines, with modules that need it: after the merge nobody else can tell.
    """

    module: str
    partitions: int
    unneeded: tuple[str, ...]
    seconds: float
    peak_rss_bytes: int
    diagnostics: tuple[Diagnostic, ...] = ()
    passes: tuple[str, ...] = field(default=(), repr=count)
    needs: Mapping[str, tuple[str, ...]] = field(factory=dict, repr=count)
    reads: bytes | None = field(default=None, repr=False)
    """What else the link read than it was given, in its backend's words; `None` where that is not known."""
    cache: CacheUse = NOT_ASKED


class FatLtoBackend(Protocol):
    """Merges and optimises modules as a whole, and generates code for the parts.

    It exists beside `CodegenBackend` because a compiler may do LTO in another way, or not at all.
    """

    def fat_estimate(self, item: FatLink) -> Estimate:
        """What merging and optimising is expected to need. Quick: no I/O."""
        ...

    async def fat_link(self, item: FatLink, ready: Callable[[FatPartition], None]) -> FatLinked | Failed | Deferred:
        """Merge and optimise; `ready` gets each partition once, as soon as it is whole.

        `Deferred` if somebody else is doing so with the same modules. Parts and their bytes follow from the item alone.
        The modules' bitcode is not needed any more when this returns. A `Failed` says what is wrong, in terms of
        modules. When cancelled, no process is left; files in the item's directory do not matter.
        """
        ...

    async def fat_codegen(self, partition: FatPartition) -> Finished | Failed | Deferred:
        """Generate code for a partition; the contract is that of `CodegenBackend.compile`.

        `Deferred` if somebody else is generating the same.
        """
        ...

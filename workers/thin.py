"""ThinLTO's side of the seam: what the thin loop hands to a backend, what comes back, and what a backend must do.

Values and a protocol only. Fat LTO has its own (`workers.fat`); the two have nothing in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from attrs import field, frozen

from workers.ingredients import Key, NoKey
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
    NeedsThinLto,
    Target,
    count,
)

__all__ = ["REGULAR_PART", "PlannedCompile", "ThinCompile", "ThinLink", "ThinLinked", "ThinLtoBackend"]

REGULAR_PART = "regular-lto"
"""The name of what the thin link compiles itself: modules without a ThinLTO summary, the regular halves of split LTO
units."""


@frozen
class ThinLink:
    """Work item: resolve symbols across `files`, and plan what each module imports from which.

    `files` are in the order of the link; native ones take part in the resolution. Without `link` (or for a static
    library) every symbol stays visible, unless `exports` says which; where every symbol stays visible, there are only
    modules and objects of modules. Files that the backend compiles need later go to `directory`, which is the build's
    own and outlives them; artifacts go to `out_dir`.
    """

    files: tuple[NeedsThinLto | LinkFile, ...] = field(repr=count)
    link: LinkOptions | None
    exports: tuple[str, ...]
    options: CodegenOptions
    target: Target
    directory: Path
    out_dir: Path
    reproducer_dir: Path
    local: bool = False
    """Also in a program every symbol of the modules that take part stays as it is."""

    @property
    def name(self) -> str:
        """Stands where other items have their module's name."""
        return "thin link" if self.link is None else self.link.output.name


@frozen
class ThinCompile:
    """Work item: compile one module with what it imports (LLVM's "backend compile").

    `link` is what its backend knows of the thin link; nobody else looks into it.
    """

    name: str
    bitcode: Path
    shard: Path
    estimate: Estimate
    link: Any = field(repr=False)


@frozen
class PlannedCompile:
    """Stands in `ThinCompile.link` where somebody else has done the thin link, and says where each object has to go.

    `holds` says whether what `key` was made of is still the same; `inner` is the backend's own.
    """

    key: Key | NoKey
    output: Path
    holds: Callable[[], bool] = field(repr=False)
    inner: Any = field(repr=False)


@frozen
class ThinLinked:
    """Work result: the thin link is done.

    `compiles` has an item for each module that takes part; `unneeded` are the lazy ones that do not. `regular` is what
    the thin link compiled itself, named `REGULAR_PART`, if there was anything.
    """

    module: str
    compiles: tuple[ThinCompile, ...] = field(repr=count)
    unneeded: tuple[str, ...]
    regular: Finished | None
    seconds: float
    peak_rss_bytes: int
    diagnostics: tuple[Diagnostic, ...] = ()
    reads: bytes | None = field(default=None, repr=False)
    """What else the link read than it was given, in its backend's words; `None` where that is not known."""
    cache: CacheUse = NOT_ASKED


class ThinLtoBackend(Protocol):
    """Links thinly and compiles modules with what they import.

    It exists beside `CodegenBackend` because a compiler may do LTO in another way, or not at all.
    """

    def thin_estimate(self, item: ThinLink) -> Estimate:
        """What the thin link is expected to need. Quick: no I/O."""
        ...

    async def thin_link(self, item: ThinLink) -> ThinLinked | Failed:
        """Plan the link. A `Failed` says what is wrong with it, in terms of modules.

        When cancelled, no process is left; files in the item's directory do not matter.
        """
        ...

    async def thin_compile(
        self, batch: Sequence[ThinCompile], *, keep_going: bool = True
    ) -> Sequence[Finished | Failed | Deferred]:
        """Compile every item of `batch`, all of one thin link: one result each, in the batch's order.

        Unless told to `keep_going`, the first failure may be the last result: what comes behind it is not compiled. An
        item that somebody else is making may be `Deferred`.

        As `CodegenBackend.compile`: what goes wrong with an item is a `Failed` for that item and for no other, the
        bytes of an artifact never depend on the batch, and cancelling leaves nothing behind.
        """
        ...

"""The seam between ltod and a compiler: what a backend must do, and nothing of how.

`workers.llvm` is the real one, `workers.fake` the one for simulators and timing tests; one contract suite
(`tests/test_backend_contract.py`) holds both to what is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from attrs import frozen

from workers.fat import FatLtoBackend
from workers.thin import ThinLtoBackend
from workers.work import (
    CodegenOptions,
    Estimate,
    Failed,
    Finished,
    Link,
    Linked,
    LinkOptions,
    Module,
    NeedsFatLto,
    NeedsThinLto,
    Optimize,
    PreLink,
    Target,
)

__all__ = ["Backend", "CodegenBackend", "Inspection", "Linker"]


@frozen
class Inspection:
    """What a backend learns from a module without compiling it; `size` is in bytes.

    `estimate` is of compiling it, or of taking it through a pre-link pipeline if that was asked for and it has not been
    through one. `pre_linked` is what the backend itself is to know of one that has, `None` of any other.
    """

    target: Target
    size: int
    estimate: Estimate
    pre_linked: object | None = None


class CodegenBackend(Protocol):
    """Optimises modules and generates code for them, one batch at a time, many batches at once.

    It exists so that the main loop can be driven by a fake, and so that a compiler other than LLVM fits.
    """

    def check(self, options: CodegenOptions) -> None:
        """Refuse options that this backend cannot honour. Raises `RequestError`."""
        ...

    def check_lto(self, options: CodegenOptions, target: Target) -> None:
        """Refuse what cannot be done with LTO for `target` whatever the modules. Raises `RequestError`."""
        ...

    async def prepare(self, target: Target, options: CodegenOptions) -> None:
        """Ask the compiler itself whether it can compile modules of `target` with `options`.

        Finds what `check` cannot know, before anything is compiled. Raises `RequestError`.
        """
        ...

    def inspect(self, module: Module, options: CodegenOptions, pre_link: PreLink | None = None) -> Inspection:
        """Look at a module's header: quick, no process, no thread. `pre_link` is what will be asked for.

        Raises `ModuleError` where the content is unreadable, truncated, of no known format, or newer than
        the compiler.
        """
        ...

    def workspace(self) -> AbstractContextManager[Path]:
        """A directory for the files that pass between the steps of one build; removed when the context is left."""
        ...

    def at_once(self, item: Optimize) -> NeedsThinLto | NeedsFatLto | None:
        """The result of an item for which nothing has to be done; `None` for all others. No process, no thread."""
        ...

    async def compile(self, batch: Sequence[Optimize]) -> Sequence[Finished | NeedsThinLto | NeedsFatLto | Failed]:
        """Compile every item of `batch`: one result each, in the batch's order.

        An item with `pre_link` ends as `NeedsThinLto` or `NeedsFatLto`, any other as `Finished`. Whatever goes wrong
        with an item (a compiler that aborts, hangs or is killed included) is a `Failed` for that item and for no other.
        The bytes of an artifact never depend on the batch it was made in. When cancelled, no process, descriptor or
        temporary file is left, and finished artifacts stay whole.
        """
        ...


class Linker(Protocol):
    """Makes one program or library of objects.

    It exists beside `CodegenBackend` because a compiler need not have a linker.
    """

    def check_link(self, link: LinkOptions, target: Target) -> None:
        """Refuse what cannot be linked for `target` whatever the objects are. Raises `RequestError`."""
        ...

    async def link(self, item: Link) -> Linked | Failed:
        """Link; an earlier output stays as it was unless this succeeds. Cancelling leaves nothing behind."""
        ...


class Backend(CodegenBackend, ThinLtoBackend, FatLtoBackend, Linker, Protocol):
    """What a coordinator needs."""

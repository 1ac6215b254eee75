"""What was handed over to a build: modules by their names, and everything in the order of the link."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import define, field

from coordinator._join import ReadyForLink
from workers.errors import RequestError
from workers.fat import PARTITION_PREFIX
from workers.thin import REGULAR_PART
from workers.work import Finished, LinkFile, Module, NeedsFatLto, NeedsThinLto, PreLink, WorkResult

__all__ = ["BuildLine"]


@define
class BuildLine:
    """The modules and native files of one build."""

    _modules: dict[str, Module] = field(factory=dict, init=False)
    _order: list[str | LinkFile] = field(factory=list, init=False)
    """Names stand for modules."""

    @property
    def modules(self) -> Mapping[str, Module]:
        """By name."""
        return self._modules

    def add(self, module: Module, pre_link: PreLink | None) -> None:
        """Take a module in a build whose modules go up to `pre_link`. Raises `RequestError` for an unusable name."""
        name = module.name
        if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise RequestError(f"module name {name!r} cannot name a file below the output directory: choose another")
        if name in self._modules:
            raise RequestError(f"duplicate module name {name!r}: each module of a build needs a name of its own")
        own = {PreLink.THIN: name == REGULAR_PART, PreLink.FAT: name.startswith(PARTITION_PREFIX)}
        if pre_link is not None and own[pre_link]:
            raise RequestError(f"module name {name!r} is what LTO calls an output of its own: choose another")
        self._modules[name] = module
        self._order.append(name)

    def drop(self, name: str) -> None:
        """Forget a module."""
        del self._modules[name]
        self._order.remove(name)

    def add_native(self, path: Path, *, lazy: bool) -> None:
        """Take what is linked as it is."""
        self._order.append(LinkFile(str(path), path, lazy, given=True))

    def lazy(self) -> frozenset[str]:
        """The modules that are linked only if something needs them."""
        return frozenset(name for name, module in self._modules.items() if module.lazy)

    def filled(self, results: Iterable[WorkResult]) -> list[ReadyForLink | LinkFile]:
        """The native files, and what became of the modules that got so far, in the order of the link."""
        done: dict[str, ReadyForLink] = {
            one.module: one for one in results if isinstance(one, Finished | NeedsThinLto | NeedsFatLto)
        }
        line: list[ReadyForLink | LinkFile] = []
        for one in self._order:
            if isinstance(one, LinkFile):
                line.append(one)
            elif one in done:
                line.append(done[one])
        return line

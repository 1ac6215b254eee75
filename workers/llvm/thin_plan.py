"""What backend compiles know of their thin link: who takes part, how lld is called again, what an index shard lacks.

A shard has the summaries of its module and of what is imported. lld, which has those of all modules, also knows which
other symbols the program defines itself; code that refers to them directly is shorter than code that asks a table. So
each shard gets that knowledge from the combined index, without which cc1's objects would not be lld's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import trio
from attrs import define, field

from workers.errors import ModuleError
from workers.llvm.bitcode import MODULE_BLOCK, BitcodeError, blocks
from workers.llvm.bitstream import Block
from workers.llvm.content import Stamp, open_file, stamp_of
from workers.llvm.index_shard import Index, read_index, rewrite_index
from workers.llvm.lld_line import LldLine
from workers.llvm.lto_flags import module_flag_names
from workers.llvm.thin_key import ShardSource
from workers.thin import ThinCompile, ThinLink
from workers.work import count

__all__ = ["LinkIndex", "ThinPlan", "shard_for", "shard_source", "uses_pic"]

_PIC_FLAG = b"PIC Level"


@define(eq=False, kw_only=True)
class ThinPlan:
    """One thin link, as its backend compiles need it.

    `argv` is lld's command line for it without an output, to be run in the line's directory. `paths` are the modules'
    files by name, `labels` short names of theirs by path, which sort as the paths do; `order` is lld's order of those
    that take part. `relocation` is as in `relocation_of`.
    """

    item: ThinLink
    line: LldLine
    argv: tuple[str, ...] = field(repr=count)
    paths: Mapping[str, Path] = field(repr=count)
    labels: Mapping[str, str] = field(repr=count)
    order: Mapping[str, int] = field(repr=count)
    names: Mapping[str, str] = field(repr=count)
    """Modules and objects by the paths that lld knows them by."""
    combined: Path
    relocation: str | None
    by_clang: bool
    """Whether clang may make objects: byte for byte lld's, and not slower."""
    again_seconds: float
    """What each run of lld is expected to take for doing the thin link again."""
    stamps: Mapping[str, Stamp] = field(repr=count)
    """Of the files that lld was given, by path."""
    warned: frozenset[str] = frozenset()
    """What lld has warned of already."""
    _index: LinkIndex | None = field(default=None, init=False, repr=False)
    _reading: trio.Lock = field(factory=trio.Lock, init=False, repr=False)

    async def index(self) -> LinkIndex:
        """What the combined index says, read once. Raises `ModuleError` where it is gone or damaged."""
        async with self._reading:
            if self._index is None:
                self._index = await trio.to_thread.run_sync(_read_link_index, self.combined, self.item.name)
            return self._index

    def changed(self, paths: Iterable[str] | None = None) -> str | None:
        """The name of a module or object that is not what the thin link saw; among `paths`, by default all.

        lld takes an empty file for a linker script and goes on without the module, and clang does not see whether what
        it imports from is what the shard was made of.
        """
        for path in self.stamps if paths is None else paths:
            try:
                same = stamp_of(path) == self.stamps[path]
            except OSError:
                same = False
            if not same:
                return self.names[path]
        return None


class LinkIndex:
    """The combined index, ready for questions."""

    def __init__(self, index: Index) -> None:
        local = {row.guid for row in index.summaries if row.dso_local}
        local -= {row.guid for row in index.summaries if not row.dso_local}
        self._uses: dict[bytes, dict[int, frozenset[int]]] = defaultdict(dict)
        """Of each definition, what it uses that the link defines itself."""
        for row, (path, guid) in zip(index.summaries, index.defined(), strict=True):
            self._uses[path][guid] = row.uses & local

    def missing(self, own: bytes, defined: Iterable[tuple[bytes, int]]) -> list[int]:
        """The symbols that a shard's modules refer to, the link defines itself, and the shard says nothing of.

        The shard is that of the module at path `own`, and says something of what is `defined`: paths of modules with
        GUIDs.
        """
        mine = self._uses.get(own, {})
        used: set[int] = set().union(*mine.values())
        told = set(mine)
        for path, guid in defined:
            used |= self._uses.get(path, {}).get(guid, frozenset())
            told.add(guid)
        return sorted(used - told)


def shard_for(compile_: ThinCompile, plan: ThinPlan, link_index: LinkIndex) -> tuple[bytes, Sequence[Path]]:
    """The shard for cc1, with paths that are file names, and the files of the modules that are imported from.

    Raises `ModuleError` where the shard is not this module's, or something that it needs cannot be read.
    """
    own = plan.paths[compile_.name]
    try:
        data = compile_.shard.read_bytes()
        index = read_index(data)
        row = index.module(str(own).encode("utf-8", "surrogateescape"))
        if row is None:
            raise ModuleError(compile_.name, "its index shard is another module's")
        labels = {module.id: plan.labels[module.file].encode() for module in index.modules}
        imports = [Path(module.file) for module in index.modules if module is not row]
        rewritten = rewrite_index(data, index.frame, labels, link_index.missing(row.path, index.defined()), row.id)
    except OSError as error:
        raise ModuleError(compile_.name, f"its index shard cannot be read: {error.strerror or error}") from error
    except BitcodeError as error:
        raise ModuleError(compile_.name, f"its index shard cannot be used: {error}") from error
    changed = plan.changed([str(own), *map(str, imports)])
    if changed is not None:
        raise ModuleError(compile_.name, f"the bitcode of {changed} was changed or removed after the thin link")
    return rewritten, imports


def shard_source(compile_: ThinCompile, plan: ThinPlan, link_index: LinkIndex) -> ShardSource:
    """The shard of one backend compile, for its key."""
    own = str(plan.paths[compile_.name])
    path = own.encode("utf-8", "surrogateescape")
    return ShardSource(
        compile_.name, own, compile_.shard, plan.names, lambda shard: link_index.missing(path, shard.defined())
    )


def uses_pic(module: Path) -> bool:
    """Whether a module was made to be position independent. Raises `ContentError`, `BitcodeError`.

    Nobody sets the flag to say no.
    """
    with open_file(module) as view:
        data = view[:]
    if _PIC_FLAG not in data:
        return False
    for cursor, block in blocks(data):
        if block.id == MODULE_BLOCK:
            nested = [item for item in cursor.items(block, frozenset()) if isinstance(item, Block)]
            if any(name == _PIC_FLAG for _, name in module_flag_names(data, cursor, nested)):
                return True
    return False


def _read_link_index(combined: Path, link: str) -> LinkIndex:
    try:
        return LinkIndex(read_index(combined.read_bytes()))
    except OSError as error:
        raise ModuleError(link, f"its index cannot be read: {error.strerror or error}") from error
    except BitcodeError as error:
        raise ModuleError(link, f"its index cannot be used: {error}") from error

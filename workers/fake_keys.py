"""Keys for what the fake backend makes, which depends on contents and on what is emitted.

A module that says `nokey` has none, and neither has what comes of it; with `warnkey` the user could mend that. With
`nolinkkey`, a link that it takes part in has none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import trio
from attrs import field, frozen

from workers.errors import ModuleError
from workers.fake import FakeBackend, says
from workers.fat import FatLink, FatPartition
from workers.ingredients import Ingredient, IngredientKind, Key, NoKey
from workers.store import Store
from workers.thin import ThinCompile, ThinLink
from workers.work import CodegenOptions, Link, NeedsFatLto, NeedsThinLto, Optimize

__all__ = ["FakeKeys", "KeyedFakeBackend"]


class KeyedFakeBackend(FakeBackend):
    """One whose results can be kept."""

    def keys(self, store: Store) -> FakeKeys:
        """The keys; nothing of them takes long to find out."""
        del store
        return FakeKeys(self)


@frozen
class _FakeKey(Key):
    """A key that knows the module's file, and what was in it."""

    file: tuple[Path, bytes] | None = field(default=None, repr=False, eq=False)


@frozen
class FakeKeys:
    """The keys of what `backend` makes; the contract is `workers.keys.Keys`'s."""

    backend: FakeBackend

    async def of_module(self, item: Optimize) -> Key | NoKey:
        """The key of what becomes of a module by itself."""
        await trio.lowlevel.checkpoint()
        try:
            content = self.backend.content(item.module)
        except ModuleError as error:
            return NoKey(error.message)
        file = (item.module.content, content) if isinstance(item.module.content, Path) else None
        kinds = _kinds(item.options) if item.pre_link is None else [item.pre_link.value]
        return _no_key(content) or _key(["module", kinds], {item.name: content}, file)

    async def of_thin_link(self, item: ThinLink) -> Key | NoKey:
        """The key of what was handed to a thin link."""
        await trio.lowlevel.checkpoint()
        files = [file for file in item.files if isinstance(file, NeedsThinLto)]
        return self._of_link(["thin link", item.local, item.exports, _kinds(item.options)], files)

    async def of_thin_compile(self, item: ThinCompile) -> Key | NoKey:
        """The key of a backend compile's outputs."""
        await trio.lowlevel.checkpoint()
        content = self.backend.passed(item.bitcode)
        return _no_key(content) or _key(["thin compile", _kinds(item.link.options)], {item.name: content})

    async def of_fat_link(self, item: FatLink) -> Key | NoKey:
        """The key of what was handed to a fat link."""
        await trio.lowlevel.checkpoint()
        files = [file for file in item.files if isinstance(file, NeedsFatLto)]
        return self._of_link(["fat link", item.partitions, item.exports, _kinds(item.options)], files)

    async def of_partition(self, partition: FatPartition) -> Key | NoKey:
        """The key of a partition's outputs."""
        await trio.lowlevel.checkpoint()
        content = self.backend.passed(partition.bitcode)
        return _no_key(content) or _key(["partition", _kinds(partition.link.options)], {partition.name: content})

    async def of_link(self, item: Link) -> Key | NoKey:
        """The key of what was handed to a final link."""
        await trio.lowlevel.checkpoint()
        contents = {file.module: file.path.read_bytes() for file in item.objects}
        if any(says(content, "nolinkkey") for content in contents.values()):
            return NoKey("an object says so")
        order = [(file.module, file.lazy) for file in item.objects]
        return _key(["link", item.link.kind.value, item.link.arguments, item.exports, order], contents)

    async def with_reads(self, link: Key, reads: bytes) -> Key | None:
        """The key of a link, when it reads what `reads` says; `None` if that is gone."""
        await trio.lowlevel.checkpoint()
        try:
            files = {name: Path(name).read_bytes() for name in json.loads(reads)}
        except OSError:
            return None
        with_files = _key([link.digest], files)
        return Key(with_files.digest, lambda: (*link.ingredients(), *with_files.ingredients()))

    def unchanged(self, key: Key) -> bool:
        """Whether the module's file is as it was then."""
        if not isinstance(key, _FakeKey) or key.file is None:
            return True
        path, content = key.file
        return path.is_file() and path.read_bytes() == content

    def _of_link(self, said: list[object], files: Iterable[NeedsThinLto | NeedsFatLto]) -> Key | NoKey:
        modules = {file.module: self.backend.passed(file.bitcode) for file in files}
        if any(says(content, "nolinkkey") for content in modules.values()):
            return NoKey("a module says so")
        return _key([*said, [(file.module, file.lazy) for file in files]], modules)


def _key(said: list[object], contents: Mapping[str, bytes], file: tuple[Path, bytes] | None = None) -> Key:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    text = json.dumps([said, list(digests.values())])
    made_of = tuple(Ingredient(IngredientKind.MODULE, name, digest) for name, digest in digests.items())
    return _FakeKey(hashlib.sha256(text.encode()).hexdigest(), lambda: made_of, file)


def _no_key(content: bytes) -> NoKey | None:
    if says(content, "warnkey"):
        return NoKey("it says so, and somebody could mend it", warn=True)
    return NoKey("it says so") if says(content, "nokey") else None


def _kinds(options: CodegenOptions) -> list[str]:
    return sorted(kind.value for kind in options.emit)

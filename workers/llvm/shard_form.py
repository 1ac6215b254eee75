"""The canonical form of a ThinLTO index shard: what a backend compile can learn from it, and nothing else.

Here belongs what makes two shards equal; what is done with the answer does not. Two compiles of the same module with
equal forms, by the same tool with the same options, give the same object. So a form

* names values by their GUIDs and modules by the digests of their bitcode. Numbers of values and paths are not in it:
  they only say which row is meant;
* keeps the order of the modules that are imported from, which is that of their paths. Backends import in this order,
  and nothing promises that it does not show in objects;
* keeps of each module its HASH, from which promoted names are made, unless it has nothing to be promoted;
* keeps every other record, with the values it names. Records whose order is an accident are sorted;
* has in addition the symbols that the compile is told to be local to the program (`LinkIndex.missing`).

A record that is not known, or not in a shard, is a `BitcodeError`: then there is no form, rather than a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized

from attrs import field, frozen

from workers.llvm.bitstream import BitcodeError
from workers.llvm.index_shard import IndexedModule, index_frame
from workers.llvm.shard_rows import Definition, Summaries

__all__ = ["Shard", "joined", "read_shard"]

_FORMAT = b"shard form 2\n"


def _count(rows: Sized) -> str:
    return f"<{len(rows)}>"


@frozen
class Shard:
    """A shard, as the backend compile of the module `own` reads it.

    `definitions` are in ascending order; their places count from the module itself, 0, on through `imports`.
    """

    own: IndexedModule
    imports: tuple[IndexedModule, ...] = field(repr=_count)
    definitions: tuple[Definition, ...] = field(repr=_count)
    settings: tuple[bytes, ...] = field(repr=_count)
    """What is said of the whole index."""
    types: Mapping[bytes, bytes] = field(repr=_count)
    """What is said of type identifiers, by name."""
    values: tuple[bytes, ...] = field(repr=_count)
    """The GUIDs of all that is defined or used."""

    def defined(self) -> Iterator[tuple[bytes, int]]:
        """The path of its module and the GUID of every definition."""
        modules = (self.own, *self.imports)
        for row in self.definitions:
            yield modules[row.place].path, int.from_bytes(row.guid, "little")

    def form(
        self, digests: Mapping[str, str], local: Iterable[int] = (), as_imports: Mapping[str, str] | None = None
    ) -> bytes:
        """The canonical form, to be hashed.

        `digests` are of the bitcode of all modules, by path; `local` the GUIDs of the symbols that the compile is told
        to be local to the program. `as_imports` has, for modules of which not all matters to who imports from them,
        what `import_digest` gives. Raises `BitcodeError` where a module has no digest.
        """
        known = as_imports or {}
        modules = [
            f"{_digest(digests, module)} {module.hash}".encode()
            if module is self.own or module.file not in known
            else f"import {known[module.file]}".encode()
            for module in (self.own, *self.imports)
        ]
        told = [b"%d" % guid for guid in sorted(set(local))]
        types = [joined(pair) for pair in sorted(self.types.items())]
        rows = [row.text() for row in self.definitions]
        return _FORMAT + b"".join(map(joined, (modules, told, self.settings, types, self.values, rows)))


def read_shard(data: bytes, own: bytes) -> Shard:
    """Read the shard of the module at path `own`, spelled as in the shard.

    Raises `BitcodeError`: it is damaged, has something unknown, or is another module's.
    """
    frame = index_frame(data)
    mine = [module for module in frame.modules if module.path == own]
    if len(mine) != 1:
        raise BitcodeError("it is another module's")
    imports = tuple(module for module in frame.modules if module.path != own)
    summaries = Summaries([module.id for module in (*mine, *imports)], frame.strings)
    summaries.read(data, frame.summaries)
    return Shard(
        own=mine[0],
        imports=imports,
        definitions=tuple(sorted(summaries.definitions)),
        settings=tuple(sorted(summaries.settings)),
        types=summaries.types,
        values=tuple(sorted(summaries.values)),
    )


def joined(rows: Iterable[bytes]) -> bytes:
    """One text of `rows`, which no other rows have."""
    rows = list(rows)
    return b"%d rows\n" % len(rows) + b"".join([b"%d:%b" % (len(row), row) for row in rows])


def _digest(digests: Mapping[str, str], module: IndexedModule) -> str:
    digest = digests.get(module.file)
    if digest is None:
        raise BitcodeError(f"it names a module that is not known: {module.file}")
    return digest

"""What of a backend compile's key comes from the thin link, and how to tell it to people.

A shard's canonical form is what goes into the key. Here belongs saying the same in terms of modules and symbols:
ingredients, which differ whenever forms do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

from workers.errors import ModuleError
from workers.ingredients import Ingredient, IngredientKind
from workers.llvm.index_shard import guid_of
from workers.llvm.shard_form import Shard, joined, read_shard
from workers.llvm.shard_rows import Definition

__all__ = ["ShardFacts", "ShardSource", "shard_facts"]

# As `llvm::GlobalValue::LinkageTypes` counts.
_EXTERNAL, _AVAILABLE_EXTERNALLY, _INTERNAL, _PRIVATE = 0, 1, 7, 8
_LINKAGES = {0: "external", 2: "linkonce", 3: "linkonce_odr", 4: "weak", 5: "weak_odr", 6: "appending"}
_LINKAGES |= {1: "defined elsewhere", 9: "extern_weak", 10: "common"}
_TOLD_FLAGS = 0xF | 0x20
"""Linkage and liveness."""
_TOLD_NATURE = 0x3
"""Of a variable that is no constant: whether it is written and read."""

# What the link knows of these is in ingredients of the kind `SUMMARY`, under these names: records have them.
_FUNCTIONS, _VARIABLES, _IMPORTS = "its functions", "its variables", "its imports"
_OTHERS, _TYPES, _WHOLE = "other modules' symbols", "types", "the whole program"

Names = Callable[[str], Mapping[int, str]]


@frozen
class ShardSource:
    """Where the shard of the module `name` is, and what is known of it besides.

    `own` is the module's path, spelled as in the shard; `names` are those of all modules, by path. `local` gives the
    GUIDs of the symbols that the compile is told to be local to the program, if it is told of any.
    """

    name: str
    own: str
    path: Path
    names: Mapping[str, str] = field(repr=lambda names: str(len(names)))
    local: Callable[[Shard], Sequence[int]] = field(default=lambda _: (), repr=False)
    as_imports: Mapping[str, str] = field(factory=dict, repr=False)
    """What `import_digest` gives for modules, by path, where it gives anything."""

    def read(self) -> tuple[Shard, Sequence[int]]:
        """The shard, and the symbols that are local. Raises `ModuleError`, `BitcodeError`."""
        try:
            shard = read_shard(self.path.read_bytes(), self.own.encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise ModuleError(self.name, f"its index shard cannot be read: {error.strerror or error}") from error
        return shard, self.local(shard)


@frozen
class ShardFacts:
    """What the shard of one backend compile says, and what the compile is told besides."""

    form_digest: str
    """SHA-256 of the canonical form: equal ones mean equal objects, where all else is equal."""
    files: tuple[str, ...] = field(repr=False)
    """The module and those that it imports from, by path."""
    _source: ShardSource = field(repr=False)
    _digests: Mapping[str, str] = field(repr=False)
    _kept: tuple[Shard, Sequence[int]] | None = field(repr=False, eq=False)

    @property
    def kept(self) -> int:
        """How many definitions are kept."""
        return 0 if self._kept is None else len(self._kept[0].definitions)

    def ingredients(self, name_of: Names) -> tuple[Ingredient, ...]:
        """What the form is made of; forms that differ have ingredients that differ, in whichever order.

        `name_of` gives the names of a module's values, by GUID, for the path of its file. A link knows more than can be
        told of single symbols: that is in several `SUMMARY` ingredients, whose names say what it is about. A shard that
        is not kept is read again, for many at a time take much memory. Raises what `shard_facts` does.
        """
        shard, local = self._kept or self._source.read()
        as_imports = self._source.as_imports
        if self._kept is None and _digest(shard.form(self._digests, local, as_imports)) != self.form_digest:
            raise ModuleError(self._source.name, "its index shard was changed after the thin link")
        places: list[list[Definition]] = [[] for _ in range(len(shard.imports) + 1)]
        for row in shard.definitions:
            places[row.place].append(row)
        own, *others = places
        known = name_of(shard.own.file)
        names = _texts(own, known)
        resolved = [(names[row.guid], *_resolution(row, known)) for row in own]
        exports = sorted(name for name, is_exported, _ in resolved if is_exported)
        symbols = sorted((name, words) for name, _, words in resolved if words)
        imports = [
            self._imported(module.file, rows, name_of) for module, rows in zip(shard.imports, others, strict=True)
        ]
        by_name = sorted(range(len(imports)), key=lambda place: _all_of(imports[place]))
        imported = [row.text() for rows in others for row in rows]
        hashed = [module for module in shard.imports if module.file not in as_imports]
        hashes = [b"%d" % word for module in hashed for word in (len(module.hash), *module.hash)]
        summaries = {
            _FUNCTIONS: [_untold(row) for row in own if not row.is_variable],
            _VARIABLES: [_untold(row) for row in own if row.is_variable],
            _IMPORTS: [joined(b"%d" % place for place in by_name), joined(hashes), joined(imported)],
            _OTHERS: [joined(b"%d" % guid for guid in local), joined(shard.values)],
            _TYPES: [joined(pair) for pair in sorted(shard.types.items())],
            _WHOLE: [*shard.settings, joined(b"%d" % word for word in shard.own.hash)],
        }
        name = self._source.name
        return (
            Ingredient(IngredientKind.MODULE, name, self._digests[shard.own.file]),
            *(imports[place] for place in by_name),
            Ingredient(IngredientKind.EXPORT, name, symbols=tuple(exports)),
            *(Ingredient(IngredientKind.SYMBOL, symbol, words) for symbol, words in symbols),
            *(
                Ingredient(IngredientKind.SUMMARY, about, _digest(joined(told)))
                for about, told in summaries.items()
                if told
            ),
        )

    def _imported(self, path: str, rows: Sequence[Definition], name_of: Names) -> Ingredient:
        symbols = tuple(sorted(_texts(rows, name_of(path)).values()))
        digest = self._source.as_imports.get(path, self._digests[path])
        return Ingredient(IngredientKind.IMPORT, self._source.names[path], digest, symbols)


def shard_facts(source: ShardSource, digests: Mapping[str, str], room: int = 0) -> ShardFacts:
    """What the shard says; `digests` are SHA-256 of the modules' files, by path.

    What is read is kept if it has no more definitions than `room`; one takes 300 bytes.

    Raises `ModuleError` where it cannot be read, and `BitcodeError` where it is not understood, so that nobody knows
    whether it says the same as another.
    """
    shard, local = source.read()
    files = tuple(module.file for module in (shard.own, *shard.imports))
    kept = (shard, local) if len(shard.definitions) <= room else None
    return ShardFacts(_digest(shard.form(digests, local, source.as_imports)), files, source, digests, kept)


def _texts(rows: Sequence[Definition], known: Mapping[int, str]) -> dict[bytes, str]:
    """What to call the values that are defined, one by one, even where their module has two of one name."""
    numbers = {row.guid: int.from_bytes(row.guid, "little") for row in rows}
    texts = {guid: known.get(number, f"symbol {number:016x}") for guid, number in numbers.items()}
    if len(set(texts.values())) < len(texts):
        texts = {guid: f"{text} ({numbers[guid]:016x})" for guid, text in texts.items()}
    return texts


def _resolution(row: Definition, known: Mapping[int, str]) -> tuple[bool, str]:
    """Whether others can see a symbol, and what else the link found out about it, '' for nothing of note.

    One that its module keeps to itself is given away by its GUID, which is not of its name alone. Where others import
    something that uses it, it gets another name and is seen; for LLVM it is available externally then.
    """
    number = int.from_bytes(row.guid, "little")
    name = known.get(number)
    is_static = name is not None and guid_of(name) != number
    simply = _AVAILABLE_EXTERNALLY if is_static else _EXTERNAL
    linkage = row.linkage
    is_exported = linkage not in (_INTERNAL, _PRIVATE) and (is_static or linkage != _AVAILABLE_EXTERNALLY)
    words = [] if row.is_live else ["dead"]
    if linkage not in (_INTERNAL, _PRIVATE, simply):
        words.append(_LINKAGES.get(linkage, f"linkage {linkage}"))
    if row.is_never_written:
        words.append("never written")
    if row.is_never_read:
        words.append("never read")
    return is_exported, ", ".join(words)


def _untold(row: Definition) -> bytes:
    """All of a definition but what `_resolution` says."""
    flags = row.flags & ~_TOLD_FLAGS | (_PRIVATE if row.linkage == _PRIVATE else 0)
    nature = row.nature & ~_TOLD_NATURE if row.is_variable and not row.is_constant else row.nature
    return row._replace(flags=flags, nature=nature).text()


def _all_of(ingredient: Ingredient) -> tuple[str, str, tuple[str, ...]]:
    return ingredient.name, ingredient.value, ingredient.symbols


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()

"""The keys of LLVM's results: digests of everything that a result follows from, and of nothing else.

That is the tools, what they are told, and what they read; never a path, a time or a name of this machine's. Where
something is not known to be safe there is no key. Here the parts come together: `identity` says what the tools are,
`thin_key`, `fat_key` and `link_key` what LTO knows of a module's surroundings, `link_words` and `cc1_words` what of the
tools' arguments matters.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import trio
from attrs import define, field, frozen

from workers.digests import Digests, Witness
from workers.errors import ModuleError, RequestError
from workers.fat import FatLink, FatPartition
from workers.ingredients import Ingredient, IngredientKind, Key, NoKey
from workers.llvm.bitcode import BitcodeError
from workers.llvm.cc1_words import unknown_word
from workers.llvm.choice import choose, own_triple
from workers.llvm.content import open_file
from workers.llvm.fat_key import partition_key, reduce_partition
from workers.llvm.form import Form
from workers.llvm.identity import Identity, IdentityError, llvmlite_identity, ltod_identity, program_identity
from workers.llvm.inputs import llvm_content
from workers.llvm.irsymtab import value_names
from workers.llvm.key_options import given_options, option_ingredients
from workers.llvm.link_driver import DriverError
from workers.llvm.link_key import LinkInput, LinkReads, first_key, line_words, second_key
from workers.llvm.link_words import LinkWords, code_words, divided, expanded
from workers.llvm.lld_line import LldLine, LldLines
from workers.llvm.planner import Planner
from workers.llvm.pre_link import is_as_is
from workers.llvm.thin_key import shard_facts
from workers.llvm.thin_plan import ThinPlan, shard_source
from workers.llvm.toolchain import Toolchain
from workers.llvm.toolchain_engine import forms_of
from workers.store import Store
from workers.thin import ThinCompile, ThinLink
from workers.work import (
    CodegenOptions,
    Engine,
    Link,
    LinkFile,
    LinkKind,
    NeedsFatLto,
    NeedsThinLto,
    Optimize,
    Step,
)

__all__ = ["LlvmKeys"]

_FORMAT = 1
"""Of keys. Another one makes misses of all that was kept."""


@frozen
class _LlvmKey(Key):
    """A key that knows the files that it was made of."""

    witnesses: tuple[Witness, ...] = field(default=(), repr=False, eq=False)


@frozen
class _LinkKey(_LlvmKey):
    """The key of what a link is given, which is done in `directory`."""

    directory: Path = field(default=Path(), repr=False, eq=False)


@define(eq=False)
class _ThinParts:
    """What the keys of all backend compiles of one thin link have in common; `modules` are by path."""

    made_of: dict[str, Any]
    ingredients: tuple[Ingredient, ...]
    tools: dict[str, Identity]
    files: list[Witness]
    modules: dict[str, Witness]
    digests: dict[str, str]
    """Of modules, by path."""
    _names: dict[str, dict[int, str]] = field(factory=dict, init=False)

    def names(self, path: str) -> dict[int, str]:
        """The names of a module's values, by GUID. Raises `BitcodeError`, `ContentError`."""
        if path not in self._names:
            with open_file(Path(path)) as view:
                self._names[path] = value_names(view)
        return self._names[path]


class _NoKeyError(Exception):
    """There is none; `args` are those of `NoKey`."""


class LlvmKeys:
    """Keys for what the LLVM backend makes; the contract is `workers.keys.Keys`'s. Belongs to one trio run."""

    def __init__(
        self,
        toolchain: Toolchain,
        planner: Planner,
        lines: LldLines,
        scratch: Path,
        llvmlite_bytes: int,
        store: Store,
    ) -> None:
        self._toolchain = toolchain
        self._planner = planner
        self._lines = lines
        self._scratch = scratch
        self._llvmlite_bytes = llvmlite_bytes
        self._digests = Digests(store, scratch)
        self._thin_parts: WeakKeyDictionary[ThinPlan, _ThinParts] = WeakKeyDictionary()

    async def of_module(self, item: Optimize) -> Key | NoKey:
        """The key of what becomes of a module by itself."""
        if item.pre_link is not None and is_as_is(item.pre_linked, item.options):
            return NoKey("it is prepared for LTO, and taken as it is")
        try:
            return await self._module(item)
        except _NoKeyError as error:
            return NoKey(*error.args)
        except (ModuleError, RequestError, OSError) as error:
            return NoKey(f"its key cannot be told: {error}")

    async def of_thin_link(self, item: ThinLink) -> Key | NoKey:
        """The key of what was handed to a thin link."""
        ranked = sorted(range(len(item.files)), key=lambda place: _shown(item.files[place]))
        how = Ingredient(IngredientKind.OPTION, "--lto", "thin-local" if item.local else "thin")
        # Names are compared, and in their order a module imports.
        order = Ingredient(IngredientKind.SUMMARY, "the order of its modules", _digest(ranked))
        return await self._link(Step.THIN_LINK, item, (how, order))

    async def of_thin_compile(self, item: ThinCompile) -> Key | NoKey:
        """The key of a backend compile's outputs."""
        try:
            return await self._thin_compile(item)
        except _NoKeyError as error:
            return NoKey(*error.args)
        except (BitcodeError, ModuleError, RequestError, OSError) as error:
            return NoKey(f"its key cannot be told: {error}")

    async def of_fat_link(self, item: FatLink) -> Key | NoKey:
        """The key of what was handed to a fat link."""
        parts = "" if item.partitions is None else str(item.partitions)
        how = Ingredient(IngredientKind.OPTION, "--lto", "fat")
        return await self._link(
            Step.FAT_LINK, item, (how, Ingredient(IngredientKind.OPTION, "--fat-partitions", parts))
        )

    async def of_partition(self, partition: FatPartition) -> Key | NoKey:
        """The key of a partition's outputs; what nothing in it uses is taken out of its bitcode."""
        try:
            tools = await self._tools()
        except _NoKeyError as error:
            return NoKey(*error.args)
        digest = await reduce_partition(partition, self._toolchain, self._scratch)
        if digest is None:
            return NoKey("its bitcode cannot be read")
        options = partition.link.options
        said = option_ingredients(given_options(options), sorted(kind.value for kind in options.emit))
        key = partition_key(partition, digest, (*self._tool_ingredients(tools), *said))
        return key if isinstance(key, NoKey) else _LlvmKey(key.digest, key.ingredients, _witnesses(tools))

    async def of_link(self, item: Link) -> Key | NoKey:
        """The key of what was handed to a final link.

        It tells where files are: a library that has no name of its own is known by its path in what is linked, and
        linker scripts choose files by their paths.
        """
        if item.link.kind is LinkKind.STATIC:
            return NoKey("a static library is made as quickly as it could be compared")
        try:
            paths = [_path_of(file) for file in item.objects]
            line = await self._lines.line(item.link, item.exports, paths, item.options, item.target)
            words = line_words(line, final=True)
            if words.problem is not None:
                return NoKey(words.problem)
            places = [
                str(line.directory),
                [[str(path), file.module in item.from_lto] for path, file in zip(paths, item.objects, strict=True)],
                [path for _, path in words.files if self._scratch not in Path(path).parents],
            ]
            more = (
                # A library's first version is called after its file.
                Ingredient(IngredientKind.SUMMARY, "the name of what is linked", item.name),
                Ingredient(IngredientKind.SUMMARY, "the places of its files", _digest(places)),
            )
            return await self._line(Step.LINK, line, words, item.objects, more)
        except _NoKeyError as error:
            return NoKey(*error.args)
        except (DriverError, OSError) as error:
            return NoKey(f"its key cannot be told: {error}")

    async def with_reads(self, link: Key, reads: bytes) -> Key | None:
        """The key of a link, when it reads what `reads` says."""
        found = LinkReads.from_bytes(reads)
        if not isinstance(link, _LinkKey) or found is None or not found.holds(link.directory):
            return None
        try:
            witnesses = [await self._digests.of(path) for path in found.paths(link.directory)]
        except OSError:
            return None
        if not all(witness.settled for witness in witnesses):
            return None  # it may have been another file when the link read it
        full = second_key(link, found, [witness.digest for witness in witnesses])
        return _LlvmKey(full.digest, full.ingredients, (*link.witnesses, *witnesses))

    def unchanged(self, key: Key) -> bool:
        """Whether the files that a key was made of are what they were."""
        return isinstance(key, _LlvmKey) and all(witness.holds() for witness in key.witnesses)

    async def _module(self, item: Optimize) -> Key:
        options = item.options
        if options.print_passes:
            raise _NoKeyError("its passes are to be reported, so it is compiled")
        triple = options.target_triple or own_triple(item.target.triple)
        engine = choose(self._llvmlite_bytes, item.size, triple, options, item.pre_link)
        content = llvm_content(item.module)
        witnesses: list[Witness] = []
        if isinstance(content, Path):
            witnesses.append(await self._digests.of(content))
            digest = witnesses[0].digest
        else:
            digest = await trio.to_thread.run_sync(lambda: hashlib.sha256(content).hexdigest())
        tools = await self._tools(engine)
        words = [
            list(await self._plan_words(triple, options, form))
            for form in (forms_of(triple, options, item.pre_link) if engine is Engine.TOOLCHAIN else ())
        ]
        profile = []
        if options.profile_use is not None:
            profile = [await self._digests.of(options.profile_use)]
        witnesses += profile
        said = given_options(options)
        kinds = sorted(kind.value for kind in options.emit) if item.pre_link is None else [item.pre_link.value]
        made_of = {
            "step": item.pre_link.value if item.pre_link is not None else "codegen",
            "tools": {name: identity.digest for name, identity in tools.items()},
            "engine": engine.value,
            "triple": triple,
            "words": words,
            "options": said,
            "kinds": kinds,
            "profile": [one.digest for one in profile],
            "content": digest,
            # What becomes of it depends on where it came from, for lld, too.
            "prepared": item.pre_linked is not None,
        }

        def ingredients() -> tuple[Ingredient, ...]:
            return (
                *self._tool_ingredients(tools),
                *option_ingredients(said, kinds),
                *(Ingredient(IngredientKind.FILE, "profile", one.digest) for one in profile),
                Ingredient(IngredientKind.MODULE, item.name, digest),
            )

        return self._key(made_of, ingredients, tools, witnesses)

    async def _thin_compile(self, item: ThinCompile) -> Key:
        plan: ThinPlan = item.link
        parts = self._thin_parts.get(plan)
        if parts is None:
            parts = self._thin_parts[plan] = await self._parts_of_thin(plan)
        facts = shard_facts(shard_source(item, plan, await plan.index()), parts.digests)
        made_of = {**parts.made_of, "form": facts.form_digest}

        def ingredients() -> tuple[Ingredient, ...]:
            return (*parts.ingredients, *facts.ingredients(parts.names))

        witnesses = [parts.modules[path] for path in facts.files]
        return self._key(made_of, ingredients, parts.tools, (*witnesses, *parts.files))

    async def _parts_of_thin(self, plan: ThinPlan) -> _ThinParts:
        """What the keys of all backend compiles of a link have in common."""
        item, options = plan.item, plan.item.options
        if options.print_passes:
            raise _NoKeyError("its passes are to be reported, so it is compiled")
        tools = await self._tools()
        words = code_words(expanded((*plan.line.head, *plan.line.tail), plan.line.directory))
        if words.problem is not None:
            raise _NoKeyError(words.problem, True)
        files = [await self._digests.of(plan.line.directory / path) for path in words.files]
        modules = {str(path): await self._digests.of(path) for path in plan.paths.values()}
        said, kinds = given_options(options), sorted(kind.value for kind in options.emit)
        triple = options.target_triple or item.target.triple
        made_of = {
            "step": "thin-backend",
            "tools": {name: identity.digest for name, identity in tools.items()},
            "triple": triple,
            "options": said,
            "kinds": kinds,
            "words": words.words,
            "files": [one.digest for one in files],
            "relocation": plan.relocation,
            "local": item.local,
            # What one asks the other for, and what a CPU's name means here.
            "clang": await self._plan_words(triple, options, Form.CODE)
            if kinds != ["obj"] or options.target_cpu
            else [],
        }
        ingredients = (
            *self._tool_ingredients(tools),
            *option_ingredients(said, kinds),
            *(Ingredient(IngredientKind.OPTION, *divided(word)) for word in words.words),
            *(Ingredient(IngredientKind.FILE, Path(one.path).name, one.digest) for one in files),
        )
        digests = {path: witness.digest for path, witness in modules.items()}
        return _ThinParts(made_of, ingredients, tools, files, modules, digests)

    async def _link(self, step: Step, item: ThinLink | FatLink, more: Sequence[Ingredient]) -> Key | NoKey:
        options = item.options
        if options.print_passes:
            return NoKey("its passes are to be reported, so it is done")
        try:
            paths = [_path_of(file) for file in item.files]
            line = await self._lines.line(item.link, item.exports, paths, options, item.target)
            triple = options.target_triple or item.target.triple
            cpu = await self._plan_words(triple, options, Form.CODE) if options.target_cpu else ()
            kinds = sorted(kind.value for kind in options.emit)
            said = (
                *option_ingredients(given_options(options), kinds),
                *(Ingredient(IngredientKind.OPTION, word) for word in cpu),
                *more,
            )
            return await self._line(step, line, line_words(line), item.files, said)
        except _NoKeyError as error:
            return NoKey(*error.args)
        except (DriverError, RequestError, OSError) as error:
            return NoKey(f"its key cannot be told: {error}")

    async def _line(
        self,
        step: Step,
        line: LldLine,
        words: LinkWords,
        files: Sequence[NeedsThinLto | NeedsFatLto | LinkFile],
        more: Sequence[Ingredient],
    ) -> Key | NoKey:
        """The key of a link of `files` with `line`, whose `words` matter. Raises `OSError`, `_NoKeyError`."""
        named = [await self._digests.of(line.directory / path) for _, path in words.files]
        own = [await self._digests.of(_path_of(file)) for file in files]
        tools = await self._tools()
        given = [
            LinkInput(_name_of(file), witness.digest, file.lazy, isinstance(file, LinkFile) and file.given)
            for file, witness in zip(files, own, strict=True)
        ]
        by_path = {path: witness.digest for (_, path), witness in zip(words.files, named, strict=True)}
        first = first_key(step, line, words, given, by_path, (*self._tool_ingredients(tools), *more))
        if isinstance(first, NoKey):
            return first
        return _LinkKey(first.digest, first.ingredients, (*_witnesses(tools), *named, *own), line.directory)

    async def _plan_words(self, triple: str, options: CodegenOptions, form: Any) -> Sequence[str]:
        """What clang is told. Raises `RequestError`, `_NoKeyError`."""
        plan = await self._planner.plan(triple, options, form)
        word = unknown_word(plan.arguments)
        if word is not None:
            raise _NoKeyError(f"clang's driver asks for {word}, of which it is not known what it depends on", True)
        return plan.arguments

    async def _tools(self, engine: Engine = Engine.TOOLCHAIN) -> dict[str, Identity]:
        """What makes things. Raises `_NoKeyError`."""
        lld = self._toolchain.lld
        programs = {"clang": self._toolchain.clang[0], **({} if lld is None else {"ld.lld": lld[0]})}
        try:
            tools = {
                name: await program_identity(Path(program), self._scratch, self._digests)
                for name, program in programs.items()
            }
            if engine is Engine.LLVMLITE:
                tools["llvmlite"] = await llvmlite_identity(self._digests)
        except IdentityError as error:
            raise _NoKeyError(str(error), True) from error
        return tools

    def _tool_ingredients(self, tools: dict[str, Identity]) -> Iterable[Ingredient]:
        version = ".".join(map(str, self._toolchain.version))
        for name, identity in tools.items():
            yield Ingredient(IngredientKind.COMPILER, name, f"{version} {identity.digest}")
        yield Ingredient(IngredientKind.COMPILER, "ltod", ltod_identity())

    def _key(
        self,
        made_of: dict[str, Any],
        ingredients: Callable[[], tuple[Ingredient, ...]],
        tools: dict[str, Identity],
        witnesses: Iterable[Witness],
    ) -> Key:
        text = json.dumps({"format": _FORMAT, "ltod": ltod_identity(), **made_of}, sort_keys=True)
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
        return _LlvmKey(digest, ingredients, (*_witnesses(tools), *witnesses))


def _witnesses(tools: Mapping[str, Identity]) -> tuple[Witness, ...]:
    return tuple(witness for identity in tools.values() for witness in identity.witnesses)


def _path_of(file: NeedsThinLto | NeedsFatLto | LinkFile) -> Path:
    return (file.path if isinstance(file, LinkFile) else file.bitcode).absolute()


def _name_of(file: NeedsThinLto | NeedsFatLto | LinkFile) -> str:
    """What a file is called, wherever it is."""
    return Path(file.module).name if isinstance(file, LinkFile) and file.given else file.module


def _shown(file: NeedsThinLto | LinkFile) -> bytes:
    """What a linker knows a file by."""
    return os.fsencode(file.module if isinstance(file, LinkFile) else file.origin or file.module)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode("ascii")).hexdigest()

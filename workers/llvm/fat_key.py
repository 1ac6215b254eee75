"""Keys of the parts of a program that went through fat LTO.

LLVM declares everything of the program in each of its parts, so a function more, or an attribute, anywhere in the
program changes them all. What nothing in a part uses has no bearing upon its code; lld leaves it out when it reads a
part. So a part is taken through lld once for that alone, and what comes out is both what the key is made of and what
code is generated for: the key knows all that the compiler sees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import trio

from workers.action import Action, run
from workers.errors import InternalError
from workers.fat import FatPartition
from workers.ingredients import Ingredient, IngredientKind, Key, NoKey
from workers.llvm.bitcode import BitcodeError, is_complete
from workers.llvm.content import ContentError, open_file
from workers.llvm.fat_codegen import FatProgram
from workers.llvm.fat_options import lto_options
from workers.llvm.fat_pipeline import level_options
from workers.llvm.fat_symbols import hidden_names, promoted
from workers.llvm.link_words import code_words, divided
from workers.llvm.toolchain import Toolchain
from workers.placing import place
from workers.work import Step

__all__ = ["partition_key", "reduce_partition"]

_INPUT, _OUTPUT = "part.bc", "reduced.bc"
_NOTHING = "no-op-module"
_SECONDS = 600.0


async def reduce_partition(partition: FatPartition, toolchain: Toolchain, scratch: Path) -> str | None:
    """Take what nothing uses out of a part's bitcode, in its place. Gives SHA-256 of what is there then.

    Where lld fails, all stays as it is: who generates code will say why. `None` if the part cannot be read. Doing it
    again changes nothing.
    """
    program = _program(partition)
    if toolchain.lld is None:
        raise InternalError("a part of a program without ld.lld: it was made by one")
    argv = (*toolchain.lld, "-r", "--no-dependent-libraries", "--threads=1", "--disable-verify", "--lto-emit-llvm")
    action = Action(
        argv=(*argv, f"--lto-newpm-passes={_NOTHING}", "-o", _OUTPUT, _INPUT),
        inputs={_INPUT: partition.bitcode},
        outputs=(_OUTPUT,),
        time_limit=min(_SECONDS, program.time_limit),
        memory_limit=program.options.memory_limit,
    )
    try:
        if program.names is not None:  # else it is the whole program, in which all is used
            async with run(action, scratch) as result:
                written = result.directory / _OUTPUT
                if result.succeeded and not result.stderr and _is_whole(written):
                    place(written, partition.bitcode)
        return await trio.to_thread.run_sync(_digest, partition.bitcode)
    except (ContentError, OSError):
        return None


def partition_key(partition: FatPartition, digest: str, more: Sequence[Ingredient]) -> Key | NoKey:
    """The key of what a part's code generation makes; `digest` is from `reduce_partition`, `more` says what lld is."""
    program = _program(partition)
    options = program.options
    if options.print_passes:
        return NoKey("passes are to be printed")
    words = code_words(program.arguments)
    problem = words.problem or (f"what is in {words.files[0]} is not known" if words.files else None)
    if problem is not None:
        return NoKey(problem, warn=True)
    try:
        with open_file(partition.bitcode) as view:
            changing = frozenset() if program.names is None else promoted(hidden_names(view), program.names)
    except (BitcodeError, ContentError) as error:
        return NoKey(f"its bitcode cannot be read: {error}")
    suffix = program.names.suffix if program.names is not None and changing else b""
    names = hashlib.sha256(b"\0".join((suffix, *sorted(changing)))).hexdigest()
    # What follows from the options is in the key, and says nothing more to people.
    follows = frozenset(code_words((*lto_options(options), *level_options(options.opt_level))).words)
    ingredients = (
        *more,
        *(Ingredient(IngredientKind.OPTION, *divided(word)) for word in words.words if word not in follows),
        Ingredient(IngredientKind.MODULE, partition.name, digest),
        Ingredient(IngredientKind.SUMMARY, "names of what was local in the program", names),
    )
    rows = [[one.kind.value, one.name, one.value] for one in ingredients if one.kind is not IngredientKind.MODULE]
    kinds = sorted(kind.value for kind in options.emit)
    told = [words.words, program.pipeline, kinds, program.triple]
    text = json.dumps([Step.FAT_CODEGEN.value, digest, rows, told])
    return Key(hashlib.sha256(text.encode("ascii")).hexdigest(), lambda: ingredients)


def _program(partition: FatPartition) -> FatProgram:
    if not isinstance(partition.link, FatProgram):
        raise InternalError(f"{partition.name} is a partition of another backend")
    return partition.link


def _is_whole(path: Path) -> bool:
    with open_file(path) as view:
        return is_complete(view)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""From options to what ld.lld is told in a fat link, and in the code generation of its parts. Pure.

Both steps get the same, so that code is generated as one run of lld would have generated it. lld is the measure: its
own defaults hold for what the options leave open, and functions say themselves which CPU and size they are for.
"""

from __future__ import annotations

from collections.abc import Iterable

from workers.llvm.lld_line import LldLine
from workers.work import CodegenOptions, LinkKind, LinkOptions, OptLevel, RelocationModel

__all__ = ["lto_options", "own_options", "partition_count", "relocation_options"]

_LEVEL = {OptLevel.SIZE: "2", OptLevel.MIN_SIZE: "2"}
"""As clang's driver has it: what is for size is written on the functions."""

_PARTITION_BYTES = 192 * 1024
_MOST_PARTITIONS = 32

_LLVM_OPTION = frozenset({"-mllvm", "--mllvm"})
_LTO_PREFIXES = (
    "-mllvm=",
    "--mllvm=",
    "-plugin-opt=",
    "--plugin-opt=",
    "--lto-CGO",
    "--lto-basic-block-",
    "--lto-unique-basic-block-",
    "--no-lto-basic-block-",
    "--no-lto-unique-basic-block-",
)
"""lld's options that bear upon code generation, and may stand in a link's own arguments."""


def partition_count(code_bytes: int) -> int:
    """In how many parts a program with that many bytes of functions is best split, whatever machine it is on.

    A part costs 20 to 40 milliseconds for its process and for declarations that all parts have. Parts of this size take
    0.7 s at -O2, in which that is lost, and even a program of 1 MB keeps five CPUs busy; two parts, which would do for
    two CPUs, differ by up to a quarter, for LLVM assigns functions by a hash of their names. Each part is cut out of
    the program on one CPU while the others wait, which is why there is a limit.
    """
    return max(1, min(_MOST_PARTITIONS, round(code_bytes / _PARTITION_BYTES)))


def lto_options(options: CodegenOptions) -> tuple[str, ...]:
    """What both steps are told."""
    level = _LEVEL.get(options.opt_level, options.opt_level.value)
    arguments = [f"--lto-O{level}", "--disable-verify", "--threads=1"]
    if options.target_cpu is not None:
        arguments.append(f"--plugin-opt=mcpu={options.target_cpu}")
    if options.target_features:
        arguments.append(f"--mllvm=-mattr={','.join(options.target_features)}")
    if options.code_model is not None:
        arguments.append(f"--mllvm=-code-model={options.code_model.value}")
    if options.vectorize_loops is False:
        arguments.append("--mllvm=-vectorize-loops=false")
    if options.vectorize_slp is False:
        arguments.append("--mllvm=-vectorize-slp=false")
    if options.print_passes:
        arguments.append("--lto-debug-pass-manager")
    return tuple(arguments)


def own_options(line: LldLine) -> tuple[str, ...]:
    """What a link's own arguments say about code generation: the merge has it from the line."""
    found: list[str] = []
    words = iter((*line.head, *line.tail))
    for word in words:
        if word in _LLVM_OPTION:
            found += [word, next(words, "")]
        elif word.startswith(_LTO_PREFIXES):
            found.append(word)
    return tuple(found)


def relocation_options(options: CodegenOptions, link: LinkOptions | None, line: LldLine) -> tuple[str, ...]:
    """The relocation model of the parts: the link's kind decides, as in lld, else the options, else each module."""
    if link is None or link.kind is LinkKind.STATIC:
        model = options.relocation_model
    else:
        model = RelocationModel.PIC if _is_pic((*line.head, *line.tail)) else RelocationModel.STATIC
    return () if model is None else (f"--mllvm=-relocation-model={model.value}",)


def _is_pic(words: Iterable[str]) -> bool:
    pie = shared = False
    for word in words:
        match word.lstrip("-") if word.startswith("-") else "":
            case "pie" | "pic-executable":
                pie = True
            case "no-pie" | "nopie" | "no-pic-executable":
                pie = False
            case "shared" | "Bshareable":
                shared = True
    return pie or shared

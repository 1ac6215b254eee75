"""How the two programs that do backend compiles are told the same: `ld.lld`, and `clang -cc1` for one module.

lld is the measure: its own defaults hold for everything that the options leave open, and functions' attributes come
before what is set for all. What cc1's driver would add for a compilation (a CPU, features) is taken away, and what the
linker knows (whether code must be position independent) is added. Pure: nothing is started here.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from workers.llvm.cc1 import Plan
from workers.target import parse_triple
from workers.work import CodegenOptions, LinkKind, LinkOptions, OptLevel

__all__ = ["backend_plan", "equals_lld", "lto_arguments", "relocation_of"]

_LEVEL = {OptLevel.SIZE: "2", OptLevel.MIN_SIZE: "2"}
"""For size is a matter of functions' attributes in LTO."""

_EQUAL_LEVELS = frozenset({OptLevel.O2, OptLevel.O3, OptLevel.SIZE, OptLevel.MIN_SIZE})
"""Below, lld generates code at level 2 all the same."""

_EQUAL_ARCHITECTURES = frozenset({"x86_64", "amd64", "aarch64", "arm64"})
"""What was compared. On RISC-V and others, features that are set for all get into headers of objects."""

_ABOUT_LTO = ("lto", "mllvm", "plugin-opt", "thinlto", "save-temps", "opt-remarks", "load-pass-plugin", "fat-lto")
"""What the linker's options begin with that may change what backends do."""

_WITHOUT_EFFECT = frozenset({"-float-abi=hard"})
"""What zig's driver adds to every line; 64-bit targets have one such ABI only."""

_FROM_DRIVER = frozenset({"-target-cpu", "-tune-cpu", "-target-feature", "-mrelocation-model", "-pic-level"})
_FROM_DRIVER_ALONE = frozenset({"-pic-is-pie", "-fno-unroll-loops", "-vectorize-loops", "-vectorize-slp"})
_FROM_DRIVER_PREFIXES = ("-fprofile-instrument-use-path=", "-fsanitize")


def lto_arguments(options: CodegenOptions, link: LinkOptions | None) -> tuple[str, ...]:
    """What follows ld.lld's line for a link, so that LTO is done with `options` and leaves nothing but files."""
    arguments = [f"--lto-O{_LEVEL.get(options.opt_level, options.opt_level.value)}"]
    if options.target_cpu is not None:
        arguments.append(f"--plugin-opt=mcpu={options.target_cpu}")
    if options.target_features:
        arguments.append(f"--mllvm=-mattr={','.join(options.target_features)}")
    if options.code_model is not None:
        arguments.append(f"--mllvm=-code-model={options.code_model.value}")
    if options.relocation_model is not None and not _is_program(link):
        arguments.append(f"--mllvm=-relocation-model={options.relocation_model.value}")
    if options.vectorize_loops is False:
        arguments.append("--mllvm=-vectorize-loops=false")
    if options.vectorize_slp is False:
        arguments.append("--mllvm=-vectorize-slp=false")
    # One regular part, no cache and no thread of its own, whatever the line says.
    return (*arguments, "--lto-partitions=1", "--thinlto-cache-dir=", "--thinlto-jobs=1", "--threads=1")


def relocation_of(words: Sequence[str], options: CodegenOptions, link: LinkOptions | None) -> str | None:
    """LLVM's relocation model in a link whose line has `words`; `None`: it is every module's own."""
    if options.relocation_model is not None and not _is_program(link):
        return options.relocation_model.value
    names = {word.lstrip("-") for word in words if word.startswith("-")}
    if names & {"r", "relocatable"}:
        return None
    if names & {"shared", "Bshareable"}:
        return "pic"
    pie = False
    for word in words:
        match word.lstrip("-") if word.startswith("-") else "":
            case "pie" | "pic-executable":
                pie = True
            case "no-pie" | "nopie" | "no-pic-executable":
                pie = False
    return "pic" if pie else "static"


def equals_lld(words: Sequence[str], options: CodegenOptions, triple: str) -> bool:
    """Whether cc1 makes the objects of `triple` that lld makes in a link whose line has `words`, byte for byte."""
    return (
        parse_triple(triple).arch in _EQUAL_ARCHITECTURES
        and options.opt_level in _EQUAL_LEVELS
        and options.code_model is None
        and options.profile_use is None
        and not options.sanitizers
        and not _is_about_lto(words)
    )


def backend_plan(plan: Plan, options: CodegenOptions, relocation: str, shard: str) -> Plan:
    """`plan`, which is the driver's for an ordinary compilation, for a backend compile with the index `shard`."""
    arguments: list[str] = []
    rest = iter(plan.arguments)
    for word in rest:
        if word in _FROM_DRIVER:
            next(rest, None)
        elif word not in _FROM_DRIVER_ALONE and not word.startswith(_FROM_DRIVER_PREFIXES):
            arguments.append(word)
    if options.target_cpu is not None:
        arguments += ["-target-cpu", options.target_cpu]
    for feature in options.target_features:
        arguments += ["-target-feature", feature]
    arguments += ["-mrelocation-model", relocation]
    vectorizes = options.opt_level not in (OptLevel.O0, OptLevel.O1)
    if options.vectorize_loops or (vectorizes and options.vectorize_loops is None):
        arguments.append("-vectorize-loops")
    if options.vectorize_slp or (vectorizes and options.vectorize_slp is None):
        arguments.append("-vectorize-slp")
    arguments += ["-funroll-loops", "-ffunction-sections", "-fdata-sections", "-faddrsig", "-disable-llvm-verifier"]
    return evolve(plan, arguments=(*arguments, f"-fthinlto-index={shard}"))


def _is_program(link: LinkOptions | None) -> bool:
    return link is not None and link.kind is not LinkKind.STATIC


def _is_about_lto(words: Sequence[str]) -> bool:
    """Whether some of a line's words may change what backends do."""
    before = ""
    for word in words:
        if before == "-mllvm":
            if word not in _WITHOUT_EFFECT:
                return True
        elif word.startswith("@"):
            if "/exports-" not in word:  # those hold nothing that a user said
                return True
        elif word != "-mllvm" and word.startswith("-") and word.lstrip("-").startswith(_ABOUT_LTO):
            return True
        before = word
    return False

"""LLVM's LTO pipeline, cut in two: what must see the whole program, and what may run on its parts. Pure.

Half of the time that LLVM's LTO pipeline takes goes into passes that work on one function at a time: induction
variables, vectorisers, unrolling, and the clean-up behind them. They ask nothing of other functions but attributes,
which are settled by then, so they give the same in a program and in a part of it, and parts can be worked on at the
same time. Everything before stays with the whole program: inlining and all that goes between functions, and also
LICM, GVN and dead stores, which use what is known of the whole program's globals.

lld prints its pipeline for the level that it is asked for, and takes a pipeline in the same words. The words do not
carry everything, though: a pass's parameters may go unprinted. So the pipeline is cut only where

* every pass in it is one of those whose words were compared with LLVM's own pipeline (same bitcode, to the byte),
* what the level tells the inliner and the unroller is said in options, and
* no module has anything that a pass with unprinted parameters looks at (`is_ordinary`): type tests, coroutines,
  OpenMP, profiles, allocation tokens.

In all other cases the whole pipeline runs on the whole program, which takes longer and is never wrong.
"""

from __future__ import annotations

import re

from attrs import frozen

from workers.work import OptLevel

__all__ = ["Halves", "cut", "is_ordinary", "level_options", "printed_pipeline"]

_PRINTED = b"pipeline-passes: "

_KNOWN = frozenset(
    {
        "aggressive-instcombine",
        "alignment-from-assumptions",
        "alloc-token",
        "annotation-remarks",
        "argpromotion",
        "bdce",
        "called-value-propagation",
        "callsite-splitting",
        "cg-profile",
        "cgscc",
        "constmerge",
        "constraint-elimination",
        "coro-annotation-elide",
        "coro-cleanup",
        "coro-early",
        "coro-split",
        "cross-dso-cfi",
        "deadargelim",
        "div-rem-pairs",
        "drop-unnecessary-assumes",
        "dse",
        "elim-avail-extern",
        "expand-variadics",
        "function",
        "function-attrs",
        "globaldce",
        "globalopt",
        "globalsplit",
        "gvn",
        "indvars",
        "infer-alignment",
        "inferattrs",
        "inline",
        "instcombine",
        "invalidate",
        "ipsccp",
        "jump-threading",
        "licm",
        "loop",
        "loop-deletion",
        "loop-distribute",
        "loop-mssa",
        "loop-sink",
        "loop-unroll",
        "loop-unroll-full",
        "loop-vectorize",
        "lowertypetests",
        "mem2reg",
        "memcpyopt",
        "memprof-remove-attributes",
        "mldst-motion",
        "move-auto-init",
        "norecurse-lto-inference",
        "openmp-opt",
        "openmp-opt-cgscc",
        "pgo-icall-prom",
        "rel-lookup-table-converter",
        "require",
        "rpo-function-attrs",
        "sccp",
        "simplifycfg",
        "slp-vectorizer",
        "sroa",
        "tailcallelim",
        "transform-warning",
        "vector-combine",
        "wholeprogramdevirt",
    }
)

_PER_PART = frozenset(
    {"alloc-token", "cg-profile", "coro-cleanup", "elim-avail-extern", "globaldce", "rel-lookup-table-converter"}
)
"""Passes over modules that give of a part what they give of the whole."""

_TYPE_TESTS = "lowertypetests"
_FIRST_OF_PARTS = "loop(indvars"
_PARAMETERS = re.compile(r"<[^<>]*>")

_EXTRAORDINARY = (
    b"llvm.type.",
    b"llvm.public.type.",
    b"llvm.icall.",
    b"llvm.coro.",
    b"__kmpc_",
    b"ProfileSummary",
    b"Cross-DSO CFI",
    b"llvm.alloc.",
    b"alloc-token",
)

# What LLVM's own pipeline sets without words at -O3: getInlineParams(3), and LoopFullUnrollPass(3).
_AGGRESSIVE = (
    "-mllvm",
    "-inlinedefault-threshold=250",
    "-mllvm",
    "-locally-hot-callsite-threshold=525",
    "-mllvm",
    "-unroll-threshold-default=300",
)


@frozen
class Halves:
    """Two pipelines in LLVM's words: for the merged program, and for each of its parts."""

    whole: str
    part: str


def printed_pipeline(output: bytes) -> str | None:
    """The pipeline that lld printed among other things."""
    for line in output.splitlines():
        if line.startswith(_PRINTED):
            return line.removeprefix(_PRINTED).decode(errors="replace")
    return None


def is_ordinary(bitcode: bytes) -> bool:
    """Whether a module has nothing that takes LLVM's own pipeline. Names stand in bitcode as they are."""
    return not any(sign in bitcode for sign in _EXTRAORDINARY)


def level_options(level: OptLevel) -> tuple[str, ...]:
    """What lld has to be told beside a pipeline in words."""
    return _AGGRESSIVE if level is OptLevel.O3 else ()


def cut(text: str) -> Halves | None:
    """Cut a pipeline, or `None` where it is not one that we know."""
    passes = [one for one in _elements(text) if one != "verify"]
    if not _names(text) <= _KNOWN | {"verify"}:
        return None
    places = [index for index, one in enumerate(passes) if _FIRST_OF_PARTS in one]
    if len(places) != 1:
        return None
    place = places[0]
    head, _, inner = passes[place].partition("(")
    steps = _elements(inner.removesuffix(")"))
    starts = [index for index, step in enumerate(steps) if step.startswith(_FIRST_OF_PARTS)]
    if _PARAMETERS.sub("", head) != "function" or len(starts) != 1 or starts[0] == 0:
        return None
    before, behind = steps[: starts[0]], steps[starts[0] :]
    rest = [one for one in passes[place + 1 :] if one != _TYPE_TESTS]
    if not all(one.startswith("function") or _names(one) <= _PER_PART for one in rest):
        return None
    # Nothing is there to lower, but should there be, it takes the whole program.
    whole = [*passes[:place], f"{head}({','.join(before)})", _TYPE_TESTS]
    return Halves(",".join(whole), ",".join([f"{head}({','.join(behind)})", *rest]))


def _elements(text: str) -> list[str]:
    """The parts of a list between its own commas."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in "(<":
            depth += 1
        elif character in ")>":
            depth -= 1
        elif character == "," and not depth:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _names(text: str) -> set[str]:
    return {name for name in re.split(r"[(),]+", _PARAMETERS.sub("", text)) if name}

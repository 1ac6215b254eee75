"""Which engine compiles a module, what it is expected to need, and with what it may share a process.

All of it follows from the module's size and the options, so that the same request always gives the same bytes.

Measured on two cores with assertions-enabled llvmlite 0.50 and clang 22.1.8 of the ziglang wheel, -O2 to objects,
milliseconds per module; batches of 40 and 8 modules, and one process per module:

    modules of n functions       bytes   llvmlite   cc1, 40   cc1, 8   cc1, 1
    n = 1, straight-line          2456       2.8        3.8      5.2     18.9
    n = 4, straight-line          2980       4.5        4.3      5.6     17.0
    n = 16, straight-line         5152      11.2        8.9     10.9     22.1
    n = 1, vectorised loop        3136       9.7        8.6     11.3     27.7
    n = 3, vectorised loops       4296      19.1       14.3     15.5     30.9
    n = 8, vectorised loops       7248      42.4       29.1     29.2     42.3

Starting a process costs 10 to 15 ms; llvmlite saves that too, but its assertions make LLVM itself 1.3 to 1.5 times
as slow. So llvmlite is ahead of batches up to about 2800 bytes. Its child takes 0.1 s to start: a program that
compiles a few modules and ends never earns that back, and should choose 0.
"""

from __future__ import annotations

import os

from workers.llvm.cc1 import BATCHABLE, options_key
from workers.llvm.llvmlite_request import unsupported
from workers.work import CodegenOptions, Engine, Estimate, OptLevel, PreLink

__all__ = ["LLVMLITE_BYTES", "choose", "estimate", "host_triple", "own_triple"]

LLVMLITE_BYTES = 2800
"""AUTO gives modules up to this size to llvmlite."""

_BATCH_BYTES = 64 * 1024
"""Modules above this size are not batched: at 0.3 s of work the start of a process is lost in it, while a large
module in a batch keeps a CPU busy when the others have run out of work."""

# Bitcode without a function in it has about 2.3 kB. On brotli, -O2 takes 2 to 20 microseconds per byte above that.
_EMPTY_BYTES = 2300
_SECONDS_PER_BYTE = 6e-6
_SECONDS_AT_LEAST = 0.002
_START_SECONDS = 0.012
_LEVEL = {
    OptLevel.O0: 0.3,
    OptLevel.O1: 0.7,
    OptLevel.O2: 1.0,
    OptLevel.O3: 1.1,
    OptLevel.SIZE: 0.9,
    OptLevel.MIN_SIZE: 0.8,
}

_PRE_LINK = 0.5
"""How much of the time goes into a pre-link pipeline, which leaves code generation for later."""

# Seen: 45 to 58 MiB for the least, 90 to 360 bytes per byte of bitcode above that.
_RSS_AT_LEAST = 58 * 2**20
_RSS_PER_BYTE = 300


def choose(
    llvmlite_bytes: int, size: int, triple: str, options: CodegenOptions, pre_link: PreLink | None = None
) -> Engine:
    """The engine that compiles a module of `size` bytes; one that is asked for is taken."""
    if options.engine is not Engine.AUTO:
        return options.engine
    if size <= llvmlite_bytes and unsupported(options, triple, pre_link) is None:
        return Engine.LLVMLITE
    return Engine.TOOLCHAIN


def estimate(
    llvmlite_bytes: int, size: int, triple: str, options: CodegenOptions, pre_link: PreLink | None = None
) -> Estimate:
    """What a module of `size` bytes is expected to need, and the name of those it may be batched with."""
    engine = choose(llvmlite_bytes, size, triple, options, pre_link)
    one_run = options.emit <= BATCHABLE and not options.extra_passes and not options.print_passes
    seconds = _SECONDS_AT_LEAST + max(0, size - _EMPTY_BYTES) * _SECONDS_PER_BYTE * _LEVEL[options.opt_level]
    peak = _RSS_AT_LEAST + size * _RSS_PER_BYTE
    if pre_link is not None:
        return Estimate(seconds * _PRE_LINK + _START_SECONDS, peak)
    if engine is Engine.LLVMLITE or (one_run and size <= _BATCH_BYTES):
        return Estimate(seconds, peak, f"{engine.value} {triple} {options_key(options)}")
    return Estimate((seconds + _START_SECONDS) * len(options.emit), peak)


def own_triple(named: str) -> str:
    """The triple of a module that names `named`: this machine's where that says nothing.

    llvmlite writes `unknown-unknown-unknown` where nobody sets a triple.
    """
    return named if any(part not in ("", "unknown") for part in named.split("-")) else host_triple()


def host_triple() -> str:
    """What a module without a triple is compiled for."""
    return f"{os.uname().machine}-unknown-linux-gnu"

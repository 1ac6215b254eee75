"""Links that were done before, two jobs: ltod with its cache against ld.lld with its own (--thinlto-cache-dir).

    python -m tests.bench.incremental [--rounds N] [--modules 400] [--only SET]

Inputs have been through the pre-link pipeline, as clang leaves them. Scenarios: nothing is there yet (cold); nothing
has changed; one function body has changed in a module that nobody imports from, and in one that most others import
from (see `tests.bench.edits`; another change in each round, so that the cache has never seen it); the same inputs have
been copied to another directory and are linked from there, with the cache. Each but the first begins with a build that
is not measured. Every contestant has caches of its own; `ltod, embedded` is a coordinator that is open and has built
the same before, the others are whole processes, start-up included. Contestants take turns within a round. With fat LTO,
lld has no cache, and what it takes is what it takes cold.

Prints, for each set, medians, what they are to the best lld's in the same scenario and to the contestant's own cold
build (medians of what they are round by round), how many modules (with fat LTO: parts of the program) were compiled,
and what became of the goals.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

import trio
from attrs import field, frozen

from coordinator import Cache, CacheOutcome, FatLto, Step, ThinLto
from tests.bench.contestants import (
    EMBEDDED,
    LtoSet,
    build_set,
    lld_builds,
    lld_line,
    ltod_command,
    ltod_environ,
    opened_before,
)
from tests.bench.edits import LEAF, POPULAR, REAL, Subject, real_subject, small_subject
from tests.lld import DEBIAN_LLD, LldCommand

_COLD = "cold"
_NO_CHANGE = "no change"
_ELSEWHERE = "elsewhere"
_SCENARIOS = (_COLD, _NO_CHANGE, LEAF, POPULAR, _ELSEWHERE)
_LTOD = "ltod"
_NO_CACHE = "ltod --no-cache"
_COMPILING = (Step.THIN_BACKEND, Step.FAT_CODEGEN)
_THERE = (CacheOutcome.HIT, CacheOutcome.SHARED)


@frozen
class _Done:
    """One build. `compiled` is how many modules or parts were compiled; lld's cache tells nothing of fat LTO's."""

    seconds: float
    compiled: int | None


_Build = Callable[[Sequence[Path], Path], Awaitable[_Done]]


@frozen
class _Contestant:
    """`open` gives what builds inputs into a directory, with the cache in a directory."""

    name: str
    open: Callable[[Path], AbstractAsyncContextManager[_Build]] = field(repr=False)
    scenarios: tuple[str, ...] = _SCENARIOS
    peer: bool = False

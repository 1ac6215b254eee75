"""`ltod stats`: what the cache did for the latest builds, and the time that it saved, in numbers.

Scripts depend on the objects of `--json`: keys are added, never taken away or changed in meaning.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import click
from attrs import frozen

from coordinator._records import BuildRecord
from coordinator.cli._builds import (
    build_object,
    history_options,
    nothing_there,
    opened,
    outcomes,
    put_lines,
    recorded_path,
    when,
)
from coordinator.cli._exit import ExitCode
from coordinator.cli._signals import StopSignals
from coordinator.cli._terminal import put
from workers.outcome import CacheOutcome, Step

__all__ = ["stats"]

_MODULES = frozenset(step.value for step in (Step.CODEGEN, Step.PRE_LINK, Step.THIN_BACKEND))
"""Steps whose items are modules; those of the others are links and parts of programs."""


@click.command(short_help="Say how often the cache was of use to builds, and what it saved.")
@click.option("-n", "--number", type=click.IntRange(min=1), default=20, help="Of so many builds [default: 20]")
@history_options("Only builds of this program, library or output directory")
@click.pass_obj
def stats(signals: StopSignals, *, number: int, link: Path | None, cache_dir: Path | None, as_json: bool) -> int:
    """Say what the cache did for the latest builds, also for those of a linker that runs ltod.

    Hits were in the cache, shared was what another build was making at that time, misses had to be made, and for what
    is uncached the cache was not asked ('ltod explain' says why). Saved is the time that making the hits and what was
    shared had taken: compilers' time, of which several run at once in a build.
    """
    records, directory = opened(cache_dir)
    path = recorded_path(records, link)
    builds = records.builds(path, most=min(number, sys.maxsize))
    problem = "" if builds else nothing_there(records, directory, path)
    signals.defer()
    figures = [_Figures.of(build) for build in builds]
    total = _Figures.total(figures)
    if as_json:
        objects = [build_object(build, **one.as_object()) for build, one in zip(builds, figures, strict=True)]
        put(json.dumps({"builds": objects, "totals": {"builds": len(builds), **total.as_object()}}, allow_nan=False))
    elif builds:
        put_lines(_table(builds, figures, total))
    else:
        put_lines([problem])
    return ExitCode.OK


@frozen(kw_only=True)
class _Figures:
    """What is counted of builds. What failed counts as a miss or as uncached, too."""

    modules: int
    hits: int
    shared: int
    misses: int
    uncached: int
    failed: int
    seconds: float
    saved_seconds: float

    @classmethod
    def of(cls, build: BuildRecord) -> _Figures:
        """The figures of one build, without what it only carries along."""
        items, counts = build.own_items, outcomes(build)
        return cls(
            modules=len({item.module for item in items if item.step in _MODULES}),
            hits=counts[CacheOutcome.HIT],
            shared=counts[CacheOutcome.SHARED],
            misses=counts[CacheOutcome.MISS],
            uncached=counts[CacheOutcome.OFF],
            failed=sum(not item.ok for item in items),
            seconds=build.seconds,
            saved_seconds=math.fsum(item.saved for item in items),
        )

    @classmethod
    def total(cls, figures: Sequence[_Figures]) -> _Figures:
        """The sums."""
        names = [one.name for one in attrs.fields(cls)]
        return cls(**{name: sum(getattr(one, name) for one in figures) for name in names})

    def as_object(self) -> dict[str, object]:
        """For JSON."""
        # Also of no builds, a time is a float.
        times = {"seconds": round(float(self.seconds), 3), "saved_seconds": round(float(self.saved_seconds), 3)}
        return attrs.asdict(self) | times

    def as_cells(self) -> list[str]:
        """For a table."""
        counts = (self.modules, self.hits, self.shared, self.misses, self.uncached, self.failed)
        return [*(f"{count:,}" for count in counts), _time(self.seconds), _time(self.saved_seconds)]


def _table(builds: Sequence[BuildRecord], figures: Sequence[_Figures], total: _Figures) -> Iterator[str]:
    head = ["modules", "hits", "shared", "misses", "uncached", "failed", "took", "saved"]
    rows = [
        ["build", "started", *head, "of"],
        *(
            [str(build.id), when(build), *one.as_cells(), str(build.thing)]
            for build, one in zip(builds, figures, strict=True)
        ),
        ["total", f"{len(builds):,} build{'' if len(builds) == 1 else 's'}", *total.as_cells(), ""],
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, started, *cells, thing in rows:
        right = (f"{cell:>{width}}" for cell, width in zip(cells, widths[2:-1], strict=True))
        yield "  ".join((f"{number:>{widths[0]}}", f"{started:<{widths[1]}}", *right, thing)).rstrip()


def _time(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02} min"

"""What came of a link's jobs: for the user who watches, for `--stats`, and for the history that `ltod stats` reads."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from attrs import define, field, frozen

from coordinator.cli._terminal import say
from workers.outcome import CacheOutcome

__all__ = ["Line", "Report"]

_SAID = {CacheOutcome.HIT: "hit", CacheOutcome.SHARED: "shared"}


@frozen
class Line:
    """What became of one module; `seconds` is how long compiling it took, or would have taken."""

    module: str
    outcome: CacheOutcome
    ok: bool
    seconds: float
    reason: str


@define
class Report:
    """All of one link. `skipped` modules were not compiled because something had gone wrong before."""

    output: str
    verbose: bool
    lines: list[Line] = field(factory=list)
    skipped: int = 0

    def add(self, line: Line) -> None:
        """Enter what became of a module, and say so to who wants to know."""
        self.lines.append(line)
        if self.verbose:
            what = _SAID.get(line.outcome, "compiled") if line.ok else "failed"
            say(f"ltod-dtlto: {line.module}: {what}, {line.seconds:.2f} s ({line.reason})")

    def summary(self, seconds: float) -> dict[str, object]:
        """The figures, as `--stats` has them; scripts depend on the keys, which are only ever added to."""
        count = {outcome: sum(line.outcome is outcome for line in self.lines if line.ok) for outcome in CacheOutcome}
        there = (CacheOutcome.HIT, CacheOutcome.SHARED)
        return {
            "output": self.output,
            "jobs": len(self.lines) + self.skipped,
            "hits": count[CacheOutcome.HIT],
            "shared": count[CacheOutcome.SHARED],
            "misses": count[CacheOutcome.MISS],
            "uncached": count[CacheOutcome.OFF],
            "failed": sum(not line.ok for line in self.lines),
            "skipped": self.skipped,
            "seconds": round(seconds, 3),
            "compile_seconds": round(sum(line.seconds for line in self.lines if line.outcome not in there), 3),
            "saved_seconds": round(sum(line.seconds for line in self.lines if line.outcome in there), 3),
        }

    def close(self, seconds: float, stats: Path | None) -> None:
        """Say the last words, and write the figures where they are wanted. Raises `OSError`."""
        summary = self.summary(seconds)
        if self.verbose:
            words = [f"{summary[name]} {name}" for name in ("hits", "shared", "misses", "uncached", "failed")]
            say(f"ltod-dtlto: {self.output}: {', '.join(words)} in {seconds:.2f} s")
        if stats is not None:
            _write(stats, json.dumps(summary) + "\n")


def _write(path: Path, text: str) -> None:
    """Whole or not at all, unless it is something that one cannot replace."""
    if path.exists() and not path.is_file():
        path.write_text(text)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise

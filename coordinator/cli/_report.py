"""What a build came to: the object of `--json`, the passes of `--print-passes`, the last line.

Scripts depend on the object: keys are added, never taken away or changed in meaning. It is written in ASCII; bytes of
a path that are no UTF-8 appear as Python decodes them, as the lone surrogates U+DC80 to U+DCFF. A relative path
belongs to the directory that the command was run in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from coordinator._events import BuildResult
from workers.work import CacheOutcome, Diagnostic, Failed, Linked, LinkKind, LinkOptions, Severity, Step, WorkResult

__all__ = ["Outcome", "json_text", "passes_text", "summary"]

_LINKS = (Step.THIN_LINK, Step.FAT_LINK, Step.LINK)


@frozen(kw_only=True)
class Outcome:
    """What a build command came to: `result` is `None` when no build was begun.

    `diagnostics` are those from outside of the build, `modules` all names that were asked for.
    """

    modules: Sequence[str] = ()
    out_dir: Path = Path()
    link: LinkOptions | None = None
    result: BuildResult | None = None
    diagnostics: Sequence[Diagnostic] = ()
    cancelled: bool = False
    print_passes: bool = False

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for is there."""
        wrong = any(diagnostic.severity is Severity.ERROR for diagnostic in self.diagnostics)
        return self.result is not None and self.result.ok and not wrong

    @property
    def skipped(self) -> list[str]:
        """What was never tried, or not to the end."""
        tried = {result.module for result in self.results}
        given_up = self.result.skipped if self.result is not None else ()
        return sorted({*given_up, *(name for name in self.modules if name not in tried)})

    @property
    def linked(self) -> Linked | None:
        """The program or library, if one was made."""
        return next((result for result in self.results if isinstance(result, Linked)), None)

    @property
    def results(self) -> Sequence[WorkResult]:
        """What became of each item."""
        return self.result.results if self.result is not None else ()


def json_text(outcome: Outcome) -> str:
    """The object that `--json` prints, on one line."""
    result = outcome.result
    linked = outcome.linked
    everything = {
        "ok": outcome.ok,
        "cancelled": outcome.cancelled,
        "seconds": round(result.seconds, 6) if result is not None else 0.0,
        "output": _output(linked, outcome.link.kind) if linked is not None and outcome.link is not None else None,
        "artifacts": [
            {
                "module": artifact.module,
                "kind": artifact.kind.value,
                "path": str(artifact.path),
                "bytes": artifact.bytes,
            }
            for artifact in (result.artifacts if result is not None else ())
        ],
        "items": [_item(done, outcome) for done in outcome.results],
        "skipped": outcome.skipped,
        "diagnostics": [
            {
                "severity": diagnostic.severity.value,
                "module": diagnostic.module,
                "message": diagnostic.message,
                "reproducer": str(diagnostic.reproducer) if diagnostic.reproducer is not None else None,
            }
            for diagnostic in (*outcome.diagnostics, *(result.diagnostics if result is not None else ()))
        ],
    }
    return json.dumps(everything, allow_nan=False)


def _output(linked: Linked, kind: LinkKind) -> dict[str, Any]:
    return {"kind": kind.value, "path": str(linked.output), "bytes": linked.bytes}


def _item(done: WorkResult, outcome: Outcome) -> dict[str, Any]:
    item: dict[str, Any] = {
        "module": done.module,
        "stage": done.step.value,
        "engine": done.engine.value,
        "cache": done.cache.outcome.value,
        "reason": done.cache.reason,
        "seconds": round(done.seconds, 6),
        "peak_rss_bytes": done.peak_rss_bytes,
        "ok": not isinstance(done, Failed),
    }
    if outcome.print_passes:
        item["passes"] = list(getattr(done, "passes", ()))
    return item


def passes_text(outcome: Outcome) -> str:
    """Lines with the passes that ran, in order, module by module; empty without `--print-passes`."""
    return "\n".join(f"{done.module}: {line}" for done in outcome.results for line in getattr(done, "passes", ()))


def summary(outcome: Outcome) -> str:
    """The last line for a human."""
    result = outcome.result
    artifacts = result.artifacts if result is not None else ()
    made = f"{_count(len(artifacts), 'artifact')} in {_short(outcome.out_dir)}"
    if outcome.ok and result is not None:
        text = f"{_count(len(outcome.modules), 'module')} in {result.seconds:.1f} s: {made}"
        kept = sum(done.cache.outcome in (CacheOutcome.HIT, CacheOutcome.SHARED) for done in result.results)
        if kept:
            asked = sum(done.cache.outcome is not CacheOutcome.OFF for done in result.results)
            text += f", {kept} of {asked} steps from the cache"
        if outcome.linked is not None:
            text += f", linked {_short(outcome.linked.output)} ({outcome.linked.bytes} bytes)"
        return text
    failures = [done for done in outcome.results if isinstance(done, Failed)]
    links = sum(done.step in _LINKS for done in failures)
    failed = len(failures) - links
    useless = sum(each.severity is Severity.ERROR and each.module is not None for each in outcome.diagnostics)
    counts = [f"{_count(useless, 'input')} of no use"] if useless else []
    if failed:
        counts.append(f"{failed} of {_count(len(outcome.modules), 'module')} failed")
    if links:
        counts.append("linking failed")
    if outcome.skipped:
        counts.append(f"{len(outcome.skipped)} not built")
    if artifacts:
        counts.append(made)
    head = "stopped" if outcome.cancelled else "the build failed"
    return f"{head}: {', '.join(counts)}" if counts else head


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _short(path: Path) -> str:
    """A path as one would type it here."""
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):
        return str(path)
    return str(path) if relative.startswith("..") else relative

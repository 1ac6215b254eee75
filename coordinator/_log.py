"""The canonical log line of a build, through structlog."""

from __future__ import annotations

import sys

from coordinator._events import BuildResult
from workers.work import Failed

__all__ = ["log_build"]


def log_build(name: str, result: BuildResult) -> None:
    """Log one line for a build that has ended.

    Only where the program around us has imported and configured structlog: unconfigured, it would print to a
    standard output that is not ours, and importing it for nobody costs a tenth of a second.
    """
    structlog = sys.modules.get("structlog")
    if structlog is not None and structlog.is_configured():
        structlog.get_logger("ltod").info(
            "build ended",
            build=name,
            ok=result.ok,
            cancelled=result.cancelled,
            modules=len(result.results),
            failed=sum(isinstance(r, Failed) for r in result.results),
            skipped=len(result.skipped),
            seconds=round(result.seconds, 3),
        )

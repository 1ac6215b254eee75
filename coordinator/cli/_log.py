"""Logging: configured once, by the entry point, and only when asked for: structlog takes a tenth of a second."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from workers.errors import RequestError

__all__ = ["configure_logging"]

_LEVELS = ("debug", "info", "warning", "error")


def configure_logging(verbose: bool, environ: Mapping[str, str]) -> None:
    """Log to standard error if `verbose`, or if `LTOD_LOG` names a level; in JSON unless that is a terminal.

    Raises `RequestError` for a level that is none.
    """
    level = environ.get("LTOD_LOG", "").strip().lower() or ("info" if verbose else None)
    if level is None:
        return
    if level not in _LEVELS:
        raise RequestError(f"LTOD_LOG is {level!r}: choose from {', '.join(_LEVELS)}")
    import structlog  # see the top

    terminal = sys.stderr is not None and sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )

"""Exit codes, and what ends the program early. Loads nothing: it is there before signals are heeded."""

from __future__ import annotations

import enum
import signal

__all__ = ["STOP_SIGNALS", "ExitCode", "Interrupted"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""What asks ltod to stop."""


class ExitCode(enum.IntEnum):
    """What the command ends with; 128 + N when signal N ended it, as shells count."""

    OK = 0
    FAILED = 1
    """The build failed, or the doctor found that none can run."""
    USAGE = 2
    """The request is wrong; nothing was built."""
    BUG = 70
    """ltod itself is wrong (EX_SOFTWARE of sysexits.h)."""


class Interrupted(BaseException):
    """A signal asks us to stop. Not an `Exception`, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def message(self) -> str:
        """What to tell the user."""
        return f"stopped by {signal.Signals(self.number).name}"

    @property
    def exit_code(self) -> int:
        """What shells report for a program that this signal ended."""
        return 128 + self.number

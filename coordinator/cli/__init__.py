"""The command line: `ltod build`, `ltod doctor`, `ltod completion`.

`main` below is the entry point; `_main` turns every outcome into an exit code; `_build` reads the options of a build,
`_run` runs it, `_progress` tells what happens meanwhile and `_report` what came of it. Scripts depend on the exit
codes and on the object that `--json` prints: they are described in `_exit` and `_report`.
"""

from __future__ import annotations

import gc
import signal
from typing import NoReturn

from coordinator.cli._exit import STOP_SIGNALS

__all__ = ["main"]


def main() -> NoReturn:
    """Run ltod with the arguments of this process, and exit."""
    # Loading the rest is most of a short run. A signal that comes meanwhile waits until it can be answered.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    # What is loaded stays: looking through it for garbage takes a tenth of the start.
    gc.disable()
    from coordinator.cli._main import run  # see above

    gc.freeze()
    gc.enable()
    run(mask)

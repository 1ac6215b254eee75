"""`ltod-dtlto`: the program that `--thinlto-distributor` names, which does the backend compiles of a link for lld.

`_front` finds what was compiled before, and loads nothing that this does not take: most links of a day need no more.
`_rest` has what is left compiled by an embedded coordinator. `_options` reads the command line, `_linker` watches over
the linker that waits for us, `_report` says what came of it.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from coordinator.cli._exit import STOP_SIGNALS

__all__ = ["main"]

_SWITCH_SECONDS = 0.0005


def main() -> NoReturn:
    """Run `ltod-dtlto` with the arguments of this process, and exit."""
    # What is quick is done to its end. Who waits for compilers lets signals in.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    parent = os.getppid()
    # There is next to no garbage in what takes a tenth of a second.
    gc.disable()
    # A thread that finds out what the compiler is hardly needs Python, but that little at once.
    sys.setswitchinterval(_SWITCH_SECONDS)
    from coordinator.dtlto._front import run  # see above

    code = run(sys.argv[1:], mask, parent)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, full or not there: nobody is left to be told
            stream.flush()
    # Everything is closed. Taking the interpreter apart would keep the linker waiting for 5 ms.
    os._exit(code)

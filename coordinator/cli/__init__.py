"""The command line: `ltod build`, `ltod doctor`, `ltod completion`.

`_main` is the entry point and turns every outcome into an exit code; `_build` reads the options of a build, `_run`
runs it, `_progress` tells what happens meanwhile and `_report` what came of it. Scripts depend on the exit codes and
on the object that `--json` prints: they are described in `_exit` and `_report`.
"""

from coordinator.cli._main import main

__all__ = ["main"]

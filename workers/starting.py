"""How the process of an action begins and is reaped: here, by a fork and an exec.

`workers.llvm.fork_server` knows a way that is quicker for what is run many times.
"""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from attrs import frozen

__all__ = ["Process", "Start", "start_directly"]


class Process(Protocol):
    """A process that leads a group of its own."""

    @property
    def pid(self) -> int:
        """Its number, and that of the group, until it is reaped."""
        ...

    def reap(self) -> tuple[int, resource.struct_rusage] | None:
        """If it has ended: the exit code (negative: the signal), and what it used. To be called until then."""
        ...


class Start(Protocol):
    """Begins a process that reads nothing and writes to two open files. Raises `OSError` and `ValueError`."""

    def __call__(
        self, argv: Sequence[str], directory: Path, environment: Mapping[str, str], stdout: int, stderr: int
    ) -> Process:
        """Run `argv[0]`, an absolute path."""
        ...


@frozen
class _Child:
    """A child of ours."""

    _process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self._process.pid

    def reap(self) -> tuple[int, resource.struct_rusage] | None:
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if not pid:
            return None
        self._process.returncode = os.waitstatus_to_exitcode(status)  # so that nobody else waits for this number
        return self._process.returncode, usage


def start_directly(
    argv: Sequence[str], directory: Path, environment: Mapping[str, str], stdout: int, stderr: int
) -> Process:
    """The ordinary way. A vfork and an exec: it does not wait for the program."""
    return _Child(
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=directory,
            env=dict(environment),
            process_group=0,
        )
    )

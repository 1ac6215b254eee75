"""How much memory a command takes at its peak, with every process that it starts."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["peak_memory"]

_INTERVAL = 0.015
_SHARE = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


def peak_memory(command: Sequence[str | Path], environ: Mapping[str, str]) -> int:
    """Bytes: the highest sum seen of the proportional set sizes (shared pages are divided among those who share them)
    of the command's process and all below it. Raises `CalledProcessError`."""
    peak = 0
    with subprocess.Popen(command, env=environ) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(_share, _tree(process.pid))))
            time.sleep(_INTERVAL)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


def _tree(pid: int) -> set[int]:
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        found.add(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                waiting += map(int, task.read_text().split())
            except OSError:  # gone meanwhile
                continue
    return found


def _share(pid: int) -> int:
    try:
        found = _SHARE.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found is not None else 0

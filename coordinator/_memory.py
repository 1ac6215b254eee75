"""How much memory this process and its children may use together."""

from __future__ import annotations

import os
from pathlib import Path

from coordinator._cgroups import enclosing_groups, read_numbers, read_text

__all__ = ["memory_limit"]

# Version 1, then version 2. `memory.high` does not kill, but above it the kernel reclaims from the group and
# slows it down until hardly anything moves: to plan beyond it is as wrong as to plan beyond the hard limit.
_LIMIT_FILES = ("memory.limit_in_bytes", "memory.max", "memory.high")


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes: the smaller of physical memory and the limits of every control group around this process.

    Version 1 writes a huge number for 'unlimited', version 2 the word 'max'; neither is smaller than the
    machine's memory. `root` is where /proc and the mounts are looked up. Never raises.
    """
    limits = [_physical_memory(root)]
    for group in enclosing_groups("memory", root):
        for name in _LIMIT_FILES:
            match read_numbers(group / name):
                case [int(limit)] if limit >= 0:
                    limits.append(limit)
    return min(limits)


def _physical_memory(root: Path) -> int:
    """Bytes; /proc first, because containers may show their own there (lxcfs)."""
    for line in read_text(root / "proc/meminfo").splitlines():
        match line.split():
            case ["MemTotal:", kibibytes, "kB"] if kibibytes.isdecimal():
                return int(kibibytes) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

"""Whether the kernel has killed for lack of memory: the counters of this process's control group."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["OomWatch"]


class OomWatch:
    """Remembers how many processes the kernel has killed in this process's memory control group (v1 or v2)."""

    def __init__(self) -> None:
        self._counters = _counter_files()
        self._seen = self._read()

    def killed_again(self) -> bool:
        """Whether there was a kill since this was last asked (or since the beginning)."""
        seen, self._seen = self._seen, self._read()
        return self._seen > seen

    def _read(self) -> int:
        total = 0
        for path in self._counters:
            try:
                match = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
            except OSError:
                continue
            total += int(match[1]) if match else 0
        return total


def _counter_files() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        relative = group.lstrip("/")
        if not controllers:
            candidates = [Path("/sys/fs/cgroup", relative, "memory.events"), Path("/sys/fs/cgroup/memory.events")]
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            # Within a container the group's own directory may be mounted as the root.
            candidates = [root / relative / "memory.oom_control", root / "memory.oom_control"]
        else:
            continue
        found += [path for path in candidates if path.is_file()][:1]
    return found

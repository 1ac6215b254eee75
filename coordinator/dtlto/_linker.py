"""The linker that waits for us: whether it is still there, and what it has left behind if it was killed.

lld removes its temporary files when it ends and when it is told to, but not when it is killed. It calls them after
itself, by the number of its process, and the job file lists them. So once it is gone, those are known to be garbage.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from workers.llvm.dtlto.job_file import JobFile

__all__ = ["Linker"]


class Linker:
    """Our parent, process `pid`. It may die at any time: ask for its number as early as possible."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._line: tuple[bytes, ...] = ()
        with suppress(OSError):
            self._line = tuple(Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0"))

    def pidfd(self) -> int | None:
        """A descriptor that becomes readable when it is gone, for the caller to close; `None`: it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return None
        if self.is_gone():
            os.close(descriptor)
            return None
        return descriptor

    def is_gone(self) -> bool:
        """Whether somebody else has become our parent."""
        return os.getppid() != self.pid

    def remove_leftovers(self, job_file: JobFile, path: Path, directory: Path) -> None:
        """Remove its temporary files: the job file at `path`, and those that are in it. It must be gone."""
        if not self._is_linker or self._keeps_files:
            return
        for file in self._leftovers(job_file, path):
            with suppress(OSError):
                (directory / file).unlink()

    @property
    def _is_linker(self) -> bool:
        """Whether it is lld itself, and not, say, a shell that ran us for it."""
        names = {Path(os.fsdecode(word)).name for word in self._line[:2]}
        return any("lld" in name for name in names)

    @property
    def _keeps_files(self) -> bool:
        """Whether it was told to keep its temporary files, or that cannot be told."""
        return any(b"save-temps" in word or word.startswith(b"@") for word in self._line)

    def _leftovers(self, job_file: JobFile, path: Path) -> Iterator[str]:
        if path.name.endswith(f".{self.pid}.dist-file.json"):
            yield str(path)
        output = re.compile(rf"\.\d+\.{self.pid}\.native\.o")
        copy = re.compile(rf"\.\d+\.{self.pid:X}\.o")
        for job in job_file.jobs:
            if _ends_with(output, job.output):
                yield job.output
                if job.shard == f"{job.output}.thinlto.bc":
                    yield job.shard
            if _ends_with(copy, job.bitcode):
                yield job.bitcode


def _ends_with(pattern: re.Pattern[str], name: str) -> bool:
    return re.search(f"(?:{pattern.pattern})$", name) is not None

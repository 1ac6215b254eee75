"""What a build reads and what it writes must not be the same files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from attrs import define, field

from workers.errors import RequestError

__all__ = ["BuildPaths"]


@define
class BuildPaths:
    """The files of one build, wherever symbolic links lead."""

    _real_dirs: dict[str, str] = field(factory=dict, init=False)
    _sources: set[str] = field(factory=set, init=False)
    _outputs: set[str] = field(factory=set, init=False)

    def add(self, sources: Iterable[Path], outputs: Iterable[Path]) -> None:
        """What the build writes must not replace what it reads, nor anything else that it writes.

        Raises `RequestError`.
        """
        for source in map(self._real, sources):
            if source in self._outputs:
                raise RequestError(f"the build would overwrite its input {source}: write somewhere else")
            self._sources.add(source)
        for output in map(self._real, outputs):
            if output in self._sources:
                raise RequestError(f"the build would overwrite its input {output}: write somewhere else")
            if output in self._outputs:
                raise RequestError(f"the build would write {output} twice: choose other names")
            self._outputs.add(output)

    def _real(self, path: Path) -> str:
        """`os.path.realpath`, with a memory for directories: a build has many files in few."""
        directory, name = os.path.split(path)
        if path.is_symlink():
            return os.path.realpath(path)
        if directory not in self._real_dirs:
            self._real_dirs[directory] = os.path.realpath(directory)
        return f"{self._real_dirs[directory]}/{name}"

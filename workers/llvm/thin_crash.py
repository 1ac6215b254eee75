"""The reproducer of a thin link that lld did not survive: all modules, and the link's command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio
from attrs import frozen

from workers.action import Action, ActionResult
from workers.llvm.lld_line import LldLine
from workers.llvm.reproducer import Reproducer, taken_along, write_reproducer
from workers.thin import ThinLink
from workers.work import Diagnostic, Severity

__all__ = ["CrashedLink"]

_OUTPUTS = (
    "--thinlto-index-only=list",
    "--thinlto-prefix-replace=;indexes/",
    "--save-temps=combinedindex",
    "--lto-obj-path=regular.o",
)


@frozen
class CrashedLink:
    """A thin link as it was run: `files` are paths and whether they are lazy, `labels` short names of the modules among
    them that sort as their paths do, `extra` what lld was told besides.
    """

    item: ThinLink
    line: LldLine
    files: Sequence[tuple[str, bool]]
    labels: Mapping[str, str]
    extra: Sequence[str]
    scratch: Path
    versions: Callable[[], str]

    async def reproduced(self, message: str, action: Action, result: ActionResult) -> Diagnostic:
        """The diagnostic of a fault, with its reproducer, or with the reason why there is none."""
        try:
            where = await trio.to_thread.run_sync(self._write, message, action, result)
        except OSError as error:
            message += f"\n(no reproducer: {error.strerror or error}, {self.item.reproducer_dir})"
            return Diagnostic(Severity.ERROR, self.item.name, message)
        return Diagnostic(Severity.ERROR, self.item.name, message, where)

    def _write(self, message: str, action: Action, result: ActionResult) -> Path:
        places = {path: f"files/{number}-{Path(path).name}" for number, (path, _) in enumerate(self.files)}
        # lld sorts modules by their names.
        places |= {path: f"modules/{label}" for path, label in self.labels.items()}
        pairs = [(places[path], lazy) for path, lazy in self.files]
        argv, inputs = taken_along((*self.line.argv(pairs, "output", self.extra), *_OUTPUTS), self.scratch)
        reproducer = Reproducer(
            module=self.item.name,
            message=message,
            argv=argv,
            inputs={**{place: Path(path) for path, place in places.items()}, **inputs},
            stderr=result.stderr,
            versions=self.versions(),
            hang=action.time_limit if result.timed_out else None,
            memory_limit=action.memory_limit,
        )
        return write_reproducer(self.item.reproducer_dir, reproducer)

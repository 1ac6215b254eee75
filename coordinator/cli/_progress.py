"""What a build shows while it runs, on standard error: nothing, plain lines, or a display that redraws itself."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Protocol

import trio

from coordinator._events import BuildEvent, DiagnosticReported, ModuleFinished, ModuleQueued, ModuleStarted
from coordinator.cli._terminal import is_fancy, printable, say
from workers.work import CacheOutcome, Diagnostic, Failed, Severity, Step

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["Progress", "open_progress"]

# Quick enough for the eye, and under 1 % of a CPU.
_REDRAW_SECONDS = 0.1

_FIRST_STEPS = (Step.CODEGEN, Step.PRE_LINK)
_LINKS = (Step.THIN_LINK, Step.FAT_LINK, Step.LINK)


class Progress(Protocol):
    """What shows a build. It exists because the display on a terminal costs an import that a pipe should not pay."""

    def event(self, event: BuildEvent) -> None:
        """Something has happened in the build."""
        ...

    def diagnostic(self, diagnostic: Diagnostic) -> None:
        """Tell a warning or an error."""
        ...

    async def run(self) -> None:
        """Redraw until cancelled."""
        ...


def open_progress(total: int, *, quiet: bool, verbose: bool) -> Progress:
    """The right way to show a build of `total` modules here. `verbose` also tells what is started."""
    if quiet:
        return _Quiet()
    if is_fancy() and not verbose:
        return _Display(total)
    return _Plain(total, verbose)


class _Quiet:
    """Diagnostics only."""

    def event(self, event: BuildEvent) -> None:
        if isinstance(event, DiagnosticReported):
            self.diagnostic(event.diagnostic)

    def diagnostic(self, diagnostic: Diagnostic) -> None:
        say(str(diagnostic))

    async def run(self) -> None:
        await trio.sleep_forever()


class _Plain(_Quiet):
    """A line for each step of each module that is done; none where a module was ready for LTO as it came."""

    def __init__(self, total: int, verbose: bool) -> None:
        self._total = total
        self._done: Counter[Step] = Counter()
        self._verbose = verbose

    def event(self, event: BuildEvent) -> None:
        match event:
            case ModuleStarted(module, step) if self._verbose:
                say(f"started {module}" if step is Step.CODEGEN else f"started {module}  {step.value}")
            case ModuleFinished(module, result):
                self._done[result.step] += 1
                where = f"[{self._where(result.step)}] {module}"
                if isinstance(result, Failed):
                    say(f"{where}  failed")
                elif result.cache.outcome in (CacheOutcome.HIT, CacheOutcome.SHARED):
                    say(f"{where}  from the cache")
                elif result.step is not Step.PRE_LINK or result.seconds:
                    say(f"{where}  {result.seconds:.2f} s  {result.engine.value}")
            case _:
                super().event(event)

    def _where(self, step: Step) -> str:
        if step in _LINKS:
            return step.value
        if step is Step.FAT_CODEGEN:
            return f"{step.value} {self._done[step]}"
        done = self._done[step]
        if step in _FIRST_STEPS:  # a module goes round LTO or takes part in it: it is one of as many
            done = sum(self._done[first] for first in _FIRST_STEPS)
        count = f"{done:{len(str(self._total))}}/{self._total}"
        return count if step is Step.CODEGEN else f"{step.value} {count}"


class _Display:
    """A bar with what is done and what runs; diagnostics scroll by above it. Gone when the build is over."""

    def __init__(self, total: int) -> None:
        from rich.console import Console  # the whole of rich: only where there is a terminal
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column
        from rich.text import Text

        self._text = Text
        self._console = Console(stderr=True)
        self._bar = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True), markup=False),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        self._task: TaskID = self._bar.add_task("", total=total)
        self._total = total
        self._done = 0
        self._running: dict[str, None] = {}

    def event(self, event: BuildEvent) -> None:
        match event:
            case ModuleQueued(_, step):
                self._total += step in (Step.THIN_BACKEND, Step.FAT_CODEGEN)
            case ModuleStarted(module):
                self._running[module] = None
            case ModuleFinished(module, result):
                self._running.pop(module, None)
                self._done += result.step not in _LINKS
            case DiagnosticReported(diagnostic):
                self.diagnostic(diagnostic)

    def diagnostic(self, diagnostic: Diagnostic) -> None:
        style = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: ""}[diagnostic.severity]
        text = self._text(printable(str(diagnostic)))
        text.stylize(style, 0, len(diagnostic.severity.value) + 1)
        self._console.print(text, soft_wrap=True)

    async def run(self) -> None:
        with self._bar:
            while True:
                running = printable("  ".join(itertools.islice(self._running, 8)).replace("\n", " "))
                self._bar.update(self._task, completed=self._done, total=self._total, description=running, refresh=True)
                await trio.sleep(_REDRAW_SECONDS)

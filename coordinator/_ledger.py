"""What a build has come to so far: results, what was skipped, who watches; and what it teaches about costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import trio
from attrs import define, field

from coordinator._events import BuildEvent, BuildResult, DiagnosticReported, ModuleFinished
from coordinator._history import History
from workers.work import CodegenOptions, Estimate, Failed, Step, WorkResult

__all__ = ["Ledger"]

_ORDER = {step: number for number, step in enumerate(Step)}


@define(eq=False)
class Ledger:
    """The books of one build into `out_dir`. `opened` is when it was opened, in trio's time."""

    out_dir: Path
    options: CodegenOptions
    history: History
    results: list[WorkResult] = field(factory=list, init=False)
    failed: bool = field(default=False, init=False)
    cancelled: bool = field(default=False, init=False)
    opened: float = field(default=math.nan, init=False)
    result: BuildResult | None = field(default=None, init=False)
    _skipped: list[str] = field(factory=list, init=False)
    _watchers: list[trio.MemorySendChannel[BuildEvent]] = field(factory=list, init=False)

    def watch(self) -> trio.MemoryReceiveChannel[BuildEvent]:
        """The events from now on, without a bound on how many may wait."""
        send, receive = trio.open_memory_channel[BuildEvent](math.inf)
        self._watchers.append(send)
        if self.result is not None:
            send.close()
        return receive

    def tell(self, event: BuildEvent) -> None:
        """Tell everybody who watches."""
        for watcher in tuple(self._watchers):
            try:
                watcher.send_nowait(event)
            except trio.BrokenResourceError:
                self._watchers.remove(watcher)

    def add(self, results: Iterable[WorkResult]) -> None:
        """Enter results, learn from them, and tell."""
        for result in results:
            self.results.append(result)
            if isinstance(result, Failed):
                self.failed = True
            elif result.seconds:
                self.history.record(self._key(result.module, result.step), result.seconds, result.peak_rss_bytes)
            if self._watchers:
                for diagnostic in result.diagnostics:
                    self.tell(DiagnosticReported(diagnostic))
                self.tell(ModuleFinished(result.module, result))

    def skip(self, names: Sequence[str]) -> None:
        """Enter what was never started."""
        self._skipped += names

    @property
    def goes_on(self) -> bool:
        """Whether everything so far is there, so that the next step makes sense."""
        return not (self.failed or self.cancelled or self._skipped)

    def predict(self, name: str, step: Step, estimate: Estimate) -> Estimate:
        """What a step is expected to need: what was measured before, else the estimate."""
        measured = self.history.estimate(self._key(name, step))
        if measured is None:
            return estimate
        seconds, peak = measured
        return Estimate(seconds, peak, estimate.batch)

    def close(self) -> BuildResult:
        """The result of the build, which takes no more entries."""
        if self.result is None:
            results = tuple(sorted(self.results, key=lambda result: (result.module, _ORDER[result.step])))
            self.result = BuildResult(
                results,
                tuple(diagnostic for result in results for diagnostic in result.diagnostics),
                tuple(sorted(self._skipped)),
                self.cancelled,
                trio.current_time() - self.opened,
            )
            for watcher in self._watchers:
                watcher.close()
        return self.result

    def _key(self, name: str, step: Step) -> tuple[Path, str, Step, CodegenOptions]:
        # Every program has a `main`.
        return self.out_dir, name, step, self.options

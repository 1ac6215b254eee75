"""What a build has come to so far: results, what was skipped, who watches; and what it teaches about costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import trio
from attrs import define, evolve, field

from coordinator._events import BuildEvent, BuildResult, DiagnosticReported, ModuleFinished
from coordinator._history import History
from coordinator._past import Past
from workers.work import CodegenOptions, Diagnostic, Estimate, Failed, Severity, Step, WorkResult

__all__ = ["Ledger"]

_ORDER = {step: number for number, step in enumerate(Step)}


@define(eq=False)
class Ledger:
    """The books of one build into `out_dir`. `opened` is when it was opened, in trio's time."""

    out_dir: Path
    options: CodegenOptions
    history: History
    past: Past | None = None
    results: list[WorkResult] = field(factory=list, init=False)
    failed: bool = field(default=False, init=False)
    cancelled: bool = field(default=False, init=False)
    opened: float = field(default=math.nan, init=False)
    result: BuildResult | None = field(default=None, init=False)
    _skipped: list[str] = field(factory=list, init=False)
    _warned: set[str] = field(factory=set, init=False)
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
        for result in map(self._explained, results):
            self.results.append(result)
            if isinstance(result, Failed):
                self.failed = True
            elif result.seconds:
                self.history.record(self._key(result.module, result.step), result.seconds, result.peak_rss_bytes)
            if self._watchers:
                for diagnostic in result.diagnostics:
                    self.tell(DiagnosticReported(diagnostic))
                self.tell(ModuleFinished(result.module, result))

    def _explained(self, result: WorkResult) -> WorkResult:
        """With why the cache did what it did; and told once, where the user can mend that it did nothing."""
        use = result.cache
        if self.past is None:
            return evolve(result, cache=evolve(use, reason=use.note or "no cache is configured"))
        reason = self.past.reason(result.module, result.step, use)
        if use.warn and use.note not in self._warned:
            self._warned.add(use.note)
            warning = Diagnostic(Severity.WARNING, result.module, f"not cached: {use.note}")
            result = evolve(result, diagnostics=(*result.diagnostics, warning))
        return evolve(result, cache=evolve(use, reason=reason))

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
            if self.past is not None and results:
                self.past.record(results, seconds=self.result.seconds, ok=self.result.ok)
            for watcher in self._watchers:
                watcher.close()
        return self.result

    def _key(self, name: str, step: Step) -> tuple[Path, str, Step, CodegenOptions]:
        # Every program has a `main`.
        return self.out_dir, name, step, self.options

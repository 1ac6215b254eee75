"""Signals that ask us to stop: an exception before trio runs, a cancellation while it does."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType
from typing import Any, Self

import trio

from coordinator.cli._exit import Interrupted

__all__ = ["StopSignals"]

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """A context in which SIGINT, SIGTERM and SIGHUP raise `Interrupted`, or cancel a scope given to `cancels`.

    A signal that is ignored stays ignored: `nohup` and background jobs of scripts mean it. Those after the first
    change nothing: stopping takes no longer than killing what runs, and a second Ctrl-C must not leave it half done.
    """

    def __init__(self) -> None:
        self.received: Interrupted | None = None
        self._deferred = False
        self._scope: trio.CancelScope | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _STOP:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def defer(self) -> None:
        """From here on raise nothing: an exception inside trio's own machinery would wreck it. Then `cancels`."""
        self._deferred = True

    def cancels(self, scope: trio.CancelScope) -> None:
        """Let a signal cancel `scope`, of the running trio program; one that has come already does so now."""
        self._token = trio.lowlevel.current_trio_token()
        self._scope = scope
        if self.received is not None:
            scope.cancel()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = Interrupted(number)
        if not self._deferred:
            raise self.received
        if self._token is not None and self._scope is not None:
            # After the end of the build its outcome stands.
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._scope.cancel)

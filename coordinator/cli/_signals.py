"""Signals that ask us to stop: an exception before trio runs, a cancellation while it does."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType
from typing import Self

import trio

from coordinator.cli._exit import STOP_SIGNALS, Interrupted

__all__ = ["StopSignals"]


class StopSignals:
    """A context in which the stop signals raise `Interrupted`, or cancel a scope given to `cancels`.

    It is the last thing a process does: behind it they are ignored, as there is nothing left to stop.
    A signal that is ignored stays ignored: `nohup` and background jobs of scripts mean it. Those after the first
    change nothing: stopping takes no longer than killing what runs, and a second Ctrl-C must not leave it half done.
    """

    def __init__(self) -> None:
        self.received: Interrupted | None = None
        self._deferred = False
        self._scope: trio.CancelScope | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def defer(self) -> None:
        """From here on raise nothing: inside trio's own machinery, or half-way through a report, it would do harm."""
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

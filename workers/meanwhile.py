"""Doing one thing in a thread while the caller does another, without an event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Meanwhile"]

_T = TypeVar("_T")


class Meanwhile(Generic[_T]):
    """Does `work` in a thread of its own from now on. The process may end before that is done.

    Where there can be no more threads, it does it at once.
    """

    def __init__(self, work: Callable[[], _T]) -> None:
        self._results: list[_T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._run(work)

    def ends_within(self, seconds: float | None) -> bool:
        """Wait as long as that at most (`None`: until it is done); whether `result` does not wait any longer."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> _T:
        """What it gives, when it is done. Raises what it raises."""
        self.ends_within(None)
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self, work: Callable[[], _T]) -> None:
        try:
            self._results.append(work())
        except BaseException as error:  # raised where the result is asked for
            self._error = error

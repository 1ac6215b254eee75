"""When to stop asking a server that does not answer, and when to try again.

Here belongs the decision only: no clock, no I/O. Times are seconds of any clock that only goes forward.
"""

from __future__ import annotations

__all__ = ["Breaker"]


class Breaker:
    """Lets requests pass until some failed in a row; then none for a while; then one, to see.

    Requests also count by the time that they took to fail: after `enough_seconds` of it together nobody asks either,
    since whoever asks is a build that waits. The pause doubles each time that the one request fails as well.
    """

    def __init__(self, *, enough: int, enough_seconds: float, pause_seconds: float, most_seconds: float) -> None:
        self._enough = enough
        self._enough_seconds = enough_seconds
        self._first_pause = self._pause = pause_seconds
        self._most_seconds = most_seconds
        self._failures = 0
        self._lost_seconds = 0.0
        self._off_until: float | None = None
        self._probing = False

    def admit(self, now: float) -> bool:
        """Whether to ask. Whoever does tells what came of it: `succeeded`, `failed` or `abandoned`."""
        if self._off_until is None:
            return True
        if self._probing or now < self._off_until:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """The server is well, whatever it said."""
        self._failures, self._lost_seconds, self._off_until, self._probing = 0, 0.0, None, False
        self._pause = self._first_pause

    def failed(self, now: float, seconds: float, pause_seconds: float = 0.0) -> None:
        """A request failed after `seconds`; the server may have asked to be left alone for `pause_seconds`."""
        self._failures += 1
        self._lost_seconds += seconds
        late = self._off_until is not None and not self._probing
        enough = self._failures >= self._enough or self._lost_seconds >= self._enough_seconds
        if late or not (self._probing or enough or pause_seconds):
            return
        self._off_until = now + min(max(self._pause, pause_seconds), self._most_seconds)
        self._pause = min(2 * self._pause, self._most_seconds)
        self._probing = False

    def abandoned(self) -> None:
        """A request ended for reasons that say nothing about the server."""
        self._probing = False

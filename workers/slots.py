"""The right to run something: a token and memory. Whoever schedules gives it out, whoever runs work asks for it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from workers.work import Estimate

__all__ = ["Slots"]


class Slots(Protocol):
    """Slots of one build, shared fairly with what else runs.

    It exists because an LTO loop decides what runs next within its build, but not what runs beside it.
    """

    @property
    def limit(self) -> int:
        """The most slots that there are at once."""
        ...

    def hold(self, name: str, estimate: Estimate) -> AbstractAsyncContextManager[None]:
        """Wait for a slot with as much memory as `estimate` says, and hold it until the context is left.

        Of those that wait, the costliest comes first. `name` is for reports.
        """
        ...

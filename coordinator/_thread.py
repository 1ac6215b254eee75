"""The coordinator for programs without trio: it runs in a thread of its own, calls wait for their answer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import trio

from coordinator._build import Build
from coordinator._config import BuildConfig
from coordinator._coordinator import Coordinator, open_coordinator
from coordinator._events import BuildResult
from workers.errors import RequestError
from workers.work import Module

_T = TypeVar("_T")

__all__ = ["ThreadBuild", "ThreadCoordinator", "open_coordinator_in_thread"]


class ThreadBuild:
    """A build driven from outside trio; every method waits for its answer and may be called from any thread."""

    def __init__(self, build: Build, token: trio.lowlevel.TrioToken) -> None:
        self._build = build
        self._token = token

    def submit(self, module: Module) -> bool:
        """As `Build.submit`."""
        return _run(self._token, self._build.submit, module)

    def add_native(self, path: Path, *, lazy: bool = False) -> None:
        """As `Build.add_native`."""

        async def add() -> None:
            self._build.add_native(path, lazy=lazy)

        _run(self._token, add)

    def finish(self) -> BuildResult:
        """As `Build.finish`."""
        return _run(self._token, self._build.finish)

    def cancel(self) -> None:
        """As `Build.cancel`; may be called while another thread waits in `submit` or `finish`."""
        _run(self._token, self._build.cancel)


class ThreadCoordinator:
    """A coordinator that lives in another thread; from `open_coordinator_in_thread`."""

    def __init__(self, coordinator: Coordinator, token: trio.lowlevel.TrioToken) -> None:
        self._coordinator = coordinator
        self._token = token

    @contextlib.contextmanager
    def build(self, config: BuildConfig) -> Iterator[ThreadBuild]:
        """As `Coordinator.build`: leaving the context without `finish` cancels the build."""
        build = self._coordinator.build(config)
        _run(self._token, build.__aenter__)
        try:
            yield ThreadBuild(build, self._token)
        finally:
            with contextlib.suppress(RequestError):  # a coordinator that is closed has cancelled it
                _run(self._token, build.__aexit__, None, None, None)


def _run(token: trio.lowlevel.TrioToken, call: Callable[..., Awaitable[_T]], *arguments: object) -> _T:
    """Have the coordinator's thread call something, and wait for what comes of it."""
    try:
        return trio.from_thread.run(call, *arguments, trio_token=token)
    except trio.RunFinishedError:
        raise RequestError("the coordinator is closed: open another one") from None


class _Host:
    """The thread: runs trio until told to stop."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._ready = threading.Event()
        self._stop: trio.Event | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._coordinator: Coordinator | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ltod coordinator", daemon=True)

    def start(self) -> ThreadCoordinator:
        self._thread.start()
        self._ready.wait()
        if self._coordinator is None or self._token is None:
            self._thread.join()
            raise self._error or RequestError("the coordinator did not start")
        return ThreadCoordinator(self._coordinator, self._token)

    def stop(self) -> None:
        if self._token is not None and self._stop is not None:
            # The loop may have ended by itself, with an error that is raised below.
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._stop.set)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        async with open_coordinator(**self._options) as coordinator:
            self._stop = trio.Event()
            self._token = trio.lowlevel.current_trio_token()
            self._coordinator = coordinator
            self._ready.set()
            await self._stop.wait()


@contextlib.contextmanager
def open_coordinator_in_thread(**options: Any) -> Iterator[ThreadCoordinator]:
    """Open a coordinator for a program that does not run trio; `options` are those of `open_coordinator`."""
    host = _Host(options)
    coordinator = host.start()
    try:
        yield coordinator
    finally:
        host.stop()

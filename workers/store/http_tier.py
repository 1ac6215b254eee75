"""The second tier over HTTP: the cache protocol of Bazel, which buck2, ccache, sccache and their servers speak as well.

Here belongs what is said to such a server, and how patient we are with it. `GET` and `PUT` on `<base>/ac/<key>` for
encoded entries and on `<base>/cas/<digest>` for blobs, `HEAD` before the `PUT` of a large blob; nothing is listed or
deleted, no redirect is followed, no proxy is asked. When to leave a server alone is decided in `breaker`.

httpcore does the talking (in `http_client`): it has connections, TLS and time limits on trio itself, and needs h11
only. httpx on top of it would add anyio, redirects, cookies and environment variables, of which we want none, and
takes four times as long to import. h11 alone would leave the pool to us, where the mistakes are.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import frozen

from workers.store.breaker import Breaker
from workers.store.files import Unusable, open_file, write_all
from workers.store.http_exchange import Address, Answer, Fault, Request
from workers.store.interface import RemoteOff, RemoteTrouble

if TYPE_CHECKING:
    from workers.store.http_client import Client

__all__ = ["HttpTier", "Limits", "open_http_tier"]

_PIECE = 256 * 1024

_SUSPECTS = 1000
"""So many damaged blobs are remembered."""

_NOTHING = hashlib.sha256().hexdigest()

_NO_UPLOADS = frozenset({401, 403, 405, 407, 501})
"""Answers to `PUT` that will be the same for every other one."""


@frozen(kw_only=True)
class Limits:
    """How patient we are: a second tier that makes a build wait is worse than none."""

    connect_seconds: float = 2.0
    silence_seconds: float = 4.0
    """Without progress while downloading; also what a slow answer may take beyond `slowest`."""
    upload_silence_seconds: float = 20.0
    """Without progress while uploading: nobody waits for that, and a server may have to pass on what it got."""
    slowest: float = 64 * 1024
    """Bytes per second below which a transfer is given up, be there progress or not."""
    request_seconds: float = 120.0
    """For one attempt in all."""
    attempts: int = 3
    pause_seconds: float = 0.1
    """Before the second attempt; four times as long before each one after it."""
    longest_pause_seconds: float = 1.0
    """A server that asks for more is left alone for as long as it asks."""
    failures: int = 3
    """So many attempts in a row that fail switch off."""
    failing_seconds: float = 3.0
    """So much time lost with attempts in a row that fail switches off as well."""
    off_seconds: float = 30.0
    """The first time; it doubles each time that the server is found to be no better."""
    longest_off_seconds: float = 600.0
    action_bytes: int = 1 << 20
    """Larger entries are neither read nor written."""
    blob_bytes: int = 2 << 30
    """Larger blobs are neither read nor written."""
    ask_first_bytes: int = 256 * 1024
    """Larger blobs are uploaded only after the server said that it lacks them."""
    downloads: int = 12
    """At once."""
    uploads: int = 4
    """At once."""


@asynccontextmanager
async def open_http_tier(url: str, limits: Limits | None = None) -> AsyncIterator[HttpTier]:
    """The tier at `url`. Connects only when there is something to ask. Raises `ValueError` as `Address.parse` does."""
    # It takes as long as many a build without changes, so it is not imported without need.
    from workers.store.http_client import open_client

    address, limits = Address.parse(url), limits or Limits()
    connections = limits.downloads + limits.uploads
    async with open_client(address, connections=connections, connect_seconds=limits.connect_seconds) as client:
        yield HttpTier(address.shown, limits, client)


class _Lane:
    """Downloads or uploads: each has its own breaker, as a full disk there does not keep us from reading."""

    def __init__(self, limits: Limits, at_once: int, silence_seconds: float) -> None:
        self.slots = trio.CapacityLimiter(at_once)
        self.silence_seconds = silence_seconds
        self.breaker = Breaker(
            enough=limits.failures,
            enough_seconds=limits.failing_seconds,
            pause_seconds=limits.off_seconds,
            most_seconds=limits.longest_off_seconds,
        )


class _Sending:
    """A blob on its way to the server."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.there = False


class HttpTier:
    """See `Remote`; use `open_http_tier` to get one. Belongs to one trio run; any number of tasks may use it."""

    def __init__(self, shown: str, limits: Limits, client: Client) -> None:
        self._shown = shown
        self._limits = limits
        self._client = client
        self._down = _Lane(limits, limits.downloads, limits.silence_seconds)
        self._up = _Lane(limits, limits.uploads, limits.upload_silence_seconds)
        self._read_only = False
        self._sending: dict[str, _Sending] = {}
        self._suspects: set[str] = set()

    async def get_action(self, key: str) -> bytes | None:
        """See `Remote`."""
        message = bytearray()

        def take(piece: bytes) -> None:
            if piece:
                message.extend(piece)
            else:
                message.clear()

        answer = await self._get(f"/ac/{key}", self._limits.action_bytes, take)
        if answer is not None and not answer.fits:
            raise self._trouble("gave an entry that is too large")
        return None if answer is None else bytes(message)

    async def get_blob(self, digest: str, size: int, into: Path) -> bool:
        """See `Remote`. Raises `OSError` as well, where `into` cannot be written."""
        if size > self._limits.blob_bytes:
            raise RemoteOff
        hashed = hashlib.sha256()
        fd = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

        def take(piece: bytes) -> None:
            nonlocal hashed
            if piece:
                hashed.update(piece)
                write_all(fd, piece)
            else:
                hashed = hashlib.sha256()
                os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_SET))

        try:
            answer = await self._get(f"/cas/{digest}", size, take)
        finally:
            os.close(fd)
        if answer is not None and hashed.hexdigest() != digest:
            # Else nobody would ever replace it, as the server would say that it has it.
            if len(self._suspects) < _SUSPECTS:
                self._suspects.add(digest)
            raise self._trouble("gave a damaged file")
        return answer is not None

    async def put_action(self, key: str, message: bytes) -> None:
        """See `Remote`."""
        if len(message) > self._limits.action_bytes:
            raise RemoteOff

        async def content() -> AsyncIterator[bytes]:
            yield message

        await self._put(f"/ac/{key}", content, len(message))

    async def put_blob(self, digest: str, source: Path) -> None:
        """See `Remote`. Who comes while the same blob is on its way waits for that.

        Raises `Unusable` as well, where `source` is gone or is not what its digest says.
        """
        while (other := self._sending.get(digest)) is not None:
            await other.over.wait()
            if other.there:
                return
        sending = self._sending[digest] = _Sending()
        try:
            await self._put_file(digest, str(source))
            sending.there = True
        finally:
            del self._sending[digest]
            sending.over.set()

    async def _put_file(self, digest: str, path: str) -> None:
        fd, status = open_file(path)
        try:
            size = status.st_size
            if self._read_only or size > self._limits.blob_bytes:
                raise RemoteOff
            if not size and digest != _NOTHING:
                # The head of such a request is all of it.
                raise Unusable(path, damaged=True)
            if size > self._limits.ask_first_bytes and digest not in self._suspects and await self._has(digest, size):
                return

            async def content() -> AsyncIterator[bytes]:
                # The server gets its last bytes only when they are known to be right: else it takes none of them.
                hashed = hashlib.sha256()
                at = 0
                while at < size:
                    piece = os.pread(fd, _PIECE, at)
                    at += len(piece)
                    hashed.update(piece)
                    if not piece or at > size or (at == size and hashed.hexdigest() != digest):
                        raise Unusable(path, damaged=True)
                    yield piece

            await self._put(f"/cas/{digest}", content, size)
            self._suspects.discard(digest)
        finally:
            os.close(fd)

    async def _has(self, digest: str, size: int) -> bool:
        answer = await self._try(self._up, Request("HEAD", f"/cas/{digest}"))
        return answer.status == 200 and answer.size in (None, size)

    async def _get(self, path: str, most_bytes: int, take: Callable[[bytes], None]) -> Answer | None:
        """The answer that says that there is something, `None` for one that there is not."""
        answer = await self._try(self._down, Request("GET", path, take=take, most_bytes=most_bytes))
        return answer if answer.status == 200 else None

    async def _put(self, path: str, content: Callable[[], AsyncIterator[bytes]], size: int) -> None:
        if self._read_only:
            raise RemoteOff
        answer = await self._try(self._up, Request("PUT", path, content=content, size=size))
        if answer.status in _NO_UPLOADS:
            self._read_only = True
            raise self._trouble(f"takes no uploads (HTTP {answer.status}): from now on it is only read")
        if not 200 <= answer.status < 300:
            raise self._trouble(f"refuses an upload (HTTP {answer.status})")

    async def _try(self, lane: _Lane, request: Request) -> Answer:
        """Ask until there is an answer that is not the server's fault. Raises `RemoteTrouble` or `RemoteOff`."""
        limits = self._limits
        trouble: RemoteTrouble | None = None
        pause, asked = limits.pause_seconds, 0.0
        for attempt in range(limits.attempts):
            if attempt:
                # Not all at the same moment, should they have failed at the same moment.
                await trio.sleep(max(asked, pause * random.uniform(0.5, 1)))  # noqa: S311
                pause *= 4
            async with lane.slots:
                if not lane.breaker.admit(trio.current_time()):
                    raise trouble or RemoteOff
                outcome = await self._attempt(lane, request)
            if not isinstance(outcome, Fault):
                return outcome
            trouble = self._trouble(str(outcome))
            asked = outcome.pause_seconds
            if not outcome.again or asked > limits.longest_pause_seconds:
                break
        raise trouble or RemoteOff

    async def _attempt(self, lane: _Lane, request: Request) -> Answer | Fault:
        """Ask once, and let the breaker know."""
        limits = self._limits
        started = trio.current_time()
        try:
            outcome: Answer | Fault = await self._client.ask(
                request,
                silence_seconds=lane.silence_seconds,
                slowest=limits.slowest,
                most_seconds=limits.request_seconds,
            )
        except Fault as fault:
            outcome = fault
        except BaseException:
            lane.breaker.abandoned()
            raise
        if isinstance(outcome, Answer):
            outcome = _fault_in(request, outcome) or outcome
        now = trio.current_time()
        if isinstance(outcome, Fault):
            asked = outcome.pause_seconds if outcome.pause_seconds > limits.longest_pause_seconds else 0.0
            lane.breaker.failed(now, now - started, asked)
        else:
            lane.breaker.succeeded()
        return outcome

    def _trouble(self, what: str) -> RemoteTrouble:
        return RemoteTrouble(f"the cache at {self._shown} {what}")


def _fault_in(request: Request, answer: Answer) -> Fault | None:
    """What is wrong with the server itself, going by its answer."""
    status = answer.status
    if status == 429 or (status >= 500 and status != 501):
        return Fault(f"fails (HTTP {status})", again=True, pause_seconds=answer.retry_seconds)
    if 300 <= status < 400:
        return Fault(f"is elsewhere (HTTP {status}): redirects are not followed", again=False)
    if request.method == "GET" and status not in (200, 404, 410):
        return Fault(f"refuses downloads (HTTP {status})", again=False)
    return None

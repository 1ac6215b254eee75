"""One attempt to ask an HTTP server for something, within limits of time and size.

Here belongs what knows httpcore. This module is imported when a tier is opened, since that takes a while.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any

import httpcore
import trio
from attrs import evolve

from workers.store.http_exchange import Address, Answer, Fault, Request

__all__ = ["Client", "open_client"]

_FEW_BYTES = 64 * 1024
"""So much of an answer that nobody wants is read to keep its connection; beyond it, the connection is given up."""

_IDLE_SECONDS = 15.0
"""Connections unused for so long are given up: servers and what is between do the same, often without a word."""


@asynccontextmanager
async def open_client(address: Address, *, connections: int, connect_seconds: float) -> AsyncIterator[Client]:
    """A client for one server, with at most so many connections, which are made as they are needed."""
    async with httpcore.AsyncConnectionPool(
        # What the system trusts, not what httpcore brings along: the cache of a company has its certificate there.
        ssl_context=ssl.create_default_context() if address.secure else None,
        max_connections=connections,
        max_keepalive_connections=connections,
        keepalive_expiry=_IDLE_SECONDS,
        uds=address.socket,
        network_backend=_Backend(),
    ) as pool:
        yield Client(address, pool, connect_seconds)


class Client:
    """Use `open_client` to get one."""

    def __init__(self, address: Address, pool: httpcore.AsyncConnectionPool, connect_seconds: float) -> None:
        self._address = address
        self._pool = pool
        self._connect_seconds = connect_seconds

    async def ask(self, request: Request, *, silence_seconds: float, slowest: float, most_seconds: float) -> Answer:
        """Ask once. Raises `Fault`, and what `content` and `take` raise.

        It is a fault to show no progress for `silence_seconds`, to take longer than that and what `slowest` bytes per
        second need, and to take longer than `most_seconds`.
        """
        started = trio.current_time()

        def until(transferred: int) -> float:
            allowed = self._connect_seconds + silence_seconds + transferred / slowest
            return started + min(allowed, most_seconds)

        with trio.CancelScope(deadline=until(request.size)) as scope, _faults():
            async with self._pool.stream(
                request.method,
                httpcore.URL(
                    scheme="https" if self._address.secure else "http",
                    host=self._address.host,
                    port=self._address.port,
                    target=self._address.path + request.path,
                ),
                headers=self._headers(request),
                content=request.content() if request.content is not None else None,
                extensions={
                    "timeout": {"connect": self._connect_seconds, "read": silence_seconds, "write": silence_seconds}
                },
            ) as response:
                answer = _read_head(response)
                wanted = request.take if answer.status == 200 else None
                most = request.most_bytes if wanted is not None else _FEW_BYTES
                if request.method != "HEAD" and answer.size is not None and answer.size > most:
                    return evolve(answer, fits=False)
                received = 0
                if wanted is not None:
                    wanted(b"")
                async for piece in response.aiter_stream():
                    received += len(piece)
                    if received > most:
                        return evolve(answer, fits=False)
                    if wanted is not None:
                        wanted(piece)
                    scope.deadline = until(request.size + received)
                return answer
        raise Fault("does not answer in time", again=True)

    def _headers(self, request: Request) -> list[tuple[str, str]]:
        headers = [("Host", self._address.place), ("Accept", "*/*"), ("Accept-Encoding", "identity")]
        if self._address.authorization is not None:
            headers.append(("Authorization", self._address.authorization))
        if request.content is not None:
            headers += [("Content-Length", str(request.size)), ("Content-Type", "application/octet-stream")]
        return headers


def _read_head(response: httpcore.Response) -> Answer:
    headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
    length = headers.get(b"content-length", "")
    return Answer(
        response.status,
        int(length) if length.isascii() and length.isdecimal() else None,
        _read_retry(headers.get(b"retry-after", "")),
    )


def _read_retry(text: str) -> float:
    """Seconds from a number or a date; 0 for anything else."""
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


@contextmanager
def _faults() -> Iterator[None]:
    """Translates what httpcore raises."""
    try:
        yield
    except (httpcore.ConnectTimeout, httpcore.ConnectError) as error:
        raise Fault(f"cannot be reached ({_reason(error)})", again=True) from None
    except httpcore.TimeoutException:
        raise Fault("does not answer in time", again=True) from None
    except httpcore.NetworkError:
        raise Fault("breaks connections", again=True) from None
    except httpcore.ProtocolError:
        raise Fault("breaks off, or does not speak HTTP", again=True) from None


def _reason(error: BaseException) -> str:
    """The system's word for it: the innermost error that has one."""
    reason = "not in time" if isinstance(error, httpcore.TimeoutException) else ""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            reason = seen.verify_message
        elif isinstance(seen, OSError) and seen.strerror:
            # trio has put the address into the text, which may be another one each time.
            reason = os.strerror(seen.errno) if seen.errno and seen.errno > 0 else seen.strerror
        elif isinstance(seen, ExceptionGroup):
            # One for each address of the host.
            reason = _reason(seen.exceptions[0]) or reason
        seen = seen.__cause__ or seen.__context__
    return reason or "no reason is known"


class _Backend(httpcore.AsyncNetworkBackend):
    """httpcore's own for trio, with connections that are closed at once."""

    def __init__(self) -> None:
        self._trio = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._trio.connect_tcp(host, port, timeout, local_address, socket_options))

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._trio.connect_unix_socket(path, timeout, socket_options))

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    """TLS says goodbye when it is closed.

    httpcore shields that, so where a stopped server has left no room to send in, it would wait without end.
    """

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

"""Where a server is, what it is asked and what it answers.

Here belong the words between `http_tier` and `http_client`. Secrets are in none of their texts.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Callable
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

__all__ = ["Address", "Answer", "Fault", "Request"]

_PLAIN = re.compile(r"[!-~]*")


@frozen(kw_only=True)
class Address:
    """Where a tier is, taken apart. `shown` is for messages: the user's name and password are not in it."""

    shown: str
    secure: bool
    host: str
    port: int | None
    path: str
    """What precedes `/ac/` and `/cas/`: empty, or beginning with a slash."""
    socket: str | None
    """The path of a Unix socket instead of host and port."""
    authorization: str | None = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Address:
        """From `http://` or `https://[USER:PASSWORD@]HOST[:PORT][/PATH]`, or `http+unix:///SOCKET`.

        Raises `ValueError`, whose text has nothing of the URL in it, as that may be a password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("not a URL: is a character in its password not percent-encoded?") from None
        local = parts.scheme == "http+unix"
        if parts.scheme not in ("http", "https", "http+unix"):
            raise ValueError("a cache's URL begins with http://, https:// or http+unix://")
        if parts.query or parts.fragment:
            raise ValueError("a cache's URL has no ? and no #; in a password they are written %3F and %23")
        # What splitting tolerates would end up in a request.
        if not _PLAIN.fullmatch(url):
            raise ValueError("a cache's URL has no blanks and only ASCII characters; others are percent-encoded")
        if local == bool(parts.hostname) or (local and not parts.path.strip("/")):
            raise ValueError("a cache's URL names a host, or with http+unix:/// the path of a socket")
        host = parts.hostname or "localhost"
        try:
            host.encode("idna")
        except UnicodeError:
            raise ValueError("a cache's URL names a host that cannot be one") from None
        bracketed = f"[{host}]" if ":" in host else host
        place = bracketed if port is None else f"{bracketed}:{port}"
        path = parts.path.rstrip("/")
        authorization = None
        if parts.username is not None:
            both = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(both.encode()).decode("ascii")
        return cls(
            shown=f"{parts.scheme}://{'' if local else place}{path}",
            secure=parts.scheme == "https",
            host=host,
            port=port,
            path="" if local else path,
            socket=unquote(path) if local else None,
            authorization=authorization,
        )

    @property
    def place(self) -> str:
        """Host and port as a `Host` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


class Fault(Exception):
    """An attempt failed, and not by our fault; `again`: the next one may not. The text continues "the cache at ..."."""

    def __init__(self, text: str, *, again: bool, pause_seconds: float = 0.0) -> None:
        super().__init__(text)
        self.again = again
        self.pause_seconds = pause_seconds
        """For how long the server asks to be left alone."""


@frozen
class Request:
    """What to ask. `content` is called for the pieces of the body, `size` bytes in all.

    `take` gets the pieces of the body of an answer 200, at most `most_bytes` together.
    """

    method: str
    path: str
    content: Callable[[], AsyncIterator[bytes]] | None = None
    size: int = 0
    take: Callable[[bytes], None] | None = None
    most_bytes: int = 0


@frozen
class Answer:
    """What a server said."""

    status: int
    size: int | None
    """As `Content-Length` says."""
    retry_seconds: float
    """For how long the server asks to be left alone."""
    fits: bool = True
    """False: it was larger than what was asked for, and not read to its end."""

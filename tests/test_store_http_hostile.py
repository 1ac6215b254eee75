"""Process layer: the second tier against servers that do what no real one does."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import evolve

from tests.http_samples import HASTY, IMPATIENT, build, build_at_once, shared
from tests.store_samples import content_of, key_of
from workers.store.action_result import encode
from workers.store.http_exchange import Address
from workers.store.http_tier import Limits, open_http_tier
from workers.store.interface import Entry, Output

pytestmark = pytest.mark.process

Answer = Callable[[trio.SocketStream, bytes], Awaitable[None]]


@asynccontextmanager
async def raw_server(answer: Answer) -> AsyncIterator[str]:
    """`answer` gets each connection with the head of its first request, and is the last to use it."""

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        try:
            while b"\r\n\r\n" not in head:
                piece = await stream.receive_some()
                if not piece:
                    return
                head += piece
            await answer(stream, head)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/base"
        nursery.cancel_scope.cancel()


OBJECT = content_of(1, 3_000)
DIGEST = hashlib.sha256(OBJECT).hexdigest()
ENTRY = encode(Entry((Output("o", DIGEST, len(OBJECT)),)))


def ok(content: bytes, *headers: str, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {size}", *headers])
    return head.encode() + b"\r\n\r\n" + content


def chunked(content: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)


FIXED: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "garbage": lambda _: b"\x16\x03\x01\x00 what?\r\n\r\n" * 10,
    "another protocol": lambda _: b"SSH-2.0-OpenSSH_9.2\r\n",
    "endless head": lambda _: b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 400_000,
    "bad length": lambda content: ok(content, "Content-Length: 7"),
    "negative length": lambda content: ok(content, length=-1),
    "too long": lambda content: ok(content, length=len(content) + 1),
    "too short": lambda content: ok(content, length=len(content) - 1),
    "huge length": lambda content: ok(content, length=1 << 62),
    "huge answer": lambda content: ok(content * 2_000),
    "huge chunk": lambda content: chunked(content * 2_000),
    "compressed": lambda content: ok(content[::-1], "Content-Encoding: gzip"),
    "no content": lambda _: b"HTTP/1.1 204 No Content\r\n\r\n",
    "part": lambda content: ok(content).replace(b"200 OK", b"206 Partial Content"),
    "switching": lambda _: b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "redirect to itself": lambda _: b"HTTP/1.1 302 Found\r\nLocation: /base/cas/1\r\nContent-Length: 0\r\n\r\n",
    "redirect elsewhere": lambda _: b"HTTP/1.1 307 No\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    "a page for all": lambda _: ok(b"<html>Please log in</html>"),
    "odd status": lambda _: b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
    "asks for eternity": lambda _: b"HTTP/1.1 503 No\r\nRetry-After: 99999999999999999\r\nContent-Length: 0\r\n\r\n",
    "asks in words": lambda _: b"HTTP/1.1 429 No\r\nRetry-After: Fri, 99 Foo 2100\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("where", ["entry", "blob"])
@pytest.mark.parametrize("lie", FIXED)
async def test_whatever_is_said_ends_as_a_miss(tmp_path: Path, lie: str, where: str) -> None:
    async def answer(stream: trio.SocketStream, head: bytes) -> None:
        if head.startswith(b"PUT"):
            await stream.send_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
        elif b"/ac/" in head and where == "blob":
            await stream.send_all(ok(ENTRY, "Connection: close"))
        else:
            await stream.send_all(FIXED[lie](ENTRY if where == "entry" else OBJECT))

    with trio.fail_after(20):
        async with raw_server(answer) as url, shared(tmp_path, url, IMPATIENT) as store:
            assert await store.find(key_of(1)) is None
            assert store.stats.remote_failures + store.stats.remote_skipped == 1
            assert store.usage().blobs == 0
            assert not list(tmp_path.glob("v1/tmp/*/*"))
            await build(store, [1])
            assert store.stats.not_stored == 0


async def test_the_same_server_telling_the_truth(tmp_path: Path) -> None:
    async def answer(stream: trio.SocketStream, head: bytes) -> None:
        await stream.send_all(chunked(OBJECT) if b"/cas/" in head else ok(ENTRY, "Connection: close"))

    async with raw_server(answer) as url, shared(tmp_path, url, IMPATIENT) as store:
        assert await build(store, [1]) == 1
        assert store.stats.remote_failures == 0


DRIPS = {
    "body": ok(OBJECT),
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100_000,
    "head": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
    "informational": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100_000,
}


@pytest.mark.parametrize("what", [*DRIPS, "silence"])
async def test_whoever_is_slow_costs_little_in_all(tmp_path: Path, what: str) -> None:
    async def answer(stream: trio.SocketStream, head: bytes) -> None:
        if what == "silence":
            await trio.sleep_forever()
        drops = DRIPS[what]
        for at in range(len(drops)):
            await stream.send_all(drops[at : at + 1])
            await trio.sleep(0.05)

    # One that is waited for costs a third of a second, so eighty would not be in time.
    limits = evolve(
        IMPATIENT,
        connect_seconds=0.15,
        silence_seconds=0.2,
        upload_silence_seconds=0.2,
        failing_seconds=0.3,
        off_seconds=60,
        longest_off_seconds=60,
    )
    with trio.fail_after(12):
        async with raw_server(answer) as url, shared(tmp_path, url, limits) as store:
            assert await build(store, range(40)) == 0
            assert store.stats.remote_skipped > 40
            assert any("in time" in trouble for trouble in store.stats.remote_troubles)
        async with raw_server(answer) as url, shared(tmp_path / "two", url, limits) as store:
            await build_at_once(store, range(40))


async def test_a_server_that_never_reads_does_not_keep_an_upload(tmp_path: Path) -> None:
    async def answer(stream: trio.SocketStream, head: bytes) -> None:
        if head.startswith(b"PUT"):
            await trio.sleep_forever()
        await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with trio.fail_after(20):
        async with raw_server(answer) as url, shared(tmp_path, url, IMPATIENT) as store:
            await build(store, range(3), 15_000_000)
            assert store.stats.not_stored == 0
            assert store.stats.remote_skipped


async def test_a_wait_that_is_asked_for_is_kept(tmp_path: Path) -> None:
    times: list[float] = []

    async def answer(stream: trio.SocketStream, head: bytes) -> None:
        times.append(trio.current_time())
        if len(times) == 1:
            await stream.send_all(b"HTTP/1.1 429 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        else:
            await stream.send_all(chunked(OBJECT) if b"/cas/" in head else ok(ENTRY, "Connection: close"))

    with trio.fail_after(20):
        async with raw_server(answer) as url, shared(tmp_path, url, HASTY) as store:
            assert await build(store, [1]) == 1
    assert times[1] - times[0] >= 1


@pytest.mark.parametrize("where", ["entry", "blob"])
async def test_an_answer_without_end_is_left_when_it_is_too_large(tmp_path: Path, where: str) -> None:
    async def answer(stream: trio.SocketStream, head: bytes) -> None:
        if b"/ac/" in head and where == "blob":
            await stream.send_all(ok(ENTRY, "Connection: close"))
            return
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await stream.send_all(b"2710\r\n" + bytes(10_000) + b"\r\n")

    with trio.fail_after(20):
        async with raw_server(answer) as url, shared(tmp_path, url, IMPATIENT) as store:
            assert await store.find(key_of(1)) is None
            (trouble,) = store.stats.remote_troubles
            assert ("too large" if where == "entry" else "damaged") in trouble


async def test_a_probe_that_is_cancelled_is_made_again(tmp_path: Path) -> None:
    mode = "fails"

    async def answer(stream: trio.SocketStream, head: bytes) -> None:
        if mode == "fails":
            await stream.send_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
        elif mode == "hangs":
            await trio.sleep_forever()
        else:
            await stream.send_all(ok(OBJECT if b"/cas/" in head else ENTRY, "Connection: close"))

    with trio.fail_after(20):
        async with raw_server(answer) as url, shared(tmp_path, url, IMPATIENT) as store:
            assert await store.find(key_of(1)) is None
            await trio.sleep(IMPATIENT.off_seconds)
            mode = "hangs"
            with trio.move_on_after(0.2) as scope:
                await store.find(key_of(1))
            assert scope.cancelled_caught
            mode = "is well"
            assert await store.find(key_of(1)) is not None


async def test_an_answer_that_broke_off_begins_anew(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def answer(stream: trio.SocketStream, head: bytes) -> None:
        path = head.split()[1]
        whole = OBJECT if b"/cas/" in path else ENTRY
        await stream.send_all(ok(whole, "Connection: close") if path in asked else ok(whole)[:-9])
        asked.append(path)

    with trio.fail_after(20):
        async with raw_server(answer) as url, shared(tmp_path, url, HASTY) as store:
            assert await build(store, [1]) == 1
            assert store.stats.remote_failures == 0
    assert len(asked) == 4


async def test_cancelling_leaves_nothing_behind(tmp_path: Path) -> None:
    asked = trio.Event()

    async def answer(stream: trio.SocketStream, head: bytes) -> None:
        if b"/ac/" in head:
            await stream.send_all(ok(ENTRY))
            await stream.receive_some()
        await stream.send_all(ok(OBJECT)[:-1_000])
        asked.set()
        await trio.sleep_forever()

    with trio.fail_after(20):
        async with raw_server(answer) as url, shared(tmp_path, url, Limits()) as store:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.find, key_of(1))
                nursery.start_soon(store.find, key_of(1))
                await asked.wait()
                nursery.cancel_scope.cancel()
            assert store.stats.remote_failures == 0
            assert not list(tmp_path.glob("v1/tmp/*/*"))


@pytest.mark.parametrize(
    "url",
    [
        "", "cache", "ftp://h/", "file:///x", "http://", "http:///path", "http+unix://", "http+unix://host/path",
        "http://u:s3cret@h:port/", "http://u:s3cret@h:99999", "http://u:s3cret@[::1", "http://u:s3cret@h/?x",
        "http://u:s3cret#@h/", "http://u:s3cret@h/a b", "http://u:s3cret@h/\r\nX: y", "http://u:s3cret\u00e9@h",
        "http://u:s3cret@", "http://u:s3cr/et@h", "http://u:s3cret@a..b",
    ],
)  # fmt: skip
async def test_what_is_no_url_is_said_without_what_it_is(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as caught:
        async with open_http_tier(url):
            raise AssertionError
    assert "s3cr" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_what_a_url_means() -> None:
    address = Address.parse("https://us%40er:p%3Aw@[::1]:8443/some//base/")
    assert (address.secure, address.host, address.port, address.path) == (True, "::1", 8443, "/some//base")
    assert address.authorization == "Basic dXNAZXI6cDp3"
    assert address.shown == f"https://{address.place}/some//base" == "https://[::1]:8443/some//base"
    assert "dXNA" not in repr(address)
    assert Address.parse("http+unix:///run/cache%20x").socket == "/run/cache x"


def test_nothing_is_imported_without_need() -> None:
    code = "import sys, workers.store.http_tier; sys.exit(bool({'httpcore', 'h11'} & set(sys.modules)))"
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1], env={"PYTHONPATH": ":".join(sys.path)}
    )

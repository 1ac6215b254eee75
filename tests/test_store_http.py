"""Process layer: the second tier over HTTP against a real nginx, well or ill."""

from __future__ import annotations

import base64
import hashlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import trio
from attrs import evolve

from tests.http_samples import (
    HASTY,
    IMPATIENT,
    PASSWORD,
    USER,
    Nginx,
    build,
    build_at_once,
    build_one,
    certify,
    free_port,
    nginx,
    shared,
)
from tests.store_samples import ROOMY, content_of, key_of
from workers.store import open_store
from workers.store.action_result import decode
from workers.store.files import Unusable
from workers.store.http_tier import open_http_tier

pytestmark = pytest.mark.process

LARGE = 700_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Nginx]:
    with nginx(tmp_path / "nginx") as running:
        yield running


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", [0, 2_000, LARGE, 5_000_000])
async def test_what_one_machine_adds_another_finds(tmp_path: Path, server: Nginx, size: int) -> None:
    with trio.fail_after(30):
        async with shared(tmp_path / "one", server.url("/deep/base/")) as store:
            assert await build(store, range(3), size) == 0
            assert store.stats.remote_failures == 0
        files = server.files / "deep" / "base"
        assert decode((files / "ac" / key_of(1)).read_bytes()).outputs[0].digest == digest_of(content_of(1, size))
        assert (files / "cas" / digest_of(content_of(1, size))).read_bytes() == content_of(1, size)
        async with shared(tmp_path / "two", server.url("/deep/base")) as store:
            assert await build(store, range(4), size) == 3
            assert (store.stats.remote_hits, store.stats.remote_failures) == (3, 0)


async def test_connections_are_used_again(tmp_path: Path, server: Nginx) -> None:
    limits = evolve(HASTY, downloads=1, uploads=1)
    with trio.fail_after(30):
        async with shared(tmp_path / "one", server.url("/"), limits) as store:
            await build_at_once(store, range(20))
            assert await build(store, range(20)) == 20
        await trio.sleep(0.1)
    asked = server.requests()
    assert len(asked) == 60
    assert len({connection for *_, connection in asked}) <= 2


async def test_through_a_unix_socket(tmp_path: Path, server: Nginx) -> None:
    with trio.fail_after(30):
        async with shared(tmp_path / "one", f"http+unix://{server.here}/socket") as store:
            assert await build(store, range(2)) == 0
        async with shared(tmp_path / "two", server.url()) as store:
            assert await build(store, range(2)) == 2


async def test_tls_with_what_the_system_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = certify(tmp_path)
    port = free_port()
    tls = f"listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};"
    with trio.fail_after(60), nginx(tmp_path / "nginx", more=tls) as server:
        async with shared(tmp_path / "one", f"https://127.0.0.1:{port}") as store:
            assert not await build_one(store, 1)
            assert store.stats.remote_failures
            assert "self-signed" in store.stats.remote_troubles[0]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with shared(tmp_path / "two", f"https://127.0.0.1:{port}", IMPATIENT) as store:
            await build_at_once(store, range(5))
            assert store.stats.remote_failures == 0
            server.stop()
            # More than fits into what the kernel keeps for a connection: it must be closed while it is stuck.
            assert not await build_one(store, 9, 30_000_000)
            assert store.stats.remote_failures + store.stats.remote_skipped >= 2
            server.go_on()
        async with shared(tmp_path / "three", f"https://127.0.0.1:{port}") as store:
            assert await build(store, range(5)) == 5


@pytest.mark.parametrize("right", [True, False])
async def test_a_password_is_used_and_never_told(
    tmp_path: Path, server: Nginx, right: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    password = PASSWORD if right else "wr0ng"
    url = f"http://{USER}:{quote(password, safe='')}@127.0.0.1:{server.port}/locked"
    with trio.fail_after(30):
        async with shared(tmp_path / "one", url) as store:
            assert await build(store, range(5)) == 0
            assert (store.stats.remote_failures == 0) is right
            if not right:
                assert "HTTP 401" in store.stats.remote_troubles[0]
                assert any("only read" in trouble for trouble in store.stats.remote_troubles)
        async with shared(tmp_path / "two", url) as store:
            assert await build(store, range(5)) == (5 if right else 0)
            told = f"{store.stats} {store!r} {caplog.text}"
    encoded = base64.b64encode(f"{USER}:{password}".encode()).decode()
    assert not [secret for secret in (USER, password, quote(password, safe=""), encoded) if secret in told]


@pytest.mark.parametrize("place", ["/static", "/forbidden"])
async def test_a_server_that_takes_nothing_is_only_read(tmp_path: Path, server: Nginx, place: str) -> None:
    with trio.fail_after(30):
        async with shared(tmp_path / "one", server.url("/open")) as store:
            await build(store, range(3))
        shutil.move(server.files / "open", server.files / place[1:])
        async with shared(tmp_path / "two", server.url(place)) as store:
            assert await build(store, range(10)) == 3
            assert (store.stats.remote_hits, store.stats.remote_failures, store.stats.remote_skipped) == (3, 1, 6)
            (trouble,) = store.stats.remote_troubles
            assert "only read" in trouble


async def test_one_upload_that_is_refused_does_not_end_the_others(tmp_path: Path, server: Nginx) -> None:
    with trio.fail_after(30):
        async with shared(tmp_path / "one", server.url("/small")) as store:
            await build(store, range(10), 3_000)
            assert store.stats.remote_failures == 10
            assert await build(store, range(10, 13), 500) == 0
            assert "HTTP 413" in store.stats.remote_troubles[0]
        async with shared(tmp_path / "two", server.url("/small")) as store:
            assert await build(store, range(10, 13), 500) == 3


@pytest.mark.parametrize(("place", "most"), [("/broken", 3), ("/busy", 1), ("/moved", 3)])
async def test_a_server_that_fails_is_soon_left_alone(tmp_path: Path, server: Nginx, place: str, most: int) -> None:
    with trio.fail_after(30):
        async with shared(tmp_path / "one", server.url(place)) as store:
            assert await build(store, range(40)) == 0
            assert store.stats.remote_failures
            assert store.stats.remote_skipped >= 70
            assert store.stats.remote_troubles
        await trio.sleep(0.1)
        asked = server.requests()
        assert len([line for line in asked if line[0] == "GET"]) == most
        assert len([line for line in asked if line[0] == "PUT"]) == most


async def test_a_server_that_fails_now_and_then_is_asked_again(tmp_path: Path, server: Nginx) -> None:
    with trio.fail_after(30):
        for name, found in (("one", 0), ("two", 20)):
            async with shared(tmp_path / name, server.url("/unreliable")) as store:
                assert await build(store, range(20)) == found
                assert (store.stats.remote_failures, store.stats.remote_skipped) == (0, 0)
        await trio.sleep(0.1)
        assert [line for line in server.requests() if line[2] == "503"]


@pytest.mark.parametrize("size", [3_000, LARGE])
@pytest.mark.parametrize("harm", ["truncated", "other", "longer", "gone", "action", "empty action"])
async def test_damage_on_the_server_is_a_miss_and_mended(tmp_path: Path, server: Nginx, harm: str, size: int) -> None:
    content = content_of(1, size)
    blob, action = server.files / "cas" / digest_of(content), server.files / "ac" / key_of(1)
    with trio.fail_after(30):
        async with shared(tmp_path / "one", server.url()) as store:
            await build_one(store, 1, size)
        if harm == "gone":
            blob.unlink()
        elif harm.endswith("action"):
            action.write_bytes(b"" if harm.startswith("empty") else action.read_bytes()[:-3])
        else:
            blob.write_bytes({"truncated": content[:-1], "other": content[::-1], "longer": content + b"!"}[harm])
        async with shared(tmp_path / "two", server.url()) as store:
            found = await store.find(key_of(1))
            assert found is None
            assert store.stats.remote_failures == (harm != "gone")
            assert store.usage().blobs == 0
            assert not list((tmp_path / "two").glob("v1/tmp/*/*"))
            assert not await build_one(store, 1, size)
        assert blob.read_bytes() == content
        async with shared(tmp_path / "three", server.url()) as store:
            assert await build_one(store, 1, size)


@pytest.mark.parametrize("size", [0, 1, 3_000, LARGE])
async def test_damage_here_is_not_passed_on(tmp_path: Path, server: Nginx, size: int) -> None:
    content = content_of(1, size)
    with trio.fail_after(30):
        async with open_http_tier(server.url(), IMPATIENT) as tier:
            for harm in (content[::-1] + b"!", content[1:] + b"?" * bool(size)):
                (tmp_path / "blob").write_bytes(harm)
                digest = digest_of(content + b".")
                with pytest.raises(Unusable):
                    await tier.put_blob(digest, tmp_path / "blob")
            (tmp_path / "blob").unlink()
            with pytest.raises(Unusable):
                await tier.put_blob(digest_of(content), tmp_path / "blob")
            (tmp_path / "blob").write_bytes(content)
            await tier.put_blob(digest_of(content), tmp_path / "blob")
    assert [path.read_bytes() for path in server.files.glob("cas/*")] == [content]


async def test_large_blobs_that_are_there_are_not_sent_again(tmp_path: Path, server: Nginx) -> None:
    with trio.fail_after(30):
        for name in ("one", "two"):
            async with shared(tmp_path / name, server.url()) as store:
                for key in (name, f"{name} again"):
                    assert await store.add(key_of(key), {"o": content_of("same", LARGE)})
                assert store.stats.remote_failures == 0
        await trio.sleep(0.1)
        asked = [line[0] for line in server.requests() if line[1].startswith("/cas/")]
    assert asked == ["HEAD", "PUT", "HEAD", "HEAD", "HEAD"]


async def test_the_same_blob_travels_once_at_a_time(tmp_path: Path, server: Nginx) -> None:
    content = content_of("same", LARGE)
    with trio.fail_after(30):
        async with shared(tmp_path / "one", server.url()) as store, trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(store.add, key_of(number), {"o": content})
        async with shared(tmp_path / "two", server.url()) as store:
            async with trio.open_nursery() as nursery:
                for number in range(6):
                    nursery.start_soon(store.find, key_of(number))
            assert store.stats.remote_hits == 6
        await trio.sleep(0.1)
        asked = [line[0] for line in server.requests() if line[1].startswith("/cas/")]
    assert asked.count("PUT") == 1
    assert asked.count("GET") == 1


@pytest.mark.parametrize("background", [True, False])
async def test_killed_in_the_middle_of_a_build(tmp_path: Path, server: Nginx, background: bool) -> None:
    with trio.fail_after(30):
        async with shared(tmp_path / "one", server.url(), IMPATIENT) as store:
            async with store.uploading(0.5 if background else 0):
                await build(store, range(10))
                server.kill()
                await build_at_once(store, range(10, 60))
                assert await build(store, range(60)) == 60
            assert store.stats.remote_failures
            assert any("cannot be reached" in trouble for trouble in store.stats.remote_troubles)
            assert (store.stats.not_stored, store.stats.damaged) == (0, 0)
            # It is found to be back without anybody saying so.
            with nginx(server.here, port=server.port):
                await build(store, range(60, 63))
                while not (server.files / "ac" / key_of("probe")).exists():
                    await trio.sleep(0.1)
                    await store.add(key_of("probe"), {"o": b"object"})
    assert store.verify().damaged == ()


async def test_stopped_and_continued(tmp_path: Path, server: Nginx) -> None:
    with trio.fail_after(60):
        async with shared(tmp_path / "one", server.url()) as store:
            await build(store, range(100))
        async with shared(tmp_path / "two", server.url(), IMPATIENT) as store:
            assert await build(store, range(5)) == 5
            server.stop()
            await build_at_once(store, range(5, 60))
            assert store.stats.remote_hits == 5
            assert store.stats.remote_skipped
            assert any("in time" in trouble for trouble in store.stats.remote_troubles)
            server.go_on()
            number = 60
            while not await build_one(store, number):
                await trio.sleep(0.1)
                number += 1
            assert await build(store, range(number, 100)) == 100 - number


async def test_a_full_disk_there_does_not_keep_us_from_reading(tmp_path: Path) -> None:
    prlimit = shutil.which("prlimit")
    if prlimit is None:
        pytest.skip("prlimit is not installed")
    # A limit of file size stands for the disk that is full: the server sees its writes fail.
    with trio.fail_after(30), nginx(tmp_path / "nginx", prefix=[prlimit, "--fsize=100000"]) as server:
        async with shared(tmp_path / "one", server.url()) as store:
            await build(store, range(5))
            await build(store, range(5, 10), 200_000)
            assert store.stats.remote_failures
            assert any("HTTP 500" in trouble for trouble in store.stats.remote_troubles)
        async with shared(tmp_path / "two", server.url()) as store:
            assert await build(store, range(5, 10), 200_000) == 0
            assert await build(store, range(5)) == 5


async def test_whatever_is_cancelled_the_connections_stay_usable(tmp_path: Path, server: Nginx) -> None:
    limits = evolve(IMPATIENT, downloads=2, uploads=1)
    dice = random.Random(1)
    with trio.fail_after(60):
        async with shared(tmp_path / "one", server.url(), limits) as store:
            await build(store, range(40), 100_000)
        async with shared(tmp_path / "two", server.url(), limits) as store:
            for number in range(40, 240):
                with trio.move_on_after(dice.random() * 0.006):
                    async with trio.open_nursery() as nursery:
                        for one in (number, number % 40, number % 39):
                            nursery.start_soon(build_one, store, one, 100_000)
            assert await build(store, range(40), 100_000) == 40
            assert (store.stats.remote_failures, store.stats.remote_skipped) == (0, 0)
            assert not list((tmp_path / "two").glob("v1/tmp/*/*"))


async def test_uploads_do_not_hold_up_a_build(tmp_path: Path, server: Nginx) -> None:
    with trio.fail_after(30):
        async with shared(tmp_path / "one", server.url()) as store:
            async with store.uploading():
                server.stop()
                async with trio.open_nursery() as nursery:
                    for number in range(30):
                        nursery.start_soon(store.add, key_of(number), {"o": content_of(number, 3_000)})
                assert store.stats.remote_skipped == 0
                server.go_on()
            assert (store.stats.remote_failures, store.stats.remote_skipped) == (0, 0)
        async with shared(tmp_path / "two", server.url()) as store:
            assert await build(store, range(30)) == 30


@pytest.mark.parametrize("end", ["deadline", "cancelled", "failed"])
async def test_what_is_not_uploaded_in_the_end_is_here_all_the_same(tmp_path: Path, server: Nginx, end: str) -> None:
    async def use() -> None:
        async with shared(tmp_path / "one", server.url()) as store:
            try:
                async with store.uploading(0.2):
                    server.stop()
                    for number in range(30):
                        await store.add(key_of(number), {"o": content_of(number, 3_000)})
                    if end == "cancelled":
                        scope.cancel()
                        await trio.lowlevel.checkpoint()
                    if end == "failed":
                        raise LookupError
            finally:
                assert store.stats.remote_skipped == 30

    with trio.fail_after(30), trio.CancelScope() as scope:
        if end == "failed":
            with pytest.raises(LookupError):
                await use()
        else:
            await use()
    assert scope.cancelled_caught == (end == "cancelled")
    with open_store(tmp_path / "one", limit_bytes=ROOMY) as store:
        assert await build(store, range(30)) == 30

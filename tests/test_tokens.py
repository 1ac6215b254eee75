"""Process layer: tokens of our own, and those of jobservers on real pipes and fifos, in one process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from coordinator._tokens import IMPLICIT, Jobserver, OwnTokens, Token, TokenSource, token_source, usable_cpus
from workers.errors import InternalError, RequestError

pytestmark = pytest.mark.process


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Pool:
    """A jobserver's side of a pipe or fifo."""

    def __init__(self, tokens: bytes, fifo: Path | None = None) -> None:
        if fifo is None:
            self.read_fd, self.write_fd = os.pipe()
            self.auth = f"{self.read_fd},{self.write_fd}"
        else:
            os.mkfifo(fifo)
            self.read_fd = os.open(fifo, os.O_RDWR)
            self.write_fd = os.dup(self.read_fd)
            self.auth = f"fifo:{fifo}"
        self.fds = (self.read_fd, self.write_fd)
        for fd in self.fds:
            os.set_inheritable(fd, True)
        os.write(self.write_fd, tokens)

    def source(self, jobs: int | None = None, announced: int = 9) -> TokenSource:
        return token_source(jobs, {"MAKEFLAGS": f"k -j{announced} --jobserver-auth={self.auth} -- A=b"})

    def drain(self) -> bytes:
        """All bytes that are there now."""
        os.set_blocking(self.read_fd, False)
        try:
            return os.read(self.read_fd, 1000)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@pytest.fixture(params=["pipe", "fifo"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pool]:
    made = Pool(b"abc", tmp_path / "a fifo" if request.param == "fifo" else None)
    if request.param == "fifo":
        made.auth = made.auth.replace(" ", "\\ ")
    yield made
    made.close()


async def waiting(nursery: trio.Nursery, source: TokenSource) -> list[Token]:
    """Start a task that acquires one token, and return where it will put it once all tasks are blocked."""
    got: list[Token] = []

    async def acquire() -> None:
        got.append(await source.acquire())

    nursery.start_soon(acquire)
    await wait_all_tasks_blocked()
    return got


async def test_own_tokens_end_at_the_limit() -> None:
    with OwnTokens(3) as source, trio.fail_after(30):
        first, second = await source.acquire(), await source.acquire()
        async with trio.open_nursery() as nursery:
            got = await waiting(nursery, source)
            assert got == []
            source.release(first)
            await wait_all_tasks_blocked()
            assert len(got) == 1
        source.release(second)
        source.release(got[0])
        with pytest.raises(InternalError, match="not held"):
            source.release(second)
        with pytest.raises(InternalError, match="implicit"):
            source.release(IMPLICIT)


async def test_one_job_never_gets_a_second_token() -> None:
    with OwnTokens(1) as source, trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            assert await waiting(nursery, source) == []
            nursery.cancel_scope.cancel()


async def test_a_cancelled_wait_leaves_its_place() -> None:
    with OwnTokens(2) as source, trio.fail_after(30):
        token = await source.acquire()
        async with trio.open_nursery() as nursery:
            await waiting(nursery, source)
            nursery.cancel_scope.cancel()
        source.release(token)
        source.release(await source.acquire())


@pytest.mark.parametrize("jobs", [0, -1])
def test_fewer_than_one_job_is_refused(jobs: int) -> None:
    with pytest.raises(RequestError, match="at least 1"):
        token_source(jobs, {})


async def test_a_jobserver_gets_the_same_bytes_back(pool: Pool) -> None:
    with pool.source() as source, trio.fail_after(30):
        tokens = [await source.acquire() for _ in range(3)]
        assert pool.drain() == b""
        source.release(tokens[1])
        assert pool.drain() == b"b"
        source.release(tokens[2])
        source.release(tokens[0])
        assert pool.drain() == b"ca"
        with pytest.raises(InternalError, match="not held"):
            source.release(tokens[0])
        assert pool.drain() == b""


async def test_closing_gives_back_what_is_held(pool: Pool) -> None:
    before = open_descriptors()
    source = pool.source()
    with source, trio.fail_after(30):
        await source.acquire()
        await source.acquire()
    assert sorted(pool.drain()) == sorted(b"abc")
    assert open_descriptors() == before
    source.close()
    with pytest.raises(InternalError, match="closed"):
        await source.acquire()


async def test_a_closed_source_may_have_no_waiters(pool: Pool) -> None:
    with pool.source() as source, trio.fail_after(30):
        for _ in range(3):
            await source.acquire()
        async with trio.open_nursery() as nursery:
            await waiting(nursery, source)
            with pytest.raises(InternalError, match="waits"):
                source.close()
            nursery.cancel_scope.cancel()


async def test_the_inherited_descriptors_are_left_alone(pool: Pool) -> None:
    before = [(fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, fcntl.F_GETFD)) for fd in pool.fds]
    with pool.source() as source, trio.fail_after(30):
        source.release(await source.acquire())
        assert [(fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, fcntl.F_GETFD)) for fd in pool.fds] == before
    assert [(fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, fcntl.F_GETFD)) for fd in pool.fds] == before


async def test_waiters_get_tokens_as_they_come(pool: Pool) -> None:
    taken = os.read(pool.read_fd, 3)
    with pool.source() as source, trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            waiters = [await waiting(nursery, source) for _ in range(3)]
            assert waiters == [[], [], []]
            os.write(pool.write_fd, taken[:1])
            await wait_all_tasks_blocked(0.01)
            os.write(pool.write_fd, taken[1:])
        assert [token.byte for got in waiters for token in got] == [b"a", b"b", b"c"]
    assert sorted(pool.drain()) == sorted(taken)


async def test_a_cancelled_wait_takes_no_byte(pool: Pool) -> None:
    taken = os.read(pool.read_fd, 3)
    with pool.source(jobs=2) as source, trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            got = await waiting(nursery, source)
            nursery.cancel_scope.cancel()
            os.write(pool.write_fd, taken)
        assert got == []
        # Neither the byte nor the room for it is lost.
        source.release(await source.acquire())
        assert sorted(pool.drain()) == sorted(taken)


async def test_no_more_than_the_limit_is_taken(pool: Pool) -> None:
    for jobs, announced, limit in ((2, 9, 2), (9, 2, 2), (None, 3, 3)):
        with pool.source(jobs, announced) as source, trio.fail_after(30):
            assert source.limit == limit
            for _ in range(limit - 1):
                await source.acquire()
            async with trio.open_nursery() as nursery:
                assert await waiting(nursery, source) == []
                nursery.cancel_scope.cancel()


async def test_a_jobserver_at_its_end_gives_no_token_and_takes_all() -> None:
    read_fd, unused_fd = os.pipe()
    broken_fd, write_fd = os.pipe()
    os.write(unused_fd, b"+")
    os.close(unused_fd)
    os.close(broken_fd)
    os.set_blocking(read_fd, False)
    with Jobserver(read_fd, write_fd, 9) as source, trio.fail_after(30):
        token = await source.acquire()
        async with trio.open_nursery() as nursery:
            # Blocked, so neither failed nor spinning.
            assert await waiting(nursery, source) == []
            nursery.cancel_scope.cancel()
        source.release(token)


@pytest.mark.parametrize(
    ("makeflags", "limit"),
    [
        (" -j3 --jobserver-auth={pipe}", 3),
        ("kw -j3 --jobserver-auth={pipe}", 3),
        ("-j --jobserver-fds={pipe} --jobserver-auth={pipe}", usable_cpus()),
        ("--jobserver-fds={pipe} -j", usable_cpus()),
        (" -j4 --jobserver-auth=fifo:{fifo}", 4),
        (" -j2 --jobserver-auth=7777,7778 -j5 --jobserver-auth={pipe}", 5),
        (" -j2 --jobserver-auth=fifo:/nonexistent --jobs=5 --jobserver-fds={pipe} -- --jobserver-auth=1,2 -j9", 5),
        (" -j2 --jobserver-auth={pipe} -- A=a\\ --jobserver-auth=7777,7778", 2),
        (" -j2 --jobserver-auth={pipe} -I a\\\\ --jobserver-style=pipe", 2),
    ],
)
def test_makeflags_with_a_jobserver(makeflags: str, limit: int, tmp_path: Path) -> None:
    pipe, fifo = Pool(b""), Pool(b"", tmp_path / "fifo")
    with token_source(None, {"MAKEFLAGS": makeflags.format(pipe=pipe.auth, fifo=tmp_path / "fifo")}) as source:
        assert isinstance(source, Jobserver)
        assert (source.limit, source.warning) == (limit, None)
    pipe.close()
    fifo.close()


def test_cargos_jobserver(tmp_path: Path) -> None:
    """Cargo announces its own elsewhere, and leaves what make has said, which may be of no use here."""
    pipe = Pool(b"")
    cargo = {"CARGO_MAKEFLAGS": f"-j --jobserver-fds={pipe.auth} --jobserver-auth={pipe.auth}"}
    for environ in (cargo, {"MAKEFLAGS": " -j9", **cargo}, {"MAKEFLAGS": " -j9 --jobserver-auth=7777,7778", **cargo}):
        with token_source(3, environ) as source:
            assert isinstance(source, Jobserver)
            assert (source.limit, source.warning) == (min(3, usable_cpus()), None)
    pipe.close()
    with token_source(3, {"MAKEFLAGS": " -j9 --jobserver-auth=7777,7778", **cargo}) as source:
        assert isinstance(source, OwnTokens)
        assert "MAKEFLAGS" in (source.warning or "")
        assert "CARGO_MAKEFLAGS" in (source.warning or "")


@pytest.mark.parametrize(
    "makeflags",
    ["", "k", " -j3", "-j", "n -- --jobserver-auth=3,4", " -- A=a\\ --jobserver-auth=3,4", "\\", "--jobserver-auth="],
)
def test_makeflags_without_a_jobserver(makeflags: str) -> None:
    for jobs in (None, 7):
        with token_source(jobs, {"MAKEFLAGS": makeflags}) as source:
            assert isinstance(source, OwnTokens)
            assert (source.limit, source.warning) == (jobs or usable_cpus(), None)


@pytest.mark.parametrize(
    ("auth", "reason"),
    [
        ("-2,-2", r"'\+'"),
        ("7777,7778", r"something else here.*'\+'"),
        ("{pipe_r},{other_w}", r"something else here.*'\+'"),
        ("{file},{file}", r"something else here.*'\+'"),
        ("{private}", r"something else here.*'\+'"),
        ("fifo:{tmp}/missing", "No such file"),
        ("fifo:{tmp}", "directory"),
        ("fifo:{tmp}/file", "not a fifo"),
        ("fifo:", "No such file"),
        ("fifo:a\0b", "null"),
        ("99999999999,1", "no known kind"),
        ("3", "no known kind"),
        ("sem_name", "no known kind"),
    ],
)
def test_a_jobserver_that_cannot_be_reached(auth: str, reason: str, tmp_path: Path) -> None:
    one, other = Pool(b""), Pool(b"")
    private = os.pipe()  # opened by this process: not inheritable
    (tmp_path / "file").write_bytes(b"text")
    with (tmp_path / "file").open("rb") as file:
        os.set_inheritable(file.fileno(), True)
        before = open_descriptors()
        where = {
            "pipe_r": one.read_fd,
            "other_w": other.write_fd,
            "file": file.fileno(),
            "private": f"{private[0]},{private[1]}",
            "tmp": tmp_path,
        }
        makeflags = {"MAKEFLAGS": f" -j3 --jobserver-auth={auth.format(**where)}"}
        for jobs in (None, 7):
            with token_source(jobs, makeflags) as source:
                assert isinstance(source, OwnTokens)
                assert source.limit == (jobs or usable_cpus())
                assert source.warning is not None
                assert pytest.RaisesExc(Exception, match=reason).matches(Exception(source.warning)), source.warning
        assert open_descriptors() == before
    assert (tmp_path / "file").read_bytes() == b"text"
    for fd in (*one.fds, *other.fds, *private):
        os.close(fd)

"""Layer: process. How fork servers and what they have begun end, what is remembered of them, and links through them."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.dtlto_site import CLANG, Distributor, DtltoSite, needs_lld
from tests.fork_lab import (
    CC1,
    COMPILE,
    SECONDS,
    SH,
    Remembered,
    Watched,
    built,
    built_library,
    children_of,
    clean,
    have_ended,
    ready_starter,
    run_forked,
    run_to_end,
    run_unforked,
    script_of,
    server_of,
    status_of,
)
from tests.leftovers import descendants
from tests.samples import ABORTING_IR
from workers.action import Action, ActionResult
from workers.llvm import fork_server
from workers.llvm.fork_server import Attempt, Starter

pytestmark = [pytest.mark.process, needs_lld]


LTOD = """\
import sys
from pathlib import Path

import trio

from workers.action import Action, run
from workers.llvm.fork_server import Attempt, Starter


class Library:
    def recall(self, key):
        return Path(sys.argv[1]).read_bytes()


async def main():
    starter = Starter(sys.argv[3], Library())
    starter._coming.result()
    attempt = Attempt(starter)

    def start(*how):
        process = attempt(*how)
        print(process.pid, attempt.is_forked, flush=True)
        return process

    async with run(Action(argv=tuple(sys.argv[3:]), inputs={}), Path(sys.argv[2]), start=start):
        pass


trio.run(main)
"""
"""Forks an action: the library's file, a directory to work in, and the words of the action are its arguments."""


@pytest.fixture(scope="module")
def library() -> bytes:
    return built_library()


@pytest.fixture
def scratch(tmp_path: Path, library: bytes) -> Iterator[Path]:
    with clean(tmp_path / "scratch") as directory:
        yield directory


@pytest.fixture
def clang(library: bytes, scratch: Path) -> Iterator[Starter]:
    with ready_starter(CLANG, Remembered(library)) as starter:
        yield starter


@pytest.fixture
def shell(library: bytes, scratch: Path) -> Iterator[Starter]:
    with ready_starter(SH, Remembered(library)) as starter:
        yield starter


@pytest.fixture
def endless(tmp_path: Path) -> Action:
    """Waits for somebody to write into a FIFO."""
    os.mkfifo(tmp_path / "fifo.c")
    return Action(argv=(*CC1, str(tmp_path / "fifo.c"), "-o", "out.o"), inputs={}, outputs=("out.o",))


# The server ends


async def _running(
    action: Action, scratch: Path, starter: Starter, nursery: trio.Nursery, results: list[ActionResult]
) -> int:
    """Begin an action; gives its process. There is going to be one result."""
    send, receive = trio.open_memory_channel[int](1)

    async def begin() -> None:
        results.append((await run_to_end(action, scratch, Watched(starter, send)))[0])

    nursery.start_soon(begin)
    return await receive.receive()


async def test_a_server_that_is_killed(clang: Starter, scratch: Path, endless: Action) -> None:
    results: list[ActionResult] = []
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            pid = await _running(endless, scratch, clang, nursery, results)
            os.kill(server_of(pid), signal.SIGKILL)
    (result,) = results
    assert (result.signal, result.status, result.timed_out) == (signal.SIGKILL, None, False)
    await have_ended(pid)
    assert (await run_unforked(COMPILE, scratch, clang)).succeeded
    assert (await run_unforked(COMPILE, scratch, clang)).succeeded


async def test_a_server_that_is_stopped(
    scratch: Path, library: bytes, endless: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "_ANSWER_SECONDS", 1.0)
    results: list[ActionResult] = []
    with trio.fail_after(SECONDS), ready_starter(CLANG, Remembered(library)) as clang:
        async with trio.open_nursery() as nursery:
            pid = await _running(endless, scratch, clang, nursery, results)
            os.kill(server_of(pid), signal.SIGSTOP)
            assert (await run_unforked(COMPILE, scratch, clang)).succeeded
    assert results[0].signal == signal.SIGKILL
    await have_ended(pid)


async def test_an_answer_that_comes_late_answers_nothing_else(
    scratch: Path, library: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "_ANSWER_SECONDS", 1.0)
    with ready_starter(SH, Remembered(library)) as shell, (tmp_path / "out").open("wb") as file:
        process = shell.fork((SH, "-c", "exit 3"), tmp_path, file.fileno(), file.fileno())
        assert process is not None
        server = server_of(process.pid)
        os.kill(server, signal.SIGSTOP)
        ended = process.reap()
        assert ended is not None
        assert ended[0] == -signal.SIGKILL
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGCONT)
        # It must not be taken for the number of a process, which would be killed.
        assert shell.fork((SH, "-c", "exit 4"), tmp_path, file.fileno(), file.fileno()) is None
        assert (await run_unforked(script_of("exit 4"), scratch, shell)).status == 4


async def test_a_server_that_is_closed(clang: Starter, scratch: Path, endless: Action) -> None:
    results: list[ActionResult] = []
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            pid = await _running(endless, scratch, clang, nursery, results)
            server = server_of(pid)
            clang.close()
    assert results[0].signal == signal.SIGKILL
    await have_ended(pid, server)
    assert (await run_unforked(COMPILE, scratch, clang)).succeeded


# Cancelling


async def test_cancelling_kills_the_group(scratch: Path, shell: Starter) -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            pid = await _running(script_of("sleep 1000 & sleep 1000"), scratch, shell, nursery, [])
            while len(children := children_of(pid)) < 2:  # noqa: ASYNC110 (nothing tells)
                await trio.sleep(0.002)
            nursery.cancel_scope.cancel()
    assert not Path(f"/proc/{pid}").exists()  # reaped
    await have_ended(*children)
    assert (await run_forked(script_of("exit 4"), scratch, shell)).status == 4


async def test_limits(scratch: Path, shell: Starter) -> None:
    limited = Action(argv=(SH, "-c", "sleep 0.2; ulimit -v; ulimit -c"), inputs={}, memory_limit=256 * 2**20)
    assert (await run_forked(limited, scratch, shell)).stdout == b"262144\n0\n"
    assert (await run_forked(script_of("ulimit -v"), scratch, shell)).stdout == b"unlimited\n"
    action = Action(argv=(SH, "-c", "sleep 1000 & sleep 1000"), inputs={}, time_limit=0.2)
    assert (await run_forked(action, scratch, shell)).timed_out


def _ltod(place: Path, library: bytes, action: Action) -> subprocess.Popen[str]:
    (place / "library").write_bytes(library)
    (place / "work").mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", LTOD, place / "library", place / "work", *action.argv],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        text=True,
    )


async def test_nobody_outlives_us(tmp_path: Path, library: bytes, endless: Action) -> None:
    with _ltod(tmp_path, library, endless) as ltod:
        try:
            assert ltod.stdout is not None
            with trio.fail_after(SECONDS):
                said = await trio.to_thread.run_sync(ltod.stdout.readline)
            pid, is_forked = said.split()
            assert is_forked == "True"
            forked = int(pid)
            server = int(status_of(forked)["PPid"])
            assert status_of(server)["PPid"] == str(ltod.pid)
        finally:
            ltod.kill()
        try:
            await have_ended(forked, server)
        finally:
            for outliving in (forked, server):
                with suppress(ProcessLookupError):
                    os.kill(outliving, signal.SIGKILL)


# What is remembered


async def test_it_is_built_once(scratch: Path, library: bytes) -> None:
    facts = Remembered(library)
    with ready_starter(SH, facts) as shell:  # which builds nothing
        assert (await run_forked(script_of("exit 4"), scratch, shell)).status == 4
    assert facts.told == []


@pytest.mark.parametrize("garbage", ["nothing", "words", "half", "another library"])
async def test_garbage_is_remembered(scratch: Path, library: bytes, garbage: str) -> None:
    other = built("int twice(int x) { return 2 * x; }", "-nostdlib", "-shared", "-fuse-ld=lld", "-o", "-").stdout
    known = {"nothing": b"", "words": b"words", "half": library[: len(library) // 2], "another library": other}
    with ready_starter(CLANG, Remembered(known[garbage])) as clang:
        assert (await run_unforked(COMPILE, scratch, clang)).succeeded


@pytest.mark.parametrize(("program", "status"), [("sh", 2), ("true", 0), ("echo", 0)])
async def test_a_program_that_cannot_build_it(scratch: Path, program: str, status: int) -> None:
    path = shutil.which(program)
    assert path is not None
    facts = Remembered()
    with ready_starter(path, facts) as starter:
        result = await run_unforked(Action(argv=(path, "--no-such-option"), inputs={}), scratch, starter)
    assert result.status == status
    assert facts.told == []  # it would be taken for what others need


async def test_no_descriptors_are_left_to_prepare_with(scratch: Path, library: bytes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(10):
        next_one = os.open(os.devnull, os.O_RDONLY)
        os.close(next_one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_one + spare, hard))
        try:
            starter = Starter(SH, Remembered(library))
            assert starter._coming.ends_within(SECONDS)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        result, _ = await run_to_end(script_of("exit 4"), scratch, Attempt(starter))
        assert result.status == 4
        starter.close()


# In a link

_MODULES = 10


def _sources(bias: int) -> dict[str, str]:
    """Modules that take long enough to be seen."""
    sources = {}
    for number in range(_MODULES):
        body = "".join(
            f"int f{number}_{k}(int *p, int n) {{ int s = {bias}; for (int i = 0; i < n; i++) s += p[i] * {k} ^ i;"
            " return s; }\n"
            for k in range(60)
        )
        after = f"g{number + 1}(p, n)" if number + 1 < _MODULES else "n"
        declared = f"int g{number + 1}(int *, int);\n" if number + 1 < _MODULES else ""
        calls = " + ".join(f"f{number}_{k}(p, n)" for k in range(60))
        sources[f"m{number}.c"] = f"{declared}{body}int g{number}(int *p, int n) {{ return {after} + {calls}; }}\n"
    sources["main.c"] = (
        "int g0(int *, int); int p[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};\nint main(void) { return g0(p, 9) & 1; }\n"
    )
    return sources


@contextmanager
def _forks_seen(*, killed: int = 0) -> Iterator[set[int]]:
    """Which processes below us are those of a server, found by looking again and again. The first are killed."""
    found: set[int] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            for pid in descendants():
                with suppress(OSError, KeyError):
                    line = Path(f"/proc/{pid}/cmdline").read_bytes()
                    parent = Path(f"/proc/{status_of(pid)['PPid']}/cmdline").read_bytes()
                    if line == parent and line.endswith(b"\0--version\0"):
                        if pid not in found and len(found) < killed:
                            os.kill(pid, signal.SIGKILL)
                        found.add(pid)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def test_a_link(place: Path) -> None:
    site = DtltoSite.at(place)
    files = site.compile(_sources(1))
    plain = site.link(files, by=Distributor.PLAIN).bytes
    with _forks_seen() as forks:
        linked = site.link(files)
    assert linked.bytes == plain
    assert linked.counts() == (0, len(files))
    assert len(forks) > 1
    assert (linked.stderr, linked.left) == ("", frozenset())


def test_a_link_whose_compilers_are_killed(place: Path) -> None:
    """What was done by a fork that failed is done again."""
    site = DtltoSite.at(place)
    files = site.compile(_sources(3))
    plain = site.link(files, by=Distributor.PLAIN).bytes
    with _forks_seen(killed=2) as forks:
        linked = site.link(files)
    assert len(forks) > 1
    assert linked.bytes == plain
    assert linked.counts() == (0, len(files))
    assert (linked.stderr, linked.left) == ("", frozenset())


def test_a_link_with_a_module_that_crashes_the_compiler(place: Path) -> None:
    """In the fork, and then by itself."""
    site = DtltoSite.at(place)
    files = site.compile(_sources(2))
    (place / "bad.ll").write_text(ABORTING_IR)  # the smallest is compiled last, when there is a server
    site.run([CLANG, "-c", "-O2", "-flto=thin", "bad.ll", "-o", "in/bad.o"])
    with _forks_seen() as forks:
        failed = site.link([*files, "in/bad.o"], "-Wl,-u,f", fails=True)
    assert len(forks) > 1
    assert failed.stats is not None
    assert (failed.stats["misses"], failed.stats["failed"]) == (len(files), 1)
    assert failed.stderr.count("in/bad.o") == 1
    assert failed.stderr.count("Cannot select") == 1
    reproducers = {name.split("/")[1] for name in failed.left if name.startswith("program.reproducers/")}
    assert len(reproducers) == 1

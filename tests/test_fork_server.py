"""Layer: process. Compilers that are loaded once and forked: the same as started by themselves, and nothing worse.

Once the library is there, any program that the system loads can be served. So it is a shell that tells what a forked
process sees.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import trio
from attrs import define, field

from tests.dtlto_site import CLANG, Distributor, DtltoSite, needs_lld
from tests.leftovers import descendants, descriptors
from tests.samples import ABORTING_IR, TRIPLE, zig
from workers.action import Action, ActionResult, run
from workers.llvm import fork_server
from workers.llvm.fork_server import Attempt, Starter
from workers.starting import Process, Start, start_directly

pytestmark = [pytest.mark.process, needs_lld]

_SH = "/bin/sh"
_SECONDS = 30.0
_CC1 = (CLANG, "-cc1", "-triple", TRIPLE, "-O2", "-emit-obj")
_COMPILE = Action(
    argv=(*_CC1, "in.c", "-o", "out.o"),
    inputs={"in.c": b"int twice(int x) { return 2 * x; }\n"},
    outputs=("out.o",),
)
_MOST_WORDS, _MOST_BYTES = 4096, 150_000
"""The longest command lines that are forked."""

_FRAME = re.compile(rb"^ ?#\d+ .*\n", re.MULTILINE)
"""Where a stack dump ends differs: a forked process has a few more callers."""

_LTOD = """\
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


@define
class _Known:
    """Facts: one that is remembered whatever is asked for, and what there was to be remembered."""

    always: bytes | None = None
    told: list[bytes] = field(factory=list)

    def recall(self, key: str) -> bytes | None:
        return self.always

    def remember(self, key: str, note: bytes) -> None:
        self.told.append(note)


@define
class _Watched:
    """Begins a process by a fork, which is told about."""

    _starter: Starter
    _send: trio.MemorySendChannel[int]

    def __call__(
        self, argv: Sequence[str], directory: Path, environment: Mapping[str, str], stdout: int, stderr: int
    ) -> Process:
        process = self._starter.fork(argv, directory, stdout, stderr)
        assert process is not None
        self._send.send_nowait(process.pid)
        return process


@contextmanager
def _starter(program: str | Path, facts: _Known) -> Iterator[Starter]:
    """One that has made all preparations."""
    starter = Starter(str(program), facts)
    try:
        assert starter._coming.ends_within(_SECONDS)
        yield starter
    finally:
        starter.close()


@pytest.fixture(scope="module")
def library() -> bytes:
    """What is preloaded."""
    facts = _Known()
    with _starter(CLANG, facts):
        (built,) = facts.told
    assert built.startswith(b"\x7fELF")
    return built


@pytest.fixture
def scratch(tmp_path: Path, library: bytes) -> Iterator[Path]:
    """A scratch directory; afterwards nothing may be left in it, nor any process or descriptor of ours."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    before = descriptors(), descendants()
    yield directory
    assert list(directory.iterdir()) == []
    assert (descriptors(), descendants()) == before


@pytest.fixture
def clang(library: bytes, scratch: Path) -> Iterator[Starter]:
    with _starter(CLANG, _Known(library)) as starter:
        yield starter


@pytest.fixture
def shell(library: bytes, scratch: Path) -> Iterator[Starter]:
    with _starter(_SH, _Known(library)) as starter:
        yield starter


def _script(text: str, *words: str) -> Action:
    return Action(argv=(_SH, "-c", text, "sh", *words), inputs={})


async def _end(action: Action, scratch: Path, start: Start) -> tuple[ActionResult, dict[str, bytes]]:
    """How an action ended, and its outputs."""
    with trio.fail_after(_SECONDS):
        async with run(action, scratch, start=start) as result:
            written = set(action.outputs) - set(result.missing)
            return result, {name: (result.directory / name).read_bytes() for name in written}


async def _forked(action: Action, scratch: Path, starter: Starter) -> ActionResult:
    attempt = Attempt(starter)
    result, _ = await _end(action, scratch, attempt)
    assert attempt.is_forked
    return result


async def _unforked(action: Action, scratch: Path, starter: Starter) -> ActionResult:
    attempt = Attempt(starter)
    result, _ = await _end(action, scratch, attempt)
    assert not attempt.is_forked
    return result


async def _same(action: Action, scratch: Path, starter: Starter) -> ActionResult:
    """How an action ends that is forked: as one that is started directly."""
    attempt = Attempt(starter)
    forked, made = await _end(action, scratch, attempt)
    assert attempt.is_forked
    direct, expected = await _end(action, scratch, start_directly)
    assert (_told(forked), made) == (_told(direct), expected)
    return forked


def _told(result: ActionResult) -> tuple[object, ...]:
    said = _FRAME.sub(b"", result.stderr)
    return (
        *(result.status, result.signal, result.timed_out, result.not_started),
        *(result.missing, result.stdout, said),
    )


@contextmanager
def _all_signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _server(pid: int) -> int:
    """The process that has forked another one."""
    server = int(_status(pid)["PPid"])
    assert server != os.getpid()
    assert _status(server)["PPid"] == str(os.getpid())
    assert os.getpgid(server) == server  # what a terminal sends to us is not for it
    return server


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def _ended(*pids: int) -> None:
    """Wait for the end of processes whose parents may be anybody."""
    with trio.fail_after(10):
        for pid in pids:
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                try:
                    await trio.lowlevel.wait_readable(descriptor)
                finally:
                    os.close(descriptor)


@pytest.fixture
def endless(tmp_path: Path) -> Action:
    """Waits for somebody to write into a FIFO."""
    os.mkfifo(tmp_path / "fifo.c")
    return Action(argv=(*_CC1, str(tmp_path / "fifo.c"), "-o", "out.o"), inputs={}, outputs=("out.o",))


# The same as without


async def test_a_compile(clang: Starter, scratch: Path) -> None:
    for _ in range(3):
        result = await _same(_COMPILE, scratch, clang)
        assert result.succeeded
        assert (result.stdout, result.stderr) == (b"", b"")


async def test_a_compile_that_fails(clang: Starter, scratch: Path) -> None:
    action = Action(argv=_COMPILE.argv, inputs={"in.c": b"int x = nothing;\n"}, outputs=("out.o",))
    result = await _same(action, scratch, clang)
    assert (result.status, result.missing) == (1, ("out.o",))
    assert b"use of undeclared identifier 'nothing'" in result.stderr
    assert (await _same(_COMPILE, scratch, clang)).succeeded


@pytest.mark.parametrize("what", ["crash", "llvm_fatal_error"])
async def test_a_compiler_that_crashes(clang: Starter, scratch: Path, what: str) -> None:
    source = f"#pragma clang __debug {what}\n".encode()
    result = await _same(Action(argv=_COMPILE.argv, inputs={"in.c": source}), scratch, clang)
    assert not result.succeeded
    assert b"Program arguments: " + " ".join(_COMPILE.argv).encode() in result.stderr or what != "crash"
    assert (await _same(_COMPILE, scratch, clang)).succeeded


async def test_a_version(clang: Starter, scratch: Path) -> None:
    result = await _same(Action(argv=(CLANG, "--version"), inputs={}), scratch, clang)
    assert b"clang version" in result.stdout


async def test_a_driver_that_starts_another_process(clang: Starter, scratch: Path) -> None:
    argv = (CLANG, "-fno-integrated-cc1", f"--target={TRIPLE}", "-c", "in.c", "-o", "out.o")
    assert (await _same(Action(argv=argv, inputs=_COMPILE.inputs, outputs=("out.o",)), scratch, clang)).succeeded


@pytest.mark.parametrize(
    "text",
    [
        "exit 0",
        "exit 7",
        "kill -KILL $$",
        "kill -SEGV $$",
        "echo said; echo warned >&2",
        "cat; readlink /proc/self/fd/0",
        "env | grep -v PWD=",
        "ls /proc/self/fd",
        "grep -E '^Sig[IC]|^Uid|^Gid|^Seccomp|^NoNewPrivs|^Cpus' /proc/$$/status",
        "sleep 0.05; ulimit -a; umask",
    ],
)
async def test_a_program_that_looks_around(shell: Starter, scratch: Path, text: str) -> None:
    await _same(_script(text), scratch, shell)


async def test_a_process_sees_nothing_of_where_it_comes_from(shell: Starter, scratch: Path) -> None:
    text = "pwd; readlink /proc/self/fd/0; ls /proc/$$/fd; set -- $(cat /proc/$$/stat); test $1 -eq $5 && env"
    for _ in range(3):
        result = await _forked(_script(text), scratch, shell)
    assert result.stderr == b""
    directory, stdin, *numbers, pwd = result.stdout.decode().splitlines()
    assert (directory, stdin, pwd) == (str(result.directory), "/dev/null", f"PWD={directory}")
    assert set(numbers) <= {"0", "1", "2", "10"}  # the last one is the shell's own


async def test_signals_arrive_although_they_were_blocked(scratch: Path, library: bytes) -> None:
    grep = shutil.which("grep")  # a shell lets them in by itself
    assert grep is not None
    with ExitStack() as stack:
        with _all_signals_blocked():
            starter = stack.enter_context(_starter(grep, _Known(library)))
        action = Action(argv=(grep, "SigBlk", "/proc/self/status"), inputs={})
        assert int((await _forked(action, scratch, starter)).stdout.split()[1], 16) == 0


@pytest.mark.parametrize("words", [["", "a b", "", "\n", "ü", ""], ["x" * 131_000], []])
async def test_words_arrive_as_they_are(shell: Starter, scratch: Path, words: list[str]) -> None:
    result = await _same(_script('for word; do printf "<%s>" "$word"; done', *words), scratch, shell)
    assert result.stdout.decode() == "".join(f"<{word}>" for word in words)


@pytest.mark.parametrize("count", [_MOST_WORDS, 200])
async def test_long_command_lines(shell: Starter, scratch: Path, count: int) -> None:
    """The longest one that is forked, and one that is not."""
    text = 'printf "%s.\\n" "$@" | cksum'
    words = ["x"] * (count - 4)
    if count != _MOST_WORDS:
        size = sum(map(len, _script(text).argv))
        words = ["x" * 700] * (count - 4)
        words[-1] = "x" * (_MOST_BYTES - size - sum(map(len, words[:-1])))
    assert (await _same(_script(text, *words), scratch, shell)).status == 0
    longer = _script(text, *words, "x")
    direct, _ = await _end(longer, scratch, start_directly)
    assert _told(await _unforked(longer, scratch, shell)) == _told(direct)
    assert (await _same(_script(text, "few"), scratch, shell)).status == 0


async def test_many_at_once(clang: Starter, scratch: Path) -> None:
    """Each gets what is its own."""
    found: dict[int, bytes] = {}
    expected: dict[int, bytes] = {}

    async def one(number: int) -> None:
        source = f"int number{number}(int x) {{ return {number} * x; }}\n".encode()
        action = Action(argv=_COMPILE.argv, inputs={"in.c": source}, outputs=("out.o",))
        attempt = Attempt(clang)
        found[number] = (await _end(action, scratch, attempt))[1]["out.o"]
        assert attempt.is_forked
        expected[number] = (await _end(action, scratch, start_directly))[1]["out.o"]

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(one, number)
    assert len(set(found.values())) == 12
    assert found == expected


# Figures


async def test_figures(clang: Starter, scratch: Path) -> None:
    result = await _forked(_COMPILE, scratch, clang)
    assert 10 * 2**20 < result.peak_rss_bytes < 4 * 2**30
    assert 0 < result.seconds < _SECONDS


async def test_peak_memory_is_the_forked_process_own(shell: Starter, scratch: Path) -> None:
    ours = bytearray(300 * 2**20)
    result = await _forked(_script("sleep 0.1"), scratch, shell)
    assert 0 < result.peak_rss_bytes < 100 * 2**20
    assert len(ours) > result.peak_rss_bytes


def test_what_a_process_has_used(shell: Starter, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "out").open("wb") as file:
        text = "read word < fifo; i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; exit 3"
        process = shell.fork((_SH, "-c", text), tmp_path, file.fileno(), file.fileno())
    assert process is not None
    assert process.reap() is None
    (tmp_path / "fifo").write_text("on\n")
    deadline = time.monotonic() + _SECONDS
    while (ended := process.reap()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    status, usage = ended
    assert status == 3
    assert 0.005 < usage.ru_utime < _SECONDS
    assert 2**18 < usage.ru_maxrss * 1024 < 2**30
    assert usage.ru_minflt > 0


# What is not forked


async def test_an_environment_is_for_a_process_of_its_own(shell: Starter, scratch: Path) -> None:
    action = Action(argv=(_SH, "-c", "echo $WORD"), inputs={}, environment={"WORD": "heard"})
    assert (await _unforked(action, scratch, shell)).stdout == b"heard\n"
    assert (await _forked(_script("echo $WORD"), scratch, shell)).stdout == b"\n"


async def test_another_program(clang: Starter, scratch: Path) -> None:
    assert (await _unforked(_script("echo another"), scratch, clang)).stdout == b"another\n"
    absent = await _unforked(Action(argv=("/no/such/tool",), inputs={}), scratch, clang)
    assert absent.not_started is not None
    assert (await _forked(_COMPILE, scratch, clang)).succeeded


async def test_a_static_program(scratch: Path, library: bytes) -> None:
    with _starter(zig(), _Known(library)) as starter:
        result = await _unforked(Action(argv=(zig(), "clang", "--version"), inputs={}), scratch, starter)
    assert result.status == 0
    assert b"clang version" in result.stdout


async def test_a_script(scratch: Path, tmp_path: Path, library: bytes) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho $LD_PRELOAD$1\n")
    script.chmod(0o755)
    with _starter(script, _Known(library)) as starter:
        result = await _unforked(Action(argv=(str(script), "said"), inputs={}), scratch, starter)
    assert result.stdout == b"said\n"


async def test_no_program(scratch: Path, tmp_path: Path, library: bytes) -> None:
    with _starter(tmp_path / "none", _Known(library)) as starter:
        result = await _unforked(Action(argv=(str(tmp_path / "none"),), inputs={}), scratch, starter)
    assert result.not_started is not None
    assert "No such file" in result.not_started


def _built(source: str, *flags: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([CLANG, "-x", "c", "-", *flags], input=source.encode(), capture_output=True, check=False)


_CONSTRUCTORS = {
    "starts a thread": """
        int pthread_create(unsigned long *, void *, void *(*)(void *), void *);
        int pause(void);
        static void *wait(void *nothing) { for (;;) pause(); return nothing; }
        static void begin(void) { unsigned long thread; pthread_create(&thread, 0, wait, 0); }
    """,
    "runs another program": """
        int execl(const char *, const char *, ...);
        static void begin(void) { execl("/bin/sh", "sh", "-c", "echo main", (char *)0); }
    """,
    "ends": """
        int puts(const char *);
        void exit(int);
        static void begin(void) { puts("main"); exit(0); }
    """,
}


@pytest.mark.parametrize("what", _CONSTRUCTORS)
async def test_a_program_that_begins_before_main(scratch: Path, tmp_path: Path, library: bytes, what: str) -> None:
    program = tmp_path / "program"
    source = f"""
        {_CONSTRUCTORS[what]}
        __attribute__((constructor)) static void constructor(void) {{ begin(); }}
        int printf(const char *, ...);
        int main(void) {{ printf("main\\n"); return 0; }}
    """
    done = _built(source, "-pthread", "-w", "-o", str(program))
    if done.returncode:
        pytest.skip(f"nothing can be linked with the C library here: {done.stderr.decode()}")
    with _starter(program, _Known(library)) as starter:
        result = await _unforked(Action(argv=(str(program),), inputs={}), scratch, starter)
    assert (result.status, result.stdout) == (0, b"main\n")


async def test_words_that_no_process_can_have(shell: Starter, scratch: Path) -> None:
    result = await _unforked(_script("exit 4", "a\0b"), scratch, shell)
    assert result.not_started is not None
    assert "null byte" in result.not_started


async def test_no_place_to_run_in_is_told(shell: Starter, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        shell.fork((_SH, "-c", "exit 0"), tmp_path / "absent", 1, 2)
    assert (await _forked(_script("exit 4"), tmp_path / "scratch", shell)).status == 4


# The server ends


async def _running(
    action: Action, scratch: Path, starter: Starter, nursery: trio.Nursery, results: list[ActionResult]
) -> int:
    """Begin an action; gives its process. There is going to be one result."""
    send, receive = trio.open_memory_channel[int](1)

    async def begin() -> None:
        results.append((await _end(action, scratch, _Watched(starter, send)))[0])

    nursery.start_soon(begin)
    return await receive.receive()


async def test_a_server_that_is_killed(clang: Starter, scratch: Path, endless: Action) -> None:
    results: list[ActionResult] = []
    with trio.fail_after(_SECONDS):
        async with trio.open_nursery() as nursery:
            pid = await _running(endless, scratch, clang, nursery, results)
            os.kill(_server(pid), signal.SIGKILL)
    (result,) = results
    assert (result.signal, result.status, result.timed_out) == (signal.SIGKILL, None, False)
    await _ended(pid)
    assert (await _unforked(_COMPILE, scratch, clang)).succeeded
    assert (await _unforked(_COMPILE, scratch, clang)).succeeded


async def test_a_server_that_is_stopped(
    scratch: Path, library: bytes, endless: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "_ANSWER_SECONDS", 1.0)
    results: list[ActionResult] = []
    with trio.fail_after(_SECONDS), _starter(CLANG, _Known(library)) as clang:
        async with trio.open_nursery() as nursery:
            pid = await _running(endless, scratch, clang, nursery, results)
            os.kill(_server(pid), signal.SIGSTOP)
            assert (await _unforked(_COMPILE, scratch, clang)).succeeded
    assert results[0].signal == signal.SIGKILL
    await _ended(pid)


async def test_an_answer_that_comes_late_answers_nothing_else(
    scratch: Path, library: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "_ANSWER_SECONDS", 1.0)
    with _starter(_SH, _Known(library)) as shell, (tmp_path / "out").open("wb") as file:
        process = shell.fork((_SH, "-c", "exit 3"), tmp_path, file.fileno(), file.fileno())
        assert process is not None
        server = _server(process.pid)
        os.kill(server, signal.SIGSTOP)
        ended = process.reap()
        assert ended is not None
        assert ended[0] == -signal.SIGKILL
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGCONT)
        # It must not be taken for the number of a process, which would be killed.
        assert shell.fork((_SH, "-c", "exit 4"), tmp_path, file.fileno(), file.fileno()) is None
        assert (await _unforked(_script("exit 4"), scratch, shell)).status == 4


async def test_a_server_that_is_closed(clang: Starter, scratch: Path, endless: Action) -> None:
    results: list[ActionResult] = []
    with trio.fail_after(_SECONDS):
        async with trio.open_nursery() as nursery:
            pid = await _running(endless, scratch, clang, nursery, results)
            server = _server(pid)
            clang.close()
    assert results[0].signal == signal.SIGKILL
    await _ended(pid, server)
    assert (await _unforked(_COMPILE, scratch, clang)).succeeded


# Cancelling


async def test_cancelling_kills_the_group(scratch: Path, shell: Starter) -> None:
    with trio.fail_after(_SECONDS):
        async with trio.open_nursery() as nursery:
            pid = await _running(_script("sleep 1000 & sleep 1000"), scratch, shell, nursery, [])
            while len(children := _children(pid)) < 2:  # noqa: ASYNC110 (nothing tells)
                await trio.sleep(0.002)
            nursery.cancel_scope.cancel()
    assert not Path(f"/proc/{pid}").exists()  # reaped
    await _ended(*children)
    assert (await _forked(_script("exit 4"), scratch, shell)).status == 4


async def test_limits(scratch: Path, shell: Starter) -> None:
    limited = Action(argv=(_SH, "-c", "sleep 0.2; ulimit -v; ulimit -c"), inputs={}, memory_limit=256 * 2**20)
    assert (await _forked(limited, scratch, shell)).stdout == b"262144\n0\n"
    assert (await _forked(_script("ulimit -v"), scratch, shell)).stdout == b"unlimited\n"
    action = Action(argv=(_SH, "-c", "sleep 1000 & sleep 1000"), inputs={}, time_limit=0.2)
    assert (await _forked(action, scratch, shell)).timed_out


def _ltod(place: Path, library: bytes, action: Action) -> subprocess.Popen[str]:
    (place / "library").write_bytes(library)
    (place / "work").mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", _LTOD, place / "library", place / "work", *action.argv],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        text=True,
    )


async def test_nobody_outlives_us(tmp_path: Path, library: bytes, endless: Action) -> None:
    with _ltod(tmp_path, library, endless) as ltod:
        try:
            assert ltod.stdout is not None
            with trio.fail_after(_SECONDS):
                said = await trio.to_thread.run_sync(ltod.stdout.readline)
            pid, is_forked = said.split()
            assert is_forked == "True"
            forked = int(pid)
            server = int(_status(forked)["PPid"])
            assert _status(server)["PPid"] == str(ltod.pid)
        finally:
            ltod.kill()
        try:
            await _ended(forked, server)
        finally:
            for outliving in (forked, server):
                with suppress(ProcessLookupError):
                    os.kill(outliving, signal.SIGKILL)


# What is remembered


async def test_it_is_built_once(scratch: Path, library: bytes) -> None:
    facts = _Known(library)
    with _starter(_SH, facts) as shell:  # which builds nothing
        assert (await _forked(_script("exit 4"), scratch, shell)).status == 4
    assert facts.told == []


@pytest.mark.parametrize("garbage", ["nothing", "words", "half", "another library"])
async def test_garbage_is_remembered(scratch: Path, library: bytes, garbage: str) -> None:
    other = _built("int twice(int x) { return 2 * x; }", "-nostdlib", "-shared", "-fuse-ld=lld", "-o", "-").stdout
    known = {"nothing": b"", "words": b"words", "half": library[: len(library) // 2], "another library": other}
    with _starter(CLANG, _Known(known[garbage])) as clang:
        assert (await _unforked(_COMPILE, scratch, clang)).succeeded


@pytest.mark.parametrize(("program", "status"), [("sh", 2), ("true", 0), ("echo", 0)])
async def test_a_program_that_cannot_build_it(scratch: Path, program: str, status: int) -> None:
    path = shutil.which(program)
    assert path is not None
    facts = _Known()
    with _starter(path, facts) as starter:
        result = await _unforked(Action(argv=(path, "--no-such-option"), inputs={}), scratch, starter)
    assert result.status == status
    assert facts.told == []  # it would be taken for what others need


async def test_no_descriptors_are_left_to_prepare_with(scratch: Path, library: bytes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(10):
        next_one = os.open(os.devnull, os.O_RDONLY)
        os.close(next_one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_one + spare, hard))
        try:
            starter = Starter(_SH, _Known(library))
            assert starter._coming.ends_within(_SECONDS)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        result, _ = await _end(_script("exit 4"), scratch, Attempt(starter))
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
def _forks_seen() -> Iterator[set[int]]:
    """Which processes below us are those of a server, found by looking again and again."""
    found: set[int] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            for pid in descendants():
                with suppress(OSError, KeyError):
                    line = Path(f"/proc/{pid}/cmdline").read_bytes()
                    parent = Path(f"/proc/{_status(pid)['PPid']}/cmdline").read_bytes()
                    if line == parent and line.endswith(b"\0--version\0"):
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

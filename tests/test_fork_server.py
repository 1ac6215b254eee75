"""Layer: process. Compilers that are loaded once and forked: the same as started by themselves, or started so."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.dtlto_site import CLANG, needs_lld
from tests.fork_lab import (
    COMPILE,
    MOST_BYTES,
    MOST_WORDS,
    SECONDS,
    SH,
    Remembered,
    all_signals_blocked,
    built,
    built_library,
    clean,
    ready_starter,
    run_both_ways,
    run_forked,
    run_to_end,
    run_unforked,
    script_of,
    told_of,
)
from tests.samples import TRIPLE, zig
from workers.action import Action
from workers.llvm.fork_server import Attempt, Starter
from workers.starting import start_directly

pytestmark = [pytest.mark.process, needs_lld]


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


# The same as without


async def test_a_compile(clang: Starter, scratch: Path) -> None:
    for _ in range(3):
        result = await run_both_ways(COMPILE, scratch, clang)
        assert result.succeeded
        assert (result.stdout, result.stderr) == (b"", b"")


async def test_a_compile_that_fails(clang: Starter, scratch: Path) -> None:
    action = Action(argv=COMPILE.argv, inputs={"in.c": b"int x = nothing;\n"}, outputs=("out.o",))
    result = await run_both_ways(action, scratch, clang)
    assert (result.status, result.missing) == (1, ("out.o",))
    assert b"use of undeclared identifier 'nothing'" in result.stderr
    assert (await run_both_ways(COMPILE, scratch, clang)).succeeded


@pytest.mark.parametrize("what", ["crash", "llvm_fatal_error"])
async def test_a_compiler_that_crashes(clang: Starter, scratch: Path, what: str) -> None:
    source = f"#pragma clang __debug {what}\n".encode()
    result = await run_both_ways(Action(argv=COMPILE.argv, inputs={"in.c": source}), scratch, clang)
    assert not result.succeeded
    assert b"Program arguments: " + " ".join(COMPILE.argv).encode() in result.stderr or what != "crash"
    assert (await run_both_ways(COMPILE, scratch, clang)).succeeded


async def test_a_version(clang: Starter, scratch: Path) -> None:
    result = await run_both_ways(Action(argv=(CLANG, "--version"), inputs={}), scratch, clang)
    assert b"clang version" in result.stdout


async def test_a_driver_that_starts_another_process(clang: Starter, scratch: Path) -> None:
    argv = (CLANG, "-fno-integrated-cc1", f"--target={TRIPLE}", "-c", "in.c", "-o", "out.o")
    assert (await run_both_ways(Action(argv=argv, inputs=COMPILE.inputs, outputs=("out.o",)), scratch, clang)).succeeded


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
    await run_both_ways(script_of(text), scratch, shell)


async def test_a_process_sees_nothing_of_where_it_comes_from(shell: Starter, scratch: Path) -> None:
    text = "pwd; readlink /proc/self/fd/0; ls /proc/$$/fd; set -- $(cat /proc/$$/stat); test $1 -eq $5 && env"
    for _ in range(3):
        result = await run_forked(script_of(text), scratch, shell)
    assert result.stderr == b""
    directory, stdin, *numbers, pwd = result.stdout.decode().splitlines()
    assert (directory, stdin, pwd) == (str(result.directory), "/dev/null", f"PWD={directory}")
    assert set(numbers) <= {"0", "1", "2", "10"}  # the last one is the shell's own


async def test_signals_arrive_although_they_were_blocked(scratch: Path, library: bytes) -> None:
    grep = shutil.which("grep")  # a shell lets them in by itself
    assert grep is not None
    with ExitStack() as stack:
        with all_signals_blocked():
            starter = stack.enter_context(ready_starter(grep, Remembered(library)))
        action = Action(argv=(grep, "SigBlk", "/proc/self/status"), inputs={})
        assert int((await run_forked(action, scratch, starter)).stdout.split()[1], 16) == 0


@pytest.mark.parametrize("words", [["", "a b", "", "\n", "ü", ""], ["x" * 131_000], []])
async def test_words_arrive_as_they_are(shell: Starter, scratch: Path, words: list[str]) -> None:
    result = await run_both_ways(script_of('for word; do printf "<%s>" "$word"; done', *words), scratch, shell)
    assert result.stdout.decode() == "".join(f"<{word}>" for word in words)


@pytest.mark.parametrize("count", [MOST_WORDS, 200])
async def test_long_command_lines(shell: Starter, scratch: Path, count: int) -> None:
    """The longest one that is forked, and one that is not."""
    text = 'printf "%s.\\n" "$@" | cksum'
    words = ["x"] * (count - 4)
    if count != MOST_WORDS:
        size = sum(map(len, script_of(text).argv))
        words = ["x" * 700] * (count - 4)
        words[-1] = "x" * (MOST_BYTES - size - sum(map(len, words[:-1])))
    assert (await run_both_ways(script_of(text, *words), scratch, shell)).status == 0
    longer = script_of(text, *words, "x")
    direct, _ = await run_to_end(longer, scratch, start_directly)
    assert told_of(await run_unforked(longer, scratch, shell)) == told_of(direct)
    assert (await run_both_ways(script_of(text, "few"), scratch, shell)).status == 0


async def test_many_at_once(clang: Starter, scratch: Path) -> None:
    """Each gets what is its own."""
    found: dict[int, bytes] = {}
    expected: dict[int, bytes] = {}

    async def one(number: int) -> None:
        source = f"int number{number}(int x) {{ return {number} * x; }}\n".encode()
        action = Action(argv=COMPILE.argv, inputs={"in.c": source}, outputs=("out.o",))
        attempt = Attempt(clang)
        found[number] = (await run_to_end(action, scratch, attempt))[1]["out.o"]
        assert attempt.is_forked
        expected[number] = (await run_to_end(action, scratch, start_directly))[1]["out.o"]

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(one, number)
    assert len(set(found.values())) == 12
    assert found == expected


# Figures


async def test_figures(clang: Starter, scratch: Path) -> None:
    result = await run_forked(COMPILE, scratch, clang)
    assert 10 * 2**20 < result.peak_rss_bytes < 4 * 2**30
    assert 0 < result.seconds < SECONDS


async def test_peak_memory_is_the_forked_process_own(shell: Starter, scratch: Path) -> None:
    ours = bytearray(300 * 2**20)
    result = await run_forked(script_of("sleep 0.1"), scratch, shell)
    assert 0 < result.peak_rss_bytes < 100 * 2**20
    assert len(ours) > result.peak_rss_bytes


def test_what_a_process_has_used(shell: Starter, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "out").open("wb") as file:
        text = "read word < fifo; i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; exit 3"
        process = shell.fork((SH, "-c", text), tmp_path, file.fileno(), file.fileno())
    assert process is not None
    assert process.reap() is None
    (tmp_path / "fifo").write_text("on\n")
    deadline = time.monotonic() + SECONDS
    while (ended := process.reap()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    status, usage = ended
    assert status == 3
    assert 0.005 < usage.ru_utime < SECONDS
    assert 2**18 < usage.ru_maxrss * 1024 < 2**30
    assert usage.ru_minflt > 0


# What is not forked


async def test_an_environment_is_for_a_process_of_its_own(shell: Starter, scratch: Path) -> None:
    action = Action(argv=(SH, "-c", "echo $WORD"), inputs={}, environment={"WORD": "heard"})
    assert (await run_unforked(action, scratch, shell)).stdout == b"heard\n"
    assert (await run_forked(script_of("echo $WORD"), scratch, shell)).stdout == b"\n"


async def test_another_program(clang: Starter, scratch: Path) -> None:
    assert (await run_unforked(script_of("echo another"), scratch, clang)).stdout == b"another\n"
    absent = await run_unforked(Action(argv=("/no/such/tool",), inputs={}), scratch, clang)
    assert absent.not_started is not None
    assert (await run_forked(COMPILE, scratch, clang)).succeeded


async def test_a_static_program(scratch: Path, library: bytes) -> None:
    with ready_starter(zig(), Remembered(library)) as starter:
        result = await run_unforked(Action(argv=(zig(), "clang", "--version"), inputs={}), scratch, starter)
    assert result.status == 0
    assert b"clang version" in result.stdout


async def test_a_script(scratch: Path, tmp_path: Path, library: bytes) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho $LD_PRELOAD$1\n")
    script.chmod(0o755)
    with ready_starter(script, Remembered(library)) as starter:
        result = await run_unforked(Action(argv=(str(script), "said"), inputs={}), scratch, starter)
    assert result.stdout == b"said\n"


async def test_no_program(scratch: Path, tmp_path: Path, library: bytes) -> None:
    with ready_starter(tmp_path / "none", Remembered(library)) as starter:
        result = await run_unforked(Action(argv=(str(tmp_path / "none"),), inputs={}), scratch, starter)
    assert result.not_started is not None
    assert "No such file" in result.not_started


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
    done = built(source, "-pthread", "-w", "-o", str(program))
    if done.returncode:
        pytest.skip(f"nothing can be linked with the C library here: {done.stderr.decode()}")
    with ready_starter(program, Remembered(library)) as starter:
        result = await run_unforked(Action(argv=(str(program),), inputs={}), scratch, starter)
    assert (result.status, result.stdout) == (0, b"main\n")


async def test_nothing_is_loaded_before_it_may_be(scratch: Path, library: bytes) -> None:
    may = threading.Event()
    starter = Starter(SH, Remembered(library), before=may.wait)
    try:
        assert (await run_unforked(script_of("exit 4"), scratch, starter)).status == 4
        may.set()
        assert starter._coming.ends_within(SECONDS)
        assert (await run_forked(script_of("exit 4"), scratch, starter)).status == 4
    finally:
        may.set()
        starter.close()


async def test_words_that_no_process_can_have(shell: Starter, scratch: Path) -> None:
    result = await run_unforked(script_of("exit 4", "a\0b"), scratch, shell)
    assert result.not_started is not None
    assert "null byte" in result.not_started


async def test_no_place_to_run_in_is_told(shell: Starter, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        shell.fork((SH, "-c", "exit 0"), tmp_path / "absent", 1, 2)
    assert (await run_forked(script_of("exit 4"), tmp_path / "scratch", shell)).status == 4

"""A place to begin processes by a fork server in, and what is to be seen of them.

Once the library is there, any program that the system loads can be served. So it is a shell that tells what a forked
process sees.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import trio
from attrs import define, field

from tests.dtlto_site import CLANG
from tests.leftovers import descendants, descriptors
from tests.samples import TRIPLE
from workers.action import Action, ActionResult, run
from workers.llvm.fork_server import Attempt, Starter
from workers.starting import Process, Start, start_directly

__all__ = [
    "CC1",
    "COMPILE",
    "MOST_BYTES",
    "MOST_WORDS",
    "SECONDS",
    "SH",
    "Remembered",
    "Watched",
    "all_signals_blocked",
    "built",
    "built_library",
    "children_of",
    "clean",
    "have_ended",
    "ready_starter",
    "run_both_ways",
    "run_forked",
    "run_to_end",
    "run_unforked",
    "script_of",
    "server_of",
    "status_of",
    "told_of",
]

SH = "/bin/sh"
SECONDS = 30.0
CC1 = (CLANG, "-cc1", "-triple", TRIPLE, "-O2", "-emit-obj")
COMPILE = Action(
    argv=(*CC1, "in.c", "-o", "out.o"),
    inputs={"in.c": b"int twice(int x) { return 2 * x; }\n"},
    outputs=("out.o",),
)
MOST_WORDS, MOST_BYTES = 4096, 150_000
"""The longest command lines that are forked."""

_FRAME = re.compile(rb"^ ?#\d+ .*\n", re.MULTILINE)
"""Where a stack dump ends differs: a forked process has a few more callers."""


@define
class Remembered:
    """Facts: one that is remembered whatever is asked for, and what there was to be remembered."""

    always: bytes | None = None
    told: list[bytes] = field(factory=list)

    def recall(self, key: str) -> bytes | None:
        return self.always

    def remember(self, key: str, note: bytes) -> None:
        self.told.append(note)


@define
class Watched:
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
def ready_starter(program: str | Path, facts: Remembered) -> Iterator[Starter]:
    """One that has made all preparations."""
    starter = Starter(str(program), facts)
    try:
        assert starter._coming.ends_within(SECONDS)
        yield starter
    finally:
        starter.close()


def script_of(text: str, *words: str) -> Action:
    return Action(argv=(SH, "-c", text, "sh", *words), inputs={})


async def run_to_end(action: Action, scratch: Path, start: Start) -> tuple[ActionResult, dict[str, bytes]]:
    """How an action ended, and its outputs."""
    with trio.fail_after(SECONDS):
        async with run(action, scratch, start=start) as result:
            written = set(action.outputs) - set(result.missing)
            return result, {name: (result.directory / name).read_bytes() for name in written}


async def run_forked(action: Action, scratch: Path, starter: Starter) -> ActionResult:
    attempt = Attempt(starter)
    result, _ = await run_to_end(action, scratch, attempt)
    assert attempt.is_forked
    return result


async def run_unforked(action: Action, scratch: Path, starter: Starter) -> ActionResult:
    attempt = Attempt(starter)
    result, _ = await run_to_end(action, scratch, attempt)
    assert not attempt.is_forked
    return result


async def run_both_ways(action: Action, scratch: Path, starter: Starter) -> ActionResult:
    """How an action ends that is forked: as one that is started directly."""
    attempt = Attempt(starter)
    forked, made = await run_to_end(action, scratch, attempt)
    assert attempt.is_forked
    direct, expected = await run_to_end(action, scratch, start_directly)
    assert (told_of(forked), made) == (told_of(direct), expected)
    return forked


def told_of(result: ActionResult) -> tuple[object, ...]:
    said = _FRAME.sub(b"", result.stderr)
    return (
        *(result.status, result.signal, result.timed_out, result.not_started),
        *(result.missing, result.stdout, said),
    )


@contextmanager
def all_signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def server_of(pid: int) -> int:
    """The process that has forked another one."""
    server = int(status_of(pid)["PPid"])
    assert server != os.getpid()
    assert status_of(server)["PPid"] == str(os.getpid())
    assert os.getpgid(server) == server  # what a terminal sends to us is not for it
    return server


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def have_ended(*pids: int) -> None:
    """Wait for the end of processes whose parents may be anybody."""
    with trio.fail_after(10):
        for pid in pids:
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                try:
                    await trio.lowlevel.wait_readable(descriptor)
                finally:
                    os.close(descriptor)


def built_library() -> bytes:
    """What is preloaded."""
    facts = Remembered()
    with ready_starter(CLANG, facts):
        (built,) = facts.told
    assert built.startswith(b"\x7fELF")
    return built


@contextmanager
def clean(directory: Path) -> Iterator[Path]:
    """A scratch directory; afterwards nothing may be left in it, nor any process or descriptor of ours."""
    directory.mkdir()
    before = descriptors(), descendants()
    yield directory
    assert list(directory.iterdir()) == []
    assert (descriptors(), descendants()) == before


def built(source: str, *flags: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([CLANG, "-x", "c", "-", *flags], input=source.encode(), capture_output=True, check=False)

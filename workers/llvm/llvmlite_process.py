"""One llvmlite child process, seen from our side: started, asked, listened to, killed. Nothing about options."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from workers.llvm.llvmlite_request import child_argv

__all__ = ["Child", "ChildEndedError"]

_START_SECONDS = 60.0
"""How long a child may take until it answers: a thousand times what it needs on a quiet machine."""

_REAP_SECONDS = 10.0
"""How long a killed child may take to die."""

_CLOSING_SECONDS = 1.0
"""How long a child may live after it closed its pipe."""

_STDERR_END = 8 << 10
"""How much of a module's stderr is kept from its beginning, and as much again from its end."""


class ChildEndedError(Exception):
    """The child closed its end of the pipe, or said something that is not an answer."""


class Child:
    """A child process with its pipes. Whoever has it is alone with it.

    `rss_bytes` is what it held when it last answered.
    """

    def __init__(self, process: subprocess.Popen[bytes], stdin: int, stdout: int, stderr: int) -> None:
        self._process = process
        self._stdin = trio.lowlevel.FdStream(stdin)
        self._stdout = trio.lowlevel.FdStream(stdout)
        self._stderr = stderr
        self._stderr_begin = 0
        self._received = bytearray()
        self.rss_bytes = 0

    @classmethod
    def start(cls, directory: Path) -> Child:
        """Start a child that runs in `directory`; `greeting()` comes next. Raises `OSError`.

        The calling thread makes the process, and not one of trio's workers: the child asks the kernel to be killed
        when the *thread* that made it ends. That, and the end of its stdin, is why it does not outlive us.
        """
        environment = {"LC_ALL": "C.UTF-8"}
        if "LD_LIBRARY_PATH" in os.environ:  # the interpreter itself may need it
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        argv = child_argv("--serve", str(os.getpid()))
        fds: list[int] = []
        try:
            fds += os.pipe()
            fds += os.pipe()
            fds.append(os.memfd_create("ltod-llvmlite-stderr"))
            stdin, to_child, from_child, stdout, stderr = fds
            process = subprocess.Popen(
                argv, stdin=stdin, stdout=stdout, stderr=stderr, cwd=directory, env=environment, process_group=0
            )
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        os.close(stdin)
        os.close(stdout)
        return cls(process, to_child, from_child, stderr)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    async def greeting(self) -> None:
        """Wait until the child is ready. Raises `ChildEndedError` and `trio.TooSlowError`."""
        with trio.fail_after(_START_SECONDS):
            await self.receive()

    async def send(self, request: bytes, content: bytes) -> None:
        """Send a request. A child that is gone is not an error here: `receive` will tell."""
        with suppress(trio.BrokenResourceError):
            await self._stdin.send_all(struct.pack("<IQ", len(request), len(content)) + request)
            if content:
                await self._stdin.send_all(content)

    async def receive(self) -> dict[str, Any]:
        """The next answer. Raises `ChildEndedError`."""
        (length,) = struct.unpack("<I", await self._receive_exactly(4))
        try:
            answer = json.loads(await self._receive_exactly(length))
        except ValueError as error:
            raise ChildEndedError from error
        if not isinstance(answer, dict):
            raise ChildEndedError
        self.rss_bytes = answer.get("rss", 0)
        return answer

    async def _receive_exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            data = await self._stdout.receive_some()
            if not data:
                raise ChildEndedError
            self._received += data
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def take_stderr(self, end: int | None = None) -> str:
        """What was written to stderr since the last call, up to position `end`; the middle of much is left out."""
        begin = self._stderr_begin
        self._stderr_begin = end = os.fstat(self._stderr).st_size if end is None else end
        if end - begin <= 2 * _STDERR_END:
            data = os.pread(self._stderr, end - begin, begin)
        else:
            left_out = f"\n[... {end - begin - 2 * _STDERR_END} bytes left out ...]\n".encode()
            data = os.pread(self._stderr, _STDERR_END, begin) + left_out
            data += os.pread(self._stderr, _STDERR_END, end - _STDERR_END)
        return data.decode(errors="replace").strip()

    def forget_stderr(self) -> None:
        """Empty the stderr file of an idle child, so that it holds no more than one batch writes."""
        if self._stderr_begin:
            os.ftruncate(self._stderr, 0)
            # The child's descriptor shares this position.
            os.lseek(self._stderr, 0, os.SEEK_SET)
            self._stderr_begin = 0

    def signal_kill(self) -> None:
        """Kill the child's process group; `kill` must follow."""
        # Nobody but us reaps it, so until then its number is its own.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def kill(self) -> None:
        """Kill the child if it lives, reap it and close what belongs to it. Cancellation does not stop this."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _REAP_SECONDS):
            try:
                self.signal_kill()
                await self._reap()
            finally:
                self._stdin.close()
                self._stdout.close()
                if self._stderr >= 0:
                    os.close(self._stderr)
                    self._stderr = -1

    async def end(self) -> tuple[int | None, str]:
        """Let a child end that stopped answering, by force if needed: its return code (`None`: unknown) and stderr."""
        with trio.move_on_after(_CLOSING_SECONDS):
            await self._reap()
        stderr = self.take_stderr()
        await self.kill()
        return self._process.returncode, stderr

    async def _reap(self) -> None:
        if not self.is_alive():
            return
        pidfd = os.pidfd_open(self.pid)
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            trio.lowlevel.notify_closing(pidfd)
            os.close(pidfd)
        self._process.wait()

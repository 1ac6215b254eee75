"""Loading a compiler once and forking it for every run, as AFL does with what it tests (llvm_mode's fork server).

A clang with 200 MB of libraries takes up to 20 milliseconds to be loaded, relocated and initialised before `main`, and
as much processor time. Forked after that, it is the same program in the same state. Here belong the server's process,
its protocol (`fork_server.c` is its other half), and doing without one wherever anything is unusual.
"""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import define, field, frozen

from workers.digests import Facts
from workers.llvm.identity import is_loaded
from workers.meanwhile import Meanwhile
from workers.starting import Process, start_directly

__all__ = ["Attempt", "Starter"]

_SOURCE = Path(__file__).with_name("fork_server.c")
_FLAGS = (
    *("-O1", "-ffreestanding", "-nostdlib", "-nostdinc", "-fPIC", "-shared", "-fno-stack-protector"),
    *("-fuse-ld=lld", "-x", "c", "-o", "-", "-"),
)
_BUILD_SECONDS = 10.0
_ANSWER_SECONDS = 5.0
"""How long any answer may take: the first one needs the loader, the others only a fork."""

_MALLOC = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"hugetlb": 1, "top_pad": 2**23, "trim_threshold": 2**30, "mmap_threshold": 2**30}.items()
)
"""A process that begins from nothing takes a fault for every page of its heap, so it gets larger ones, and many."""

_REQUEST = struct.Struct("2i")
_REPLY = struct.Struct("19l")
_MOST_WORDS, _MOST_BYTES = 4096, 150_000


class _ServerError(Exception):
    """There is no server any more, or there never was one."""


class Starter:
    """Begins processes, those of `program` by a fork server once there is one. Not for two threads at a time.

    `facts` remember what the server is made of. The program is loaded when `before` has returned, which is called in a
    thread. `close` it in the end.
    """

    def __init__(self, program: str, facts: Facts, before: Callable[[], object] = lambda: None) -> None:
        self._program = program
        self._before = before
        self._facts = facts
        self._server: _Server | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        self._coming = Meanwhile(self._prepare)

    def fork(self, argv: Sequence[str], directory: Path, stdout: int, stderr: int) -> Process | None:
        """Begin a process without any environment by a fork; `None`: that is not possible.

        `argv[0]` should be the program. Raises `OSError` where there is no such directory.
        """
        words = [os.fsencode(word) for word in argv]
        if argv[0] != self._program or len(words) > _MOST_WORDS or sum(map(len, words)) > _MOST_BYTES:
            return None
        if any(b"\0" in word for word in words):
            return None  # it ends a word in a request
        with self._lock:
            server = self._server
        try:
            return None if server is None else server.spawn(words, directory, stdout, stderr)
        except _ServerError:
            self.close()
            return None

    def close(self) -> None:
        """End the server, and with it whatever it has begun and still runs."""
        with self._lock:
            self._is_closed = True
            server, self._server = self._server, None
        if server is not None:
            server.close()

    def _prepare(self) -> None:
        """Let there be a server. Whatever is raised, there is none."""
        if not is_loaded(self._program):
            return
        source = _SOURCE.read_bytes()
        key = hashlib.sha256(f"fork server {platform.machine()}\n".encode() + source).hexdigest()
        known = self._facts.recall(key)
        library = _built(self._program, source) if known is None else known
        self._before()
        server = _Server(self._program, library)
        with self._lock:
            if self._is_closed:
                server.close()
                return
            if known is None:
                self._facts.remember(key, library)  # it works
            self._server = server


@define
class Attempt:
    """Begins one process, by a fork if possible: a `Start`. `is_forked` says whether it was."""

    _starter: Starter
    is_forked: bool = field(default=False, init=False)

    def __call__(
        self, argv: Sequence[str], directory: Path, environment: Mapping[str, str], stdout: int, stderr: int
    ) -> Process:
        """See `Start`."""
        forked = None if environment else self._starter.fork(argv, directory, stdout, stderr)
        self.is_forked = forked is not None
        return forked or start_directly(argv, directory, environment, stdout, stderr)


@frozen
class _Forked:
    """A child of the server."""

    _server: _Server
    pid: int

    def reap(self) -> tuple[int, resource.struct_rusage] | None:
        return self._server.reap(self.pid)


class _Server:
    """`program`, loaded, and waiting for requests. Raises `_ServerError` where it does not wait.

    That is so for a static program, for a script, for one that starts another one or has threads from the beginning.
    """

    def __init__(self, program: str, library: bytes) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_ANSWER_SECONDS)
        try:
            # By descriptor: what the loader takes for a list of paths ends at spaces and colons.
            with theirs, os.fdopen(os.memfd_create("fork_server", os.MFD_CLOEXEC), "wb") as file:
                file.write(library)
                file.flush()
                self._process = subprocess.Popen(
                    [program, "--version"],  # what it does if it is not served
                    stdin=theirs.fileno(),
                    stdout=file,
                    stderr=subprocess.DEVNULL,
                    env={"LD_BIND_NOW": "1", "LD_PRELOAD": "/proc/self/fd/1", "GLIBC_TUNABLES": _MALLOC},
                    process_group=0,
                )
        except OSError as error:
            self._socket.close()
            raise _ServerError(f"{program} cannot be started") from error
        try:
            process = Path("/proc", str(self._process.pid))
            if self._receive()[0] != self._process.pid or not (process / "exe").samefile(program):
                raise _ServerError(f"{program} starts another program")
            if len(list((process / "task").iterdir())) != 1:
                raise _ServerError(f"{program} starts threads before it begins")
        except (OSError, _ServerError) as error:
            self.close()
            raise _ServerError(f"{program} cannot be served") from error

    def spawn(self, words: Sequence[bytes], directory: Path, stdout: int, stderr: int) -> _Forked:
        """Begin a process. Raises `_ServerError`, and `OSError` where it has no place."""
        opened = [os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        try:
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            request = _REQUEST.pack(len(words), 0) + b"\0".join([*words, b""])
            pid = self._ask(request, [*opened, stdout, stderr])[0]
        finally:
            for descriptor in opened:
                os.close(descriptor)
        if pid <= 0:
            raise _ServerError("it cannot fork")
        return _Forked(self, pid)

    def reap(self, pid: int) -> tuple[int, resource.struct_rusage] | None:
        """See `Process`. Whoever outlives the server is killed by the kernel."""
        try:
            status, *usage = self._ask(_REQUEST.pack(0, pid), [])
        except _ServerError:
            self.close()  # its answer, should it come late, is none to what is asked next
            return -signal.SIGKILL, resource.struct_rusage([0.0] * 2 + [0] * 14)
        if status < 0:
            return None
        times = (usage[0] + usage[1] / 1e6, usage[2] + usage[3] / 1e6)
        return os.waitstatus_to_exitcode(status), resource.struct_rusage((*times, *usage[4:]))

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _ask(self, request: bytes, descriptors: Sequence[int]) -> tuple[int, ...]:
        try:
            socket.send_fds(self._socket, [request], descriptors)
        except OSError as error:
            raise _ServerError("it takes no request") from error
        return self._receive()

    def _receive(self) -> tuple[int, ...]:
        try:
            reply = self._socket.recv(_REPLY.size)
        except OSError as error:
            raise _ServerError("it does not answer") from error
        if len(reply) != _REPLY.size:
            raise _ServerError("it has ended")
        answer: tuple[int, ...] = _REPLY.unpack(reply)
        return answer


def _built(program: str, source: bytes) -> bytes:
    """What is preloaded. Raises `OSError` and `SubprocessError` where the program does not build it."""
    argv = [program, *_FLAGS]
    return subprocess.run(argv, input=source, capture_output=True, timeout=_BUILD_SECONDS, check=True).stdout

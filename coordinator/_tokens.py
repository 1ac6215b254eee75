"""Tokens, the right to use one CPU each: our own, or those of a GNU make jobserver.

Every process has one token from the start, the implicit one. A jobserver is a pipe or fifo that some make or cargo
above us has filled with one byte per further token: who reads a byte may run one job more, and writes the same
byte back when the job is over. A byte that is not written back slows the whole build down until it ends, so
everything here is about not losing one.

Which source counts
    A jobserver in `MAKEFLAGS` always does, and `jobs` can only lower how much of it we take: it is an agreement
    between all processes of a build, and a number meant for one of them would be multiplied by how many are
    started (cargo decides so too). `jobs`, or else the CPUs that this process may use, decide when there is no
    jobserver, and when one is announced that cannot be reached. That is what make does to recipes that it does
    not take for a make; linkers use all CPUs then, and so do we, with a warning.
"""

from __future__ import annotations

import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol, Self

import trio
from attrs import frozen

from coordinator._cgroups import enclosing_groups, read_numbers
from workers.errors import InternalError, RequestError

__all__ = ["IMPLICIT", "Jobserver", "OwnTokens", "Token", "TokenSource", "token_source", "usable_cpus"]

_VARIABLES = ("MAKEFLAGS", "CARGO_MAKEFLAGS")
"""Where a jobserver is announced: by make and those that do as make does, and by cargo to what rustc runs."""


@frozen(eq=False)
class Token:
    """The right to use one CPU, from `acquire` until `release`; equal to nothing but itself."""

    byte: bytes | None = None
    """What a jobserver must get back."""


IMPLICIT: Final = Token()
"""The token that this process has by having been started: never acquired, never released."""


class TokenSource(Protocol):
    """Hands out explicit tokens. It exists so that the main loop need not know whose tokens they are.

    A context manager: leaving it closes it.
    """

    @property
    def limit(self) -> int:
        """The most tokens that can be held at once, the implicit one included; at least 1."""
        ...

    @property
    def warning(self) -> str | None:
        """What the user should know about where the tokens come from."""
        ...

    async def acquire(self) -> Token:
        """One token beside the implicit one; waits until there is one. When cancelled, no token is lost."""
        ...

    def release(self, token: Token) -> None:
        """Give a token back, without waiting. A jobserver that is gone is not an error.

        Raises `InternalError` for a token that is not held.
        """
        ...

    def close(self) -> None:
        """Give back every token that is still held. Nobody may be waiting for one. May be called again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def token_source(jobs: int | None, environ: Mapping[str, str]) -> TokenSource:
    """The tokens of this process: see the top of this module for which ones they are.

    `jobs` counts the implicit token. Raises `RequestError` when it is below 1.
    """
    if jobs is not None and jobs < 1:
        raise RequestError(f"{jobs} jobs were asked for; at least 1 is needed")
    problems: list[str] = []
    for name in _VARIABLES:
        auth, announced = _parse_makeflags(environ.get(name, ""))
        if auth is None:
            continue
        try:
            read_fd, write_fd = _open_jobserver(auth)
        except _UnreachableError as error:
            problems.append(f"the jobserver in {name} ({auth!r}) cannot be used: {error}")
            continue
        # A bare `-j`, as cargo writes it, does not say how many there are; more than there are CPUs help nobody.
        limit = announced or usable_cpus()
        return Jobserver(read_fd, write_fd, min(limit, jobs or limit))
    return OwnTokens(jobs or usable_cpus(), "; ".join(problems) or None)


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use: its affinity, and the quota of every control group around it, rounded up.

    `root` is where /proc and the mounts are looked up. Never raises.
    """
    cpus = len(os.sched_getaffinity(0))
    for group in enclosing_groups("cpu", root):
        version1 = read_numbers(group / "cpu.cfs_quota_us") + read_numbers(group / "cpu.cfs_period_us")
        for quota_and_period in (version1, read_numbers(group / "cpu.max")):
            match quota_and_period:
                # Without a quota version 1 says -1 and version 2 'max'.
                case [int(quota), int(period)] if quota > 0 and period > 0:
                    cpus = min(cpus, -(-quota // period))
    return cpus


class _Limited(ABC):
    """What both sources share: no more than `limit` tokens are out, and every one comes back once."""

    def __init__(self, limit: int, warning: str | None = None) -> None:
        self.limit: Final = limit
        self.warning: Final = warning
        self._room = trio.Semaphore(limit - 1, max_value=limit - 1)
        self._held: set[Token] = set()

    # An interrupt between taking a byte and noting it would lose the byte.
    @trio.lowlevel.enable_ki_protection
    async def acquire(self) -> Token:
        """See `TokenSource`."""
        await self._room.acquire()
        try:
            token = await self._take()
        except BaseException:
            self._room.release()
            raise
        self._held.add(token)
        return token

    @trio.lowlevel.enable_ki_protection
    def release(self, token: Token) -> None:
        """See `TokenSource`."""
        if token not in self._held:
            raise InternalError(f"{'the implicit token' if token is IMPLICIT else token} is released but not held")
        self._held.remove(token)
        self._give_back(token)
        self._room.release()

    def close(self) -> None:
        """See `TokenSource`."""
        for token in tuple(self._held):
            self.release(token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    async def _take(self) -> Token:
        """Wait for a token; nothing is taken when this raises."""

    @abstractmethod
    def _give_back(self, token: Token) -> None:
        """Undo `_take`; never raises."""


class OwnTokens(_Limited):
    """Tokens that nobody else counts: `limit` at once, the implicit one included."""

    async def _take(self) -> Token:
        return Token()

    def _give_back(self, token: Token) -> None:
        pass


class Jobserver(_Limited):
    """Tokens of the jobserver behind two descriptors (or one, of a fifo), at most `limit` at once.

    The descriptors must not block. They must be descriptions of our own, because that flag is shared by all
    processes that inherited one. They belong to this object and are closed with it.
    """

    def __init__(self, read_fd: int, write_fd: int, limit: int) -> None:
        super().__init__(limit)
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._closed = False
        # trio lets only one task at a time wait for a descriptor.
        self._turn = trio.Lock()

    def close(self) -> None:
        """See `TokenSource`. Closes the descriptors."""
        super().close()
        if self._turn.locked():
            raise InternalError("the jobserver is closed while a task waits for a token")
        if not self._closed:
            self._closed = True
            for fd in {self._read_fd, self._write_fd}:
                os.close(fd)

    async def _take(self) -> Token:
        await self._turn.acquire()
        try:
            if self._closed:
                raise InternalError("a token is asked of a closed jobserver")
            while (byte := self._read()) is None:
                await trio.lowlevel.wait_readable(self._read_fd)
            if not byte:
                # Every writer is gone, so no token will ever come: the implicit one must do.
                await trio.sleep_forever()
            return Token(byte)
        finally:
            self._turn.release()

    def _read(self) -> bytes | None:
        """One byte; `None` when there is none now: somebody else may be quicker after every wait."""
        try:
            return os.read(self._read_fd, 1)
        except BlockingIOError:
            return None

    def _give_back(self, token: Token) -> None:
        # Fails only when nobody is left to read it, or when the pipe is full of bytes that never were tokens.
        with suppress(OSError):
            os.write(self._write_fd, token.byte or b"")


_MAKES = frozenset({"make", "gmake", "gnumake"})
_GENERATIONS = 64
"""Between make and us there are shells, compiler drivers and linkers, and perhaps a make that knows of no jobserver."""

_MEND = "begin the line in the makefile with '+' to share make's jobs"


class _UnreachableError(Exception):
    """A jobserver is announced but cannot be used; the message says why."""


def _parse_makeflags(text: str) -> tuple[str | None, int | None]:
    """Where the jobserver is (`R,W` or `fifo:PATH`), and the number of jobs; the last of each counts."""
    auth: str | None = None
    jobs: int | None = None
    # make quotes blanks and backslashes with a backslash, and doubles dollars.
    for quoted in re.findall(r"(?:\\.|[^\\\s])+", text, re.DOTALL):
        word = re.sub(r"\\(.)|\$(\$)", r"\1\2", quoted, flags=re.DOTALL)
        if word == "--":  # variable assignments follow
            break
        if match := re.fullmatch(r"--jobserver-(?:auth|fds)=(.+)", word, re.DOTALL):
            auth = match[1]
        elif match := re.fullmatch(r"(?:-j|--jobs=)([0-9]{0,9})", word):
            jobs = int(match[1] or 0) or None
    return auth, jobs


def _open_jobserver(auth: str) -> tuple[int, int]:
    """Descriptors of our own for reading and writing; raises `_UnreachableError`."""
    try:
        if auth.startswith("fifo:"):
            fd = _open_fifo(auth.removeprefix("fifo:"), os.O_RDWR)
            return fd, fd
        if not (match := re.fullmatch(r"(-?[0-9]{1,9}),(-?[0-9]{1,9})", auth)):
            raise _UnreachableError("it is of no known kind")
        return _open_pipe(int(match[1]), int(match[2]))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise _UnreachableError(error.strerror if isinstance(error, OSError) else str(error)) from error


def _open_pipe(read_fd: int, write_fd: int) -> tuple[int, int]:
    """Open both ends of the pipe anew: inherited descriptors share their flags with other processes."""
    if read_fd < 0 or write_fd < 0:
        raise _UnreachableError(f"make keeps it from this recipe; {_MEND}")
    # Where make does not pass the pipe on, its numbers soon belong to something else. The pipe itself came through
    # exec, so nothing marks it to be closed there.
    if _is_pipe("self", read_fd, write_fd) and all(os.get_inheritable(fd) for fd in (read_fd, write_fd)):
        return _open_ends("self", read_fd, write_fd)
    # To what it does not take for a make, make closes the pipe. It has it itself, under the same numbers, and a token
    # that is taken there is as good as any.
    for pid in _makes_above():
        if _is_pipe(pid, read_fd, write_fd):
            with suppress(OSError):
                return _open_ends(pid, read_fd, write_fd)
        break
    raise _UnreachableError(f"its descriptors are closed or something else here; {_MEND}")


def _is_pipe(pid: str, read_fd: int, write_fd: int) -> bool:
    """Whether these descriptors of a process are the two ends of one pipe: that has one identity at both ends."""
    try:
        ends = [os.stat(f"/proc/{pid}/fd/{fd}") for fd in (read_fd, write_fd)]  # noqa: PTH116
    except OSError:
        return False
    return all(stat.S_ISFIFO(end.st_mode) for end in ends) and os.path.samestat(*ends)


def _open_ends(pid: str, read_fd: int, write_fd: int) -> tuple[int, int]:
    reader = _open_fifo(f"/proc/{pid}/fd/{read_fd}", os.O_RDONLY)
    try:
        return reader, _open_fifo(f"/proc/{pid}/fd/{write_fd}", os.O_WRONLY)
    except BaseException:
        os.close(reader)
        raise


def _makes_above() -> Iterator[str]:
    """The GNU makes that have started us, the nearest first."""
    pid = os.getppid()
    for _ in range(_GENERATIONS):
        try:
            # The name, in parentheses, may have anything in it.
            head, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
        except OSError:
            return
        if head.partition("(")[2] in _MAKES:
            yield str(pid)
        pid = int(rest.split()[1])
        if pid <= 1:
            return


def _open_fifo(path: str, mode: int) -> int:
    fd = os.open(path, mode | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise _UnreachableError(f"{path} is not a fifo")
    return fd

"""What cleans up after this process when it cannot do so itself: a tiny shell that outlives a SIGKILL.

Here belong the keeper's process, its protocol and how runs find the keeper that watches over them. Nothing here
decides what is run or removed in ordinary times.

A keeper reads lines: `+ N` is a process group that began, `- N` one that has been killed, `q` asks it to end. At the
end of its input, which the kernel brings about however we die, it kills the groups that are left and removes the
directory that it watches. It has a session of its own and ignores what a terminal sends, for it must live longer
than we do. It is a comfort and never a condition: whoever kills it gets another one started, and where there is no
`sh`, things work without.
"""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import trio

__all__ = ["Keeper", "keeper_of"]

_SCRIPT = """
trap '' INT TERM HUP QUIT PIPE
groups=' '
while read -r what number; do
  case $what in
    +) groups="$groups$number " ;;
    -) case $groups in
         *" $number "*) groups="${groups%%" $number "*} ${groups#*" $number "}" ;;
       esac ;;
    q) exit 0 ;;
  esac
done
for number in $groups; do kill -s KILL -- "-$number"; done
for attempt in 1 2 3 4 5; do
  rm -rf -- "$0"
  [ -e "$0" ] || exit 0
  sleep 1
done
"""

_STARTS = 8
"""How often a keeper is started: who kills it more often wants to be rid of it."""

_END_SECONDS = 2.0
"""How long a keeper may take to end when asked; then it is killed."""

_open: dict[Path, Keeper] = {}


class Keeper:
    """Watches `directory`, absolute, and the process groups that are added; `close` it when all of that is gone.

    No method raises or waits because of the keeper's state.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._groups: set[int] = set()
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._start()
        _open[directory] = self

    @property
    def pid(self) -> int | None:
        """The keeper's process, `None` where there is none."""
        return None if self._process is None else self._process.pid

    def add(self, group: int) -> None:
        """A process group has begun."""
        self._groups.add(group)
        self._say(f"+ {group}\n")

    def remove(self, group: int) -> None:
        """A process group was killed. To be said before its leader is reaped: then its number may be a stranger's."""
        self._groups.discard(group)
        self._say(f"- {group}\n")

    async def close(self) -> None:
        """Let the keeper end without doing anything."""
        _open.pop(self._directory, None)
        if self._line is None or self._process is None:
            return
        with suppress(OSError):
            self._line.send(b"q\n", socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        with trio.move_on_after(_END_SECONDS, shield=True):
            pidfd = os.pidfd_open(self._process.pid)
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        self._drop()

    def _say(self, text: str) -> None:
        if self._line is None:
            return
        data = text.encode()
        try:
            # A socket and not a pipe: no SIGPIPE, whatever the program around us does with that signal.
            if self._line.send(data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT) == len(data):
                return
        except OSError:
            pass
        # Dead, or stopped and its buffer full. One that missed a line could kill strangers one day.
        self._drop()
        self._start()

    def _start(self) -> None:
        if self._starts >= _STARTS:
            return
        self._starts += 1
        ours: socket.socket | None = None
        try:
            ours, its = socket.socketpair()
            with its:
                its_process = subprocess.Popen(
                    ["/bin/sh", "-c", _SCRIPT, str(self._directory)],
                    stdin=its.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={"PATH": "/usr/bin:/bin"},
                    start_new_session=True,
                )
        except OSError:
            if ours is not None:
                ours.close()
            return
        self._line, self._process = ours, its_process
        with suppress(OSError):
            text = "".join(f"+ {group}\n" for group in sorted(self._groups))
            ours.send(text.encode(), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def _drop(self) -> None:
        """Have no keeper any more; the one there was gets no chance to act on the end of its input."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()  # after SIGKILL, a shell that waits for input is gone at once
        if self._line is not None:
            self._line.close()
        self._process = self._line = None


def keeper_of(directory: Path) -> Keeper | None:
    """The keeper that watches over `directory`: its own, or that of a directory above it."""
    if not _open:
        return None
    return next((_open[path] for path in (directory, *directory.parents) if path in _open), None)

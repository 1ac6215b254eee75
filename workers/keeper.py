"""What cleans up after this process when it cannot do so itself: a tiny shell that outlives a SIGKILL.

Here belong the keeper's process, its protocol and how others find a keeper. Nothing here decides what is run or removed
in ordinary times.

A keeper reads lines: `+ N` is a process group that began, `- N` one that has been killed; `d PATH` is a file or
directory that is about to be made, `x PATH` one that is gone or there to stay. At the end of its input, which the
kernel brings about however we die, it kills the groups that are left and then removes the paths that are left. What
is to be removed is told before it is made, for afterwards might be too late. Paths are escaped, as a name may hold
any byte but one; a line without its end is none. It has a session of its own and ignores what a terminal sends, for
it must live longer than we do. It is a comfort and never a condition: whoever kills it gets another one started, and
where there is no `sh`, things work without.

Many ask whether there is a keeper, and few start one: what only those need is loaded when it is needed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    import subprocess

__all__ = ["Keeper", "keeper_of", "kept_directory", "unused_name", "watched"]

_SCRIPT = r"""
set -f
trap '' INT TERM HUP QUIT PIPE
groups=' '
paths=" $* "
while read -r what word; do
  case $what in
    +) groups="$groups$word " ;;
    d) paths="$paths$word " ;;
    -) case $groups in
         *" $word "*) groups="${groups%%" $word "*} ${groups#*" $word "}" ;;
       esac ;;
    x) case $paths in
         *" $word "*) paths="${paths%%" $word "*} ${paths#*" $word "}" ;;
       esac ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
for attempt in 1 2 3 4 5; do
  left=
  for word in $paths; do
    path=$(printf '%b/' "$word")
    path=${path%/}
    rm -rf -- "$path"
    if [ -e "$path" ] || [ -L "$path" ]; then left=yes; fi
  done
  [ "$left" ] || exit 0
  sleep 1
done
"""

_STARTS = 8
"""How often a keeper is started: who kills it more often wants to be rid of it."""

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._-")

_open: dict[Path, Keeper] = {}


class Keeper:
    """Watches `directory`, absolute, and what else it is told of; `close` it when all of that is gone.

    The directory need not be there yet. No method raises or waits because of the keeper's state; all but `close` may be
    called in any thread.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._groups: set[int] = set()
        self._paths = {_escaped(directory)}
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._lock = threading.Lock()
        self._start()
        _open[directory] = self

    @property
    def pid(self) -> int | None:
        """The keeper's process, `None` where there is none."""
        return None if self._process is None else self._process.pid

    def add(self, group: int) -> None:
        """A process group has begun."""
        with self._lock:
            self._groups.add(group)
            self._say(f"+ {group}\n")

    def remove(self, group: int) -> None:
        """A process group was killed. To be said before its leader is reaped: then its number may be a stranger's."""
        with self._lock:
            self._groups.discard(group)
            self._say(f"- {group}\n")

    def watch(self, path: Path) -> None:
        """A file or directory, absolute, is about to be made, under a name that nobody else has or takes."""
        with self._lock:
            self._paths.add(_escaped(path))
            self._say(f"d {_escaped(path)}\n")

    def unwatch(self, path: Path) -> None:
        """Such a path is gone, or nothing was made there."""
        with self._lock:
            self._paths.discard(_escaped(path))
            self._say(f"x {_escaped(path)}\n")

    def close(self) -> None:
        """Let the keeper end without doing anything."""
        _open.pop(self._directory, None)
        with self._lock:
            self._drop()

    def _say(self, text: str) -> None:
        # Dead, or stopped and its buffer full. One that missed a line could kill strangers one day.
        if self._line is not None and not self._send(text):
            self._drop()
            self._start()

    def _send(self, text: str) -> bool:
        """Whether the keeper has got or will get all of it."""
        import socket

        data = text.encode()
        try:
            # A socket and not a pipe: no SIGPIPE, whatever the program around us does with that signal.
            flags = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
            return self._line is not None and self._line.send(data, flags) == len(data)
        except OSError:
            return False

    def _start(self) -> None:
        import socket
        import subprocess

        if self._starts >= _STARTS:
            return
        self._starts += 1
        ours: socket.socket | None = None
        try:
            ours, its = socket.socketpair()
            with its:
                its_process = subprocess.Popen(
                    ["/bin/sh", "-c", _SCRIPT, "ltod-keeper", *sorted(self._paths)],
                    stdin=its.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    # A bash that is the first one, with a socket to read from, would run the user's .bashrc.
                    env={"PATH": "/usr/bin:/bin", "SHLVL": "1"},
                    start_new_session=True,
                )
        except OSError:
            if ours is not None:
                ours.close()
            return
        self._line, self._process = ours, its_process
        if not self._send("".join(f"+ {group}\n" for group in sorted(self._groups))):
            self._drop()

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


def unused_name(parent: Path, prefix: str) -> Path:
    """A path in `parent`, absolute, that nobody has or guesses: a keeper can be told of it before it is made."""
    return parent.absolute() / f"{prefix}{os.urandom(12).hex()}"


@contextmanager
def kept_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """A directory with a keeper of its own, gone when the block is left or this process is killed. Raises `OSError`."""
    import shutil

    directory = unused_name(parent, prefix)
    keeper = Keeper(directory)
    try:
        directory.mkdir(mode=0o700)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        keeper.close()


@contextmanager
def watched(path: Path) -> Iterator[None]:
    """Have `path`, of `unused_name`, removed should this process be killed before the block is left.

    Which keeper does it does not matter, for all of them see the end of this process.
    """
    keeper = next(iter(tuple(_open.values())), None)
    if keeper is None:
        yield
        return
    keeper.watch(path)
    try:
        yield
    finally:
        keeper.unwatch(path)


def _escaped(path: Path) -> str:
    """A path as one word for `printf %b`."""
    return "".join(chr(byte) if byte in _PLAIN else f"\\0{byte:03o}" for byte in os.fsencode(path))

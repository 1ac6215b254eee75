"""Many links of programs that share a library, all at once, with a cold store; some are killed meanwhile.

    python -m tests.stress.links [--rounds 20] [--links 20] [--seed N]

The programs of a round share a library that no earlier round has compiled. In every second round all links are left
alone: then each module of the library has to be compiled once, in all of them together. In the others, linkers and
distributors are killed (SIGKILL) at random moments: those that are left have to finish. Whatever was linked must do
what the same program does that lld has linked by itself, must be what an empty store gives and what the store gives
afterwards, byte for byte, and no process and no file may be left behind by anybody.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from attrs import define, field

from tests.dtlto_lab import Lab, library, main_source
from tests.dtlto_site import dtlto_program
from tests.samples import zig

__all__ = ["Links"]

_SECONDS = 300.0
_KILLED = 0.4
"""How many of the links of a bad round are killed."""


@define
class _Link:
    """One link, in a session of its own."""

    number: int
    process: subprocess.Popen[bytes]
    stats: Path
    said: Path
    victim: bool = False


@define
class Links:
    """Rounds of links in `root`, which is there and empty. `wrong` says what went wrong, in words."""

    root: Path
    dice: random.Random
    wrong: list[str] = field(factory=list)
    kills: int = 0
    rounds: int = 0
    _lab: Lab = field(init=False)
    _environ: dict[str, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        place = self.root / "links"
        (self.root / "tmp").mkdir()
        place.mkdir()
        self._lab = Lab(place)
        away = ("MAKEFLAGS", "CARGO_MAKEFLAGS", "LTOD_CACHE_SIZE", "LTOD_CACHE_REMOTE")
        kept = {name: value for name, value in os.environ.items() if name not in away}
        self._environ = {**kept, "TMPDIR": str(self.root / "tmp"), "LTOD_CACHE_DIR": str(self.root / "cache")}

    def round(self, links: int, modules: int, *, kills: bool) -> None:
        """Link so many programs at once that share a library of so many modules."""
        self.rounds += 1
        files = self._sources(links, modules)
        started = [self._start(number, files) for number in range(links)]
        if kills:
            self._kill(started)
        deadline = time.monotonic() + _SECONDS
        for link in started:
            try:
                link.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._say(f"link {link.number} does not end")
        self._leaves_nothing(started, whole=not kills)
        done = [link for link in started if link.process.returncode == 0]
        for link in started:
            if link.process.returncode != 0 and not link.victim:
                self._say(f"link {link.number} failed, and was not killed: {link.said.read_text()}")
        self._count(done, modules, links, exact=not kills)
        for link in done:
            self._compare(link.number, files)
        verify = [sys.executable, "-m", "coordinator", "cache", "verify", f"--cache-dir={self.root}/cache"]
        verified = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=_SECONDS)
        if verified.returncode:
            self._say(f"{verified.stdout}{verified.stderr}")
        shutil.rmtree(self._lab.root)
        self._lab.root.mkdir()

    def _sources(self, links: int, modules: int) -> list[str]:
        """The programs' own modules, in `in`, and what they share."""
        salt = self.dice.randrange(10**6)
        lib = {name: f"int salt_{name} = {salt};\n{source}" for name, source in library(modules).items()}
        archive = self._lab.archive(self._lab.compile(lib), "in/lib.a")
        self._lab.compile({f"main{one}": main_source(f"step0({one}) ^ {salt}", "step0") for one in range(links)})
        return [archive]

    def _start(self, number: int, files: Sequence[str], *more: str, output: str = "") -> _Link:
        stats, said = (self._lab.tools / f"{number}.{end}" for end in ("json", "txt"))
        stats.unlink(missing_ok=True)
        arguments = [f"--stats={stats}", *more]
        command = self._lab.command(
            [f"in/main{number}.o", *files], output=output or f"program{number}", arguments=arguments
        )
        with said.open("wb") as stderr:
            process = subprocess.Popen(
                command, cwd=self._lab.root, env=self._environ, stderr=stderr, start_new_session=True
            )
        return _Link(number, process, stats, said)

    def _kill(self, started: Sequence[_Link]) -> None:
        """Some, at random moments: the linker, or its distributor."""
        victims = self.dice.sample(started, max(1, int(len(started) * _KILLED)))
        for link in victims:
            time.sleep(self.dice.random() * 0.4)
            link.victim = True
            pids = [link.process.pid]
            if self.dice.random() < 0.3:
                pids = [pid for pid, words in _session(link.process.pid).items() if bytes(dtlto_program()) in words]
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1

    def _leaves_nothing(self, started: Sequence[_Link], *, whole: bool) -> None:
        deadline = time.monotonic() + _SECONDS
        while left := [pid for link in started for pid in _session(link.process.pid)]:
            if time.monotonic() > deadline:
                self._say(f"the processes {left} are left")
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.05)
        # Keepers have sessions of their own.
        while list((self.root / "tmp").iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for path in (self.root / "tmp").iterdir():
            self._say(f"{path} is left")
        # A linker that was killed before it had a distributor, or while that one started, leaves its files to nobody.
        names = {path.name for path in self._lab.root.iterdir()} - {"in"}
        odd = {name for name in names if ".ltod-" in name or name.endswith(".tmp")}
        if odd := odd or (names - {f"program{link.number}" for link in started} if whole else set()):
            self._say(f"{sorted(odd)} are left")

    def _count(self, done: Sequence[_Link], modules: int, links: int, *, exact: bool) -> None:
        """How often things were compiled."""
        stats = [json.loads(link.stats.read_bytes()) for link in done]
        for link, one in zip(done, stats, strict=True):
            if one["jobs"] != modules + 1 or one["uncached"] or one["failed"] or one["skipped"]:
                self._say(f"link {link.number}: {one}")
        compiled = sum(one["misses"] for one in stats)
        if compiled > modules + len(done) or (exact and compiled != modules + links):
            self._say(f"{compiled} backend compiles by {len(done)} links; there were {modules} modules to share")

    def _compare(self, number: int, files: Sequence[str]) -> None:
        lab = self._lab
        ours = (lab.root / f"program{number}").read_bytes()
        warm = self._start(number, files, output="warm")
        if warm.process.wait(_SECONDS) or json.loads(warm.stats.read_bytes())["misses"]:
            self._say(f"link {number} is not in the store: {warm.said.read_text()}")
        elif (lab.root / "warm").read_bytes() != ours:
            self._say(f"link {number} is not what the store gives")
        command = [zig(), "ld.lld", "-static", f"in/main{number}.o", *files, "-o", "reference"]
        subprocess.run(command, cwd=lab.root, check=True, timeout=_SECONDS)
        if lab.said(f"program{number}") != lab.said("reference"):
            self._say(f"link {number} does not do what lld's own does")
        if self.dice.random() < 0.1:
            cold = self._start(number, files, f"--cache-dir={self.root}/empty", output="cold")
            if cold.process.wait(_SECONDS) or (lab.root / "cold").read_bytes() != ours:
                self._say(f"link {number} is not what an empty store gives: {cold.said.read_text()}")
            shutil.rmtree(self.root / "empty", ignore_errors=True)

    def _say(self, what: str) -> None:
        self.wrong.append(f"round {self.rounds}: {what}")


def _session(session: int) -> dict[int, bytes]:
    """The processes of a session, zombies aside, with their words."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with suppress(OSError):
                state, _, _, its_session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
                if state not in "ZX" and int(its_session) == session:
                    found[int(path.name)] = (path / "cmdline").read_bytes()
    return found


def main() -> None:
    """Run the stress from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--links", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="ltod-stress-") as root:
        links = Links(Path(root), dice)
        for number in range(arguments.rounds):
            links.round(arguments.links, dice.randrange(2, 12), kills=number % 2 == 1)
    done = f"{links.rounds} rounds of {arguments.links} links, {links.kills} kills"
    print(f"seed {arguments.seed}: {done}, {len(links.wrong)} things wrong")
    if links.wrong:
        sys.exit("\n".join(links.wrong))


if __name__ == "__main__":
    main()

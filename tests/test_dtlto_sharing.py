"""Layer: process. Links at the same time: what several of them need is compiled by one of them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.dtlto_lab import PROGRAM, SAID, Lab
from tests.stress.links import Links

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the programs of these tests are for x86-64"),
]

_SECONDS = 60.0
_FILES = [f"in/{name}.o" for name in PROGRAM]

# Each compile of one module leaves a file, and waits for another one.
_GATED = 'is_bad && {{ : >{tools}/runs/$$; until [ -e {tools}/go ]; do sleep 0.05; done; {then} }}; compile "$@"'


def test_another_compiler_shares_nothing_and_a_copy_of_one_shares_all(lab: Lab) -> None:
    """What counts is what is in it: the path does not, nor what it says of itself."""
    first, copy, other = (lab.compiler(name, 'compile "$@"') for name in ("first", "copy", "other"))
    other.write_bytes(other.read_bytes() + b"another one")
    assert lab.link(_FILES, compiler=first).count("hits", "misses") == (0, len(_FILES))
    assert lab.link(_FILES, compiler=copy).count("hits", "misses") == (len(_FILES), 0)
    assert lab.link(_FILES, compiler=other).count("hits", "misses") == (0, len(_FILES))


class _Two:
    """Two links of one program: the `first` is compiling the last module, the `second` is there and has the others."""

    def __init__(self, lab: Lab, compiler: Path) -> None:
        self.lab = lab
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            self.first = self._start(1, compiler)
            _until(lambda: self.runs(), "no compiler was started")
            self.second = self._start(2, compiler)
            said = lab.tools / "2.txt"
            _until(lambda: said.read_text().count(": hit") == len(_FILES) - 1, "the second has not begun")
        except BaseException:
            self.end()
            raise

    def _start(self, number: int, compiler: Path) -> subprocess.Popen[bytes]:
        tools = self.lab.tools
        arguments = ["-j1", "--verbose", f"--stats={tools}/{number}.json"]
        command = self.lab.command(_FILES, output=f"program{number}", compiler=compiler, arguments=arguments)
        with (tools / f"{number}.txt").open("wb") as stderr:
            self.processes.append(subprocess.Popen(command, cwd=self.lab.root, stderr=stderr, start_new_session=True))
        return self.processes[-1]

    def runs(self) -> list[int]:
        """The compilers that were started."""
        return [int(path.name) for path in (self.lab.tools / "runs").iterdir()]

    def go(self) -> None:
        (self.lab.tools / "go").touch()

    def stats(self, number: int) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.lab.tools / f"{number}.json").read_bytes())
        return content

    def figures(self, number: int) -> tuple[int, int]:
        """What a link found, and what it compiled."""
        stats = self.stats(number)
        assert stats["uncached"] == stats["skipped"] == 0
        return stats["hits"] + stats["shared"], stats["misses"]

    def end(self) -> None:
        """Whatever is the matter, end both."""
        self.go()
        for process in self.processes:
            process.kill()
            process.wait()


@contextmanager
def _two(lab: Lab, then: str = "") -> Iterator[_Two]:
    (lab.tools / "runs").mkdir()
    two = _Two(lab, lab.compiler("gated", _GATED.format(tools=lab.tools, then=then)))
    try:
        yield two
        two.second.wait(_SECONDS)
    finally:
        two.end()
    _until(lambda: not list((lab.root / "tmp").iterdir()), "temporary files are left")


def _until(condition: Callable[[], object], otherwise: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


@pytest.fixture
def lab(place: Path) -> Lab:
    lab = Lab(place)
    assert lab.compile(PROGRAM) == _FILES
    return lab


def test_what_another_link_compiles_is_waited_for(lab: Lab) -> None:
    with _two(lab) as two:
        two.go()
        assert two.first.wait(_SECONDS) == two.second.wait(_SECONDS) == 0
        assert two.figures(1) == (0, len(_FILES))
        assert two.figures(2) == (len(_FILES), 0)
        assert len(two.runs()) == 1
    assert lab.said("program1") == lab.said("program2") == SAID
    assert (lab.root / "program1").read_bytes() == (lab.root / "program2").read_bytes()


@pytest.mark.parametrize("who", ["linker", "distributor"])
def test_who_waited_takes_over_from_one_that_was_killed(lab: Lab, who: str) -> None:
    with _two(lab) as two:
        victim = two.first.pid if who == "linker" else _parent(two.runs()[0])
        os.kill(victim, signal.SIGKILL)
        assert two.first.wait(_SECONDS) != 0
        _until(lambda: len(two.runs()) == 2, "nobody takes over")
        two.go()
        assert two.second.wait(_SECONDS) == 0
        assert two.figures(2) == (len(_FILES) - 1, 1)
    assert lab.said("program2") == SAID


def test_one_that_waits_can_be_killed(lab: Lab) -> None:
    with _two(lab) as two:
        two.second.kill()
        two.second.wait(_SECONDS)
        two.go()
        assert two.first.wait(_SECONDS) == 0
        assert two.figures(1) == (0, len(_FILES))
        assert len(two.runs()) == 1
    assert lab.said("program1") == SAID


def test_a_failure_is_not_shared(lab: Lab) -> None:
    with _two(lab, then=f"mkdir {lab.tools}/failed && exit 1;") as two:
        two.go()
        assert two.first.wait(_SECONDS) == 1
        assert two.stats(1)["failed"] == 1
        assert two.second.wait(_SECONDS) == 0, (lab.tools / "2.txt").read_text()
        assert two.figures(2) == (len(_FILES) - 1, 1)
        assert len(two.runs()) == 2
    assert lab.said("program2") == SAID


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("kills", [False, True], ids=["left alone", "killed meanwhile"])
def test_twenty_links_of_programs_that_share_a_library(tmp_path: Path, kills: bool) -> None:
    seed = random.randrange(10**6)
    links = Links(tmp_path, random.Random(seed))
    links.round(20, 5, kills=kills)
    assert links.wrong == [], f"seed {seed}"
    assert (links.kills > 0) == kills

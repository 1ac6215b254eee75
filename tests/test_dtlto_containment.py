"""Layer: process. ltod-dtlto dies with its linker, its compilers die with it, and nobody leaves anything behind; what
its compilers may use at a time is make's to say.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.command import jobserver
from tests.dtlto_lab import PROGRAM, SAID, Lab

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the programs of these tests are for x86-64"),
]

_SECONDS = 60.0
_DEBIAN_LLD = shutil.which("ld.lld-22")
_needs_debian = pytest.mark.skipif(
    shutil.which("clang-22") is None or _DEBIAN_LLD is None, reason="there is no clang-22 with its lld"
)
_needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs GNU make (apt-get install make)")

_FILES = [f"in/{name}.o" for name in PROGRAM]
_LINK = ["in/main.o", "in/lib.a"]

# Waits where a compiler takes its time, until it is told to go on. Has no children that hold pipes open.
_SLOW = 'is_bad && {{ : > {tools}/pids/$$; while ! [ -e {tools}/go ]; do sleep 0.05; done; }}; compile "$@"'


@pytest.fixture
def lab(place: Path) -> Lab:
    lab = Lab(place)
    assert lab.compile(PROGRAM) == _FILES
    lab.archive([name for name in _FILES if name != "in/main.o"], "in/lib.a")
    (lab.tools / "pids").mkdir()
    return lab


def _slow(lab: Lab, *, program: bool = True) -> Path:
    return lab.compiler("slow", _SLOW.format(tools=lab.tools), program=program)


@contextmanager
def _running(lab: Lab, command: Sequence[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    """A link in a session of its own. In the end, nothing of it is there any more."""
    with (lab.tools / "stderr").open("wb") as stderr:
        process = subprocess.Popen(command, cwd=lab.root, stderr=stderr, start_new_session=True)
    try:
        yield process
        process.wait(_SECONDS)
        _until(lambda: not _processes(process.pid, lab), f"{_processes(process.pid, lab)} are still there")
        assert list((lab.root / "tmp").iterdir()) == []
    finally:
        for pid in _processes(process.pid, lab):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def _until(condition: Callable[[], object], otherwise: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def _processes(session: int, lab: Lab) -> set[int]:
    """Those of a session, zombies aside, and keepers of what is in the lab's directory for temporary files."""
    found = set()
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal():
            continue
        with suppress(OSError):
            state, _, _, its_session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            words = (path / "cmdline").read_bytes()
            is_keeper = b"ltod-keeper" in words and bytes(lab.root) in words
            if state not in "ZX" and (int(its_session) == session or is_keeper):
                found.add(int(path.name))
    return found


def _compilers(lab: Lab) -> list[int]:
    return [int(path.name) for path in (lab.tools / "pids").iterdir()]


def _distributor(lab: Lab) -> int:
    """Waits until a compiler runs; gives the process that has started it."""
    _until(lambda: _compilers(lab), "no compiler was started")
    (compiler,) = _compilers(lab)
    return int(Path(f"/proc/{compiler}/stat").read_text().rpartition(")")[2].split()[1])


def _go_on(lab: Lab) -> None:
    (lab.tools / "go").touch()


_ENDS = {
    "the linker is interrupted": signal.SIGINT,
    "the linker is terminated": signal.SIGTERM,
    "the linker is killed": signal.SIGKILL,
    "all are interrupted, as by Ctrl-C": signal.SIGINT,
    "all are hung up, as by a terminal's end": signal.SIGHUP,
    "the distributor is interrupted": signal.SIGINT,
    "the distributor is terminated": signal.SIGTERM,
    "the distributor is killed": signal.SIGKILL,
    "the compiler is killed": signal.SIGKILL,
}


@pytest.mark.parametrize(
    ("end", "program", "lld"),
    [
        *((end, True, None) for end in _ENDS),
        *((end, False, None) for end in _ENDS if "killed" in end or "all" in end),
        pytest.param("the linker is killed", True, _DEBIAN_LLD, marks=_needs_debian),
        pytest.param("the linker is terminated", True, _DEBIAN_LLD, marks=_needs_debian),
    ],
)
def test_all_ends_together_and_nothing_is_left(lab: Lab, end: str, program: bool, lld: str | None) -> None:
    before = lab.files()
    command = lab.command(_LINK, compiler=_slow(lab, program=program), arguments=["-j1"])
    if lld is not None:
        command = [lld, *command[2:]]
    with _running(lab, command) as process:
        distributor = _distributor(lab)
        assert distributor in _processes(process.pid, lab)
        assert lab.files() > before
        number = _ENDS[end]
        if end.startswith("all"):
            os.killpg(process.pid, number)
        elif end.startswith("the linker"):
            process.send_signal(number)
        else:
            os.kill(distributor if end.startswith("the distributor") else _compilers(lab)[0], number)
    assert process.returncode != 0
    said = (lab.tools / "stderr").read_text()
    assert "Traceback" not in said
    assert "this is a bug" not in said
    left = lab.files() - before
    if end == "the compiler is killed":
        assert "lib.a(bad.o): slow was killed" in said
        left = {path for path in left if not path.startswith("program.reproducers/lib.a_bad.o_/")}
    assert left == set(), said

    # What was done by then is kept.
    _go_on(lab)
    done = lab.link(_LINK, compiler=lab.tools / "slow")
    assert done.status == 0, done.stderr
    assert done.count("hits", "misses", "uncached") == ((3, 1, 0) if program else (0, 0, 4))
    assert lab.said() == SAID


def test_what_is_to_be_kept_is_kept(lab: Lab) -> None:
    before = lab.files()
    with _running(lab, lab.command(_LINK, "--save-temps", compiler=_slow(lab), arguments=["-j1"])) as process:
        _distributor(lab)
        there = {path for path in lab.files() - before if not path.startswith("tmp/")}
        process.kill()
    assert {path.rpartition(".")[2] for path in there} >= {"json", "bc", "o"}
    assert lab.files() - before >= there


def test_files_of_others_are_left_alone(lab: Lab) -> None:
    """A linker that was killed has left what is like ours."""
    with _running(lab, lab.command(_LINK, compiler=_slow(lab), arguments=["-j1"])) as process:
        _distributor(lab)
        like = [
            *(f"program.{process.pid}{end}" for end in ("", ".o", ".json", ".dist-file.json.bak")),
            *(f"lib0.9.{process.pid}.native.{end}" for end in ("o", "o.thinlto.bc")),
            f"lib0.2.{process.pid + 1}.native.o",
            f"in/lib.a(lib0.o at 4).2.{process.pid + 1:X}.o",
        ]
        for name in like:
            (lab.root / name).write_text("mine")
        process.kill()
    for name in like:
        assert (lab.root / name).read_text() == "mine"


def _driven(lab: Lab) -> list[str]:
    """The command of a link by clang, of which lld is a child."""
    told = [f"-Wl,{word}" for word in lab.command(_LINK, compiler=_slow(lab)) if word.startswith("--thinlto")]
    return ["clang-22", "-flto=thin", "-fuse-ld=lld", "-nostdlib", "-static", *told, *_LINK, "-o", "program"]


@_needs_debian
def test_an_interrupted_driver_takes_all_with_it(lab: Lab) -> None:
    before = lab.files()
    with _running(lab, _driven(lab)) as process:
        _distributor(lab)
        os.killpg(process.pid, signal.SIGINT)
    assert process.returncode != 0
    assert lab.files() == before


@_needs_debian
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_linker_outlives_its_driver_and_so_do_we(lab: Lab, number: signal.Signals) -> None:
    """As it does without us: all that counts is whether the linker is there."""
    with _running(lab, _driven(lab)) as process:
        _distributor(lab)
        process.send_signal(number)
        process.wait(_SECONDS)
        linkers = _processes(process.pid, lab)
        _go_on(lab)
        _until(lambda: not _processes(process.pid, lab), "it does not end")
        assert linkers
    assert lab.said() == SAID


def test_linkers_killed_at_any_moment(lab: Lab) -> None:
    chance = random.Random()
    seed = chance.randrange(10**6)
    chance.seed(seed)
    compiler = lab.compiler("fake", 'compile "$@"')
    for number in range(8):
        command = lab.command(_LINK, output=f"program{number}", compiler=compiler)
        with _running(lab, command) as process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.02, 0.6))
            process.kill()
        if process.returncode == 0:
            assert lab.said(f"program{number}") == SAID
    done = lab.link(_LINK, compiler=compiler)
    assert done.status == 0, f"{done.stderr}, seed {seed}"
    assert lab.said() == SAID


_COUNTED = 'echo + >>{tools}/log; sleep 0.1; compile "$@"; status=$?; echo - >>{tools}/log; exit $status'


def _counted(lab: Lab, name: str = "counted", before: str = "") -> Path:
    """A compiler that notes when it starts and ends."""
    return lab.compiler(name, before + _COUNTED.format(tools=lab.tools))


def _peak(lab: Lab) -> int:
    """How many of them ran at once."""
    running = peak = 0
    for line in (lab.tools / "log").read_text().split():
        running += 1 if line == "+" else -1
        peak = max(peak, running)
    return peak


def _script(lab: Lab, name: str, compiler: Path) -> None:
    """`sh ../NAME.sh` links by itself, and shares no result with another link."""
    command = lab.command(_LINK, output=name, compiler=compiler, arguments=[f"--cache-dir={lab.tools}/cache-{name}"])
    (lab.tools / f"{name}.sh").write_text(f"exec {shlex.join(command)}\n")


_MAKEFILES = {
    "lines of make": "all: LINKS\np%:\n\t+@sh TOOLS/$@.sh\n",
    "ordinary lines": "all: LINKS\np%:\n\t@sh TOOLS/$@.sh\n",
    "another make": "all: a b\na:\n\t@$(MAKE) p0 p1\nb:\n\t@$(MAKE) p2 p3\np%:\n\t@sh TOOLS/$@.sh\n",
}


@_needs_make
@pytest.mark.parametrize("form", _MAKEFILES)
def test_links_under_make_run_no_more_compilers_than_make_has_jobs(lab: Lab, form: str) -> None:
    names = [f"p{number}" for number in range(4)]
    compiler = _counted(lab)
    for name in names:
        _script(lab, name, compiler)
    done = _make(lab, _MAKEFILES[form].replace("LINKS", " ".join(names)), "-j3")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name in names:
        assert lab.said(name) == SAID
    assert 1 < _peak(lab) <= 3


@_needs_make
def test_make_gets_its_tokens_back_from_links_that_end_badly(lab: Lab) -> None:
    _script(lab, "good", _counted(lab))
    _script(lab, "failing", _counted(lab, "broken", before="is_bad && exit 1; "))
    _script(lab, "killed", _slow(lab))
    (lab.tools / "kill.sh").write_text(
        f"sh {lab.tools}/killed.sh & linker=$!\n"
        f'until [ "$(ls {lab.tools}/pids)" ]; do sleep 0.05; done\n'
        "kill -KILL $linker; wait $linker\n"
    )
    makefile = "all: failing kill good\nfailing kill:\n\t-+@sh TOOLS/$@.sh\ngood: failing kill\n\t+@sh TOOLS/$@.sh\n"
    done = _make(lab, makefile, "-j3")
    assert "INTERNAL" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert lab.said("good") == SAID
    assert list((lab.root / "tmp").iterdir()) == []


def _make(lab: Lab, makefile: str, *options: str) -> subprocess.CompletedProcess[str]:
    (lab.root / "Makefile").write_text(makefile.replace("TOOLS", str(lab.tools)))
    return subprocess.run(
        ["make", "--no-print-directory", *options],
        cwd=lab.root,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("end", ["well", "badly", "killed"])
def test_tokens_of_a_fifo_come_back(lab: Lab, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = {
        "well": lambda: _counted(lab),
        "badly": lambda: _counted(lab, before="is_bad && exit 1; "),
        "killed": lambda: _slow(lab),
    }[end]()
    with jobserver(lab.tools, b"xy") as server, ExitStack() as stack:
        monkeypatch.setenv("MAKEFLAGS", server.environ["MAKEFLAGS"])
        for name in ("p0", "p1"):
            _script(lab, name, compiler)
        links = [stack.enter_context(_running(lab, ["sh", f"{lab.tools}/{name}.sh"])) for name in ("p0", "p1")]
        if end == "killed":
            _until(lambda: len(_compilers(lab)) == 2, "they do not run")
            for link in links:
                link.kill()
        for link in links:
            assert (link.wait(_SECONDS) == 0) == (end == "well")
        stack.close()
        assert server.tokens() == b"xy"
    if end != "killed":
        assert _peak(lab) <= 4  # each has one by being there

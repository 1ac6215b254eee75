"""Layer: end-to-end. `ltod` and its surroundings: signals, terminals, pipes, the other commands."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import (
    LTOD,
    alive,
    checked,
    files,
    function,
    jobserver,
    ltod,
    sleepers,
    sleeping_toolchain,
    write,
)
from tests.samples import GOOD_IR, UNPARSABLE_IR

pytestmark = pytest.mark.e2e


# Signals


STOP = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]


@pytest.mark.parametrize("number", STOP)
def test_a_signal_stops_the_build_and_nothing_is_left(place: Path, number: signal.Signals) -> None:
    for name in ("a", "b", "c", "d"):
        write(f"{name}.ll", function(name))
    sleeping_toolchain(place)
    arguments = ["build", "--json", "--toolchain", "sleepy", "--engine", "toolchain", "--out-dir", "out"]
    with jobserver(place, b"xy") as flags:
        process = subprocess.Popen(
            [*LTOD, *arguments, "a.ll", "b.ll", "c.ll", "d.ll"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **flags.environ},
            preexec_fn=default_signals,
        )
        wait_until(lambda: len(sleepers(place)) >= 1, process)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + number, errors
        assert flags.tokens() == b"xy"
    answer = checked(output.decode())
    assert answer["cancelled"]
    assert answer["skipped"] == ["a", "b", "c", "d"]
    assert number.name in answer["diagnostics"][0]["message"]
    assert b"Traceback" not in errors
    assert all(not alive(pid) for pid in sleepers(place))
    assert list((place / "tmp").iterdir()) == []
    assert files("out") == set()


@pytest.mark.parametrize("number", STOP)
@pytest.mark.parametrize("when", ["trio", "click", "coordinator.cli._build"])
def test_a_signal_while_it_starts(place: Path, number: signal.Signals, when: str) -> None:
    write("good.ll", GOOD_IR)
    program = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {when!r}: os.kill(os.getpid(), {number:d})\n"
        "sys.argv = ['ltod', 'build', '--json', '--out-dir', 'out', 'good.ll']\n"
        "from coordinator.cli import main\n"
        "sys.meta_path.insert(0, Finder())\n"
        "main()\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, text=True, preexec_fn=default_signals
    )
    assert process.returncode == 128 + number
    assert process.stderr == f"error: stopped by {number.name}\n"
    assert checked(process.stdout)["cancelled"]
    assert not Path("out").exists()


def test_the_entry_point_loads_little(place: Path) -> None:
    # What it loads is loaded before signals are heeded.
    program = "import sys, coordinator.cli; print(*{'trio', 'attrs', 'click', 'workers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"\n"


def test_an_ignored_signal_stays_ignored(place: Path) -> None:
    write("a.ll", function("a"))
    sleeping_toolchain(place)
    process = subprocess.Popen(
        [*LTOD, "build", "--toolchain", "sleepy", "--engine", "toolchain", "a.ll"],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: default_signals(ignored=signal.SIGHUP),
    )
    wait_until(lambda: len(sleepers(place)) == 1, process)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


# Terminals and pipes


def test_progress_on_a_terminal(place: Path) -> None:
    inputs = [write(f"m{n}.ll", function(f"m{n}")) for n in range(3)]
    bad = write("bad.ll", UNPARSABLE_IR)
    code, screen = on_terminal("build", "--keep-going", "--out-dir", "out", bad, *inputs)
    assert code == 1
    assert "/4" in screen
    assert re.search(r"error:(\x1b\[0m)? bad: ", screen)
    assert "the build failed: 1 of 4 modules failed, 3 artifacts in out" in screen
    assert "[1/4]" not in screen
    assert "\x1b[?25h" in screen  # the cursor is shown again


def test_a_dumb_terminal_gets_plain_lines(place: Path) -> None:
    write("good.ll", GOOD_IR)
    code, screen = on_terminal("build", "--out-dir", "out", "good.ll", term="dumb")
    assert code == 0
    assert "\x1b" not in screen
    assert "[1/1] good" in screen


def test_plain_lines_into_a_pipe(place: Path) -> None:
    inputs = [write(f"m{n}.ll", function(f"m{n}")) for n in range(3)]
    process = ltod("build", "--out-dir", "out", *inputs)
    *lines, last = process.stderr.splitlines()
    assert sorted(re.sub(r"^\[\d/3\] (m\d)  \d+\.\d\d s  \w+$", r"\1", line) for line in lines) == ["m0", "m1", "m2"]
    assert re.fullmatch(r"3 modules in \d+\.\d s: 3 artifacts in out", last)
    assert process.stdout == ""


def test_quiet_and_verbose(place: Path) -> None:
    write("good.ll", GOOD_IR)
    write("bad.ll", UNPARSABLE_IR)
    assert ltod("build", "-q", "--out-dir", "out", "good.ll").stderr == ""
    quiet = ltod("build", "-q", "--keep-going", "--out-dir", "out", "good.ll", "bad.ll")
    assert quiet.stderr.startswith("error: bad: ")
    verbose = ltod("build", "-v", "--out-dir", "out", "good.ll").stderr.splitlines()
    assert "started good" in verbose
    [log] = [json.loads(line) for line in verbose if line.startswith("{")]
    assert log["event"] == "build ended"
    assert log["ok"] is True


def test_messages_cannot_command_the_terminal(place: Path) -> None:
    write("good.ll", GOOD_IR)
    Path("bad\x1b[2J.bc").write_bytes(b"\x1b]0;title\x07")
    process = ltod("build", "good.ll", "bad\x1b[2J.bc")
    assert process.returncode == 1
    assert "\x1b" not in process.stderr
    assert r"bad\x1b[2J.bc" in process.stderr


def test_nobody_reads_the_output(place: Path) -> None:
    write("good.ll", GOOD_IR)
    read, write_end = os.pipe()
    os.close(read)
    build = ["build", "--out-dir", "out", "good.ll"]
    for arguments in ([*build, "--json"], ["--help"], ["doctor"], ["completion", "zsh"]):
        process = subprocess.run([*LTOD, *arguments], stdout=write_end, stderr=subprocess.PIPE, timeout=60)
        assert b"Traceback" not in process.stderr
        assert b"BrokenPipe" not in process.stderr
    both = subprocess.run([*LTOD, *build], stdout=write_end, stderr=write_end, timeout=60)
    os.close(write_end)
    assert both.returncode == 0


def test_the_output_cannot_be_written(place: Path) -> None:
    write("good.ll", GOOD_IR)
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        process = subprocess.run(
            [*LTOD, "build", "-q", "--json", "--out-dir", "out", "good.ll"],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert process.returncode == 1
    assert process.stderr.decode() == "error: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("arguments", ["build --json --out-dir out good.ll", "build --print-passes good.ll", "doctor"])
def test_an_answer_that_nobody_can_get_is_a_failure(place: Path, arguments: str) -> None:
    write("good.ll", GOOD_IR)
    command = " ".join([*LTOD, arguments, ">&-"])
    process = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, timeout=60)
    assert process.returncode == 1
    assert process.stderr.decode().endswith("error: standard output is closed\n")


def test_standard_descriptors_may_be_closed(place: Path) -> None:
    write("good.ll", GOOD_IR)
    command = " ".join([*LTOD, "build --out-dir out good.ll <&- >&- 2>&-"])
    assert subprocess.run(["sh", "-c", command], timeout=60).returncode == 0
    assert files("out") == {"good.o"}


# The other commands


def test_the_doctor_finds_everything(place: Path) -> None:
    text = ltod("doctor")
    assert text.returncode == 0
    assert text.stdout.splitlines()[-1] == "builds can run"
    answer = json.loads(ltod("doctor", "--json").stdout)
    assert answer["ok"] is True
    found = {finding["name"]: finding for finding in answer["findings"]}
    assert {"python", "jobs", "memory", "clang", "lld", "llvmlite"} <= set(found)
    assert found["clang"]["version"].startswith("22.")
    assert found["lld"]["version"] == found["clang"]["version"]


@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_doctor_says_what_is_wrong_and_how_to_mend_it(place: Path, how: str) -> None:
    (place / "empty").mkdir()
    arguments = ["--toolchain", "empty"] if how == "option" else []
    environment = {} if how == "option" else {"LTOD_TOOLCHAIN": "empty"}
    text = ltod("doctor", *arguments, env={**os.environ, **environment})
    assert text.returncode == 1
    assert "problem: " in text.stdout
    assert "mend: " in text.stdout
    assert "builds cannot run" in text.stdout


def test_the_version_names_the_llvms(place: Path) -> None:
    text = ltod("--version").stdout
    assert text.startswith("ltod ")
    assert re.search(r"^clang 22\.", text, re.MULTILINE)
    assert "llvmlite" in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script(place: Path, shell: str) -> None:
    process = ltod("completion", shell)
    assert process.returncode == 0
    assert "_LTOD_COMPLETE" in process.stdout


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("ltod ", {"build", "cache", "completion", "doctor", "explain", "stats"}),
        ("ltod build --emit obj,", {"obj,asm", "obj,bc", "obj,ir", "obj,fatobj"}),
        ("ltod build --link s", {"shared", "static"}),
        ("ltod build --engine l", {"llvmlite"}),
        ("ltod build -O ", {"0", "1", "2", "3", "s", "z"}),
        ("ltod build --vec", {"--vectorize-loops", "--vectorize-slp"}),
    ],
)
def test_options_and_their_values_complete(place: Path, words: str, completions: set[str]) -> None:
    question = {"_LTOD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    lines = ltod(env={**os.environ, **question}).stdout.splitlines()
    assert {line.partition(",")[2] for line in lines} == completions


def test_a_bug_is_called_one(place: Path) -> None:
    write("good.ll", GOOD_IR)
    program = (
        "import sys, coordinator.cli._build as build\n"
        "def broken(*_): raise KeyError('oops')\n"
        "build._features = broken\n"
        "sys.argv = ['ltod', 'build', '--json', 'good.ll']\n"
        "from coordinator.cli import main\n"
        "main()\n"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, text=True)
    assert process.returncode == 70
    assert "bug in ltod" in process.stderr
    assert "KeyError: 'oops'" in process.stderr
    assert not checked(process.stdout)["ok"]


# Helpers


def default_signals(ignored: signal.Signals | None = None) -> None:
    """What a shell gives a foreground job; a test runner may have been started as a background one."""
    for number in STOP:
        signal.signal(number, signal.SIG_IGN if number is ignored else signal.SIG_DFL)


def wait_until(done: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"it ended early: {process.communicate()}")
        time.sleep(0.01)


def on_terminal(*arguments: str | Path, term: str = "xterm") -> tuple[int, str]:
    """Exit code, and everything that was written to the terminal."""
    main, terminal = pty.openpty()
    environ = {**os.environ, "TERM": term, "COLUMNS": "200"}
    process = subprocess.Popen([*LTOD, *arguments], stdin=terminal, stdout=terminal, stderr=terminal, env=environ)
    os.close(terminal)
    screen = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([main], [], [], 0.1)[0]:
            try:
                data = os.read(main, 65536)
            except OSError:  # how Linux says that the other side is closed
                break
            screen += data
    os.close(main)
    return process.wait(10), screen.decode()

"""Process layer: a jobserver shared by several processes, with GNU make among them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

pytestmark = pytest.mark.process

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs GNU make (apt-get install make)")

# A process that shares a jobserver, as ltod does: acquires with random cancels, holds for a moment, releases.
SHARER = """
import os, random, sys, trio
from coordinator._tokens import token_source

async def main(rounds, seed):
    chance = random.Random(seed)
    with token_source(None, os.environ) as source:
        assert source.warning is None, source.warning
        async def one():
            for _ in range(rounds):
                with trio.move_on_after(chance.choice([0, 0.0005, 0.002, 0.05])):
                    token = await source.acquire()
                    try:
                        await trio.sleep(chance.random() * 0.001)
                    finally:
                        source.release(token)
        async with trio.open_nursery() as nursery:
            for _ in range(source.limit):
                nursery.start_soon(one)
        with trio.move_on_after(0.01):
            await source.acquire()  # given back on leaving

trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
"""


def child_environ(**more: str) -> dict[str, str]:
    environ = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
    return environ | {"PYTHONPATH": str(Path(__file__).parent.parent)} | more


@pytest.mark.parametrize("kind", ["pipe", "fifo"])
async def test_tokens_are_conserved_between_processes(kind: str, tmp_path: Path) -> None:
    if kind == "pipe":
        fds = os.pipe()
        auth = f"{fds[0]},{fds[1]}"
    else:
        os.mkfifo(tmp_path / "fifo")
        fds = (os.open(tmp_path / "fifo", os.O_RDWR), os.open(tmp_path / "fifo", os.O_RDWR))
        auth = f"fifo:{tmp_path}/fifo"
    os.write(fds[1], b"abc")
    environ = child_environ(MAKEFLAGS=f" -j4 --jobserver-auth={auth}")
    seeds = random.sample(range(10**9), 4)

    async def share(seed: int) -> None:
        # Four processes, four tasks each, 65 rounds: about a thousand.
        await trio.run_process(
            [sys.executable, "-c", SHARER, "65", str(seed)], env=environ, pass_fds=fds if kind == "pipe" else ()
        )

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for seed in seeds:
                nursery.start_soon(share, seed)
    os.set_blocking(fds[0], False)
    assert sorted(os.read(fds[0], 100)) == sorted(b"abc"), f"seeds {seeds}"
    for fd in fds:
        os.close(fd)


def run_make(directory: Path, makefile: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run real make. `SHARE` in the makefile shares its jobserver, `STEAL` takes a token for good."""
    (directory / "share.py").write_text(SHARER)
    (directory / "warn.py").write_text(
        "import os\nfrom coordinator._tokens import token_source\n"
        "source = token_source(2, os.environ)\nprint(f'{source.limit}: {source.warning}')\n"
    )
    (directory / "interrupt.py").write_text(
        "import os, signal, trio\nfrom coordinator._tokens import token_source\n"
        "async def main():\n"
        "    with token_source(None, os.environ) as source:\n"
        "        await source.acquire()\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    (directory / "steal.py").write_text(
        "import os, trio\nfrom coordinator._tokens import token_source\n"
        "trio.run(token_source(None, os.environ).acquire)\n"
    )
    (directory / "Makefile").write_text(makefile.replace("PYTHON", sys.executable))
    return subprocess.run(
        ["make", "-C", str(directory), *args],
        env=child_environ(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@needs_make
def test_make_gets_all_its_tokens_back(tmp_path: Path) -> None:
    names = " ".join(f"job{number}" for number in range(4))
    done = run_make(tmp_path, f"all: {names}\njob%:\n\t+PYTHON share.py 30 $*\n", "-j3")
    assert (done.returncode, done.stderr) == (0, "")


@needs_make
def test_make_gets_its_tokens_back_from_an_interrupted_process(tmp_path: Path) -> None:
    done = run_make(tmp_path, "all:\n\t-+PYTHON interrupt.py\n\t+PYTHON share.py 5 1\n", "-j3")
    assert "KeyboardInterrupt" in done.stderr
    assert "INTERNAL" not in done.stderr
    assert done.returncode == 0


@needs_make
def test_make_notices_a_token_that_is_lost(tmp_path: Path) -> None:
    """Shows that the tests above can fail."""
    done = run_make(tmp_path, "all:\n\t+PYTHON steal.py\n", "-j3")
    assert "INTERNAL: Exiting with" in done.stderr


@needs_make
def test_an_ordinary_recipe_shares_the_jobserver_that_make_keeps_from_it(tmp_path: Path) -> None:
    """As in the makefiles that CMake writes: no line begins with '+'. Between make and us there is a shell."""
    names = " ".join(f"job{number}" for number in range(4))
    rule = "job%:\n\t@PYTHON warn.py; PYTHON share.py 30 $*\n"
    done = run_make(tmp_path, f"all: {names}\n{rule}", "-j3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("2: None") == 4

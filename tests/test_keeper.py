"""Layer: process. The keeper: what a killed process leaves behind is gone soon, and nobody minds a killed keeper."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.leftovers import descendants, descriptors
from tests.test_backend_contract import hanging_ir
from workers.action import Action, run
from workers.keeper import Keeper, keeper_of

pytestmark = pytest.mark.process

_COORDINATOR = """
import sys, trio
from pathlib import Path
from workers.llvm.codegen import open_llvm_backend
from workers.work import CodegenOptions, Engine, Module, Optimize, Target

async def main():
    root = Path(sys.argv[1])
    options = CodegenOptions(engine=Engine(sys.argv[2]))
    module = Module("m", root / "m.ll")
    item = Optimize(module, options, root / "out", root / "repro", Target("x86_64-unknown-linux-gnu", ""), 1000)
    async with open_llvm_backend(scratch_dir=root / "scratch", environ={}, limit=1) as backend:
        await backend.compile([item])

trio.run(main)
"""


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = descriptors(), descendants()
    yield
    assert (descriptors(), descendants()) == before


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 (nothing tells about the end of a stranger's child)
            await trio.sleep(0.01)


def _below(pid: int) -> dict[int, bytes]:
    """The processes that `pid` started, with their command lines."""
    found = {}
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            with suppress(FileNotFoundError):  # gone meanwhile: it was a question to the toolchain
                found[int(child)] = Path(f"/proc/{child}/cmdline").read_bytes()
    return found


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("engine", ["toolchain", "llvmlite"])
async def test_a_killed_coordinator_leaves_nothing(tmp_path: Path, engine: str) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "m.ll").write_bytes(hanging_ir())
    process = subprocess.Popen(  # noqa: ASYNC220 (it does not wait)
        [sys.executable, "-c", _COORDINATOR, str(tmp_path), engine],
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    sign = b"-emit-obj" if engine == "toolchain" else b"--serve"
    try:
        await _until(lambda: any(sign in argv for argv in _below(process.pid).values()))
        children = _below(process.pid)
        # It must not depend on what a terminal sends to everybody either.
        for pid, argv in children.items():
            if argv.startswith(b"/bin/sh"):
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                    os.kill(pid, number)
    finally:
        process.kill()
        process.wait()
    await _until(lambda: not any(map(_lives, children)))
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_a_killed_keeper_is_replaced_and_knows_what_runs(tmp_path: Path) -> None:
    directory = tmp_path / "scratch"
    directory.mkdir()
    keeper = Keeper(directory)
    assert keeper_of(directory / "deep" / "er") is keeper
    assert keeper_of(tmp_path) is None
    sleeper = subprocess.Popen(["sleep", "1000"], process_group=0)  # noqa: ASYNC220 (nor this)
    keeper.add(sleeper.pid)
    first = keeper.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await _until(lambda: not _lives(first))
    async with run(Action(argv=("/bin/true",), inputs={}), directory) as result:
        assert result.succeeded
    assert keeper.pid not in (None, first)
    # The end of its input, as when this process dies.
    assert keeper._line is not None
    keeper._line.close()
    assert sleeper.wait(30) == -signal.SIGKILL
    await _until(lambda: not directory.exists())
    await keeper.close()
    assert keeper_of(directory) is None


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP])
async def test_whatever_is_done_to_keepers_runs_succeed(tmp_path: Path, what: signal.Signals) -> None:
    keeper = Keeper(tmp_path)
    for number in range(12):
        if keeper.pid is not None:
            os.kill(keeper.pid, what)
        for group in range(2_000 if number < 2 else 1):
            keeper.add(10_000_000 + group)
            keeper.remove(10_000_000 + group)
        async with run(Action(argv=("/bin/true",), inputs={}), tmp_path) as result:
            assert result.succeeded
    await keeper.close()
    assert tmp_path.exists()

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

from tests.command import LTOD
from tests.leftovers import descendants, descriptors
from tests.samples import compile_c, zig
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


def _end_input(keeper: Keeper) -> None:
    """End the keeper's input, as when this process dies."""
    assert keeper._line is not None
    keeper._line.close()


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
    _end_input(keeper)
    assert sleeper.wait(30) == -signal.SIGKILL
    await _until(lambda: not directory.exists())
    keeper.close()
    assert keeper_of(directory) is None


async def test_exactly_what_was_told_is_removed_whatever_it_is_called(tmp_path: Path) -> None:
    every = bytes(byte for byte in range(1, 256) if byte != ord("/"))
    odd = [os.fsdecode(every[at : at + 64]) for at in range(0, len(every), 64)]
    odd += ["*", "-rf", " two  words ", "line\nother\n", "\\0101", "$(touch x)", "\n", "\\"]
    paths = [tmp_path / "in here" / name for name in odd]
    directory = tmp_path / "scratch"
    keeper = Keeper(directory)
    for path in paths:
        path.mkdir(parents=True)
        (path / "file").write_text("")
        keeper.watch(path)
    stays = [paths.pop(0), paths.pop()]
    for path in stays:
        keeper.unwatch(path)
    strangers = [tmp_path / "in here" / name for name in ("two", "words", "line", "other", "A", "0101")]
    for path in strangers:
        path.mkdir()
    (tmp_path / "link").symlink_to(strangers[0])
    keeper.watch(tmp_path / "link")
    keeper.watch(tmp_path / "was never made")
    # What a keeper knows, its successor knows.
    assert keeper.pid is not None
    os.kill(keeper.pid, signal.SIGKILL)
    await _until(lambda: not _lives(keeper.pid or 0))
    last = paths.pop()
    keeper.watch(last)
    assert keeper._process is not None
    _end_input(keeper)
    with trio.fail_after(30):
        await trio.to_thread.run_sync(keeper._process.wait)
    assert set((tmp_path / "in here").iterdir()) == {*stays, *strangers}
    assert [path.name for path in tmp_path.iterdir()] == ["in here"]
    keeper.close()


async def test_a_line_that_is_cut_off_is_none(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    keeper = Keeper(tmp_path / "scratch")
    assert keeper._send(f"d {tmp_path}/half")
    assert keeper._process is not None
    _end_input(keeper)
    with trio.fail_after(30):
        await trio.to_thread.run_sync(keeper._process.wait)
    assert (tmp_path / "half").is_dir()
    keeper.close()


async def test_a_killed_link_leaves_nothing_beside_its_output_and_nothing_of_archives(tmp_path: Path) -> None:
    sources = {"main": "int native(void); int main(void) { return native(); }", "other": "int other;"}
    main, other = compile_c(sources, tmp_path / "bc")
    (tmp_path / "native.c").write_text("int native(void) { return 0; }")
    native, archive = tmp_path / "native.o", tmp_path / "mixed.a"
    subprocess.run([zig(), "cc", "-c", tmp_path / "native.c", "-o", native], check=True)  # noqa: ASYNC221
    subprocess.run([zig(), "ar", "qcs", archive, other, native], check=True)  # noqa: ASYNC221
    places = [tmp_path / name for name in ("tmp", "bin", "out")]
    for path in places:
        path.mkdir()
    # lld waits for somebody who writes this.
    os.mkfifo(tmp_path / "script")
    link: list[str | Path] = [
        "--link",
        "exe",
        "-o",
        places[1] / "prog",
        "--link-arg",
        f"-Wl,--version-script={tmp_path / 'script'}",
    ]
    process = subprocess.Popen(  # noqa: ASYNC220 (it does not wait)
        [*LTOD, "build", "-q", main, archive, *link, "--out-dir", places[2]],
        env={**os.environ, "TMPDIR": str(places[0]), "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        await _until(
            lambda: any(b"ld.lld\0" in argv and b"--version-script" in argv for argv in _below(process.pid).values())
        )
        assert [path.name[:11] for path in places[1].iterdir()] == [".ltod-link-"]
        assert any(path.name.startswith("ltod-native-") for path in places[0].iterdir())
        children = _below(process.pid)
    finally:
        process.kill()
        process.wait()
    await _until(lambda: not any(map(_lives, children)))
    assert [list(path.iterdir()) for path in places[:2]] == [[], []]
    assert {path.name for path in places[2].rglob("*") if path.is_file()} == {"main.o", "other.o"}


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
    keeper.close()
    assert tmp_path.exists()

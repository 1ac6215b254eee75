"""Layer: process. Hermetic actions: real programs, real signals, real limits; nothing is left on any path."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.leftovers import descendants, descriptors
from workers.action import Action, ActionResult, run
from workers.placing import place

pytestmark = pytest.mark.process

_SH = "/bin/sh"


def _running(marker: str) -> list[int]:
    """Processes with `marker` among their arguments, zombies not counted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes()
        except OSError:
            continue
        if marker.encode() in arguments.split(b"\0"):
            found.append(int(path.parent.name))
    return found


async def _gone(marker: str) -> None:
    with trio.fail_after(5):
        while _running(marker):  # noqa: ASYNC110 (nothing tells about the end of a stranger's child)
            await trio.sleep(0.01)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A scratch directory; afterwards nothing may be left in it, nor any process or descriptor of ours."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    before = descriptors(), descendants()
    yield directory
    assert list(directory.iterdir()) == []
    assert (descriptors(), descendants()) == before


async def _result(action: Action, scratch: Path) -> ActionResult:
    with trio.fail_after(30):
        async with run(action, scratch) as result:
            return result


def _shell(script: str, **more: object) -> Action:
    return Action(argv=(_SH, "-c", script), inputs={}, **more)  # type: ignore[arg-type]


async def test_inputs_are_there_and_outputs_can_be_taken(scratch: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"from a file")
    action = Action(
        argv=(_SH, "-c", "cat in/a in/b > out; echo said; echo warned >&2"),
        inputs={"in/a": source, "in/b": b" and from memory"},
        outputs=("out",),
    )
    with trio.fail_after(30):
        async with run(action, scratch) as result:
            assert result.succeeded
            assert (result.status, result.signal, result.timed_out, result.not_started) == (0, None, False, None)
            assert (result.stdout, result.stderr) == (b"said\n", b"warned\n")
            assert place(result.directory / "out", tmp_path / "deep" / "out") == 27
    assert (tmp_path / "deep" / "out").read_bytes() == b"from a file and from memory"


async def test_a_tool_cannot_change_its_callers_file(scratch: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"original")
    action = Action(argv=(_SH, "-c", "echo changed > in; rm in; echo again > in"), inputs={"in": source})
    assert (await _result(action, scratch)).status == 0
    assert source.read_bytes() == b"original"


async def test_nothing_is_inherited(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTOD_TEST_SECRET", "secret")
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        action = Action(argv=("/usr/bin/env",), inputs={}, environment={"ONLY": "this"})
        assert (await _result(action, scratch)).stdout == b"ONLY=this\n"
        listing = await _result(Action(argv=("/bin/ls", "/proc/self/fd"), inputs={}), scratch)
        assert str(leaked).encode() not in listing.stdout.split()
        assert (await _result(_shell("cat; readlink /proc/self/fd/0"), scratch)).stdout == b"/dev/null\n"
    finally:
        os.close(leaked)


async def test_status_and_missing_outputs_are_told(scratch: Path) -> None:
    result = await _result(_shell("> empty; mkdir dir; exit 3", outputs=("empty", "dir", "absent")), scratch)
    assert (result.status, result.succeeded) == (3, False)
    assert result.missing == ("empty", "dir", "absent")
    result = await _result(_shell("true", outputs=("absent",)), scratch)
    assert (result.status, result.succeeded) == (0, False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_signal_is_told(scratch: Path, number: signal.Signals) -> None:
    result = await _result(_shell(f"kill -{int(number)} $$"), scratch)
    assert (result.status, result.signal, result.timed_out) == (None, number, False)


async def test_time_limit_kills_all_descendants(scratch: Path) -> None:
    marker = f"1234.{os.getpid()}"
    result = await _result(_shell(f"sleep {marker} & sleep {marker}", time_limit=0.3), scratch)
    assert result.timed_out
    assert result.status is None
    assert result.signal is None
    await _gone(marker)


async def test_what_a_tool_leaves_behind_is_killed(scratch: Path) -> None:
    marker = f"4321.{os.getpid()}"
    result = await _result(_shell(f"sleep {marker} >/dev/null 2>&1 & exit 0"), scratch)
    assert result.status == 0
    await _gone(marker)


async def test_a_grandchild_that_holds_the_output_delays_nothing(scratch: Path) -> None:
    with trio.fail_after(20):
        result = await _result(_shell("echo early; sleep 1000 &"), scratch)
    assert result.stdout == b"early\n"


@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.002, 0.005, 0.05])
async def test_cancel_at_any_moment_leaves_nothing(scratch: Path, delay: float) -> None:
    action = _shell("while :; do echo on; done", outputs=("never",))
    with trio.fail_after(30), trio.move_on_after(delay) as scope:
        await _result(action, scratch)
    assert scope.cancelled_caught


async def test_cancel_before_the_start_starts_nothing(scratch: Path, tmp_path: Path) -> None:
    proof = tmp_path / "started"
    with trio.CancelScope() as scope:
        scope.cancel()
        await _result(_shell(f"> {proof}"), scratch)
    assert scope.cancelled_caught
    assert not proof.exists()


async def test_an_error_in_the_callers_block_leaves_nothing(scratch: Path) -> None:
    with pytest.raises(LookupError):
        async with run(_shell("echo x > out"), scratch):
            raise LookupError


async def test_memory_limit(scratch: Path) -> None:
    script = "ulimit -v; ulimit -c"
    result = await _result(_shell(f"sleep 0.2; {script}", memory_limit=256 * 2**20), scratch)
    assert result.stdout == b"262144\n0\n"
    assert (await _result(_shell("ulimit -v"), scratch)).stdout == b"unlimited\n"


async def test_output_is_capped_in_the_middle(scratch: Path) -> None:
    result = await _result(_shell("echo first; yes | head -c 1000000; echo last; yes >&2 & sleep 0.1"), scratch)
    assert result.stdout.startswith(b"first\n")
    assert result.stdout.endswith(b"last\n")
    assert b"bytes left out" in result.stdout
    assert len(result.stdout) < 300_000


async def test_all_of_stderr_for_those_who_ask(scratch: Path) -> None:
    sizes = []
    with trio.fail_after(30):
        async with run(
            _shell("yes | head -c 1000000 >&2"), scratch, stderr_to=lambda file: sizes.append(len(file.read()))
        ):
            pass
    assert sizes == [1_000_000]


@pytest.mark.parametrize(
    ("argv0", "reason"),
    [("/no/such/tool", "No such file"), ("/etc/passwd", "Permission denied"), ("/bin/a\0b", "null byte")],
)
async def test_a_tool_that_cannot_start_is_told(scratch: Path, argv0: str, reason: str) -> None:
    result = await _result(Action(argv=(argv0,), inputs={}), scratch)
    assert result.not_started is not None
    assert reason in result.not_started
    assert not result.succeeded


async def test_a_file_that_is_no_program_is_told(scratch: Path, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_bytes(b"\x01\x02\x03")
    tool.chmod(0o755)
    result = await _result(Action(argv=(str(tool),), inputs={}), scratch)
    assert result.not_started is not None
    assert "Exec format error" in result.not_started


async def test_inputs_that_cannot_be_read_are_told(scratch: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path / "absent", tmp_path, fifo):
        result = await _result(Action(argv=("/bin/true",), inputs={"in": path}), scratch)
        assert result.not_started is not None
        assert str(path) in result.not_started


async def test_no_descriptors_left_is_told(scratch: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    # Whatever the step at which descriptors run out, it is told and cleaned up after.
    for spare in range(8):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(descriptors()) + 64, hard))
            while True:
                try:
                    held.append(os.open("/dev/null", os.O_RDONLY))
                except OSError:
                    break
            for descriptor in held[:spare]:
                os.close(descriptor)
            del held[:spare]
            result = await _result(_shell("exit 0"), scratch)
            assert result.not_started is not None or result.status == 0
        finally:
            for descriptor in held:
                os.close(descriptor)
            held.clear()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_no_scratch_directory_is_told(tmp_path: Path) -> None:
    result = await _result(_shell("true"), tmp_path / "absent")
    assert result.not_started is not None
    assert "absent" in result.not_started


async def test_peak_memory_is_the_tools_own(scratch: Path) -> None:
    ours = bytearray(300 * 2**20)
    result = await _result(_shell("sleep 0.1"), scratch)
    assert 0 < result.peak_rss_bytes < 100 * 2**20
    assert len(ours) > result.peak_rss_bytes


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", "a/../../up"])
def test_paths_stay_inside(path: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        Action(argv=("/bin/true",), inputs={path: b""})
    with pytest.raises(ValueError, match="not a path inside"):
        Action(argv=("/bin/true",), inputs={}, outputs=(path,))


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _file(path: Path) -> Path:
    path.write_bytes(b"content")
    path.chmod(0o664)
    return path


def test_place_sets_the_mode_and_replaces(tmp_path: Path) -> None:
    destination = tmp_path / "a" / "b"
    for _ in range(2):
        place(_file(tmp_path / "source"), destination)
    assert destination.read_bytes() == b"content"
    assert stat.S_IMODE(destination.stat().st_mode) == 0o644
    assert not (tmp_path / "source").exists()


def test_place_across_file_systems(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to place onto")
    source = _file(elsewhere / f"ltod-test-{os.getpid()}")
    before = os.umask(0o077)
    try:
        assert place(source, tmp_path / "out") == 7
    finally:
        os.umask(before)
        source.unlink(missing_ok=True)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600
    assert _names(tmp_path) == ["out"]


def test_place_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="directory"):
        place(_file(tmp_path / "source"), tmp_path / "out")
    with pytest.raises(OSError, match=r"exists|directory"):
        place(_file(tmp_path / "source"), tmp_path / "file" / "out")
    assert _names(tmp_path) == ["file", "out", "source"]


def _obstacle(kind: str, path: Path) -> None:
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
        case "directory":
            path.mkdir()


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["FIFO", "socket", "directory"])
def test_place_never_replaces_what_is_no_regular_file(tmp_path: Path, kind: str, linked: bool) -> None:
    _obstacle(kind, tmp_path / "there")
    before = (tmp_path / "there").lstat()
    destination = tmp_path / "there"
    if linked:
        destination = tmp_path / "link"
        destination.symlink_to("there")
    with pytest.raises(OSError, match=f"it is a {kind}") as caught:
        place(_file(tmp_path / "source"), destination)
    assert caught.value.strerror == f"it is a {kind}"
    after = (tmp_path / "there").lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert destination.is_symlink() is linked


def test_place_writes_into_a_character_device(tmp_path: Path) -> None:
    # Only the link could be replaced here, whatever goes wrong.
    null = tmp_path / "null"
    null.symlink_to("/dev/null")
    assert place(_file(tmp_path / "source"), null) == 7
    assert null.is_symlink()
    assert _names(tmp_path) == ["null"]


def test_place_leaves_a_device_a_device(tmp_path: Path) -> None:
    device = tmp_path / "zero"
    try:
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        device.write_bytes(b"")
    except OSError:
        pytest.skip("making devices takes more rights than this test has")
    assert place(_file(tmp_path / "source"), device) == 7
    assert stat.S_ISCHR(device.lstat().st_mode)


@pytest.mark.parametrize("dangling", [False, True])
def test_place_writes_to_what_a_link_points_to(tmp_path: Path, dangling: bool) -> None:
    (tmp_path / "deep").mkdir()
    if not dangling:
        (tmp_path / "deep" / "file").write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to("deep/file")
    place(_file(tmp_path / "source"), link)
    assert link.is_symlink()
    assert (tmp_path / "deep" / "file").read_bytes() == b"content"

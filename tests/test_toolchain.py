"""Layer: process. Finding clang and lld, and the doctor's findings; programs that misbehave are real scripts."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import trio

from tests.leftovers import descendants, descriptors
from tests.samples import zig
from workers.errors import RequestError
from workers.llvm import toolchain as toolchain_module
from workers.llvm.codegen import open_llvm_backend
from workers.llvm.toolchain import LLVM_MAJOR, find_toolchain, survey

pytestmark = pytest.mark.process


def _program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def _fake_clang(path: Path, version: str = f"{LLVM_MAJOR}.9.9") -> Path:
    return _program(path, f"echo '  Some LLVM version {version}'")


def _fake_lld(path: Path, version: str = f"{LLVM_MAJOR}.9.9") -> Path:
    return _program(path, f"echo 'LLD {version} (compatible with GNU linkers)'")


def test_the_wheel_is_the_default() -> None:
    found = find_toolchain(None, {})
    assert found.clang == (zig(), "clang")
    assert found.lld == (zig(), "ld.lld")
    assert found.version[0] == LLVM_MAJOR
    assert "wheel" in found.origin
    assert find_toolchain(None, {"LTOD_TOOLCHAIN": ""}) == found


@pytest.mark.parametrize("names", [("clang", "ld.lld"), (f"clang-{LLVM_MAJOR}", f"ld.lld-{LLVM_MAJOR}")])
@pytest.mark.parametrize("folder", ["", "bin"])
def test_a_directory_is_a_prefix_or_its_bin(tmp_path: Path, folder: str, names: tuple[str, str]) -> None:
    clang, lld = _fake_clang(tmp_path / folder / names[0]), _fake_lld(tmp_path / folder / names[1])
    found = find_toolchain(None, {"LTOD_TOOLCHAIN": str(tmp_path)})
    assert (found.clang, found.lld, found.version) == ((str(clang),), (str(lld),), (LLVM_MAJOR, 9, 9))
    assert found.origin == "LTOD_TOOLCHAIN"


def test_the_versioned_name_comes_first(tmp_path: Path) -> None:
    _fake_clang(tmp_path / "clang", "14.0.0")
    right = _fake_clang(tmp_path / f"clang-{LLVM_MAJOR}")
    assert find_toolchain(tmp_path, {}).clang == (str(right),)


def test_the_configured_directory_comes_first(tmp_path: Path) -> None:
    _fake_clang(tmp_path / "a" / "clang")
    _fake_clang(tmp_path / "b" / "clang")
    found = find_toolchain(tmp_path / "a", {"LTOD_TOOLCHAIN": str(tmp_path / "b")})
    assert found.clang == (str(tmp_path / "a" / "clang"),)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (None, "there is no clang in it"),
        ("echo LLVM version 21.1.0", f"is clang 21.1.0, and ltod needs {LLVM_MAJOR}"),
        ("echo hello", "does not tell its version"),
        (f"echo LLVM version {LLVM_MAJOR}.1.0; exit 1", "does not tell its version"),
    ],
)
def test_a_named_directory_that_does_not_serve_is_refused(tmp_path: Path, script: str | None, complaint: str) -> None:
    if script is not None:
        _program(tmp_path / "clang", script)
    with pytest.raises(RequestError, match=complaint) as caught:
        find_toolchain(None, {"LTOD_TOOLCHAIN": str(tmp_path)})
    assert "ziglang wheel" in str(caught.value), "the mend is missing"


def test_no_such_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a directory"):
        find_toolchain(tmp_path / "absent", {})


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clang").write_bytes(b"\x01\x02")
    (tmp_path / "clang").chmod(0o755)
    with pytest.raises(RequestError, match="cannot be started"):
        find_toolchain(tmp_path, {})


def test_no_toolchain_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="pip install 'ziglang"):
        find_toolchain(None, {})
    report = survey({})
    assert not report.ok
    assert report.findings[0].mend is not None
    assert "pip install" in report.findings[0].mend


def test_the_pinned_pair_matches() -> None:
    report = survey({})
    assert report.ok, report
    assert [finding.name for finding in report.findings] == ["clang", "lld", "llvmlite"]
    assert all(finding.version and finding.location and finding.origin for finding in report.findings)


def test_the_doctor_reports_mismatches_with_their_mend(tmp_path: Path) -> None:
    _fake_clang(tmp_path / "clang", f"{LLVM_MAJOR}.9.9")
    _fake_lld(tmp_path / "ld.lld", "21.1.0")
    clang, lld, llvmlite = survey({"LTOD_TOOLCHAIN": str(tmp_path)}).findings
    assert clang.problem is None
    assert lld.problem is not None
    assert "does not match" in lld.problem
    assert lld.mend
    assert llvmlite.problem is not None
    assert f"{LLVM_MAJOR}.9.9" in llvmlite.problem
    assert llvmlite.mend


def test_the_doctor_reports_what_is_missing(tmp_path: Path) -> None:
    _fake_clang(tmp_path / "clang", "21.0.0")
    clang, lld, _ = survey({"LTOD_TOOLCHAIN": str(tmp_path)}).findings
    assert clang.problem == f"it is version 21, and ltod needs {LLVM_MAJOR}"
    assert lld.problem is not None
    assert "no ld.lld" in lld.problem
    report = survey({}, tmp_path / "absent")
    assert not report.ok
    assert report.findings[0].problem is not None
    assert "not a directory" in report.findings[0].problem


def test_the_systems_llvm_serves_too() -> None:
    if shutil.which(f"clang-{LLVM_MAJOR}") is None:
        pytest.skip(f"clang-{LLVM_MAJOR} is not installed")
    assert find_toolchain(Path("/usr"), {}).version[0] == LLVM_MAJOR


def _pid_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


async def _gone(pid: int) -> None:
    with trio.fail_after(10), pytest.raises(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            await trio.sleep(0.01)


_HANGS = (
    """sleep 1000 & echo $! > "$(dirname "$0")/pid.new"; mv "$(dirname "$0")/pid.new" "$(dirname "$0")/pid"; wait"""
)


async def test_a_hanging_clang_freezes_nothing_and_can_be_cancelled(tmp_path: Path) -> None:
    _program(tmp_path / "clang", _HANGS)
    (tmp_path / "scratch").mkdir()
    before = descriptors(), descendants()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            async def open_it() -> None:
                async with open_llvm_backend(
                    toolchain=tmp_path, scratch_dir=tmp_path / "scratch", environ={"PATH": os.environ["PATH"]}
                ):
                    raise AssertionError("there is no toolchain")

            nursery.start_soon(open_it)
            while (pid := _pid_in(tmp_path / "pid")) is None:  # noqa: ASYNC110 (nothing tells about it)
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    await _gone(pid)
    assert (descriptors(), descendants()) == before
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_a_hanging_clang_is_a_finding_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "clang", _HANGS)
    _program(tmp_path / "ld.lld", "exit 1")
    monkeypatch.setattr(toolchain_module, "_QUESTION_SECONDS", 1.0)
    with pytest.raises(RequestError, match="does not tell its version within"):
        find_toolchain(tmp_path, {})
    pid = _pid_in(tmp_path / "pid")
    assert pid is not None
    await _gone(pid)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo LLVM version 21.1.0", f"is clang 21.1.0, and ltod needs {LLVM_MAJOR}"),
        ("echo hello", "does not tell its version"),
        ("kill -9 $$", f"exit status -{int(signal.SIGKILL)}"),
    ],
)
async def test_a_backend_is_refused_in_the_same_words(tmp_path: Path, script: str, complaint: str) -> None:
    _program(tmp_path / "clang", script)
    with pytest.raises(RequestError, match=complaint) as caught:
        async with open_llvm_backend(toolchain=tmp_path, scratch_dir=tmp_path, environ={}):
            pass
    with pytest.raises(RequestError) as blocking:
        find_toolchain(tmp_path, {})
    assert str(caught.value) == str(blocking.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clang"]


async def test_a_file_that_is_no_program_is_refused_in_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "clang").write_bytes(b"\x01\x02")
    (tmp_path / "clang").chmod(0o755)
    with pytest.raises(RequestError, match="from the configuration: it cannot be started: Exec format error; "):
        async with open_llvm_backend(toolchain=tmp_path, scratch_dir=tmp_path, environ={}):
            pass

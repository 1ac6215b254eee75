"""Layer: process. What a compiler is: a digest of its program and of the libraries that it is loaded with."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from pathlib import Path

import outcome
import pytest

from tests.samples import zig
from workers.digests import Digests
from workers.llvm.identity import (
    Identity,
    IdentityError,
    llvmlite_identity,
    ltod_identity,
    program_identity,
    program_identity_now,
)
from workers.store import NoStore

pytestmark = pytest.mark.process


async def identity(program: Path, tmp_path: Path) -> Identity:
    """Asked in both ways, which say the same."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    digests = Digests(NoStore(), scratch)
    now = outcome.capture(program_identity_now, program, digests)
    found = await outcome.acapture(program_identity, program, scratch, digests)
    if isinstance(found, outcome.Error):
        assert isinstance(now, outcome.Error)
        assert str(now.error) == str(found.error)
    else:
        assert isinstance(now, outcome.Value)
        assert now.value.digest == found.value.digest
        assert paths(now.value) == paths(found.value)
    return found.unwrap()


def paths(identity: Identity) -> list[str]:
    return [witness.path for witness in identity.witnesses]


async def test_a_static_program_is_its_own_file(tmp_path: Path) -> None:
    found = await identity(Path(zig()), tmp_path)
    assert paths(found) == [zig()]


async def test_a_dynamic_program_is_its_libraries_as_well(tmp_path: Path) -> None:
    # Not the one in the system's directories, which this test may not change.
    library, program = tmp_path / "libx.so", tmp_path / "program"
    (tmp_path / "x.c").write_text("int x(void) { return 1; }\n")
    (tmp_path / "main.c").write_text("int x(void);\nint main(void) { return x(); }\n")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no cc to make a dynamic program with")

    def run(*words: str | Path) -> None:
        subprocess.run([compiler, *words], check=True, cwd=tmp_path)

    run("-shared", "-fPIC", "x.c", "-o", library)
    run("main.c", "-L.", "-lx", f"-Wl,-rpath,{tmp_path}", "-o", program)
    before = await identity(program, tmp_path)
    assert {str(library), str(program)} <= {*paths(before)}
    assert any("libc.so" in path for path in paths(before))
    assert (await identity(program, tmp_path)).digest == before.digest
    (tmp_path / "x.c").write_text("int x(void) { return 2; }\n")
    run("-shared", "-fPIC", "x.c", "-o", library)
    after = await identity(program, tmp_path)
    assert after.digest != before.digest
    assert not all(witness.holds() for witness in before.witnesses)


async def test_where_a_program_is_does_not_matter(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copy(zig(), copy)
    assert (await identity(copy, tmp_path)).digest == (await identity(Path(zig()), tmp_path)).digest


async def test_a_script_may_run_anything(tmp_path: Path) -> None:
    script = tmp_path / "clang"
    script.write_text('#!/bin/sh\nexec clang-22 "$@"\n')
    with pytest.raises(IdentityError, match="no telling what it runs"):
        await identity(script, tmp_path)
    with pytest.raises(IdentityError, match="cannot be read"):
        await identity(tmp_path / "none", tmp_path)


def program_loaded_by(loader: bytes, path: Path) -> Path:
    """The least that is a program with a loader."""
    head = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 3, 4, 64 + 56, 0, 0, len(loader) + 1, len(loader) + 1, 1)
    path.write_bytes(head + segment + loader + b"\0")
    return path


async def test_a_loader_that_knows_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="does not say"):
        await identity(program_loaded_by(b"/bin/false", tmp_path / "program"), tmp_path)
    # It is not asked what a name says that is only the beginning of another one.
    with pytest.raises(IdentityError, match="does not say"):
        await identity(program_loaded_by(b"/bin/false\0/bin/true", tmp_path / "program"), tmp_path)


def test_a_loader_that_takes_too_long_is_killed_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = tmp_path / "loader"
    loader.write_text("#!/bin/sh\nsleep 1000 & echo $! > '%s'\nwait\n" % (tmp_path / "pid"))
    loader.chmod(0o755)
    program = program_loaded_by(bytes(loader), tmp_path / "program")
    monkeypatch.setattr("workers.llvm.identity._QUESTION_SECONDS", 1.0)
    with pytest.raises(IdentityError, match="too long"):
        program_identity_now(program, Digests(NoStore(), tmp_path))
    pid = int((tmp_path / "pid").read_text())
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.01)


async def test_llvmlite_and_ltod_have_one(tmp_path: Path) -> None:
    found = await llvmlite_identity(Digests(NoStore(), tmp_path))
    assert any("llvmlite" in witness.path for witness in found.witnesses)
    assert len(ltod_identity()) == 64

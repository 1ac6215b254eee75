"""Layer: process. What a compiler is: a digest of its program and of the libraries that it is loaded with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.samples import zig
from workers.digests import Digests
from workers.llvm.identity import (
    Identity,
    IdentityError,
    llvmlite_identity,
    ltod_identity,
    program_identity,
)
from workers.store import NoStore

pytestmark = pytest.mark.process


async def identity(program: Path, tmp_path: Path) -> Identity:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return await program_identity(program, scratch, Digests(NoStore(), scratch))


async def test_a_static_program_is_its_own_file(tmp_path: Path) -> None:
    found = await identity(Path(zig()), tmp_path)
    assert [witness.path for witness in found.witnesses] == [zig()]


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
    assert {str(library), str(program)} <= {witness.path for witness in before.witnesses}
    assert any("libc.so" in witness.path for witness in before.witnesses)
    assert await identity(program, tmp_path) == before
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


async def test_llvmlite_and_ltod_have_one(tmp_path: Path) -> None:
    found = await llvmlite_identity(Digests(NoStore(), tmp_path))
    assert any("llvmlite" in witness.path for witness in found.witnesses)
    assert len(ltod_identity()) == 64

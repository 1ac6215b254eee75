"""Layer: process. Aborts, crashes, kills, hangs and lies of a real compiler: one diagnostic each, and a reproducer."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from attrs import evolve

from coordinator import BuildConfig, BuildFailed, open_coordinator
from tests.leftovers import descendants, descriptors
from tests.samples import ABORTING_IR, GOOD_IR, LAYOUT, TRIPLE, UNPARSABLE_IR, compile_c, small_c, zig
from tests.test_backend_contract import hanging_ir
from workers.errors import RequestError
from workers.llvm.choice import host_triple
from workers.llvm.codegen import LlvmBackend, open_llvm_backend
from workers.work import (
    CodegenOptions,
    Diagnostic,
    EmitKind,
    Engine,
    Failed,
    Finished,
    Module,
    Optimize,
    OptLevel,
    Sanitizer,
    Severity,
    Target,
)

pytestmark = pytest.mark.process

TOOLCHAIN = CodegenOptions(engine=Engine.TOOLCHAIN)
LLVMLITE = CodegenOptions(engine=Engine.LLVMLITE)
HANGING = hanging_ir()
HUGE_IR = GOOD_IR + 'module asm ".rept 100000000\\0A.long 5\\0A.endr"\n'
PHI_IR = """
declare void @go()
define i32 @pick(i1 %c, i32 %a, i32 %b) {
  br i1 %c, label %l, label %r
l:
  call void @go()
  br label %r
r:
  %p = phi i32 [ %a, %0 ], [ %b, %l ]
  ret i32 %p
}
"""
UNDOMINATED_IR = """
define i32 @undominated(i1 %c, i32 %y) {
  br i1 %c, label %a, label %b
a:
  %z = add i32 %y, 1
  br label %b
b:
  ret i32 %z
}
"""


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[LlvmBackend]:
    """The real backend; afterwards no process, descriptor or temporary file may be left of it."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = descriptors(), descendants()
    async with open_llvm_backend(scratch_dir=scratch, environ={}, limit=2) as opened:
        yield opened
    assert (descriptors(), descendants()) == before
    assert list(scratch.iterdir()) == []


def _item(content: bytes | str | Path, options: CodegenOptions, root: Path, name: str = "m") -> Optimize:
    data = content.encode() if isinstance(content, str) else content
    size = data.stat().st_size if isinstance(data, Path) else len(data)
    return Optimize(Module(name, data), options, root / "out", root / "repro", Target(TRIPLE, LAYOUT), size)


def _codegen(results: Sequence[object]) -> list[Finished | Failed]:
    """The results, none of which asks for LTO."""
    found = [result for result in results if isinstance(result, Finished | Failed)]
    assert len(found) == len(results)
    return found


async def _compile(backend: LlvmBackend, *items: Optimize) -> list[Finished | Failed]:
    with trio.fail_after(60):
        return _codegen(await backend.compile(items))


async def _failure(backend: LlvmBackend, item: Optimize) -> Diagnostic:
    (result,) = await _compile(backend, item)
    assert isinstance(result, Failed), result
    (diagnostic,) = result.diagnostics
    assert diagnostic.severity is Severity.ERROR
    assert diagnostic.module == item.name
    assert str(backend._scratch) not in diagnostic.message
    return diagnostic


def _reproduce(diagnostic: Diagnostic, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    assert diagnostic.reproducer is not None
    assert {"repro.sh", "stderr.txt", "versions.txt"} <= {path.name for path in diagnostic.reproducer.iterdir()}
    assert b"clang 22" in (diagnostic.reproducer / "versions.txt").read_bytes()
    return subprocess.run(
        ["sh", f"{diagnostic.reproducer}/repro.sh"], cwd=cwd, capture_output=True, timeout=60, check=False
    )


@pytest.mark.parametrize("options", [TOOLCHAIN, LLVMLITE], ids=["toolchain", "llvmlite"])
async def test_an_abort_of_llvm(backend: LlvmBackend, tmp_path: Path, options: CodegenOptions) -> None:
    diagnostic = await _failure(backend, _item(ABORTING_IR, options, tmp_path))
    assert "Cannot select" in diagnostic.message
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    again = _reproduce(diagnostic, elsewhere)
    assert again.returncode == (70 if options is TOOLCHAIN else -signal.SIGABRT)
    assert b"Cannot select" in again.stderr
    # Without the inputs it stands on its own: the module is in the directory.
    assert list((tmp_path / "repro" / "m").rglob("*.ir"))
    assert not (tmp_path / "out").exists()


async def test_reproducers_do_not_overwrite_each_other(backend: LlvmBackend, tmp_path: Path) -> None:
    names = ["../evil name\n#", "../evil name\n#", "x" * 300, "-rf", "\x1b[31m"]
    items = [_item(ABORTING_IR, TOOLCHAIN, tmp_path, name=f"d/{name}".replace("..", "dots")) for name in names]
    found = set()
    for item in items:
        diagnostic = await _failure(backend, item)
        assert diagnostic.reproducer is not None
        assert diagnostic.reproducer.parent == tmp_path / "repro"
        found.add(diagnostic.reproducer)
        assert _reproduce(diagnostic, tmp_path).returncode == 70
    assert len(found) == len(items)
    assert set((tmp_path / "repro").iterdir()) == found, "something half-made is left"


async def test_a_reproducer_that_cannot_be_written_is_said(backend: LlvmBackend, tmp_path: Path) -> None:
    (tmp_path / "repro").write_bytes(b"in the way")
    diagnostic = await _failure(backend, _item(ABORTING_IR, TOOLCHAIN, tmp_path))
    assert "Cannot select" in diagnostic.message
    assert "no reproducer: " in diagnostic.message
    assert diagnostic.reproducer is None


@pytest.mark.parametrize("options", [TOOLCHAIN, LLVMLITE], ids=["toolchain", "llvmlite"])
async def test_a_hang(backend: LlvmBackend, tmp_path: Path, options: CodegenOptions) -> None:
    diagnostic = await _failure(backend, _item(HANGING, evolve(options, time_limit=0.7), tmp_path))
    assert "0.7 s" in diagnostic.message
    assert _reproduce(diagnostic, tmp_path).returncode in (137, -signal.SIGKILL)


@pytest.mark.parametrize("options", [TOOLCHAIN, LLVMLITE], ids=["toolchain", "llvmlite"])
async def test_a_time_limit_is_honoured_however_short(
    backend: LlvmBackend, tmp_path: Path, options: CodegenOptions
) -> None:
    diagnostic = await _failure(backend, _item(HANGING, evolve(options, time_limit=1e-5), tmp_path))
    assert "1e-05 s" in diagnostic.message
    assert diagnostic.reproducer is not None
    assert "timeout -s KILL 0.00001 " in (diagnostic.reproducer / "repro.sh").read_text()
    assert _reproduce(diagnostic, tmp_path).returncode in (137, -signal.SIGKILL)


async def test_a_step_without_any_time_left_agrees_with_its_reproducer(backend: LlvmBackend, tmp_path: Path) -> None:
    # The first kind is done in time, or not: whichever step runs out of it, the module's limit is what is told.
    emit = frozenset({EmitKind.BITCODE, EmitKind.IR, EmitKind.OBJECT, EmitKind.ASSEMBLY})
    diagnostic = await _failure(backend, _item(GOOD_IR, evolve(TOOLCHAIN, time_limit=0.002, emit=emit), tmp_path))
    assert "0.002 s" in diagnostic.message
    assert diagnostic.reproducer is not None
    assert "timeout -s KILL 0.002 " in (diagnostic.reproducer / "repro.sh").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("options", [TOOLCHAIN, LLVMLITE], ids=["toolchain", "llvmlite"])
async def test_a_compiler_that_is_killed(
    backend: LlvmBackend, tmp_path: Path, options: CodegenOptions, number: signal.Signals
) -> None:
    results: list[Finished | Failed] = []
    before = descendants()

    async def compile() -> None:
        results.extend(_codegen(await backend.compile([_item(HANGING, options, tmp_path)])))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(compile)
            while not (found := _busy(descendants() - before)):  # noqa: ASYNC110 (nothing tells about it)
                await trio.sleep(0.01)
            for pid in found:
                os.kill(pid, number)
    (result,) = results
    assert isinstance(result, Failed)
    (diagnostic,) = result.diagnostics
    assert diagnostic.reproducer is not None
    if number is signal.SIGKILL:
        assert "was killed (SIGKILL) by somebody else or, if memory was short, by the kernel" in diagnostic.message
    else:
        assert "SIGSEGV" in diagnostic.message
    (good,) = await _compile(backend, _item(GOOD_IR, options, tmp_path))
    assert isinstance(good, Finished)


def _busy(processes: set[int]) -> list[int]:
    """Those in the middle of their work."""
    return [pid for pid in processes if _seconds_of_cpu(pid) > 0.3]


def _seconds_of_cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("options", [TOOLCHAIN, LLVMLITE], ids=["toolchain", "llvmlite"])
async def test_the_memory_limit(backend: LlvmBackend, tmp_path: Path, options: CodegenOptions) -> None:
    # Enough to start and too little to finish.
    limit = (320 if options is TOOLCHAIN else 340) * 2**20
    good, huge = await _compile(
        backend,
        _item(GOOD_IR, evolve(options, memory_limit=limit), tmp_path, name="good"),
        _item(HUGE_IR, evolve(options, memory_limit=limit), tmp_path),
    )
    assert isinstance(good, Finished)
    assert isinstance(huge, Failed)
    (diagnostic,) = huge.diagnostics
    assert "memory" in diagnostic.message
    assert _reproduce(diagnostic, tmp_path).returncode != 0


async def test_a_crash_at_the_memory_limit_is_put_down_to_it(backend: LlvmBackend, tmp_path: Path) -> None:
    # Too little for the program itself.
    options = evolve(TOOLCHAIN, memory_limit=100 * 2**20)
    diagnostic = await _failure(backend, _item(GOOD_IR, options, tmp_path))
    assert "most likely because of its memory limit of 100 MiB" in diagnostic.message


_FOREIGN_FEATURES = "+avx,+cx8,+fxsr,+mmx,+sse,+sse2"


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("+avx,+sse2", {"'+avx' is not a recognized feature for this target"}),
        (_FOREIGN_FEATURES, {"the module's functions name 6 CPU features of another target: '+avx', '+cx8', '+fxsr'"}),
    ],
)
async def test_features_of_another_target_are_told_once(
    backend: LlvmBackend, tmp_path: Path, features: str, expected: set[str]
) -> None:
    text = "".join(
        f"define i32 @f{number}() #{number} {{ ret i32 1 }}\nattributes #{number} = "
        f'{{ "target-features"="{features}" "n"="{number}" }}\n'
        for number in range(3)
    )
    options = evolve(TOOLCHAIN, target_triple="aarch64-unknown-linux-gnu")
    (result,) = await _compile(backend, _item(text, options, tmp_path))
    assert isinstance(result, Failed)
    messages = [diagnostic.message for diagnostic in result.diagnostics]
    assert len(messages) == (1 if features == _FOREIGN_FEATURES else 2)
    assert all(any(part in message for message in messages) for part in expected)
    assert not any("ignoring" in message for message in messages)


@pytest.mark.parametrize("options", [TOOLCHAIN, LLVMLITE], ids=["toolchain", "llvmlite"])
@pytest.mark.parametrize("triple", ["unknown-unknown-unknown", "unknown-unknown", "unknown"])
async def test_an_unknown_triple_is_none(
    backend: LlvmBackend, tmp_path: Path, options: CodegenOptions, triple: str
) -> None:
    text = f'target triple = "{triple}"\ndefine i32 @f() {{ ret i32 1 }}\n'
    module = Module("m", text.encode())
    target = backend.inspect(module, options).target
    assert target.triple == host_triple()
    (result,) = await _compile(backend, evolve(_item(text, options, tmp_path), target=Target(triple, "")))
    assert isinstance(result, Finished), result


async def test_llvmlite_refuses_what_only_clang_resolves(backend: LlvmBackend, tmp_path: Path) -> None:
    options = evolve(LLVMLITE, target_cpu="native")
    with pytest.raises(RequestError, match="'native'"):
        backend.check(options)
    (result,) = await _compile(backend, _item(GOOD_IR, evolve(options, engine=Engine.AUTO), tmp_path))
    assert isinstance(result, Finished), result
    assert result.engine is Engine.TOOLCHAIN


@pytest.mark.parametrize("taken", [200, 252, 256])
@pytest.mark.parametrize("options", [TOOLCHAIN, LLVMLITE], ids=["toolchain", "llvmlite"])
async def test_a_full_disk_is_said(small_disk: Path, tmp_path: Path, options: CodegenOptions, taken: int) -> None:
    big = GOOD_IR + '\n@big = global [100000 x i8] c"' + "a" * 100_000 + '"\n'
    async with open_llvm_backend(scratch_dir=small_disk, environ={}, limit=1) as backend:
        # Planned while there is space.
        (good,) = await _compile(backend, _item(GOOD_IR, options, tmp_path))
        assert isinstance(good, Finished)
        with suppress(OSError), (small_disk / "hog").open("wb", buffering=0) as hog:
            for _ in range(taken // 4):
                hog.write(b"x" * 4096)
        # A question to the driver that cannot be asked, and a module that cannot be compiled.
        await backend.compile([_item(GOOD_IR, evolve(options, opt_level=OptLevel.O3), tmp_path)])
        (result,) = await _compile(backend, _item(big, options, tmp_path))
        (small_disk / "hog").unlink()
        (again,) = await _compile(backend, _item(GOOD_IR, evolve(options, opt_level=OptLevel.O3), tmp_path))
        assert isinstance(again, Finished), "a full disk is remembered"
    assert isinstance(result, Failed)
    assert re.search("no space left on|No space left on device", result.diagnostics[0].message), result


async def test_plain_errors_have_clangs_words_and_no_reproducer(backend: LlvmBackend, tmp_path: Path) -> None:
    diagnostic = await _failure(backend, _item(UNPARSABLE_IR, TOOLCHAIN, tmp_path))
    assert diagnostic.message.startswith("4:1: expected type")
    assert diagnostic.reproducer is None
    assert not (tmp_path / "repro").exists()
    diagnostic = await _failure(backend, _item(GOOD_IR + UNDOMINATED_IR, TOOLCHAIN, tmp_path))
    assert "Instruction does not dominate all uses" in diagnostic.message


async def test_wrong_inline_assembly_is_a_plain_error(backend: LlvmBackend, tmp_path: Path) -> None:
    text = GOOD_IR + 'module asm "bogus instruction"\n'
    (result,) = await _compile(backend, _item(text, TOOLCHAIN, tmp_path))
    assert isinstance(result, Failed)
    (diagnostic,) = result.diagnostics
    assert "invalid instruction mnemonic 'bogus'" in diagnostic.message
    assert diagnostic.reproducer is None


async def test_warnings_come_with_the_result(backend: LlvmBackend, tmp_path: Path) -> None:
    text = GOOD_IR + 'module asm ".warning \\22mind the gap\\22"\n'
    (result,) = await _compile(backend, _item(text, TOOLCHAIN, tmp_path))
    assert isinstance(result, Finished)
    (warning,) = result.diagnostics
    assert warning.severity is Severity.WARNING
    assert "mind the gap" in warning.message
    together = [_item(content, TOOLCHAIN, tmp_path, name=str(n)) for n, content in enumerate([GOOD_IR, text, GOOD_IR])]
    results = await _compile(backend, *together)
    assert [len(one.diagnostics) for one in results] == [0, 1, 0]


def _pretender(directory: Path, script: str) -> Path:
    """A toolchain whose clang answers the driver's question truly, and compiles as `script` says."""
    clang = directory / "clang"
    directory.mkdir(parents=True, exist_ok=True)
    clang.write_text(
        f"#!/bin/sh\ncase \"$*\" in\n*'-cc1 -version'*|*'-###'*) exec {zig()} clang \"$@\";;\nesac\n"
        f"for last; do :; done\noutput=${{last%.ir}}.o\nset +e\n{script}\n"
    )
    clang.chmod(0o755)
    return directory


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 0", "did not write its output"),
        ("PATH=/bin; : > $output", "did not write its output"),
        ("echo gibberish > $output", "did not write its output"),
        ("/bin/mkdir $output", "did not write its output"),
        ("exit 3", "exit status 3"),
        ("echo strange; echo words >&2; exit 3", "exit status 3: words"),
        ("echo 'error: on second thoughts' >&2; printf '\\177ELF' > $output", "on second thoughts"),
        ("kill -BUS $$", "SIGBUS"),
        ("printf 'bad \\033[31mbytes \\377\\376' >&2; exit 1", "bytes"),
    ],
)
async def test_a_compiler_that_lies_or_fails_oddly(tmp_path: Path, script: str, message: str) -> None:
    toolchain = _pretender(tmp_path / "tools", script)
    async with open_llvm_backend(toolchain=toolchain, scratch_dir=tmp_path, environ={}, limit=1) as backend:
        for names in (["m"], ["m", "n"]):
            results = await _compile(backend, *(_item(GOOD_IR, TOOLCHAIN, tmp_path, name=name) for name in names))
            for result in results:
                assert isinstance(result, Failed)
                (diagnostic,) = result.diagnostics
                assert message in diagnostic.message
                assert "\x1b" not in diagnostic.message
    assert not (tmp_path / "out").exists()


async def test_a_toolchain_that_vanishes_is_said(tmp_path: Path) -> None:
    toolchain = _pretender(tmp_path / "tools", "exit 0")
    async with open_llvm_backend(toolchain=toolchain, scratch_dir=tmp_path, environ={}, limit=1) as backend:
        (toolchain / "clang").unlink()
        diagnostic = await _failure(backend, _item(GOOD_IR, TOOLCHAIN, tmp_path))
        assert "cannot start" in diagnostic.message
        # It may come back, and then all is well.
        _pretender(tmp_path / "tools", f'exec {zig()} clang "$@"')
        assert isinstance((await _compile(backend, _item(GOOD_IR, TOOLCHAIN, tmp_path)))[0], Finished)


async def test_a_module_that_vanishes_harms_no_other(backend: LlvmBackend, tmp_path: Path) -> None:
    paths = compile_c({f"m{n}": small_c(n, 3) for n in range(3)}, tmp_path / "in")
    items = [_item(path, TOOLCHAIN, tmp_path, name=path.stem) for path in paths]
    paths[1].unlink()
    results = await _compile(backend, *items)
    assert [isinstance(result, Finished) for result in results] == [True, False, True]


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("options", [TOOLCHAIN, LLVMLITE], ids=["toolchain", "llvmlite"])
async def test_cancel_leaves_no_process(
    backend: LlvmBackend, tmp_path: Path, options: CodegenOptions, delay: float
) -> None:
    before = descendants()
    with trio.fail_after(30), trio.move_on_after(delay) as scope:
        await backend.compile([_item(GOOD_IR, options, tmp_path, name="a"), _item(HANGING, options, tmp_path)])
    assert scope.cancelled_caught
    assert descendants() <= before
    assert list(backend._scratch.iterdir()) == []


async def test_extra_passes_run_after_the_others(backend: LlvmBackend, tmp_path: Path) -> None:
    options = evolve(TOOLCHAIN, extra_passes="function(reg2mem)", emit=frozenset({EmitKind.OBJECT, EmitKind.IR}))
    text = GOOD_IR + PHI_IR
    (plain,) = await _compile(backend, _item(text, evolve(options, extra_passes=""), tmp_path, name="plain"))
    (extra,) = await _compile(backend, _item(text, options, tmp_path, name="extra"))
    assert isinstance(plain, Finished)
    assert isinstance(extra, Finished)
    assert "phi" in plain.artifacts[1].path.read_text()
    assert "alloca" in extra.artifacts[1].path.read_text()
    assert extra.artifacts[0].path.read_bytes()[:4] == b"\x7fELF"
    only = evolve(options, prepopulate_passes=False, extra_passes="function(dce)")
    (bare,) = await _compile(backend, _item(text, only, tmp_path, name="bare"))
    assert isinstance(bare, Finished)
    diagnostic = await _failure(backend, _item(text, evolve(options, extra_passes="nonesuch"), tmp_path))
    assert "unknown pass name 'nonesuch'" in diagnostic.message
    assert diagnostic.reproducer is None


async def test_without_passes_nothing_is_optimised(backend: LlvmBackend, tmp_path: Path) -> None:
    options = evolve(TOOLCHAIN, prepopulate_passes=False, emit=frozenset({EmitKind.IR}))
    text = GOOD_IR.replace("ret i32 %y", "%dead = add i32 %y, 7\n  ret i32 %y")
    (result,) = await _compile(backend, _item(text, options, tmp_path))
    assert isinstance(result, Finished)
    assert "%dead" in result.artifacts[0].path.read_text()


async def test_passes_are_printed_in_order(backend: LlvmBackend, tmp_path: Path) -> None:
    options = evolve(
        TOOLCHAIN, print_passes=True, extra_passes="function(sink)", emit=frozenset(EmitKind) - {EmitKind.FATOBJ}
    )
    (result,) = await _compile(backend, _item(GOOD_IR, options, tmp_path))
    assert isinstance(result, Finished)
    assert result.diagnostics == ()
    assert all(line.startswith(("Running pass: ", "Running codegen pass: ")) for line in result.passes)

    def position(start: str) -> int:
        return next(n for n, line in enumerate(result.passes) if line.startswith(start))

    assert (
        position("Running pass: SROAPass on good")
        < position("Running pass: SinkingPass on good")
        < position("Running codegen pass: CodeGen Prepare on good")
    )
    # Of one run only, though four kinds are made.
    assert sum(line.startswith("Running pass: SinkingPass on good") for line in result.passes) == 1
    (silent,) = await _compile(backend, _item(GOOD_IR, evolve(options, print_passes=False), tmp_path, name="n"))
    assert isinstance(silent, Finished)
    assert silent.passes == ()
    for loud, quiet in zip(result.artifacts, silent.artifacts, strict=True):
        assert loud.path.read_bytes() == quiet.path.read_bytes()


async def test_sanitizers_instrument(backend: LlvmBackend, tmp_path: Path) -> None:
    text = GOOD_IR + "define i32 @load(ptr %p) sanitize_address {\n %v = load i32, ptr %p\n ret i32 %v\n}\n"
    options = evolve(TOOLCHAIN, sanitizers=frozenset({Sanitizer.ADDRESS}), emit=frozenset({EmitKind.ASSEMBLY}))
    (result,) = await _compile(backend, _item(text, options, tmp_path))
    assert isinstance(result, Finished)
    assert "__asan_report_load4" in result.artifacts[0].path.read_text()


async def test_equal_type_names_in_one_batch_stay_apart(backend: LlvmBackend, tmp_path: Path) -> None:
    sources = {
        "a": "struct S {int a; double b;}; struct S one[3]; double f(struct S *p) { return p->b + p[2].a; }",
        "b": "struct S {char c[7]; struct S *n;}; struct S two[4]; char g(struct S *p) { return p->n->c[3]; }",
    }
    paths = compile_c(sources, tmp_path / "in")
    options = evolve(TOOLCHAIN, emit=frozenset(EmitKind) - {EmitKind.FATOBJ})
    together = await _compile(backend, *(_item(path, options, tmp_path / "t", name=path.stem) for path in paths))
    for path, result in zip(paths, together, strict=True):
        (alone,) = await _compile(backend, _item(path, options, tmp_path / "s", name=path.stem))
        assert isinstance(alone, Finished)
        assert isinstance(result, Finished)
        for one, other in zip(alone.artifacts, result.artifacts, strict=True):
            assert one.path.read_bytes() == other.path.read_bytes(), one.kind


async def test_equal_modules_in_one_batch(backend: LlvmBackend, tmp_path: Path) -> None:
    results = await _compile(backend, *(_item(GOOD_IR, TOOLCHAIN, tmp_path, name=name) for name in "abc"))
    contents = {one.artifacts[0].path.read_bytes() for one in results if isinstance(one, Finished)}
    assert len(contents) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.o", "b.o", "c.o"]


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (b"", "not an indexed profile"),
        (b"main:10:0\n  1: 10\n", "not an indexed profile"),
        (b"\xfflprofi\x81\x0d\0\0\0\0\0\0\0", "only the front end can use"),
    ],
)
async def test_profiles_without_effect_are_refused(
    backend: LlvmBackend, tmp_path: Path, head: bytes, complaint: str
) -> None:
    path = tmp_path / "profile"
    with pytest.raises(RequestError, match="cannot read"):
        backend.check(evolve(TOOLCHAIN, profile_use=path))
    path.write_bytes(head)
    with pytest.raises(RequestError, match=complaint):
        backend.check(evolve(TOOLCHAIN, profile_use=path))


async def test_a_profile_is_used(backend: LlvmBackend, tmp_path: Path) -> None:
    merge = shutil.which("llvm-profdata-22")
    if merge is None:
        pytest.skip("llvm-profdata-22 is not installed: it makes profiles")
    hash_of_good = await _pgo_hash(GOOD_IR, tmp_path)
    (tmp_path / "text").write_text(f":ir\ngood\n{hash_of_good}\n1\n123456\n")
    await trio.run_process([merge, "merge", tmp_path / "text", "-o", tmp_path / "profile"])
    options = evolve(TOOLCHAIN, profile_use=tmp_path / "profile", emit=frozenset({EmitKind.IR}))
    backend.check(options)
    (result,) = await _compile(backend, _item(GOOD_IR, options, tmp_path))
    assert isinstance(result, Finished)
    assert "function_entry_count" in result.artifacts[0].path.read_text()


async def _pgo_hash(text: str, tmp_path: Path) -> int:
    """The hash of the control flow of `good`, as instrumentation records it."""
    source, output = tmp_path / "pgo.ll", tmp_path / "pgo.out.ll"
    source.write_text(text)
    flags = ["-O2", "-fprofile-generate", "-S", "-emit-llvm", "-x", "ir"]
    command: list[str | Path] = [zig(), "clang", f"--target={TRIPLE}", *flags, source, "-o", output]
    await trio.run_process(command, env={}, capture_stderr=True)
    match = re.search(r"@__profd_good = .*?\{ i64 -?\d+, i64 (\d+)", output.read_text())
    assert match is not None
    return int(match[1])


async def test_artifacts_are_ordinary_files(backend: LlvmBackend, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        (result,) = await _compile(backend, _item(GOOD_IR, TOOLCHAIN, tmp_path))
    finally:
        os.umask(before)
    assert isinstance(result, Finished)
    assert stat.S_IMODE(result.artifacts[0].path.stat().st_mode) == 0o640


async def test_a_question_whose_process_is_killed_is_no_wrong_request(tmp_path: Path) -> None:
    script = f'#!/bin/sh\ncase " $* " in *" -### "*) kill -9 $$ ;; esac\nexec {shlex.quote(zig())} clang "$@"\n'
    clang = tmp_path / "clang"
    clang.write_text(script)
    clang.chmod(0o755)
    with trio.fail_after(60):
        async with (
            open_coordinator(toolchain=tmp_path, jobs=1, environ={}, short_lived=True, cache=None) as coordinator,
            coordinator.build(BuildConfig(out_dir=tmp_path / "out")) as build,
        ):
            assert await build.submit(Module("good", GOOD_IR.encode()))
            with pytest.raises(BuildFailed, match=r"good: .*SIGKILL"):
                await build.finish()

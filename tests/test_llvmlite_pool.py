"""The llvmlite engine: its objects are clang's, and what ends a child is the outcome of one module. Layer: process."""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from workers.errors import InternalError
from workers.llvm.child.scan import needs_toolchain
from workers.llvm.llvmlite_pool import Compiled, Died, LlvmlitePool, Outcome, Rejected, Unsuitable
from workers.llvm.llvmlite_request import Job, reproduce_argv, unsupported
from workers.work import CodegenOptions, CodeModel, EmitKind, OptLevel, RelocationModel, Sanitizer

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the modules of these tests are for x86-64"),
]

TRIPLE = "x86_64-unknown-linux-gnu"
O2 = CodegenOptions()
GOOD = b"define i32 @f(i32 %a) {\n  %r = add i32 %a, 41\n  %s = add i32 %r, 1\n  ret i32 %s\n}\n"
ABORTS = (
    b"declare i32 @llvm.aarch64.crc32b(i32, i32)\n"
    b"define i32 @f(i32 %a) {\n  %r = call i32 @llvm.aarch64.crc32b(i32 %a, i32 1)\n  ret i32 %r\n}\n"
)
STRUCTOR = (
    b"@llvm.global_ctors = appending global [1 x { i32, ptr, ptr }] [{ i32, ptr, ptr } { i32 65535, ptr @f, ptr null }]"
    b"\ndefine void @f() {\n  ret void\n}\n"
)
LOOPS = """
static int helper(const int *p, int n) { int s = 0; for (int i = 0; i < n; i++) s += p[i] * 3; return s; }
int sum(const int *p, int n) { return helper(p, n) + helper(p + 1, n - 1); }
void axpy(float *x, const float *y, float a) { for (int i = 0; i < 4; i++) x[i] += a * y[i]; }
void scale(double *restrict x, const double *restrict y, int n) { for (int i = 0; i < n; i++) x[i] = y[i] * 2.5; }
int classify(int c) { switch (c) { case 1: return 7; case 2: return 9; case 3: return 1; case 4: return 2; default:
  return 0; } }
extern int log_it(const char *, ...);
int report(int n) { for (int i = 0; i < n; i++) log_it("%d of %d", i, n); return n; }
"""


def slow_module() -> bytes:
    """Takes some seconds at any level."""
    functions = []
    for number in range(200):
        body = "".join(f"  %v{i} = xor i64 %v{i - 1}, {i * 7919}\n  call void @g(i64 %v{i})\n" for i in range(1, 400))
        functions.append(f"define void @f{number}(i64 %v0) {{\n{body}  ret void\n}}\n")
    return ("declare void @g(i64)\n" + "".join(functions)).encode()


def zig() -> str:
    spec = importlib.util.find_spec("ziglang")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "zig")


def sections(data: bytes) -> list[tuple[str, int, int, bytes]]:
    """Name, type, flags and content of the sections of an ELF64 object."""
    table, count, names_index = *struct.unpack_from("<Q", data, 40), *struct.unpack_from("<HH", data, 60)
    headers = [struct.unpack_from("<IIQQQQ", data, table + 64 * number) for number in range(count)]
    names = data[headers[names_index][4] :]
    return [
        (
            names[name : names.index(b"\0", name)].decode(),
            kind,
            flags,
            b"" if kind == 8 else data[offset : offset + size],
        )
        for name, kind, flags, _, offset, size in headers
    ]


def comparable(data: bytes) -> list[tuple[str, int, int, bytes]]:
    """What must be equal: all but the names of symbols and the linker's hint on addresses, which moves them."""
    return [s for s in sections(data) if s[0] not in ("", ".strtab", ".symtab", ".llvm_addrsig")]


def descendants() -> set[int]:
    children = set()
    for task in Path("/proc/self/task").iterdir():
        children |= {int(pid) for pid in (task / "children").read_text().split()}
    return children


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def only_child() -> int:
    (pid,) = descendants()
    return pid


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    descriptors, children = open_descriptors(), descendants()
    yield
    assert descendants() == children
    assert open_descriptors() == descriptors


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Raw bitcode of a C file with loops, as clang -O2 hands it to its optimiser, without debug info."""
    directory = tmp_path_factory.mktemp("sample")
    source = directory / "loops.c"
    source.write_text(LOOPS)
    output = directory / "loops.bc"
    argv = [zig(), "clang", "-cc1", "-triple", TRIPLE, "-O2", "-disable-llvm-passes", "-vectorize-loops"]
    subprocess.run([*argv, "-emit-llvm-bc", "-o", output, "-x", "c", source], check=True)
    return output.read_bytes()


async def compile_one(pool: LlvmlitePool, content: bytes, output: Path, options: CodegenOptions = O2) -> Outcome:
    with trio.fail_after(120):
        return await pool.compile("m", content, TRIPLE, options, {EmitKind.OBJECT: output})


CLANG_FLAGS: dict[str, tuple[CodegenOptions, list[str]]] = {
    "O0": (CodegenOptions(opt_level=OptLevel.O0), ["-O0"]),
    "O1": (CodegenOptions(opt_level=OptLevel.O1), ["-O1"]),
    "O2": (O2, ["-O2", "-vectorize-loops", "-vectorize-slp"]),
    "O3": (CodegenOptions(opt_level=OptLevel.O3), ["-O3", "-vectorize-loops", "-vectorize-slp"]),
    "no loop vectoriser": (CodegenOptions(vectorize_loops=False), ["-O2", "-vectorize-slp"]),
    "no SLP": (CodegenOptions(vectorize_slp=False), ["-O2", "-vectorize-loops"]),
    "no unrolling": (
        CodegenOptions(unroll_loops=False),
        ["-O2", "-vectorize-loops", "-vectorize-slp", "-fno-unroll-loops"],
    ),
    "unrolling at O1": (CodegenOptions(opt_level=OptLevel.O1, unroll_loops=True), ["-O1", "-funroll-loops"]),
    "no pipeline": (CodegenOptions(prepopulate_passes=False), ["-O2", "-disable-llvm-passes"]),
    "no pipeline at Oz": (
        CodegenOptions(prepopulate_passes=False, opt_level=OptLevel.MIN_SIZE),
        ["-Oz", "-disable-llvm-passes"],
    ),
    "large": (
        CodegenOptions(opt_level=OptLevel.O1, code_model=CodeModel.LARGE),
        ["-O1", "-mcmodel=large"],
    ),
    "kernel, static": (
        CodegenOptions(opt_level=OptLevel.O1, code_model=CodeModel.KERNEL, relocation_model=RelocationModel.STATIC),
        ["-O1", "-mcmodel=kernel", "-mrelocation-model", "static"],
    ),
}


@pytest.mark.parametrize("case", CLANG_FLAGS)
async def test_objects_are_those_of_clang(case: str, sample: bytes, tmp_path: Path) -> None:
    options, flags = CLANG_FLAGS[case]
    source, expected, output = tmp_path / "in.bc", tmp_path / "clang.o", tmp_path / "m.o"
    source.write_bytes(sample)
    if "-mrelocation-model" not in flags:
        flags = [*flags, "-mrelocation-model", "pic"]
    argv = [zig(), "clang", "-cc1", "-triple", TRIPLE, "-target-cpu", "x86-64", "-emit-obj", *flags]
    await trio.run_process([*argv, "-o", str(expected), "-x", "ir", str(source)])
    async with LlvmlitePool(1, tmp_path) as pool:
        outcome = await compile_one(pool, sample, output, options)
    assert isinstance(outcome, Compiled), outcome
    assert outcome.seconds > 0
    assert outcome.peak_rss_bytes > 10 << 20
    assert comparable(output.read_bytes()) == comparable(expected.read_bytes())


async def test_all_outputs_at_once_are_those_of_one_at_a_time(sample: bytes, tmp_path: Path) -> None:
    async with LlvmlitePool(1, tmp_path) as pool:
        kinds = [kind for kind in EmitKind if kind is not EmitKind.FATOBJ]
        together: dict[EmitKind, Path] = {kind: tmp_path / f"all.{kind.value}" for kind in kinds}
        assert isinstance(await pool.compile("m", sample, TRIPLE, O2, together), Compiled)
        for kind in kinds:
            alone = tmp_path / f"one.{kind.value}"
            assert isinstance(await pool.compile("m", sample, TRIPLE, O2, {kind: alone}), Compiled)
            assert alone.read_bytes() == together[kind].read_bytes()
    assert together[EmitKind.BITCODE].read_bytes().startswith(b"BC\xc0\xde")
    assert "define" in together[EmitKind.IR].read_text()
    assert "# @sum" in together[EmitKind.ASSEMBLY].read_text()


async def test_content_may_be_a_file_and_the_cpu_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = (
        O2,
        CodegenOptions(target_cpu="haswell"),
        CodegenOptions(target_cpu="haswell", target_features=("-avx2", "+fma")),
    )
    (tmp_path / "in.ll").write_text(
        "define <8 x i32> @f(<8 x i32> %a, <8 x i32> %b) {\n  %s = add <8 x i32> %a, %b\n  ret <8 x i32> %s\n}\n"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    async with LlvmlitePool(1, tmp_path / "elsewhere") as pool:
        for number, options in enumerate(choices):
            outputs = {EmitKind.ASSEMBLY: Path(f"{number}.s")}
            assert isinstance(await pool.compile("m", Path("in.ll"), TRIPLE, options, outputs), Compiled)
    texts = [Path(f"{number}.s").read_text() for number in range(3)]
    assert [("ymm" in text, "vpaddd\t%ymm" in text) for text in texts] == [(False, False), (True, True), (True, False)]


@pytest.mark.parametrize(
    "options", [CodegenOptions(target_cpu="nonsense"), CodegenOptions(target_features=("+sse3", "+nonsense"))]
)
async def test_an_unknown_cpu_or_feature_is_refused_every_time(options: CodegenOptions, tmp_path: Path) -> None:
    async with LlvmlitePool(1, tmp_path) as pool:
        for _ in range(3):
            outcome = await compile_one(pool, GOOD, tmp_path / "m.o", options)
            assert isinstance(outcome, Rejected)
            assert "nonsense' is not a recognized" in outcome.message
    assert not (tmp_path / "m.o").exists()


BAD: dict[str, tuple[bytes, type[Outcome], str]] = {
    "text": (b"define i32 @f( {\n", Rejected, "expected type"),
    "not IR": (b"\x7fELF\0\0\0", Rejected, "neither bitcode nor textual IR"),
    "truncated bitcode": (b"BC\xc0\xde\x35\x14\x00\x00", Rejected, "bitcode"),
    "undominated use": (
        b"define i32 @f(i1 %c) {\n  br i1 %c, label %a, label %b\na:\n  %x = add i32 1, 2\n  br label %b\n"
        b"b:\n  ret i32 %x\n}\n",
        Rejected,
        "does not dominate",
    ),
    "module assembly": (b'module asm "bogus insn"\n', Rejected, "bogus"),
    "function assembly": (b'define void @f() {\n  call void asm "bogus", ""()\n  ret void\n}\n', Rejected, "bogus"),
    "big endian": (b'target datalayout = "E-m:e-i64:64"\ndefine void @f() {\n  ret void\n}\n', Unsuitable, "E-m:e-i64"),
    "structors": (STRUCTOR, Unsuitable, "llvm.global_ctors"),
    "not UTF-8": (b"; caf\xe9\n" + GOOD, Unsuitable, "UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_modules_are_told_apart_and_the_pool_goes_on(case: str, tmp_path: Path) -> None:
    content, kind, message = BAD[case]
    async with LlvmlitePool(1, tmp_path) as pool:
        outcome = await compile_one(pool, content, tmp_path / "bad.o")
        assert type(outcome) is kind
        assert message in str(outcome)
        assert isinstance(await compile_one(pool, GOOD, tmp_path / "good.o"), Compiled)
    assert [path.name for path in tmp_path.iterdir()] == ["good.o"]


async def test_warnings_and_inline_assembly_come_through(tmp_path: Path) -> None:
    text = (
        b'module asm ".globl g\\0Ag: ret"\ndefine void @f() {\n  call void asm sideeffect ".warning \\22mind\\22", ""()'
    )
    async with LlvmlitePool(1, tmp_path) as pool:
        outcomes = await pool.compile_batch(
            [
                Job("a", text + b"\n  ret void\n}\n", TRIPLE, O2, {EmitKind.OBJECT: tmp_path / "a.o"}),
                Job("b", GOOD, TRIPLE, O2, {EmitKind.OBJECT: tmp_path / "b.o"}),
            ]
        )
    first, second = outcomes
    assert isinstance(first, Compiled)
    assert isinstance(second, Compiled)
    assert "mind" in first.stderr
    assert second.stderr == ""


async def test_files_that_cannot_be_read_or_written_are_told(tmp_path: Path) -> None:
    async with LlvmlitePool(1, tmp_path) as pool:
        gone = await pool.compile("m", tmp_path / "gone.bc", TRIPLE, O2, {EmitKind.OBJECT: tmp_path / "m.o"})
        nowhere = await compile_one(pool, GOOD, tmp_path / "no" / "m.o")
    assert isinstance(gone, Rejected)
    assert "No such file" in gone.message
    assert isinstance(nowhere, Rejected)
    assert "cannot be written" in nowhere.message


async def test_a_death_is_the_outcome_of_one_module_of_a_batch(tmp_path: Path) -> None:
    contents = [GOOD, ABORTS, GOOD, b"nonsense", STRUCTOR, ABORTS, ABORTS, GOOD]
    jobs = [
        Job(f"m{number}", content, TRIPLE, O2, {EmitKind.OBJECT: tmp_path / f"m{number}.o"})
        for number, content in enumerate(contents)
    ]
    async with LlvmlitePool(1, tmp_path) as pool:
        with trio.fail_after(120):
            outcomes = await pool.compile_batch(jobs)
    kinds = [Compiled, Died, Compiled, Rejected, Unsuitable, Died, Died, Compiled]
    assert [type(outcome) for outcome in outcomes] == kinds
    for outcome in (outcomes[1], outcomes[5], outcomes[6]):
        assert isinstance(outcome, Died)
        assert outcome.returncode == -signal.SIGABRT
        assert "SIGABRT" in outcome.description
        assert outcome.stderr.count("Cannot select") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0.o", "m2.o", "m7.o"]


async def test_the_reproducer_ends_as_the_child_did(sample: bytes, tmp_path: Path) -> None:
    async with LlvmlitePool(1, tmp_path) as pool:
        assert isinstance(await compile_one(pool, sample, tmp_path / "child.o"), Compiled)
    results = {}
    for name, content in (("good", sample), ("aborts", ABORTS), ("bad", b"nonsense")):
        (tmp_path / name).write_bytes(content)
        argv = reproduce_argv(O2, TRIPLE, name, {EmitKind.OBJECT: f"{name}.o"})
        with trio.fail_after(60):
            results[name] = await trio.run_process(argv, cwd=tmp_path, check=False, capture_stderr=True, env={})
    assert {name: result.returncode for name, result in results.items()} == {
        "good": 0,
        "aborts": -signal.SIGABRT,
        "bad": 1,
    }
    assert b"Cannot select" in results["aborts"].stderr
    assert results["bad"].stderr.startswith(b"error: ")
    assert (tmp_path / "good.o").read_bytes() == (tmp_path / "child.o").read_bytes()


async def test_a_module_that_hangs_is_killed_at_its_time_limit(tmp_path: Path) -> None:
    options = CodegenOptions(time_limit=0.3)
    async with LlvmlitePool(1, tmp_path) as pool:
        assert isinstance(await compile_one(pool, GOOD, tmp_path / "warm.o"), Compiled)
        first = only_child()
        outcome = await compile_one(pool, slow_module(), tmp_path / "slow.o", options)
        assert isinstance(outcome, Died)
        assert outcome.timed_out
        assert "0.3 s" in outcome.description
        assert isinstance(await compile_one(pool, GOOD, tmp_path / "after.o"), Compiled)
        assert only_child() != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after.o", "warm.o"]


async def test_memory_is_limited_for_one_module_only(tmp_path: Path) -> None:
    async with LlvmlitePool(1, tmp_path) as pool:
        generous = CodegenOptions(memory_limit=4 << 30)
        assert isinstance(await compile_one(pool, GOOD, tmp_path / "a.o", generous), Compiled)
        # A fresh child has 180 MB of address space, and this module makes 90 MB of heap.
        outcome = await compile_one(pool, slow_module(), tmp_path / "b.o", CodegenOptions(memory_limit=210 << 20))
        assert isinstance(outcome, Died)
        assert "out of memory with a limit of" in outcome.description
        assert not outcome.timed_out
        assert isinstance(await compile_one(pool, GOOD, tmp_path / "c.o"), Compiled)


async def test_a_killed_child_fails_the_module_in_work_and_an_idle_one_nothing(tmp_path: Path) -> None:
    outcomes: list[Outcome] = []

    async def compile_slowly(pool: LlvmlitePool) -> None:
        outcomes.append(await compile_one(pool, slow_module(), tmp_path / "slow.o"))

    async with LlvmlitePool(2, tmp_path) as pool:
        assert isinstance(await compile_one(pool, GOOD, tmp_path / "a.o"), Compiled)
        idle = only_child()
        os.kill(idle, signal.SIGKILL)
        with trio.fail_after(60):
            while Path(f"/proc/{idle}/stat").read_text().rpartition(")")[2].split()[0] != "Z":  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert isinstance(await compile_one(pool, GOOD, tmp_path / "b.o"), Compiled)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(compile_slowly, pool)
            await trio.sleep(0.3)
            os.kill(only_child(), signal.SIGKILL)
            assert isinstance(await compile_one(pool, GOOD, tmp_path / "c.o"), Compiled)
    (outcome,) = outcomes
    assert isinstance(outcome, Died)
    assert outcome.returncode == -signal.SIGKILL
    assert not (tmp_path / "slow.o").exists()


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.5])
async def test_cancelling_leaves_no_process_descriptor_or_file(delay: float, tmp_path: Path) -> None:
    jobs = [Job(f"m{n}", slow_module(), TRIPLE, O2, {EmitKind.OBJECT: tmp_path / f"m{n}.o"}) for n in range(2)]
    async with LlvmlitePool(2, tmp_path) as pool:
        with trio.move_on_after(delay) as scope:
            await pool.compile_batch(jobs)
        assert scope.cancelled_caught
        assert descendants() == set()
        assert list(tmp_path.iterdir()) == []
        assert isinstance(await compile_one(pool, GOOD, tmp_path / "m.o"), Compiled)


async def test_parts_of_outputs_go_with_the_child(tmp_path: Path) -> None:
    async with LlvmlitePool(1, tmp_path) as pool:
        assert isinstance(await compile_one(pool, GOOD, tmp_path / "a.o"), Compiled)
        part = tmp_path / f"b.o.part{only_child()}"
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(compile_one, pool, slow_module(), tmp_path / "b.o")
                part.write_bytes(b"as if the child had begun to write")
    assert [path.name for path in tmp_path.iterdir()] == ["a.o"]


async def test_never_more_children_than_the_limit(tmp_path: Path) -> None:
    seen: set[int] = set()

    async def work(pool: LlvmlitePool, number: int) -> None:
        assert isinstance(await compile_one(pool, GOOD, tmp_path / f"{number}.o"), Compiled)
        seen.update(descendants())

    async with LlvmlitePool(2, tmp_path) as pool:
        assert descendants() == set()
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(work, pool, number)
    assert 1 <= len(seen) <= 2
    with pytest.raises(InternalError):
        await compile_one(pool, GOOD, tmp_path / "late.o")


async def test_children_do_not_grow_with_the_number_of_modules(tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path(f"/proc/{only_child()}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async with LlvmlitePool(1, tmp_path) as pool:
        job = Job("m", GOOD, TRIPLE, O2, {EmitKind.OBJECT: tmp_path / "m.o"})
        await pool.compile_batch([job] * 50)
        before = resident()
        await pool.compile_batch([job] * 300)
        # An undisposed pass manager alone would be 25 MB.
        assert resident() - before < 4 << 20


KILLED_PARENT = """
import sys, trio
from pathlib import Path
from workers.llvm.llvmlite_pool import LlvmlitePool
from workers.work import CodegenOptions, EmitKind
async def main(scratch):
    async with LlvmlitePool(1, scratch) as pool:
        out = {EmitKind.OBJECT: scratch / "m.o"}
        print(await pool.compile("m", (scratch / "good.ll"), "x86_64-unknown-linux-gnu", CodegenOptions(), out))
        print(Path(f"/proc/self/task/{__import__('os').getpid()}/children").read_text(), flush=True)
        await pool.compile("m", (scratch / "slow.ll"), "x86_64-unknown-linux-gnu", CodegenOptions(), out)
trio.run(main, Path(sys.argv[1]))
"""


def test_no_child_outlives_a_killed_parent_and_the_place_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "good.ll").write_bytes(GOOD)
    (tmp_path / "slow.ll").write_bytes(slow_module())
    for trap in ("json.py", "ctypes.py", "llvmlite.py", "workers.py"):
        (tmp_path / trap).write_text("raise SystemExit('imported from the current directory')")
    root = Path(__file__).resolve().parents[1]
    program = f"import sys; sys.path.insert(0, {str(root)!r})\n{KILLED_PARENT}"
    argv = [sys.executable, "-P", "-c", program, str(tmp_path)]
    with subprocess.Popen(argv, cwd=tmp_path, env={}, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline().startswith(b"Compiled(")
        child = int(run.stdout.readline())
        with os.fdopen(os.pidfd_open(child)) as pidfd:
            run.kill()
            assert select.select([pidfd], [], [], 30)[0], "the child lives on"


def test_the_child_imports_neither_trio_nor_our_values() -> None:
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.find_spec("llvmlite")
    assert spec is not None
    assert spec.origin is not None
    program = (
        f"import sys; sys.path += [{str(root)!r}, {str(Path(spec.origin).parents[1])!r}]\n"
        "import workers.llvm.child.main, workers.llvm.child.compile\nprint(*sys.modules)"
    )
    modules = subprocess.check_output([sys.executable, "-I", "-S", "-c", program], text=True).split()
    ours = {name for name in modules if name.startswith("workers")}
    assert ours == {"workers", "workers.llvm"} | {
        f"workers.llvm.child{name}" for name in ("", ".main", ".compile", ".scan")
    }
    assert not {"trio", "structlog", "attr", "attrs", "rich", "numpy"} & set(modules)


REFUSED: dict[str, tuple[CodegenOptions, str]] = {
    "-Os": (CodegenOptions(opt_level=OptLevel.SIZE), TRIPLE),
    "merging": (CodegenOptions(merge_functions=True), TRIPLE),
    "given as text": (CodegenOptions(extra_passes="dce"), TRIPLE),
    "print": (CodegenOptions(print_passes=True), TRIPLE),
    "profile": (CodegenOptions(profile_use=Path("p")), TRIPLE),
    "sanitizer": (CodegenOptions(sanitizers=frozenset({Sanitizer.THREAD})), TRIPLE),
    "'ropi'": (CodegenOptions(relocation_model=RelocationModel.ROPI), TRIPLE),
    "'medium'": (CodegenOptions(code_model=CodeModel.MEDIUM), TRIPLE),
    "'aarch64-unknown-linux-gnu'": (O2, "aarch64-unknown-linux-gnu"),
    "Linux only": (O2, "x86_64-pc-windows-msvc"),
    "'x86_64-linux-android21'": (O2, "x86_64-linux-android21"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_llvmlite_cannot_do_is_refused(reason: str) -> None:
    options, triple = REFUSED[reason]
    assert reason in (unsupported(options, triple) or "")


def test_what_llvmlite_can_do_is_not_refused() -> None:
    for triple in (TRIPLE, "x86_64-linux-gnu", "x86_64-alpine-linux-musl", "amd64-pc-linux"):
        assert unsupported(O2, triple) is None
    assert unsupported(CodegenOptions(merge_functions=False, vectorize_slp=False), TRIPLE) is None


def test_debug_info_is_found_in_bitcode_and_in_text(tmp_path: Path) -> None:
    source = tmp_path / "a.c"
    source.write_text("int f(int a) { return a; }")
    argv = [zig(), "clang", "-cc1", "-triple", TRIPLE, "-disable-llvm-passes", "-x", "c", str(source), "-o", "-"]
    for form in ("-emit-llvm-bc", "-emit-llvm"):
        for length in range(4):
            # The name of the file moves what stands behind it.
            names = ["-main-file-name", "a" * length, "-DX"]
            plain = subprocess.check_output([*argv, form, *names])
            debug = subprocess.check_output([*argv, form, *names, "-debug-info-kind=standalone", "-dwarf-version=4"])
            assert needs_toolchain(plain, optimizes=True) is None
            assert "debug info" in (needs_toolchain(debug, optimizes=True) or "")
            assert needs_toolchain(debug, optimizes=False) is None

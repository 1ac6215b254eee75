"""Layer: process. Our command lines against clang's driver: equal bytes for equal options, and clang's own refusals."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from tests.samples import GOOD_IR, TRIPLE, compile_c, zig
from workers.errors import RequestError
from workers.llvm.bitcode import read_header
from workers.llvm.cc1 import (
    cc1_arguments,
    check_options,
    driver_arguments,
    make_plan,
    options_key,
    parse_driver,
)
from workers.llvm.codegen import LlvmBackend, open_llvm_backend
from workers.llvm.oom import OomWatch
from workers.llvm.planner import Planner
from workers.llvm.toolchain_engine import Task, ToolchainEngine
from workers.work import (
    CodegenOptions,
    CodeModel,
    EmitKind,
    Engine,
    Finished,
    Module,
    Optimize,
    OptLevel,
    PreLink,
    RelocationModel,
    Sanitizer,
    Target,
)

pytestmark = pytest.mark.process

OPTIONS = CodegenOptions(engine=Engine.TOOLCHAIN)

SOURCE = """
struct node { struct node *next; double value; int tags[8]; };
double table[64];
static int twice(int x) { return x + x; }
static int twice_again(int x) { return x + x; }
int (*const calls[])(int) = { twice, twice_again };
void scale(float *restrict a, const float *restrict b, int n) { for (int i = 0; i < n; i++) a[i] += b[i] * 3.5f; }
void pack(int *restrict a, const int *restrict b) { a[0] = b[0]+1; a[1] = b[1]+1; a[2] = b[2]+1; a[3] = b[3]+1; }
double sum(const struct node *n) {
  double s = 0;
  for (; n; n = n->next) s += n->value + table[n->tags[3] & 63];
  return s;
}
int triangle(int n) { return n <= 0 ? 0 : n + triangle(n - 1); }
"""


@pytest.fixture(scope="module")
def bitcode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c({"source": SOURCE}, tmp_path_factory.mktemp("cc1"))[0]


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[LlvmBackend]:
    async with open_llvm_backend(scratch_dir=tmp_path, environ={}) as opened:
        yield opened


async def _compile(backend: LlvmBackend, content: Path | bytes, options: CodegenOptions, out: Path) -> Finished:
    module = Module("m", content)
    inspection = backend.inspect(module, options)
    item = Optimize(module, options, out, out / "repro", inspection.target, inspection.size)
    with trio.fail_after(60):
        (result,) = await backend.compile([item])
    assert isinstance(result, Finished), result
    return result


@pytest.fixture
def engine(backend: LlvmBackend, tmp_path: Path) -> ToolchainEngine:
    tools = backend.toolchain
    return ToolchainEngine(tools, Planner(tools, tmp_path), tmp_path, lambda: "", OomWatch())


def _task(content: Path, options: CodegenOptions, output: Path, pre_link: PreLink) -> Task:
    item = Optimize(Module("m", content), options, output.parent, output.parent, Target(TRIPLE, ""), 0, pre_link)
    return Task(item, content, content.stem, TRIPLE, {EmitKind.BITCODE: output}, 1.0)


async def _pre_link(
    engine: ToolchainEngine, content: Path, options: CodegenOptions, output: Path, pre_link: PreLink
) -> bytes:
    with trio.fail_after(60):
        (report,) = await engine.compile_batch([_task(content, options, output, pre_link)])
    assert (report.failed, report.diagnostics) == (False, ())
    return output.read_bytes()


def _driver(source: Path, output: Path, *arguments: str, triple: str = TRIPLE) -> bytes:
    command: list[str | Path] = [
        zig(),
        "clang",
        "-c",
        f"--target={triple}",
        *arguments,
        "-x",
        "ir",
        source,
        "-o",
        output,
    ]
    subprocess.run(command, check=True, capture_output=True, env={})
    return output.read_bytes()


@pytest.mark.parametrize("level", list(OptLevel))
async def test_every_level_gives_the_drivers_bytes(
    backend: LlvmBackend, bitcode: Path, tmp_path: Path, level: OptLevel
) -> None:
    options = evolve(OPTIONS, opt_level=level, emit=frozenset(EmitKind) - {EmitKind.FATOBJ})
    result = await _compile(backend, bitcode, options, tmp_path / "out")
    flag = f"-O{level.value}"
    forms = {
        EmitKind.OBJECT: [flag],
        EmitKind.ASSEMBLY: [flag, "-S"],
        EmitKind.BITCODE: [flag, "-emit-llvm"],
    }
    ours = {artifact.kind: artifact.path.read_bytes() for artifact in result.artifacts}
    assert set(ours) == options.emit
    for kind, arguments in forms.items():
        assert ours[kind] == _driver(bitcode, tmp_path / "driver", *arguments), kind
    # The name of the input is in the text.
    theirs = _driver(bitcode, tmp_path / "driver", flag, "-S", "-emit-llvm")
    assert ours[EmitKind.IR].split(b"\n", 1)[1] == theirs.split(b"\n", 1)[1]


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"vectorize_loops": False}, ["-fno-vectorize"]),
        ({"vectorize_slp": False}, ["-fno-slp-vectorize"]),
        ({"unroll_loops": False}, ["-fno-unroll-loops"]),
        ({"unroll_loops": True, "opt_level": OptLevel.O1}, ["-O1", "-funroll-loops"]),
        ({"vectorize_loops": True, "opt_level": OptLevel.O1}, ["-O1", "-fvectorize"]),
        ({"merge_functions": True}, ["-Xclang", "-fmerge-functions"]),
        ({"target_cpu": "haswell"}, ["-march=haswell"]),
        ({"target_features": ("+avx2", "-sse4.1")}, ["-mavx2", "-mno-sse4.1"]),
        ({"relocation_model": RelocationModel.STATIC}, ["-fno-pic"]),
        ({"code_model": CodeModel.LARGE}, ["-mcmodel=large"]),
    ],
)
async def test_options_give_the_drivers_bytes(
    backend: LlvmBackend, tmp_path: Path, changes: dict[str, Any], flags: list[str]
) -> None:
    # Functions without attributes of their own, so that CPU and features are ours to choose.
    source = tmp_path / "plain.ll"
    _driver(compile_c({"source": SOURCE}, tmp_path / "c")[0], source, "-O1", "-S", "-emit-llvm", "-fno-vectorize")
    text = "\n".join(line for line in source.read_text().splitlines() if not line.startswith("attributes #"))
    source.write_text(_without_attribute_groups(text))
    options = evolve(OPTIONS, **changes)
    (artifact,) = (await _compile(backend, source, options, tmp_path / "out")).artifacts
    ours = artifact.path.read_bytes()
    # The driver is given bitcode that knows its source, as modules from compilers do.
    assert ours == _driver(source, tmp_path / "driver", *(["-O2"] if "opt_level" not in changes else []), *flags)
    if changes.keys() & {"target_cpu", "vectorize_loops", "merge_functions", "relocation_model", "code_model"}:
        plain = evolve(OPTIONS, opt_level=options.opt_level)
        (artifact,) = (await _compile(backend, source, plain, tmp_path / "plain")).artifacts
        assert artifact.path.read_bytes() != ours, "the option does nothing"


def _without_attribute_groups(text: str) -> str:
    return re.sub(r" #\d+", "", text)


@pytest.mark.parametrize(
    "triple",
    [
        "aarch64-unknown-linux-gnu",
        "riscv64-unknown-linux-gnu",
        "armv7-unknown-linux-gnueabihf",
        "powerpc64le-unknown-linux-gnu",
        "s390x-unknown-linux-gnu",
        "arm64-apple-macosx13.0.0",
        "x86_64-pc-windows-msvc19.33.0",
        "x86_64-w64-windows-gnu",
        "i686-unknown-linux-gnu",
    ],
)
async def test_other_targets_give_the_drivers_bytes(backend: LlvmBackend, tmp_path: Path, triple: str) -> None:
    source = tmp_path / "source.c"
    source.write_text(SOURCE)
    raw = tmp_path / "raw.bc"
    command = [zig(), "clang", f"--target={triple}", "-c", "-O2", "-Xclang", "-disable-llvm-passes", "-emit-llvm"]
    await trio.run_process([*command, source, "-o", raw], env={})
    result = await _compile(backend, raw, OPTIONS, tmp_path / "out")
    no_time_stamp = ["-mno-incremental-linker-compatible"] if "windows" in triple else []
    theirs = _driver(raw, tmp_path / "driver", "-O2", *no_time_stamp, triple=triple)
    assert result.artifacts[0].path.read_bytes() == theirs
    assert result.diagnostics == ()


@pytest.mark.parametrize("level", list(OptLevel))
@pytest.mark.parametrize("pre_link", list(PreLink))
async def test_pre_linked_bitcode_is_the_drivers(
    engine: ToolchainEngine, bitcode: Path, tmp_path: Path, level: OptLevel, pre_link: PreLink
) -> None:
    options = evolve(OPTIONS, opt_level=level)
    ours = await _pre_link(engine, bitcode, options, tmp_path / "ours.bc", pre_link)
    assert ours == _driver(bitcode, tmp_path / "driver", f"-O{level.value}", f"-flto={pre_link.value}")
    assert read_header(ours).has_summary


@pytest.mark.parametrize("pre_link", list(PreLink))
@pytest.mark.parametrize(
    "changes",
    [
        {"extra_passes": "function(sink)"},
        {"prepopulate_passes": False},
        {"prepopulate_passes": False, "extra_passes": "function(sink)"},
        {"print_passes": True, "extra_passes": "function(sink)"},
        {"sanitizers": frozenset({Sanitizer.ADDRESS}), "extra_passes": "function(sink)"},
    ],
)
async def test_whatever_else_is_asked_for_pre_linked_bitcode_has_a_summary(
    engine: ToolchainEngine, tmp_path: Path, changes: dict[str, Any], pre_link: PreLink
) -> None:
    source = tmp_path / "source.ll"
    source.write_text(GOOD_IR + "define i32 @load(ptr %p) sanitize_address {\n %v = load i32, ptr %p\n ret i32 %v\n}\n")
    data = await _pre_link(engine, source, evolve(OPTIONS, **changes), tmp_path / "out.bc", pre_link)
    header = read_header(data)
    assert header.has_summary
    assert header.module_count == 1
    # Instrumented once, by the ordinary passes: the run that adds the summary does not do it again.
    text = _driver(
        tmp_path / "out.bc", tmp_path / "text.ll", "-O0", "-S", "-emit-llvm", "-Xclang", "-disable-llvm-passes"
    )
    assert text.count(b"call void @__asan_report_load4") == ("sanitizers" in changes)


async def test_what_a_pre_link_pipeline_prints(engine: ToolchainEngine, bitcode: Path, tmp_path: Path) -> None:
    for pre_link in PreLink:
        task = _task(bitcode, evolve(OPTIONS, print_passes=True), tmp_path / "out.bc", pre_link)
        with trio.fail_after(60):
            (report,) = await engine.compile_batch([task])
        names = [line.removeprefix("Running pass: ").partition(" ")[0] for line in report.passes]
        assert names.count("NameAnonGlobalPass") == 1
        assert "CGProfilePass" not in names  # that comes after the link
        assert ("LoopVectorizePass" in names) is (pre_link is PreLink.FAT)


async def test_a_triple_that_the_driver_would_rewrite_stays(backend: LlvmBackend, tmp_path: Path) -> None:
    text = GOOD_IR.replace(TRIPLE, "x86_64-pc-windows-msvc").replace("e-m:e-", "e-m:w-")
    options = evolve(OPTIONS, emit=frozenset({EmitKind.IR}))
    result = await _compile(backend, text.encode(), options, tmp_path)
    assert 'target triple = "x86_64-pc-windows-msvc"' in result.artifacts[0].path.read_text()
    assert result.diagnostics == ()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"target_cpu": "nonesuch"}, "unknown target CPU 'nonesuch'"),
        ({"target_features": ("+nonesuch",)}, "'\\+nonesuch' is not a recognized feature"),
        ({"code_model": CodeModel.TINY}, "unsupported argument 'tiny' to option '-mcmodel='"),
        ({"relocation_model": RelocationModel.ROPI}, "unsupported option '-fropi'"),
        ({"sanitizers": frozenset({Sanitizer.MEMORY, Sanitizer.THREAD})}, "not allowed with '-fsanitize=memory'"),
        ({"extra_passes": "function(nonesuch)"}, "unknown function pass 'nonesuch'"),
        ({"extra_passes": "function("}, "unable to parse pass pipeline"),
        ({"profile_use": Path("/no/such.profdata")}, "No such file"),
    ],
)
async def test_what_clang_does_not_have_is_refused_in_its_words(
    backend: LlvmBackend, changes: dict[str, Any], complaint: str
) -> None:
    target = Target(TRIPLE, "")
    for _ in range(2):
        with trio.fail_after(30), pytest.raises(RequestError, match=complaint):
            await backend.prepare(target, evolve(OPTIONS, **changes))
    with trio.fail_after(30):
        await backend.prepare(target, OPTIONS)


@pytest.mark.parametrize(
    "changes",
    [
        {"relocation_model": RelocationModel.ROPI},
        {"code_model": CodeModel.TINY},
        {"sanitizers": frozenset({Sanitizer.THREAD, Sanitizer.MEMORY})},
    ],
)
async def test_refusals_end_where_the_drivers_words_end(backend: LlvmBackend, changes: dict[str, Any]) -> None:
    with trio.fail_after(30), pytest.raises(RequestError) as caught:
        await backend.prepare(Target(TRIPLE, ""), evolve(OPTIONS, **changes))
    message = str(caught.value)
    assert "-cc1" not in message
    assert "in-process" not in message
    assert "\n" not in message


async def test_extra_passes_need_an_architecture_of_lld(backend: LlvmBackend) -> None:
    options = evolve(OPTIONS, extra_passes="function(dce)")
    with trio.fail_after(30), pytest.raises(RequestError, match="does not know the architecture"):
        await backend.prepare(Target("wasm32-unknown-unknown", ""), options)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"emit": frozenset()}, "nothing to emit: name at least one of obj, fatobj, asm, bc, ir"),
        ({"emit": frozenset({EmitKind.OBJECT, EmitKind.FATOBJ})}, "obj and fatobj are one file"),
        ({"target_features": ("avx2",)}, r"write \+name or -name"),
        ({"target_features": ("+a,-b",)}, "not a target feature"),
        ({"target_cpu": ""}, "not the name of a CPU"),
        ({"target_cpu": "-O3"}, "not the name of a CPU"),
        ({"target_triple": "x86 64"}, "not a target triple"),
        ({"extra_passes": "a\0b"}, "NUL"),
        ({"time_limit": 0.0}, "time limit"),
        ({"time_limit": float("nan")}, "time limit"),
        ({"memory_limit": 0}, "memory limit"),
        ({"memory_limit": 2**20}, "64 MiB"),
        ({"prepopulate_passes": False, "sanitizers": frozenset({Sanitizer.ADDRESS})}, "switched off"),
    ],
)
def test_options_that_are_wrong_everywhere(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        check_options(evolve(OPTIONS, **changes))
    check_options(OPTIONS)


_ANSWER = """clang version 22.1.8
Target: x86_64-unknown-linux-gnu
 (in-process)
 "/a path/zig" "-cc1" "-triple" "t" "-O2" "-emit-obj" "-disable-free" "-disable-llvm-verifier" "-main-file-name" \
"null" "-mrelocation-model" "static" "-target-cpu" "x \\"y" "-fdebug-compilation-dir=/secret dir" "-resource-dir" \
"/a path/lib" "-o" "null.o" "-x" "ir" "/dev/null"
"""


def test_the_drivers_answer_is_cut_to_what_matters() -> None:
    kept = parse_driver(_ANSWER)
    assert kept == (
        "-triple",
        "t",
        "-O2",
        "-disable-llvm-verifier",
        "-mrelocation-model",
        "static",
        "-target-cpu",
        'x "y',
    )
    plan = make_plan("mine", OPTIONS, kept)
    assert plan.cpu == 'x "y'
    arguments = cc1_arguments(plan, EmitKind.OBJECT, ["in"], output="out")
    assert arguments[:4] == ("-cc1", "-triple", "mine", "-O2")
    assert arguments[-8:] == ("-Wno-override-module", "-emit-obj", "-disable-free", "-o", "out", "-x", "ir", "in")
    position = arguments.index("-mrelocation-model")
    assert arguments[position + 1] == "static"
    asked = make_plan("mine", evolve(OPTIONS, relocation_model=RelocationModel.PIC), kept).arguments
    position = asked.index("-mrelocation-model")
    assert asked[position + 1 : position + 4] == ("pic", "-pic-level", "2")


@pytest.mark.parametrize("answer", ["", "clang: error: no way", "hello\n", ' "a" "b"\n'])
def test_an_answer_without_a_command_is_a_refusal(answer: str) -> None:
    with pytest.raises(RequestError):
        parse_driver(answer)


def test_equal_options_have_equal_keys() -> None:
    kinds = list(EmitKind)
    keys = {options_key(evolve(OPTIONS, emit=frozenset(order))) for order in (kinds, kinds[::-1])}
    assert len(keys) == 1
    assert options_key(OPTIONS) != options_key(evolve(OPTIONS, opt_level=OptLevel.O1))
    assert options_key(OPTIONS) != options_key(evolve(OPTIONS, time_limit=1.0))


@pytest.mark.parametrize(
    ("triple", "flag"),
    [
        ("x86_64-linux-gnu", "-march=c"),
        ("i686-linux-gnu", "-march=c"),
        ("s390x-linux-gnu", "-march=c"),
        ("aarch64-linux-gnu", "-mcpu=c"),
        ("riscv64-linux-gnu", "-mcpu=c"),
        ("avr", "-mmcu=c"),
    ],
)
def test_the_cpu_is_named_as_the_architecture_wants_it(triple: str, flag: str) -> None:
    assert flag in driver_arguments(triple, evolve(OPTIONS, target_cpu="c"))

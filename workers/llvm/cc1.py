"""From options to command lines: what `clang -cc1` and `ld.lld` are told. Pure: nothing is started here.

The clang driver decides what `-O2` for a given target means: frame pointers, unwind tables, CPU, ABI, vectorisers,
hundreds of features on RISC-V. Any table of ours would be a copy that ages. So the driver is asked, once for every
distinct pair of triple and options (10 milliseconds), what it *would* run (`clang -###`); `parse_driver` takes the
arguments of that cc1 line and removes what is about paths and about one file. With them goes everything that the
driver checks for us: code models, sanitizers and CPUs that the target does not have.

What is different from the driver's own run, and why:

* `-disable-free` is dropped for batches: memory would grow by 0.8 MiB per small module.
* The compilation directory is `.`: nothing of this machine gets into an output.
* The triple is the module's own, to the letter: the driver would normalise it.
* COFF objects for MSVC carry no time stamp: the same module gives the same bytes. Microsoft's linker alone asks for
  one, and only to link incrementally.

Of `-disable-llvm-verifier` nothing is lost but 3 % of the time: clang verifies IR when it has read it, whatever the
flags, and a broken module ends as an error.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from functools import lru_cache

from attrs import evolve, frozen

from workers.errors import RequestError
from workers.llvm.form import Form
from workers.work import CodegenOptions, EmitKind, RelocationModel

__all__ = [
    "BATCHABLE",
    "NO_INDEX",
    "SUFFIX",
    "Form",
    "Plan",
    "cc1_arguments",
    "check_options",
    "check_triple",
    "driver_arguments",
    "embed_arguments",
    "lld_arguments",
    "make_plan",
    "options_key",
    "parse_driver",
]

SUFFIX = {
    EmitKind.OBJECT: ".o",
    EmitKind.FATOBJ: ".o",
    EmitKind.ASSEMBLY: ".s",
    EmitKind.BITCODE: ".bc",
    EmitKind.IR: ".ll",
}
"""What clang and ltod append to a name."""

_EMIT = {
    EmitKind.OBJECT: ("-emit-obj",),
    EmitKind.FATOBJ: ("-emit-obj",),
    EmitKind.ASSEMBLY: ("-S",),
    EmitKind.BITCODE: ("-emit-llvm-bc", "-emit-llvm-uselists"),
    EmitKind.IR: ("-emit-llvm",),
}

BATCHABLE = frozenset({EmitKind.OBJECT, EmitKind.ASSEMBLY})
"""Kinds whose bytes are the same from a process that compiles one module and one that compiles many.

Bitcode and IR are not: modules in one process share a context, so that the second `%struct.S` becomes
`%struct.S.0`; nor are objects that carry bitcode. Plain objects and assembly were compared on 437 modules, with debug
information and conflicting types.
"""

_CODE = BATCHABLE | {EmitKind.FATOBJ}

PROFILE = "profile.profdata"
"""Where actions see the profile."""

NO_INDEX = "none.thinlto.bc"
"""Where actions see an empty ThinLTO index."""

_PROFILE_FLAG = "-fprofile-instrument-use-path="

_LEAST_MEMORY = 64 * 2**20
"""No LLVM starts with less. The limit is one of address space, of which a static clang alone takes 185 MiB."""

_DROPPED = frozenset(
    {"-disable-free", "-mincremental-linker-compatible", "-emit-obj", "-emit-llvm", "-emit-llvm-bc", "-S"}
)
_DROPPED_WITH_VALUE = frozenset({"-main-file-name", "-resource-dir", "-o", "-x", "-dumpdir"})
_DROPPED_PREFIXES = (
    "-fdebug-compilation-dir=",
    "-fcoverage-compilation-dir=",
    "-fsanitize-ignorelist=",  # both lists are for front ends, and are absolute paths
    "-fsanitize-system-ignorelist=",
)

_RELOCATION_FLAG = {
    RelocationModel.STATIC: "-fno-pic",
    RelocationModel.DYNAMIC_NO_PIC: "-mdynamic-no-pic",
    RelocationModel.ROPI: "-fropi",
    RelocationModel.RWPI: "-frwpi",
}

_WORD = re.compile(r"[A-Za-z0-9_.+:-]+")
_CPU_WORD = re.compile(r"[A-Za-z0-9_.+][A-Za-z0-9_.+:-]*")
_FEATURE = re.compile(r"[+-][A-Za-z0-9_.-]+")
_LEVEL = re.compile(r"-O.")


@frozen
class Plan:
    """How modules of one triple are brought into one form with one set of options.

    `arguments` follow `-cc1`; they end where the input and the kind of the output begin. `cpu` is the one among them,
    for lld, which is told separately.
    """

    arguments: tuple[str, ...]
    cpu: str
    form: Form = Form.CODE


def check_options(options: CodegenOptions) -> None:
    """Refuse what is wrong whatever the target. Raises `RequestError`."""
    if not options.emit:
        raise RequestError(f"nothing to emit: name at least one of {', '.join(kind.value for kind in EmitKind)}")
    if options.emit >= {EmitKind.OBJECT, EmitKind.FATOBJ}:
        raise RequestError("obj and fatobj are one file: name one of them (every linker takes a fatobj for an object)")
    if not options.time_limit > 0:
        raise RequestError(f"the time limit is {options.time_limit:g} s: give a positive number of seconds")
    if options.memory_limit is not None and options.memory_limit < _LEAST_MEMORY:
        raise RequestError(
            f"the memory limit is {options.memory_limit} bytes, with which nothing compiles: give at least "
            f"{_LEAST_MEMORY} ({_LEAST_MEMORY // 2**20} MiB)"
        )
    if options.target_triple is not None and not _WORD.fullmatch(options.target_triple):
        raise RequestError(f"not a target triple: {options.target_triple!r}")
    if options.target_cpu is not None and not _CPU_WORD.fullmatch(options.target_cpu):
        raise RequestError(f"not the name of a CPU: {options.target_cpu!r}")
    for feature in options.target_features:
        if not _FEATURE.fullmatch(feature):
            raise RequestError(f"not a target feature: {feature!r}; write +name or -name")
    if "\0" in options.extra_passes:
        raise RequestError("the extra passes hold a NUL character")
    if not options.prepopulate_passes and (options.sanitizers or options.profile_use is not None):
        raise RequestError("sanitizers and profiles are used by the ordinary passes, which are switched off")


def check_triple(triple: str) -> None:
    """Refuse a triple that cannot be one: it comes from a module, and goes into command lines and messages."""
    if not _WORD.fullmatch(triple):
        raise RequestError(f"not a target triple: {triple!r}")


@lru_cache(maxsize=256)
def options_key(options: CodegenOptions) -> str:
    """A text that is equal for options with which modules may share a process, whatever order sets iterate in."""
    sets = sorted(kind.value for kind in options.emit), sorted(one.value for one in options.sanitizers)
    return f"{sets} {evolve(options, emit=frozenset(), sanitizers=frozenset())}"


def driver_arguments(triple: str, options: CodegenOptions, form: Form = Form.CODE) -> tuple[str, ...]:
    """What to ask the driver: these follow `clang`, and its answer goes into `parse_driver`."""
    arch = triple.partition("-")[0]
    # NVPTX has no integrated assembler, and its driver would look for another one.
    mode = "-S" if arch.startswith("nvptx") else "-c"
    asked = ["-###", "--no-default-config", "-nogpulib", mode, f"--target={triple}", f"-O{options.opt_level.value}"]
    asked += form.value.split()
    asked += _switch("vectorize", options.vectorize_loops)
    asked += _switch("slp-vectorize", options.vectorize_slp)
    asked += _switch("unroll-loops", options.unroll_loops)
    if options.target_cpu is not None:
        asked.append(f"{_cpu_option(arch)}={options.target_cpu}")
    asked += _relocation(options.relocation_model)
    if options.code_model is not None:
        asked.append(f"-mcmodel={options.code_model.value}")
    if options.sanitizers:
        asked.append("-fsanitize=" + ",".join(sorted(one.value for one in options.sanitizers)))
    if options.profile_use is not None:
        asked.append(f"-fprofile-use={options.profile_use.absolute()}")
    return (*asked, "-x", "ir", "/dev/null")


def _switch(name: str, value: bool | None) -> list[str]:
    match value:
        case None:
            return []
        case True:
            return [f"-f{name}"]
        case False:
            return [f"-fno-{name}"]


def _relocation(model: RelocationModel | None) -> list[str]:
    match model:
        case None | RelocationModel.PIC:
            # Most targets have it by default, and some of them refuse the flag (Windows): see `make_plan`.
            return []
        case RelocationModel.ROPI_RWPI:
            return ["-fropi", "-frwpi"]
        case _:
            return [_RELOCATION_FLAG[model]]


def _cpu_option(arch: str) -> str:
    """The driver's option that names the CPU; it depends on the architecture."""
    if arch.startswith(("x86", "i386", "i486", "i586", "i686", "amd64", "s390x", "loongarch", "nvptx")):
        return "-march"
    return "-mmcu" if arch in ("avr", "msp430") else "-mcpu"


def parse_driver(stderr: str) -> tuple[str, ...]:
    """The arguments of the cc1 line in the driver's answer, without those that are about paths or one file.

    Raises `RequestError` in the driver's words where it refuses, or where there is no such line.
    """
    errors = re.findall(r"^\S+: error: (.*)$", stderr, re.MULTILINE)
    if errors:
        raise RequestError("; ".join(errors))
    for line in stderr.splitlines():
        if not line.startswith(' "'):
            continue
        words = shlex.split(line)
        if "-cc1" in words:
            return tuple(_kept(words[words.index("-cc1") + 1 :]))
    raise RequestError(f"clang's driver does not say how to compile: {stderr.strip() or 'it says nothing'}")


def _kept(words: Sequence[str]) -> Iterable[str]:
    rest = iter(words[:-1])  # the last one is the input
    for word in rest:
        if word in _DROPPED_WITH_VALUE:
            next(rest, None)
        elif word not in _DROPPED and not word.startswith(_DROPPED_PREFIXES):
            yield word


def make_plan(triple: str, options: CodegenOptions, answer: Sequence[str], form: Form = Form.CODE) -> Plan:
    """Make of the driver's answer what modules of `triple` are compiled with."""
    arguments: list[str] = []
    cpu = ""
    rest = iter(answer)
    for word in rest:
        match word:
            case "-triple":
                next(rest)
                arguments += [word, triple]
            case "-mrelocation-model":
                model = next(rest)
                if options.relocation_model is RelocationModel.PIC and model != "pic":
                    arguments += [word, "pic", "-pic-level", "2"]
                else:
                    arguments += [word, model]
            case "-target-cpu":
                cpu = next(rest)
                arguments += [word, cpu]
            case _ if word.startswith(_PROFILE_FLAG):
                arguments.append(f"{_PROFILE_FLAG}{PROFILE}")
            case _:
                arguments.append(word)
    for feature in options.target_features:
        arguments += ["-target-feature", feature]
    if options.merge_functions:
        arguments.append("-fmerge-functions")
    # A triple that the request overrides is overridden knowingly.
    arguments += ["-fdebug-compilation-dir=.", "-Wno-override-module"]
    return Plan(tuple(arguments), cpu, form)


def cc1_arguments(
    plan: Plan,
    kind: EmitKind,
    inputs: Sequence[str],
    *,
    output: str | None = None,
    run_passes: bool = True,
    print_passes: bool = False,
) -> tuple[str, ...]:
    """What follows `clang`. Without `output`, each output is written beside its input with the suffix of its kind.

    Without `run_passes` the optimiser leaves the module as it is; bitcode for LTO gets its summary all the same.
    """
    # The order of uses is what `-emit-llvm` keeps, and `-flto` does not.
    emit = ("-emit-llvm-bc",) if plan.form.is_bitcode else _EMIT[kind]
    arguments = ["-cc1", *plan.arguments, *emit]
    if not run_passes and plan.form.is_bitcode:
        arguments = _summary_only(arguments)
    elif not run_passes:
        # It would instrument a second time, or look for a profile that only the first run needs.
        arguments = [word for word in arguments if not word.startswith(_PROFILE_FLAG)]
        arguments.append("-disable-llvm-passes")
    if print_passes:
        arguments.append("-fdebug-pass-manager")
        if kind in _CODE:
            arguments += ["-mllvm", "-debug-pass=Executions"]
    if output is not None:
        arguments += ["-disable-free", "-o", output]
    return (*arguments, "-x", "ir", *inputs)


def embed_arguments(
    plan: Plan, source: str, output: str, *, run_passes: bool = True, print_passes: bool = False
) -> tuple[str, ...]:
    """What follows `clang` to make an object of bitcode for LTO, `source`, and to put exactly that bitcode into it.

    Of the pipeline only what comes after the link is run: the file `NO_INDEX`, which is empty, says that the module
    was prepared for ThinLTO and that there is nothing to import.
    """
    embedding = ("-fembed-bitcode=bitcode", f"-fthinlto-index={NO_INDEX}")
    with_embedding = evolve(plan, arguments=(*_without_first_half(plan.arguments), *embedding))
    return cc1_arguments(
        with_embedding, EmitKind.FATOBJ, [source], output=output, run_passes=run_passes, print_passes=print_passes
    )


def _summary_only(arguments: Sequence[str]) -> list[str]:
    """Without any pass there is no summary either, so: -O0, which prepares names and aliases for one.

    It also inlines what must be inlined, of which an ordinary pipeline leaves nothing.
    """
    return ["-O0" if _LEVEL.fullmatch(word) else word for word in _without_first_half(arguments)]


def _without_first_half(arguments: Iterable[str]) -> Iterable[str]:
    """Without what was done already to a module that went through a pre-link pipeline: instrumentation, profile."""
    return (word for word in arguments if not word.startswith(("-fsanitize", _PROFILE_FLAG)))


def lld_arguments(plan: Plan, options: CodegenOptions, source: str, output: str) -> tuple[str, ...]:
    """What follows `ld.lld` to run the extra passes: cc1 cannot run a pipeline by name, a relocatable link can."""
    arguments = ["-r", "--no-dependent-libraries", f"--lto-newpm-passes={options.extra_passes}", "--lto-emit-llvm"]
    if plan.cpu:
        arguments.append(f"--plugin-opt=mcpu={plan.cpu}")
    if options.target_features:
        arguments.append(f"--mllvm=-mattr={','.join(options.target_features)}")
    if options.print_passes:
        arguments.append("--lto-debug-pass-manager")
    return (*arguments, source, "-o", output)

"""What llvmlite can be asked for, and how: options in our words become a request in the child's words.

What a request is, `workers.llvm.child.main` says; its answer is the business of `workers.llvm.llvmlite_pool`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from workers.errors import InternalError
from workers.target import parse_triple
from workers.work import CodegenOptions, CodeModel, EmitKind, OptLevel, PreLink, RelocationModel

__all__ = ["Job", "child_argv", "make_request", "reproduce_argv", "unsupported"]

_CHILD_MAIN = Path(__file__).parent / "child" / "main.py"

_CPUS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "x86_64": ("x86-64", ()),
    "aarch64": ("generic", ("+v8a", "+fp-armv8", "+neon")),
}
"""The CPU and features that clang's driver gives a Linux target when nobody names any."""

_RELOCATION_MODELS = {
    RelocationModel.STATIC: "static",
    RelocationModel.PIC: "pic",
    RelocationModel.DYNAMIC_NO_PIC: "dynamicnopic",
}

# Not `medium`: its limit for large data cannot be set.
_CODE_MODELS = {None: "default", CodeModel.SMALL: "small", CodeModel.KERNEL: "kernel", CodeModel.LARGE: "large"}

# How code is generated at the size levels, which have no pipeline here.
_CODEGEN_LEVELS = {OptLevel.SIZE: 2, OptLevel.MIN_SIZE: 2}


@frozen
class Job:
    """One module to compile: `content` is bitcode or textual IR, or the file that has it; `outputs` says where to.

    The directories of `outputs` exist.
    """

    module: str
    content: Path | bytes = field(repr=lambda c: str(c) if isinstance(c, Path) else f"<{len(c)} bytes>")
    triple: str
    options: CodegenOptions
    outputs: Mapping[EmitKind, Path]


def unsupported(options: CodegenOptions, triple: str, pre_link: PreLink | None = None) -> str | None:
    """Why llvmlite cannot do for `triple` what clang would do with these options; `None`: it can.

    A module can have reasons of its own: see `workers.llvm.child.scan.needs_toolchain`.
    """
    if pre_link is not None or EmitKind.FATOBJ in options.emit:
        return "llvmlite cannot prepare modules for LTO"
    target = parse_triple(triple)
    # The assembly parser, without which inline assembly aborts, exists for the host's architecture only.
    if _arch(triple) not in _CPUS or _arch(triple) != os.uname().machine:
        return f"llvmlite generates code for this machine's architecture only, not for '{triple}'"
    if target.os != "linux" or target.environment in ("android", "ohos"):
        return f"llvmlite generates code for Linux only, not for '{triple}'"
    if options.target_cpu == "native":
        return "llvmlite does not resolve the CPU name 'native'"
    if options.opt_level in _CODEGEN_LEVELS and options.prepopulate_passes:
        return f"llvmlite has no pipeline for -O{options.opt_level.value}"
    if options.merge_functions:
        return "llvmlite cannot add function merging to the pipeline"
    if options.extra_passes:
        return "llvmlite cannot run a pipeline given as text"
    if options.print_passes:
        return "llvmlite cannot print the passes that run"
    if options.profile_use is not None:
        return "llvmlite cannot use a profile"
    if options.sanitizers:
        return "llvmlite cannot run sanitizer passes"
    if options.relocation_model is not None and options.relocation_model not in _RELOCATION_MODELS:
        return f"llvmlite does not have the relocation model '{options.relocation_model.value}'"
    if options.code_model is not None and options.code_model not in _CODE_MODELS:
        return f"llvmlite does not fully have the code model '{options.code_model.value}'"
    return None


def make_request(job: Job) -> dict[str, Any]:
    """What the child reads: every `None` of the options is replaced by what clang's driver does at that level.

    Raises `InternalError` for options that `unsupported` refuses.
    """
    options = job.options
    reason = unsupported(options, job.triple)
    if reason is not None:
        raise InternalError(f"{job.module} was given to llvmlite although {reason}")
    level = _CODEGEN_LEVELS.get(options.opt_level)
    if level is None:
        level = int(options.opt_level.value)

    def from_o2_on(choice: bool | None) -> bool:
        return level >= 2 if choice is None else choice

    cpu, features = _CPUS[_arch(job.triple)]
    if options.target_cpu is not None:
        cpu, features = options.target_cpu, ()
    return {
        # Absolute, because children run elsewhere.
        "input": str(job.content.absolute()) if isinstance(job.content, Path) else None,
        "outputs": {kind.value: str(path.absolute()) for kind, path in job.outputs.items()},
        "triple": job.triple,
        "cpu": cpu,
        "features": ",".join((*features, *options.target_features)),
        "level": level,
        "pipeline": options.prepopulate_passes,
        "vectorize_loops": from_o2_on(options.vectorize_loops),
        "vectorize_slp": from_o2_on(options.vectorize_slp),
        "unroll_loops": from_o2_on(options.unroll_loops),
        "relocation": _RELOCATION_MODELS[options.relocation_model or RelocationModel.PIC],
        "code_model": _CODE_MODELS[options.code_model],
        "memory_limit": options.memory_limit,
    }


def child_argv(mode: str, argument: str) -> list[str]:
    """The command line of the child's program. Raises `OSError` where llvmlite is not installed."""
    spec = importlib.util.find_spec("llvmlite")
    if spec is None or spec.origin is None:
        raise OSError("llvmlite is not installed")
    site = Path(spec.origin).parents[1]
    return [sys.executable, "-I", "-S", str(_CHILD_MAIN), str(site), mode, argument]


def reproduce_argv(options: CodegenOptions, triple: str, input: str, outputs: Mapping[EmitKind, str]) -> list[str]:
    """A command that does to the file `input` what a child does to a module, in a process of its own.

    Paths may be relative to the directory it will run in. It ends with status 0, with 1 and LLVM's message, or by
    the signal that ends the child. Raises `OSError` where llvmlite is not installed.
    """
    request = make_request(Job(input, b"", triple, options, {}))
    request["input"] = input
    request["outputs"] = {kind.value: path for kind, path in outputs.items()}
    return child_argv("--once", json.dumps(request))


def _arch(triple: str) -> str:
    arch = parse_triple(triple).arch
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(arch, arch)

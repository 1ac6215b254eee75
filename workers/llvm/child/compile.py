"""One module through llvmlite: parse, verify, optimise, emit. Nothing about processes or the protocol belongs here.

The work is what `clang -cc1 -x ir` does with the flags its driver passes at the same level; where llvmlite's API
cannot say the same to LLVM, the module is refused, never compiled a little differently.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite.binding.newpassmanagers import NewPassManager

from workers.llvm.child.scan import BITCODE_MAGICS, needs_toolchain

__all__ = ["RejectedError", "UnsuitableError", "compile_module", "initialize", "llvm_version"]


class RejectedError(Exception):
    """The module cannot be compiled at all; the message is LLVM's."""


class UnsuitableError(Exception):
    """The module may be valid, but llvmlite would not do what clang does; the message says why."""


def initialize() -> None:
    """Make the host's target known to LLVM; once per process, before the first module."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    # Without the parser, inline assembly makes LLVM abort.
    llvm.initialize_native_asmparser()


def llvm_version() -> str:
    """LLVM's version, as in `22.1.0`."""
    return ".".join(str(part) for part in llvm.llvm_version_info)


def compile_module(content: bytes, request: Mapping[str, Any], write: Callable[[str, bytes], None]) -> None:
    """Compile `content` as `request` says, and hand each output to `write(kind, bytes)`.

    `request` has `triple`, `cpu`, `features`, `level` (0 to 3), `relocation`, `code_model`, `pipeline` (run the
    optimiser?), `vectorize_loops`, `vectorize_slp`, `unroll_loops` and the list `kinds`.

    Raises `RejectedError` and `UnsuitableError`. LLVM itself may abort the process, or end it with status 1 after
    it wrote an `error:` line to stderr (inline assembly that does not parse, for one).
    """
    reason = needs_toolchain(content, optimizes=request["pipeline"] and request["level"] > 0)
    if reason is not None:
        raise UnsuitableError(reason)
    try:
        # A context of its own: types, constants and metadata go when the module goes.
        with llvm.create_context() as context, _parse(content, context) as module:
            _verify(module)
            machine = _target_machine(request)
            _fit_to_target(module, machine, request["triple"])
            if request["pipeline"]:
                _optimize(module, machine, request)
            _emit(module, machine, request["kinds"], write)
    except UnicodeDecodeError:
        # llvmlite decodes all that LLVM says, a symbol's name within a message included.
        raise UnsuitableError("llvmlite cannot read names that are not UTF-8") from None
    except RuntimeError as error:
        raise RejectedError(str(error).strip()) from None


def _parse(content: bytes, context: Any) -> Any:
    if content.startswith(BITCODE_MAGICS):
        return llvm.parse_bitcode(content, context)
    # LLVM would stop at the first NUL and take what stands before it for the whole text.
    if b"\0" in content:
        raise RejectedError("neither bitcode nor textual IR")
    return llvm.parse_assembly(content.decode(), context)


def _verify(module: Any) -> None:
    try:
        module.verify()
    except RuntimeError as error:
        raise RejectedError(f"invalid module: {str(error).strip()}") from None


def _fit_to_target(module: Any, machine: Any, triple: str) -> None:
    layout = str(machine.target_data)
    module.triple = triple
    if not module.data_layout:
        module.data_layout = layout
    elif module.data_layout != layout:
        raise UnsuitableError(f"its data layout '{module.data_layout}' is not '{layout}', that of {triple}")


_machines: dict[str, Any] = {}


def _target_machine(request: Mapping[str, Any]) -> Any:
    """The target machine of a request; machines are kept, for a build has one or two kinds of them."""
    fields = {
        "cpu": request["cpu"],
        "features": request["features"],
        "opt": request["level"],
        "reloc": request["relocation"],
        "codemodel": request["code_model"],
    }
    key = json.dumps([request["triple"], fields])
    if key not in _machines:
        with _stderr_apart() as read_stderr:
            machine = llvm.Target.from_triple(request["triple"]).create_target_machine(**fields)
            said = read_stderr()
        # LLVM only warns, and only here: the modules after this one would silently do without.
        if "is not a recognized" in said:
            raise RejectedError("\n".join(dict.fromkeys(said.splitlines())))
        machine.set_asm_verbosity(True)
        _machines[key] = machine
    return _machines[key]


@contextmanager
def _stderr_apart() -> Iterator[Callable[[], str]]:
    """Let what C++ code writes to stderr be read instead."""
    kept, apart = os.dup(2), os.memfd_create("stderr")
    os.dup2(apart, 2)
    try:
        yield lambda: os.pread(apart, 1 << 16, 0).decode(errors="replace")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(apart)


def _optimize(module: Any, machine: Any, request: Mapping[str, Any]) -> None:
    with llvm.create_pipeline_tuning_options(speed_level=request["level"]) as tuning:
        tuning.loop_vectorization = request["vectorize_loops"]
        tuning.slp_vectorization = request["vectorize_slp"]
        tuning.loop_unrolling = request["unroll_loops"]
        # clang interleaves exactly where it unrolls.
        tuning.loop_interleaving = request["unroll_loops"]
        with llvm.create_pass_builder(machine, tuning) as builder:
            passes = builder.getModulePassManager()
            try:
                passes.run(module, builder)
            finally:
                # close() would leak 83 kB: ObjectRef's empty _dispose() comes first in the class's order.
                NewPassManager._dispose(passes)
                passes.detach()


def _emit(module: Any, machine: Any, kinds: Sequence[str], write: Callable[[str, bytes], None]) -> None:
    """Write every output. IR comes first, and code but the last from a clone: generating code changes the module."""
    if "bc" in kinds:
        write("bc", module.as_bitcode())
    if "ir" in kinds:
        write("ir", str(module).encode())
    if "obj" in kinds and "asm" in kinds:
        with module.clone() as clone:
            write("obj", machine.emit_object(clone))
    elif "obj" in kinds:
        write("obj", machine.emit_object(module))
    if "asm" in kinds:
        write("asm", machine.emit_assembly(module).encode())

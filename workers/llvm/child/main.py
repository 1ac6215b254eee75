"""The program of an llvmlite child: `main.py SITE --serve PARENT`, or `main.py SITE --once REQUEST` for a reproducer.

SITE is the directory that llvmlite is imported from. Run it with `python -I -S`, by path: it then starts the same
from a wheel, from an editable checkout, in any directory and environment.

With `--serve` it answers requests from stdin on stdout until stdin ends. A request is two little-endian lengths
of 32 and 64 bits, a JSON object and the module's bytes (none if the object names an `input` file). Besides what
`compile_module` reads, the object has `outputs` (kind to path) and `memory_limit` (bytes of address space, or null).
An answer is a 32-bit length and a JSON object: `seconds`, `peak_rss`, `rss` and `stderr_end` (bytes written to
stderr so far), and `rejected` or `unsuitable` with a message if there are no outputs. The first answer, unasked,
has `llvm`. With `--once` the request is the argument, and the ending of the process is the answer.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

_PR_SET_PDEATHSIG = 1
_MAX_MESSAGE = 16_000  # characters; LLVM can quote a line of any length
_BUG = 70  # exit status: neither LLVM's 1 nor a signal
_LENGTHS = struct.Struct("<IQ")


def _part(path: str) -> str:
    """Where an output grows; the parent knows this name, and removes the file if this process is killed."""
    return f"{path}.part{os.getpid()}"


def _memory() -> dict[str, int]:
    """The process's resident set and its peak, in bytes; zeros where the kernel does not tell."""
    sizes = {"VmRSS": 0, "VmHWM": 0}
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in sizes:
                sizes[name] = int(rest.split()[0]) * 1024
    return {"rss": sizes["VmRSS"], "peak_rss": sizes["VmHWM"]}


def _reset_peak() -> None:
    """Let VmHWM begin anew. Where the kernel refuses, it stays the peak of the process's whole life."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _address_space() -> int:
    """The size of the process's address space in bytes; 0 where the kernel does not tell."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def _limit_memory(limit: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = hard if limit is None else limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _run(request: dict[str, Any], content: bytes) -> None:
    """Compile one module. Its outputs are whole under their names, or absent."""
    from workers.llvm.child import compile as compiler

    outputs: dict[str, str] = request["outputs"]
    if request["input"] is not None:
        try:
            content = Path(request["input"]).read_bytes()
        except OSError as error:
            raise compiler.RejectedError(f"cannot be read: {error.strerror}") from None

    def write(kind: str, data: bytes) -> None:
        Path(_part(outputs[kind])).write_bytes(data)

    try:
        compiler.compile_module(content, {**request, "kinds": list(outputs)}, write)
        for path in outputs.values():
            Path(_part(path)).replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = Path(next(iter(outputs.values()))).parent
            raise compiler.RejectedError(f"no space left on {where}") from None
        raise compiler.RejectedError(f"an output cannot be written: {error}") from None
    finally:
        for path in outputs.values():
            with suppress(OSError):
                Path(_part(path)).unlink()


def _answer(request: dict[str, Any], content: bytes, fresh: int) -> dict[str, Any]:
    """Compile one module in a process whose address space had `fresh` bytes before its first one."""
    from workers.llvm.child import compile as compiler

    answer: dict[str, Any] = {}
    _reset_peak()
    if request["memory_limit"] is not None:
        # What earlier modules left behind does not count, or the outcome would depend on them.
        _limit_memory(request["memory_limit"] + max(0, _address_space() - fresh))
    start = time.perf_counter()
    try:
        _run(request, content)
    except compiler.RejectedError as error:
        answer["rejected"] = str(error)[:_MAX_MESSAGE]
    except compiler.UnsuitableError as error:
        answer["unsuitable"] = str(error)[:_MAX_MESSAGE]
    answer["seconds"] = time.perf_counter() - start
    if request["memory_limit"] is not None:
        _limit_memory(None)
    answer["stderr_end"] = os.lseek(2, 0, os.SEEK_CUR)
    return answer | _memory()


def _send(replies: BinaryIO, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode()
    replies.write(struct.pack("<I", len(data)) + data)


def _serve(parent: int) -> None:
    # The kernel kills this process when the thread that started it is gone; it may be gone already.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # What a library prints must not end up between the answers.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests = os.fdopen(0, "rb", closefd=False)

    from workers.llvm.child import compile as compiler

    compiler.initialize()
    _send(replies, {"llvm": compiler.llvm_version()})
    fresh = _address_space()
    while len(lengths := requests.read(_LENGTHS.size)) == _LENGTHS.size:
        request_length, content_length = _LENGTHS.unpack(lengths)
        request = json.loads(requests.read(request_length))
        content = requests.read(content_length)
        if len(content) == content_length:
            _send(replies, _answer(request, content, fresh))


def _once(request: dict[str, Any]) -> None:
    from workers.llvm.child import compile as compiler

    compiler.initialize()
    _limit_memory(request["memory_limit"])
    try:
        _run(request, b"")
    except (compiler.RejectedError, compiler.UnsuitableError) as error:
        sys.exit(f"error: {error}")


def main() -> None:
    """Run as the module's docstring says."""
    site, mode, argument = sys.argv[1:]
    # Last, so that nothing beside llvmlite can stand in front of the standard library.
    sys.path += [str(Path(__file__).resolve().parents[3]), site]
    try:
        if mode == "--serve":
            _serve(int(argument))
        else:
            _once(json.loads(argument))
    except MemoryError:
        # As LLVM itself ends when it cannot allocate.
        os.write(2, b"error: out of memory\n")
        os.abort()
    except Exception:
        traceback.print_exc()
        os._exit(_BUG)


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # LLVM's destructors would only cost time

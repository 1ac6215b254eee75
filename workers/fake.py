"""A backend without a compiler: for the simulator, the timing tests and the benchmark of the main loop.

It keeps the contract of `workers.backend`: artifacts are real files whose bytes depend on the module alone. What
a module does is written in its content, so that tests need no second channel: `fail`, `hang`, `crash` or
anything else for success. `seconds=<float>` is how long it takes, `guess=<float>` what is expected instead.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import trio
from attrs import frozen

from workers.backend import Inspection
from workers.errors import ModuleError, RequestError
from workers.work import (
    Artifact,
    CodegenOptions,
    Diagnostic,
    EmitKind,
    Engine,
    Estimate,
    Failed,
    Finished,
    Link,
    Linked,
    LinkOptions,
    Module,
    Optimize,
    Severity,
    Target,
    artifact_path,
)

__all__ = ["FakeBackend"]


@frozen
class FakeBackend:
    """A stand-in for a compiler. With `write=False` there are no artifacts, and so no I/O at all."""

    write: bool = True

    def check(self, options: CodegenOptions) -> None:
        """Honour everything but a CPU named `nonesuch`."""
        if options.target_cpu == "nonesuch":
            raise RequestError("unknown target CPU 'nonesuch': name one that the compiler knows")

    async def prepare(self, target: Target, options: CodegenOptions) -> None:
        """Take every target but `nonesuch`."""
        if target.triple.startswith("nonesuch"):
            raise RequestError("no such target: nonesuch")
        await trio.lowlevel.checkpoint()

    def inspect(self, module: Module, options: CodegenOptions) -> Inspection:
        """Take the content for what it is; only what cannot be read is refused."""
        content = self._content(module)
        target = re.search(rb"target=(\S+)", content)
        triple = target[1].decode() if target else "fake-unknown-none"
        cost = _seconds(content, rb"guess=([\d.]+)") or _seconds(content)
        layout = re.search(rb"layout=(\S*)", content)
        return Inspection(
            Target(triple, layout[1].decode() if layout else "e"), len(content), Estimate(cost, 2**20, "fake")
        )

    async def compile(self, batch: Sequence[Optimize]) -> Sequence[Finished | Failed]:
        """Do what each module's content says."""
        return [await self._compile(item) for item in batch]

    def check_link(self, link: LinkOptions, target: Target) -> None:
        """Link for every target but `unlinkable`."""
        if target.triple.startswith("unlinkable"):
            raise RequestError(f"cannot link {link.output} for an unlinkable target")

    async def link(self, item: Link) -> Linked | Failed:
        """Concatenate the objects."""
        data = b"".join(path.read_bytes() for _, path in item.objects)
        item.link.output.write_bytes(data)
        return Linked(item.name, item.link.output, len(data), Engine.TOOLCHAIN, 0.0, 0)

    async def _compile(self, item: Optimize) -> Finished | Failed:
        content = self._content(item.module)
        started = trio.current_time()
        hangs = b"hang" in content
        await trio.sleep(item.options.time_limit if hangs else _seconds(content))
        elapsed = trio.current_time() - started
        if hangs:
            return _failed(item, elapsed, f"still running after its time limit of {item.options.time_limit:g} s")
        if b"crash" in content:
            return _failed(item, elapsed, "the compiler crashed")
        if b"fail" in content:
            return _failed(item, elapsed, "it does not parse")
        kinds = sorted(item.options.emit, key=lambda kind: kind.value) if self.write else ()
        artifacts = tuple(self._write(item, kind) for kind in kinds)
        return Finished(item.name, artifacts, Engine.TOOLCHAIN, elapsed, 2**20)

    def _write(self, item: Optimize, kind: EmitKind) -> Artifact:
        data = hashlib.sha256(self._content(item.module) + kind.value.encode()).digest()
        path = artifact_path(item.out_dir, item.name, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return Artifact(item.name, kind, path, len(data))

    def _content(self, module: Module) -> bytes:
        if isinstance(module.content, bytes):
            return module.content
        try:
            return module.content.read_bytes()
        except OSError as error:
            raise ModuleError(module.name, f"cannot read {module.content}: {error.strerror}") from error


def _failed(item: Optimize, seconds: float, message: str) -> Failed:
    return Failed(item.name, Engine.TOOLCHAIN, seconds, 0, (Diagnostic(Severity.ERROR, item.name, message),))


def _seconds(content: bytes, pattern: bytes = rb"seconds=([\d.]+)") -> float:
    match = re.search(pattern, content) if content else None
    return float(match[1]) if match else 0.0

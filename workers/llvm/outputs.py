"""Where a module's artifacts go, and how they get there when all of them are made."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from workers.errors import ModuleError
from workers.llvm.toolchain_engine import Report, Task
from workers.placing import place
from workers.work import Artifact, Diagnostic, EmitKind, Engine, Failed, Finished, Optimize, Severity, artifact_path

__all__ = ["check_destinations", "finish", "stem"]

_STEM_BYTES = 64 * 1024


def check_destinations(item: Optimize) -> None:
    """A name must not lead out of the output directory, nor onto the module itself. Raises `ModuleError`."""
    parts = item.name.split("/")
    if "\0" in item.name or any(part in ("", ".", "..") for part in parts):
        raise ModuleError(item.name, "its name cannot be a path below the output directory; rename it")
    content = item.module.content
    for kind in item.options.emit:
        destination = artifact_path(item.out_dir, item.name, kind)
        try:
            same = isinstance(content, Path) and destination.samefile(content)
        except OSError:
            same = False
        if same:
            raise ModuleError(item.name, f"{destination} would overwrite its input; choose another output directory")


def stem(content: Path | bytes) -> str:
    """A file name for a module that follows from the beginning and the size of its content."""
    if isinstance(content, bytes):
        head, size = content[:_STEM_BYTES], len(content)
    else:
        try:
            with content.open("rb") as file:
                head, size = file.read(_STEM_BYTES), os.fstat(file.fileno()).st_size
        except OSError:
            return "module"  # whoever compiles it will say what is wrong
    return hashlib.blake2b(head, digest_size=12, key=size.to_bytes(8, "little")).hexdigest()


def finish(task: Task, report: Report, engine: Engine) -> Finished | Failed:
    """Move the outputs of a task to their destinations."""
    item = task.item
    if report.failed:
        return Failed(item.name, engine, report.seconds, report.peak_rss_bytes, report.diagnostics)
    artifacts = []
    for kind in sorted(task.outputs, key=list(EmitKind).index):
        destination = artifact_path(item.out_dir, item.name, kind)
        try:
            size = place(task.outputs[kind], destination)
        except OSError as error:
            problem = Diagnostic(Severity.ERROR, item.name, f"cannot write {destination}: {error.strerror or error}")
            return Failed(item.name, engine, report.seconds, report.peak_rss_bytes, (*report.diagnostics, problem))
        artifacts.append(Artifact(item.name, kind, destination, size))
    return Finished(
        item.name,
        tuple(artifacts),
        engine,
        report.seconds,
        report.peak_rss_bytes,
        report.diagnostics,
        report.passes,
    )

"""Where a module's artifacts go, and how they get there when all of them are made."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from workers.llvm.toolchain_engine import Report, Task
from workers.placing import place
from workers.work import Artifact, Diagnostic, EmitKind, Engine, Failed, Finished, Severity, artifact_path

__all__ = ["finish", "stem"]

_STEM_BYTES = 64 * 1024


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

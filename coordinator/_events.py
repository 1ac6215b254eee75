"""What a build tells its watchers while it runs, and the result it ends with."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from workers.work import Artifact, Diagnostic, Failed, Linked, Severity, Step, WorkResult, count

__all__ = [
    "BuildEvent",
    "BuildFailed",
    "BuildResult",
    "DiagnosticReported",
    "ModuleFinished",
    "ModuleQueued",
    "ModuleStarted",
]


@frozen
class ModuleQueued:
    """The module waits for a worker."""

    module: str
    step: Step = Step.CODEGEN


@frozen
class ModuleStarted:
    """A worker has begun with the module."""

    module: str
    step: Step = Step.CODEGEN


@frozen
class ModuleFinished:
    """A worker is done with a step of the module, for better or worse: `result` says which and how.

    Steps that are about all modules at once (links) have a name of their own in the place of a module's.
    """

    module: str
    result: WorkResult

    @property
    def ok(self) -> bool:
        """Whether it was built."""
        return not isinstance(self.result, Failed)


@frozen
class DiagnosticReported:
    """A warning or an error, as soon as it is known."""

    diagnostic: Diagnostic


BuildEvent = ModuleQueued | ModuleStarted | ModuleFinished | DiagnosticReported


@frozen
class BuildResult:
    """How a build ended. Everything is sorted by module name: nothing depends on who finished first.

    `skipped` names the modules that were never started because the build was aborted or cancelled. `seconds` is
    wall time from the build's opening to its end.
    """

    results: tuple[WorkResult, ...] = field(repr=count)
    diagnostics: tuple[Diagnostic, ...] = field(repr=count)
    skipped: tuple[str, ...] = field(repr=count)
    cancelled: bool
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for is there."""
        return not (
            self.cancelled
            or self.skipped
            or any(isinstance(result, Failed) for result in self.results)
            or any(diagnostic.severity is Severity.ERROR for diagnostic in self.diagnostics)
        )

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Every output file of every module that was built."""
        return tuple(artifact for result in self.results for artifact in getattr(result, "artifacts", ()))

    @property
    def program(self) -> Path | None:
        """The linked program or library, if one was asked for and made."""
        return next((result.output for result in self.results if isinstance(result, Linked)), None)


class BuildFailed(Exception):
    """The build failed; `result` holds what was finished all the same, and the diagnostics."""

    def __init__(self, result: BuildResult) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        errors = [str(d) for d in self.result.diagnostics if d.severity is Severity.ERROR]
        if not errors:
            return "the build was cancelled" if self.result.cancelled else "the build did not finish"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return errors[0] + more

"""ltod, embedded: an asynchronous build coordinator for LLVM codegen and LTO.

    async with open_coordinator() as coordinator:
        async with coordinator.build(BuildConfig(out_dir=Path("out"))) as build:
            for path in Path("bitcode").glob("*.bc"):
                await build.submit(Module(path.stem, path))
            result = await build.finish()

The flow, file by file: `_coordinator` opens everything; `_build` takes modules and turns them into work items;
`_loop` is the trio shell around `_machine`, which decides what runs when on which of the `_tokens`; worker tasks
hand items to a backend (`workers`) and their results flow back. `_thread` is the way in without trio, `cli` the
command line.
"""

from coordinator._build import Build, BuildConfig
from coordinator._coordinator import Coordinator, open_coordinator
from coordinator._events import (
    BuildEvent,
    BuildFailed,
    BuildResult,
    DiagnosticReported,
    ModuleFinished,
    ModuleQueued,
    ModuleStarted,
)
from coordinator._thread import ThreadBuild, ThreadCoordinator, open_coordinator_in_thread
from workers.errors import InternalError, ModuleError, RequestError
from workers.work import (
    Artifact,
    CodegenOptions,
    CodeModel,
    Diagnostic,
    EmitKind,
    Engine,
    Failed,
    Finished,
    Linked,
    LinkKind,
    LinkOptions,
    Module,
    OptLevel,
    RelocationModel,
    Sanitizer,
    Severity,
    WorkResult,
)

__all__ = [
    "Artifact",
    "Build",
    "BuildConfig",
    "BuildEvent",
    "BuildFailed",
    "BuildResult",
    "CodeModel",
    "CodegenOptions",
    "Coordinator",
    "Diagnostic",
    "DiagnosticReported",
    "EmitKind",
    "Engine",
    "Failed",
    "Finished",
    "InternalError",
    "LinkKind",
    "LinkOptions",
    "Linked",
    "Module",
    "ModuleError",
    "ModuleFinished",
    "ModuleQueued",
    "ModuleStarted",
    "OptLevel",
    "RelocationModel",
    "RequestError",
    "Sanitizer",
    "Severity",
    "ThreadBuild",
    "ThreadCoordinator",
    "WorkResult",
    "open_coordinator",
    "open_coordinator_in_thread",
]

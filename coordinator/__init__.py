"""ltod, embedded: an asynchronous build coordinator for LLVM codegen and LTO.

    async with open_coordinator() as coordinator:
        async with coordinator.build(BuildConfig(out_dir=Path("out"))) as build:
            for path in Path("bitcode").glob("*.bc"):
                await build.submit(Module(path.stem, path))
            result = await build.finish()

The flow, file by file: `_coordinator` opens everything; `_build` takes modules and turns them into work items;
`_loop` is the trio shell around `_machine`, which decides what runs when on which of the `_tokens`; worker tasks
hand items to a backend (`workers`) and their results flow back, into the build's `_ledger`. `_join` hands what needs
LTO over to `lto`, whose loops get their `_slots` from the main loop. `_thread` is the way in without trio, `cli` the
command line.

Nothing of it is loaded before it is asked for: the command line has to be ready for signals before it loads trio.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator._build import Build
    from coordinator._cache import Cache
    from coordinator._config import BuildConfig
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
    from lto.fat import FatLto
    from lto.thin import ThinLto
    from workers.errors import InternalError, ModuleError, RequestError
    from workers.work import (
        Artifact,
        CacheOutcome,
        CacheUse,
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
        ModuleKind,
        NeedsFatLto,
        NeedsThinLto,
        OptLevel,
        RelocationModel,
        Sanitizer,
        Severity,
        Step,
        WorkResult,
    )

__all__ = [
    "Artifact",
    "Build",
    "BuildConfig",
    "BuildEvent",
    "BuildFailed",
    "BuildResult",
    "Cache",
    "CacheOutcome",
    "CacheUse",
    "CodeModel",
    "CodegenOptions",
    "Coordinator",
    "Diagnostic",
    "DiagnosticReported",
    "EmitKind",
    "Engine",
    "Failed",
    "FatLto",
    "Finished",
    "InternalError",
    "LinkKind",
    "LinkOptions",
    "Linked",
    "Module",
    "ModuleError",
    "ModuleFinished",
    "ModuleKind",
    "ModuleQueued",
    "ModuleStarted",
    "NeedsFatLto",
    "NeedsThinLto",
    "OptLevel",
    "RelocationModel",
    "RequestError",
    "Sanitizer",
    "Severity",
    "Step",
    "ThinLto",
    "ThreadBuild",
    "ThreadCoordinator",
    "WorkResult",
    "open_coordinator",
    "open_coordinator_in_thread",
]

_HOMES = {
    "coordinator._build": ("Build",),
    "coordinator._cache": ("Cache",),
    "coordinator._config": ("BuildConfig",),
    "coordinator._coordinator": ("Coordinator", "open_coordinator"),
    "coordinator._events": (
        "BuildEvent",
        "BuildFailed",
        "BuildResult",
        "DiagnosticReported",
        "ModuleFinished",
        "ModuleQueued",
        "ModuleStarted",
    ),
    "lto.fat": ("FatLto",),
    "lto.thin": ("ThinLto",),
    "coordinator._thread": ("ThreadBuild", "ThreadCoordinator", "open_coordinator_in_thread"),
    "workers.errors": ("InternalError", "ModuleError", "RequestError"),
    "workers.work": (
        "Artifact",
        "CacheOutcome",
        "CacheUse",
        "CodegenOptions",
        "CodeModel",
        "Diagnostic",
        "EmitKind",
        "Engine",
        "Failed",
        "Finished",
        "Linked",
        "LinkKind",
        "LinkOptions",
        "Module",
        "ModuleKind",
        "NeedsFatLto",
        "NeedsThinLto",
        "OptLevel",
        "RelocationModel",
        "Sanitizer",
        "Severity",
        "Step",
        "WorkResult",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # for type checkers the imports above are all there is

    def __getattr__(name: str) -> Any:
        """A public name, from the module it lives in; the next time it is found at once."""
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

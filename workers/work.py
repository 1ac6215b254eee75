"""What travels between the main loop and the workers: modules, options, work items and their results.

Plain values only: no I/O, no LLVM, no trio. Everything here may be compared, hashed and logged.
"""

from __future__ import annotations

import enum
import shlex
from collections.abc import Callable, Collection, Sized
from pathlib import Path
from typing import Any

from attrs import field, frozen

from workers.errors import RequestError

__all__ = [
    "Artifact",
    "CodeModel",
    "CodegenOptions",
    "Diagnostic",
    "EmitKind",
    "Engine",
    "Estimate",
    "Failed",
    "Finished",
    "Link",
    "LinkKind",
    "LinkOptions",
    "Linked",
    "Module",
    "OptLevel",
    "Optimize",
    "RelocationModel",
    "Sanitizer",
    "Severity",
    "Target",
    "WorkResult",
    "artifact_path",
    "count",
    "typed",
    "typed_members",
]


def typed(*types: type | None) -> Callable[[Any, Any, Any], None]:
    """A validator for what callers make: a value of another type is a wrong request, and says so at once."""
    allowed = tuple(type(None) if one is None else one for one in types)
    names = " or ".join("None" if one is None else one.__name__ for one in types)

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, allowed):
            raise RequestError(f"{type(instance).__name__}.{attribute.name} is {value!r}: give {names}")

    return check


def typed_members(container: type[Collection[Any]], member: type) -> Callable[[Any, Any, Any], None]:
    """As `typed`, for a container and what is in it."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, container) or not all(isinstance(one, member) for one in value):
            what = f"a {container.__name__} of {member.__name__}"
            raise RequestError(f"{type(instance).__name__}.{attribute.name} is {value!r}: give {what}")

    return check


def count(values: Sized) -> str:
    """How a big field shows in a `repr`: by its length."""
    return f"<{len(values)}>"


class EmitKind(enum.Enum):
    """An output form; the value is its name on the command line."""

    OBJECT = "obj"
    ASSEMBLY = "asm"
    BITCODE = "bc"
    IR = "ir"


class OptLevel(enum.Enum):
    """LLVM's optimisation levels, as in `-O<value>`."""

    O0 = "0"
    O1 = "1"
    O2 = "2"
    O3 = "3"
    SIZE = "s"
    MIN_SIZE = "z"


class RelocationModel(enum.Enum):
    """LLVM's relocation models that a host toolchain takes."""

    STATIC = "static"
    PIC = "pic"
    DYNAMIC_NO_PIC = "dynamic-no-pic"
    ROPI = "ropi"
    RWPI = "rwpi"
    ROPI_RWPI = "ropi-rwpi"


class CodeModel(enum.Enum):
    """LLVM's code models; the target's default when none is given."""

    TINY = "tiny"
    SMALL = "small"
    KERNEL = "kernel"
    MEDIUM = "medium"
    LARGE = "large"


class Sanitizer(enum.Enum):
    """Sanitizers whose passes run in the backend; the frontend must have marked the functions."""

    ADDRESS = "address"
    HWADDRESS = "hwaddress"
    MEMORY = "memory"
    THREAD = "thread"


class Engine(enum.Enum):
    """What compiles an item: `AUTO` lets the backend choose by measurement."""

    AUTO = "auto"
    TOOLCHAIN = "toolchain"
    LLVMLITE = "llvmlite"


_SUFFIX = {
    EmitKind.OBJECT: ".o",
    EmitKind.ASSEMBLY: ".s",
    EmitKind.BITCODE: ".bc",
    EmitKind.IR: ".ll",
}


def artifact_path(out_dir: Path, module: str, kind: EmitKind) -> Path:
    """Where a module's artifact of one kind goes."""
    return out_dir / (module + _SUFFIX[kind])


@frozen
class Target:
    """What modules of one build must agree on."""

    triple: str
    data_layout: str


@frozen
class Module:
    """One codegen unit.

    `name` is unique within its build and names its artifacts: it may contain `/` (a sub-directory of the
    output directory). `content` is a file, or the bitcode or textual IR itself.
    """

    name: str = field(validator=typed(str))
    content: Path | bytes = field(
        repr=lambda c: str(c) if isinstance(c, Path) else f"<{len(c)} bytes>", validator=typed(Path, bytes)
    )


@frozen(kw_only=True, cache_hash=True)
class CodegenOptions:
    """How modules are optimised and compiled. `None` means: what LLVM's driver does at this level.

    The coordinator carries these unopened; only a backend reads them.
    """

    opt_level: OptLevel = field(default=OptLevel.O2, validator=typed(OptLevel))
    emit: frozenset[EmitKind] = field(
        default=frozenset({EmitKind.OBJECT}), validator=typed_members(frozenset, EmitKind)
    )
    vectorize_loops: bool | None = None
    vectorize_slp: bool | None = None
    unroll_loops: bool | None = None
    merge_functions: bool | None = None
    extra_passes: str = field(default="", validator=typed(str))
    """A pipeline in LLVM's textual form (`opt -passes=`), run after the ordinary one."""
    prepopulate_passes: bool = True
    """False runs `extra_passes` only (rustc's `-C no-prepopulate-passes`)."""
    print_passes: bool = False
    """Report the passes that run, in the order they run, on each result."""
    target_triple: str | None = field(default=None, validator=typed(str, None))
    """Overrides the triple of every module."""
    target_cpu: str | None = field(default=None, validator=typed(str, None))
    target_features: tuple[str, ...] = field(default=(), validator=typed_members(tuple, str))
    """`+name` or `-name` each."""
    relocation_model: RelocationModel | None = field(default=None, validator=typed(RelocationModel, None))
    code_model: CodeModel | None = field(default=None, validator=typed(CodeModel, None))
    profile_use: Path | None = field(default=None, validator=typed(Path, None))
    """An indexed profile (`llvm-profdata merge`): instrumented (IR or frontend) PGO."""
    sanitizers: frozenset[Sanitizer] = field(default=frozenset(), validator=typed_members(frozenset, Sanitizer))
    engine: Engine = field(default=Engine.AUTO, validator=typed(Engine))
    time_limit: float = field(default=600.0, validator=typed(float, int))
    """Seconds of wall time that one module may take before it counts as hung."""
    memory_limit: int | None = field(default=None, validator=typed(int, None))
    """Bytes of address space that one tool run may use; `None` sets no limit."""


class LinkKind(enum.Enum):
    """What to make of a build's objects; the value is its name on the command line."""

    EXECUTABLE = "exe"
    SHARED = "shared"
    STATIC = "static"


@frozen
class LinkOptions:
    """What to link once every object is there.

    `inputs` are native objects, archives and shared libraries; `arguments` go to the linker as they are.
    """

    kind: LinkKind = field(validator=typed(LinkKind))
    output: Path = field(validator=typed(Path))
    inputs: tuple[Path, ...] = field(default=(), validator=typed_members(tuple, Path))
    arguments: tuple[str, ...] = field(default=(), validator=typed_members(tuple, str))


@frozen
class Estimate:
    """What one item is expected to need, for scheduling only: a wrong estimate costs time, never correctness."""

    seconds: float
    peak_rss_bytes: int
    batch: str | None = None
    """Items of one build with an equal, non-`None` key gain from running in one batch."""


@frozen
class Optimize:
    """Work item: optimise `module` and generate code for it.

    Artifacts go to `out_dir` under the module's name; `out_dir` exists or can be created.
    """

    module: Module
    options: CodegenOptions
    out_dir: Path
    reproducer_dir: Path
    target: Target
    size: int
    """Bytes of the module's content."""

    @property
    def name(self) -> str:
        """The module's name."""
        return self.module.name


@frozen
class Link:
    """Work item: link `objects` (module name and file each, in the order that symbols are resolved in)."""

    link: LinkOptions
    objects: tuple[tuple[str, Path], ...] = field(repr=count)
    options: CodegenOptions
    target: Target
    reproducer_dir: Path

    @property
    def name(self) -> str:
        """The file name of what is linked: it stands where other items have their module's name."""
        return self.link.output.name


class Severity(enum.Enum):
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@frozen
class Diagnostic:
    """One thing to tell the user. `reproducer` is a directory whose `repro.sh` shows the failure again."""

    severity: Severity
    module: str | None
    message: str
    reproducer: Path | None = None

    def __str__(self) -> str:
        where = f"{self.module}: " if self.module is not None else ""
        repro = ""
        if self.reproducer is not None:
            repro = f"\n  reproduce with: sh {shlex.quote(str(self.reproducer / 'repro.sh'))}"
        return f"{self.severity.value}: {where}{self.message}{repro}"


@frozen
class Artifact:
    """One output file; `bytes` is its size."""

    module: str
    kind: EmitKind
    path: Path
    bytes: int


@frozen
class Finished:
    """Work result: the module is compiled and needs nothing more."""

    module: str
    artifacts: tuple[Artifact, ...]
    engine: Engine
    seconds: float
    peak_rss_bytes: int
    """Peak resident set of the process that compiled it; shared by all items of its batch."""
    diagnostics: tuple[Diagnostic, ...] = ()
    """Warnings."""
    passes: tuple[str, ...] = field(default=(), repr=count)


@frozen
class Failed:
    """Work result: the module could not be compiled; at least one diagnostic is an error."""

    module: str
    engine: Engine
    seconds: float
    peak_rss_bytes: int
    diagnostics: tuple[Diagnostic, ...]


@frozen
class Linked:
    """Work result: the program or library is at `output`; `bytes` is its size."""

    module: str
    output: Path
    bytes: int
    engine: Engine
    seconds: float
    peak_rss_bytes: int
    diagnostics: tuple[Diagnostic, ...] = ()


WorkResult = Finished | Linked | Failed

"""What travels between the main loop and the workers: modules, options, work items and their results.

Plain values only: no I/O, no LLVM, no trio. Everything here may be compared, hashed and logged.
"""

from __future__ import annotations

import builtins
import enum
import shlex
from collections.abc import Awaitable, Callable, Collection, Mapping, Sized
from pathlib import Path
from typing import Any

from attrs import field, frozen

from workers.errors import RequestError
from workers.ingredients import Key, NoKey
from workers.outcome import NOT_ASKED, CacheOutcome, CacheUse, Step

__all__ = [
    "LINKABLE",
    "NOT_ASKED",
    "Artifact",
    "CacheOutcome",
    "CacheUse",
    "CodeModel",
    "CodegenOptions",
    "CopyArtifacts",
    "Deferred",
    "Diagnostic",
    "EmitKind",
    "Engine",
    "Estimate",
    "Failed",
    "Finished",
    "Link",
    "LinkFile",
    "LinkKind",
    "LinkOptions",
    "Linked",
    "Module",
    "ModuleKind",
    "NeedsFatLto",
    "NeedsThinLto",
    "OptLevel",
    "Optimize",
    "PreLink",
    "RelocationModel",
    "Sanitizer",
    "Severity",
    "Step",
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
    FATOBJ = "fatobj"
    """An object that carries bitcode prepared for LTO, fat or thin; other linkers see an ordinary object."""
    ASSEMBLY = "asm"
    BITCODE = "bc"
    IR = "ir"


LINKABLE = frozenset({EmitKind.OBJECT, EmitKind.FATOBJ})
"""What a linker takes."""


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
    EmitKind.FATOBJ: ".o",
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


class ModuleKind(enum.Enum):
    """What a module is for (rustc's distinction). Only regular ones take part in LTO."""

    REGULAR = "regular"
    METADATA = "metadata"
    ALLOCATOR = "allocator"


@frozen
class Module:
    """One codegen unit.

    `name` is unique within its build and names its artifacts: it may contain `/` (a sub-directory of the
    output directory). `content` is a file, or the bitcode or textual IR itself. A file is to stay as it is until the
    build has ended; LTO, which reads it more than once, fails where it changed.
    """

    name: str = field(validator=typed(str))
    content: Path | bytes = field(
        repr=lambda c: str(c) if isinstance(c, Path) else f"<{len(c)} bytes>", validator=typed(Path, bytes)
    )
    kind: ModuleKind = field(default=ModuleKind.REGULAR, validator=typed(ModuleKind))
    lto: bool = field(default=True, validator=typed(bool))
    """False keeps a regular module out of LTO, too: one that defines what compilers call (rustc's `no_builtins`)."""
    lazy: bool = field(default=False, validator=typed(bool))
    """A member of an archive: a program or shared library takes it only if it needs a symbol of it."""
    origin: str = field(default="", validator=typed(str))
    """What a linker would call the module: `lib/libx.a(m.o at 6720)`. By default the file, or the name."""

    @property
    def linker_name(self) -> str:
        """What a linker calls it."""
        return self.origin or (str(self.content) if isinstance(self.content, Path) else self.name)

    @property
    def takes_part_in_lto(self) -> bool:
        """Whether the module is optimised together with others, if they are."""
        return self.lto and self.kind is ModuleKind.REGULAR


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

    `inputs` are native objects, archives and shared libraries that come behind all modules; `arguments` go to the
    linker as they are.
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


class PreLink(enum.Enum):
    """Which of LLVM's pre-link pipelines a module goes through; the value is clang's (`-flto=`)."""

    THIN = "thin"
    FAT = "full"


@frozen
class Optimize:
    """Work item: optimise `module` and generate code for it.

    Artifacts go to `out_dir` under the module's name; `out_dir` exists or can be created. With `pre_link` the module
    is taken only to where it meets the others: `bitcode` is the file to write then, in the build's workspace.
    """

    module: Module
    options: CodegenOptions
    out_dir: Path
    reproducer_dir: Path
    target: Target
    size: int
    """Bytes of the module's content."""
    pre_link: PreLink | None = None
    bitcode: Path | None = None
    pre_linked: object | None = None
    """The inspection's, of a module that went through a pre-link pipeline before it came here."""
    key: Key | NoKey | None = field(default=None, eq=False, repr=False)
    """Its result's, where it is known already."""

    @property
    def name(self) -> str:
        """The module's name."""
        return self.module.name


@frozen
class CopyArtifacts:
    """Work item: `item` is done already, elsewhere or earlier; what it made is to be put into its places.

    `cached` is its backend's own business, and so is what to do should it be gone by then.
    """

    item: Optimize
    cached: Any = field(repr=False)

    @property
    def name(self) -> str:
        """The module's name."""
        return self.item.name


@frozen
class LinkFile:
    """A file on its way into a link: an object that was made of a module, or what was `given` as it is.

    What was given may be an archive or a shared library, too; the linker gets it under its own path, which stands in
    `module` as well. The linker takes a `lazy` object only if it needs a symbol of it.
    """

    module: str
    path: Path
    lazy: bool = False
    given: bool = False


@frozen
class Link:
    """Work item: link `objects` and then the `inputs` of `link`, in the order that symbols are resolved in.

    `exports` is what a program or shared library lets others see, besides what it must; `()` is the kind's default.
    `from_lto` names the objects that LTO made, which do not tell which module needs a symbol. That is to be found in
    `modules`, bitcode by name, or, where that is gone, in `needs`: symbols with the modules that need them.
    """

    link: LinkOptions
    objects: tuple[LinkFile, ...] = field(repr=count)
    options: CodegenOptions
    target: Target
    reproducer_dir: Path
    exports: tuple[str, ...] = ()
    needs: Mapping[str, tuple[str, ...]] = field(factory=dict, repr=count)
    modules: Mapping[str, Path] = field(factory=dict, repr=count)
    from_lto: frozenset[str] = field(default=frozenset(), repr=count)

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
    step: Step = Step.CODEGEN
    cache: CacheUse = NOT_ASKED


@frozen
class NeedsThinLto:
    """Work result: the module went as far as it can without the others of its build, and ThinLTO comes next.

    `bitcode` has a summary; it is a file of the build's own. `code_bytes` is how much of it is functions, which is
    what the time of its backend compile follows from.
    """

    module: str
    bitcode: Path
    code_bytes: int
    lazy: bool
    origin: str
    engine: Engine
    seconds: float
    peak_rss_bytes: int
    diagnostics: tuple[Diagnostic, ...] = ()
    passes: tuple[str, ...] = field(default=(), repr=count)
    step: Step = field(default=Step.PRE_LINK, init=False)
    cache: CacheUse = NOT_ASKED


@frozen
class NeedsFatLto:
    """Work result: the module is ready to be merged with the others of its build.

    `bitcode` is a file of the build's own, which goes when it has been merged.
    """

    module: str
    bitcode: Path
    code_bytes: int
    lazy: bool
    origin: str
    engine: Engine
    seconds: float
    peak_rss_bytes: int
    diagnostics: tuple[Diagnostic, ...] = ()
    passes: tuple[str, ...] = field(default=(), repr=count)
    step: Step = field(default=Step.PRE_LINK, init=False)
    cache: CacheUse = NOT_ASKED


@frozen
class Failed:
    """Work result: the module could not be compiled; at least one diagnostic is an error."""

    module: str
    engine: Engine
    seconds: float
    peak_rss_bytes: int
    diagnostics: tuple[Diagnostic, ...]
    step: Step = Step.CODEGEN
    cache: CacheUse = NOT_ASKED


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
    reads: builtins.bytes | None = field(default=None, repr=False)
    """What else the link read than it was given, in its backend's words; `None` where that is not known."""
    step: Step = field(default=Step.LINK, init=False)
    cache: CacheUse = NOT_ASKED


@frozen
class Deferred:
    """No result: another build, here or in another process, is making just this.

    `released` returns as soon as that one has ended, in whatever way; then the item is to be tried again.
    """

    module: str
    released: Callable[[], Awaitable[None]] = field(eq=False, repr=False)


WorkResult = Finished | NeedsThinLto | NeedsFatLto | Linked | Failed

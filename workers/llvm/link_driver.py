"""Which program links: an lld alone knows neither the C library nor its start files, a compiler driver does.

The order, and why:

1. A toolchain that the user named: its own clang, with its own lld. Who names a toolchain wants it used.
2. For the machine's own target: the `cc` on PATH, made to run our lld. It knows the libraries that the system has,
   so that `-lfoo` means what it means in any other build here. It counts only if it finds the C library's start
   files, and if its target is the one asked for.
3. `zig cc` of the wheel, which carries C libraries of its own: for other targets, for libc++, and for machines
   without a compiler.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio
from attrs import frozen

from workers.action import Action, run
from workers.errors import InternalError
from workers.llvm.elf import is_shared_library
from workers.llvm.toolchain import LLVM_MAJOR, Toolchain
from workers.target import TargetFlags, parse_triple, same_target
from workers.work import LinkKind, LinkOptions, RelocationModel, Sanitizer

__all__ = [
    "TELLTALE",
    "Archiver",
    "Driver",
    "DriverError",
    "Drivers",
    "check_link",
    "choose_archiver",
    "choose_driver",
    "kind_flags",
]

_QUESTION_SECONDS = 60.0

TELLTALE = "LTOD_LINKER_ARGUMENTS"

_TELLTALE = f"""#!/bin/sh
for argument do
    case $argument in
        @*) cat <"${{argument#@}}" >"${TELLTALE}.response" ;;
    esac
done
printf '%s\\0' "$@" >"${TELLTALE}"
"""

# Runtime functions of C++ and names in namespace std, as they stand in a symbol table. `St3__1` is libc++'s.
_LIBCXX = re.compile(rb"_ZNK?St3__1")
_CPLUSPLUS = re.compile(rb"__gxx_personality_v0|_Zn[wa][mj]|_ZdlPv|_ZNK?S[tas]|_ZSt|_ZTVN10__cxxabiv1|__cxa_throw")

_LONGEST_SIGN = 32
_CHUNK = 1024 * 1024

_ZIG_ARCHITECTURES = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    "ppc64": "powerpc64",
    "ppc64le": "powerpc64le",
} | {f"i{digit}86": "x86" for digit in range(3, 10)}


class DriverError(Exception):
    """Nothing here can link what was asked for; the message says what is missing."""


@frozen
class Driver:
    """A compiler driver that links: `argv` begins its command line, `libraries` end it.

    With a `telltale`, it does not start a linker but the program in that directory; without, it is zig, which starts
    its own.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    telltale: Path | None = None
    libraries: tuple[str, ...] = ()
    note: str | None = None
    """What to tell the user if linking takes long."""


@frozen
class Archiver:
    """An `ar`; `flattens` says whether its `L` puts the members of an archive into another."""

    argv: tuple[str, ...]
    flattens: bool


def kind_flags(kind: LinkKind, relocation_model: RelocationModel | None) -> tuple[str, ...]:
    """What tells a driver to make a program or a shared library."""
    if kind is LinkKind.SHARED:
        return ("-shared",)
    return ("-pie",) if relocation_model in (None, RelocationModel.PIC) else ("-no-pie",)


def check_link(link: LinkOptions, toolchain: Toolchain, triple: str) -> None:
    """Refuse what cannot be linked whatever the objects are. Raises `DriverError`."""
    if link.kind is LinkKind.STATIC:
        if link.arguments:
            raise DriverError(f"a static archive is not linked: it takes no arguments such as '{link.arguments[0]}'")
        return
    flags = TargetFlags.from_triple(triple)
    if parse_triple(triple).os != "linux" or flags.is_like_gpu or flags.is_like_wasm:
        raise DriverError(f"ltod links programs and shared libraries for Linux only, not for '{triple}'")
    if toolchain.lld is None:
        raise DriverError(f"there is no ld.lld-{LLVM_MAJOR} beside {toolchain.clang[0]} ({toolchain.origin})")


class Drivers:
    """Chooses drivers, and remembers what it asked them. What they need is made in `directory`, and stays there."""

    def __init__(self, toolchain: Toolchain, directory: Path, environ: Mapping[str, str]) -> None:
        self._toolchain = toolchain
        self._directory = directory
        self._environ = environ
        self._path = environ.get("PATH", "/usr/bin:/bin")
        self._answers: dict[tuple[str, str], str] = {}
        self._asking = trio.Lock()

    async def choose(self, triple: str, objects: Sequence[Path], sanitizers: frozenset[Sanitizer]) -> Driver:
        """Find the driver for a link of `objects` for `triple`. Raises `DriverError`, `OSError`."""
        if self._toolchain.lld is None:
            raise InternalError("a link without ld.lld: `check_link` refuses it")
        needed = await trio.to_thread.run_sync(_standard_library, tuple(objects))
        sanitize = tuple(f"-fsanitize={name}" for name in sorted(sanitizer.value for sanitizer in sanitizers))
        environment = {"PATH": self._path}
        zig = _zig(self._toolchain)
        if zig is None:
            linker = f"--ld-path={self._telltale() / 'ld.lld'}"
            argv = (*self._toolchain.clang, f"--target={triple}", linker, *sanitize)
            return Driver(argv, environment, self._telltale(), _libraries(needed))
        cc = _which("cc", self._path)
        if cc is not None and needed != "c++" and await self._serves(cc, triple):
            argv = (cc, "-fuse-ld=lld", f"-B{self._telltale()}", *sanitize)
            return Driver(argv, environment, self._telltale(), _libraries(needed))
        if sanitizers:
            names = " and ".join(sorted(sanitizer.value for sanitizer in sanitizers))
            raise DriverError(
                f"the wheel has no runtime for the {names} sanitizer: install a C compiler, or name a toolchain"
            )
        target = _zig_target(triple)
        return Driver(
            # Without -O2 and the second flag, zig would add checks and a runtime for them.
            (zig, "c++" if needed else "cc", "-target", target, "-O2", "-fno-sanitize=undefined"),
            {"ZIG_GLOBAL_CACHE_DIR": str(_cache(self._environ, self._directory))},
            note=f"the first link for {target} with the ziglang wheel builds its C library, which takes up to a minute",
        )

    async def _serves(self, cc: str, triple: str) -> bool:
        """Whether `cc` makes programs for `triple`, and has what it takes."""
        machine = await self._ask(cc, "-dumpmachine")
        if not machine or not same_target(machine, triple):
            return False
        # An absolute path where the file is found, else the name again.
        return (await self._ask(cc, "-print-file-name=crt1.o")).startswith("/")

    async def _ask(self, cc: str, question: str) -> str:
        """The answer, '' if there is none; that may be for lack of memory, so only answers are remembered."""
        async with self._asking:
            if (cc, question) not in self._answers:
                environment = {"PATH": self._path}
                action = Action(argv=(cc, question), inputs={}, environment=environment, time_limit=_QUESTION_SECONDS)
                async with run(action, self._directory) as result:
                    if result.status != 0:
                        return ""
                    self._answers[cc, question] = result.stdout.decode(errors="replace").strip()
            return self._answers[cc, question]

    def _telltale(self) -> Path:
        """A directory in which drivers find, under the linker's name, what only writes its arguments down.

        They end with zero bytes each in the file that `TELLTALE` names; a response file among them is kept beside it.
        """
        directory = self._directory / "driver"
        program = directory / "ld.lld"
        if not program.exists():
            directory.mkdir(exist_ok=True)
            program.write_text(_TELLTALE)
            program.chmod(0o755)
        return directory


async def choose_driver(
    toolchain: Toolchain,
    triple: str,
    objects: Sequence[Path],
    sanitizers: frozenset[Sanitizer],
    directory: Path,
    environ: Mapping[str, str],
) -> Driver:
    """`Drivers.choose`, for who asks once. Raises `DriverError`, `OSError`."""
    return await Drivers(toolchain, directory, environ).choose(triple, objects, sanitizers)


def choose_archiver(toolchain: Toolchain, environ: Mapping[str, str]) -> Archiver:
    """Find an `ar`: the toolchain's, or any other. Raises `DriverError`."""
    zig = _zig(toolchain)
    if zig is not None:
        return Archiver((zig, "ar"), flattens=True)
    path = environ.get("PATH", "/usr/bin:/bin")
    names = (f"llvm-ar-{LLVM_MAJOR}", "llvm-ar")
    for folder in (str(Path(toolchain.clang[0]).parent), str(Path(toolchain.clang[0]).resolve().parent), path):
        for name in names:
            found = _which(name, folder)
            if found is not None:
                return Archiver((found,), flattens=True)
    found = _which("ar", path)
    if found is None:
        raise DriverError(f"there is neither an llvm-ar beside {toolchain.clang[0]} nor an ar on PATH")
    return Archiver((found,), flattens=False)


def _which(name: str, path: str) -> str | None:
    found = shutil.which(name, path=path)
    return None if found is None else str(Path(found).absolute())


def _zig(toolchain: Toolchain) -> str | None:
    """The zig program, if that is what the toolchain is."""
    return toolchain.clang[0] if toolchain.clang[1:] == ("clang",) else None


def _standard_library(objects: tuple[Path, ...]) -> str | None:
    """The C++ library that the objects need: 'c++' is libc++, 'stdc++' is libstdc++ or any. Raises `OSError`.

    Shared libraries among them say themselves what they need.
    """
    needed = None
    for path in objects:
        end = b""
        # Read, not mapped: whoever truncated the file meanwhile would kill this process.
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                if not end and is_shared_library(chunk):
                    break
                text = end + chunk
                if _LIBCXX.search(text):
                    return "c++"
                if needed is None and _CPLUSPLUS.search(text):
                    needed = "stdc++"
                end = chunk[-_LONGEST_SIGN:]
    return needed


def _libraries(needed: str | None) -> tuple[str, ...]:
    """Where the signs of C++ deceived us, the library is linked and not needed: then it leaves no trace."""
    if needed is None:
        return ()
    return ("-Wl,--push-state,--as-needed", f"-l{needed}", "-lm", "-Wl,--pop-state")


def _zig_target(triple: str) -> str:
    parts = parse_triple(triple)
    return f"{_ZIG_ARCHITECTURES.get(parts.arch, parts.arch)}-linux-{parts.environment or 'gnu'}"


def _cache(environ: Mapping[str, str], directory: Path) -> Path:
    """Where zig keeps the C libraries that it has built: with the user's caches, if there is such a place."""
    for variable, below in (("XDG_CACHE_HOME", "ltod/zig"), ("HOME", ".cache/ltod/zig")):
        place = environ.get(variable, "")
        if place.startswith("/"):
            cache = Path(place) / below
            try:
                cache.mkdir(parents=True, exist_ok=True)
            except OSError:
                continue
            return cache
    return directory / "zig"

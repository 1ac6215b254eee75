"""Target triples: their parts as LLVM reads them, and what kind of target they are, by named flags."""

from __future__ import annotations

import re

from attrs import frozen

__all__ = ["TargetFlags", "Triple", "parse_triple", "same_target"]

# Names as llvm::Triple knows them, with a version behind them or not.
_SYSTEM = re.compile(
    r"""(aix|amdhsa|amdpal|bridgeos|cheriotrtos|cuda|cygwin|darwin|dragonfly|driverkit|elfiamcu|emscripten|firmware
    |freebsd|fuchsia|haiku|hermit|hurd|ios|kfreebsd|linux|liteos|lv2|macosx|macos|managarm|mesa3d|mingw32|mingw64|nacl
    |netbsd|none|nvcl|openbsd|ps4|ps5|qurt|rtems|serenity|shadermodel|solaris|tvos|uefi|visionos|xros|vulkan|wali
    |wasi|wasip1|wasip2|wasip3|watchos|win32|windows|zos)[.\d]*""",
    re.VERBOSE,
)
_ENVIRONMENT = re.compile(
    r"""(android|androideabi|code16|coreclr|cygnus|eabi|eabihf|elf|gnu|gnu_ilp32|gnuabi64|gnuabin32|gnueabi|gnueabihf
    |gnueabihft64|gnueabit64|gnuf32|gnuf64|gnusf|gnut64|gnux32|itanium|llvm|macabi|mlibc|msvc|mtia|musl|muslabi64
    |muslabin32|musleabi|musleabihf|muslf32|muslsf|muslwali|muslx32|ohos|opencl|simulator)[.\d]*""",
    re.VERBOSE,
)
_DARWIN_SYSTEMS = frozenset(
    {"bridgeos", "darwin", "driverkit", "firmware", "ios", "macosx", "tvos", "visionos", "watchos"}
)
_GPU_ARCHITECTURES = ("amdgcn", "r600", "nvptx", "spirv", "spir", "dxil")
_NO_SYSTEM = frozenset({"", "none", "unknown"})


@frozen
class Triple:
    """The parts of a target triple, without versions; '' for what the triple leaves out."""

    arch: str
    vendor: str
    os: str
    environment: str


def parse_triple(triple: str) -> Triple:
    """Cut a triple into its parts. Parts may be missing, as in `x86_64-linux-gnu` and `wasm32-wasi`.

    Never fails: what LLVM does not know stays as it is. Systems with two names get one: `macosx` (also macos),
    `visionos` (also xros), `windows` (also win32, and mingw and cygwin, which are environments of it).
    """
    arch, *rest = triple.split("-")
    vendor = system = environment = ""
    if rest and _is_vendor(rest[0], is_last=len(rest) == 1):
        vendor = rest.pop(0)
    if rest and not _is_environment(rest[0]):
        system = _without_version(_SYSTEM, rest.pop(0))
    if rest:
        environment = _without_version(_ENVIRONMENT, "-".join(rest))
    match system:
        case "macos":
            system = "macosx"
        case "xros":
            system = "visionos"
        case "win32":
            system = "windows"
        case "mingw32" | "mingw64":
            system, environment = "windows", environment or "gnu"
        case "cygwin":
            system, environment = "windows", environment or "cygnus"
    return Triple(arch, vendor, system, environment)


def _is_vendor(part: str, *, is_last: bool) -> bool:
    """What is neither system nor environment; and `none` before another part, as in `arm-none-eabi`."""
    if part == "none":
        return not is_last
    return _SYSTEM.fullmatch(part) is None and not _is_environment(part)


def _is_environment(part: str) -> bool:
    return _ENVIRONMENT.fullmatch(part) is not None


def _without_version(names: re.Pattern[str], part: str) -> str:
    known = names.fullmatch(part)
    return known[1] if known else part


def same_target(a: str, b: str) -> bool:
    """Whether modules of these two triples may be in one program. A module without a triple goes with any.

    Vendor and versions do not matter, nor do two spellings of one architecture.
    """
    return not a or not b or _essence(a) == _essence(b)


def _essence(triple: str) -> tuple[str, str, str]:
    parts = parse_triple(triple)
    system = "" if parts.os in _NO_SYSTEM else parts.os
    if system == "darwin":
        system = "macosx"
    environment = parts.environment
    if not environment and system == "linux":
        environment = "gnu"
    elif not environment and system == "windows":
        environment = "msvc"
    elif environment == "androideabi":
        environment = "android"
    return _canonical_arch(parts.arch), system, "" if environment == "unknown" else environment


def _canonical_arch(arch: str) -> str:
    match arch:
        case "amd64":
            return "x86_64"
        case "arm64":
            return "aarch64"
        case "i386" | "i486" | "i586" | "i686" | "i786" | "i886" | "i986" | "x86":
            return "i386"
        case "ppc64":
            return "powerpc64"
        case "ppc64le":
            return "powerpc64le"
        case "ppc" | "ppc32":
            return "powerpc"
    # ARM and Thumb code call each other.
    return "arm" + arch.removeprefix("thumb") if arch.startswith("thumb") else arch


@frozen
class TargetFlags:
    """What a target is like, for decisions that differ between families of targets."""

    is_like_darwin: bool
    """Mach-O and Apple's tools."""
    is_like_windows: bool
    """COFF, UEFI included."""
    is_like_wasm: bool
    is_like_aix: bool
    is_like_gpu: bool
    """Device code: there is no linking into an ordinary program."""

    @classmethod
    def from_triple(cls, triple: str) -> TargetFlags:
        """The flags of a triple; none is set for an empty or unknown one."""
        parts = parse_triple(triple)
        return cls(
            is_like_darwin=parts.os in _DARWIN_SYSTEMS,
            is_like_windows=parts.os in ("windows", "uefi"),
            is_like_wasm=parts.arch in ("wasm32", "wasm64"),
            is_like_aix=parts.os == "aix",
            is_like_gpu=parts.arch.startswith(_GPU_ARCHITECTURES),
        )

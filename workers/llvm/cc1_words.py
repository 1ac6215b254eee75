"""Which of `clang -cc1`'s arguments are known to depend on nothing but themselves. Pure.

They come from clang's driver, which may be anybody's: an option that names a file, loads code or looks at the machine
makes results depend on what no key knows. So this is the list of what may be there: all that clang 22's driver asks for
of 60 targets, with every option that ltod knows, and with those that users give compilers of bitcode.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["unknown_word"]

_WITH_VALUE = frozenset(
    [
        "-default-function-attr",
        "-ferror-limit",
        "-mfloat-abi",
        "-mrelocation-model",
        "-pic-level",
        "-stack-protector",
        "-target-abi",
        "-target-cpu",
        "-target-feature",
        "-triple",
        "-tune-cpu",
    ]
)
"""Options whose value is the next word."""

_ALONE = frozenset(
    [
        "--compress-debug-sections",
        "--dependent-lib",
        "--no-offloadlib",
        "-clear-ast-before-backend",
        "-debug-forward-template-params",
        "-debug-info-kind",
        "-debugger-tuning",
        "-disable-llvm-verifier",
        "-disable-red-zone",
        "-discard-value-names",
        "-dwarf-explicit-import",
        "-dwarf-version",
        "-enable-tlsdesc",
        "-exception-model",
        "-faddrsig",
        "-faligned-alloc-unavailable",
        "-fapply-global-visibility-to-externs",
        "-fapprox-func",
        "-fblocks",
        "-fblocks-runtime-optional",
        "-fbuiltin-headers-in-system-modules",
        "-fcf-protection",
        "-fcompatibility-qualified-id-block-type-checking",
        "-fdata-sections",
        "-fdebug-info-for-profiling",
        "-fdeclspec",
        "-fdefine-target-os-macros",
        "-fdelayed-template-parsing",
        "-fdenormal-fp-math",
        "-fdwarf2-cfi-asm",
        "-femulated-tls",
        "-fencode-extended-block-signature",
        "-ffast-math",
        "-ffat-lto-objects",
        "-ffinite-loops",
        "-ffinite-math-only",
        "-ffp-contract",
        "-ffunction-sections",
        "-fgnuc-version",
        "-fhalf-no-semantic-interposition",
        "-flto",
        "-flto-unit",
        "-fmath-errno",
        "-fmax-type-align",
        "-fmerge-functions",
        "-fms-compatibility",
        "-fms-compatibility-version",
        "-fms-extensions",
        "-fms-volatile",
        "-fno-assume-sane-operator-new",
        "-fno-delete-null-pointer-checks",
        "-fno-direct-access-external-data",
        "-fno-dwarf-directory-asm",
        "-fno-jump-tables",
        "-fno-plt",
        "-fno-rounding-math",
        "-fno-sanitize-address-use-odr-indicator",
        "-fno-sanitize-memory-param-retval",
        "-fno-signed-char",
        "-fno-signed-wchar",
        "-fno-signed-zeros",
        "-fno-sized-deallocation",
        "-fno-split-lto-unit",
        "-fno-unique-section-names",
        "-fno-unroll-loops",
        "-fno-use-cxa-atexit",
        "-fno-use-init-array",
        "-fno-verbose-asm",
        "-fprofile-instrument-use",
        "-freciprocal-math",
        "-fregister-global-dtors-with-atexit",
        "-fropi",
        "-frwpi",
        "-fsanitize",
        "-fsanitize-address-globals-dead-stripping",
        "-fsanitize-address-use-after-scope",
        "-fsanitize-memory-use-after-dtor",
        "-fshort-enums",
        "-fskip-odr-check-in-gmf",
        "-fsplit-dwarf-inlining",
        "-fsplit-lto-unit",
        "-fsplit-machine-functions",
        "-fstack-size-section",
        "-funified-lto",
        "-funroll-loops",
        "-funsafe-math-optimizations",
        "-funwind-tables",
        "-fvisibility",
        "-fvisibility-dllexport",
        "-fvisibility-externs-dllimport",
        "-fvisibility-externs-nodllstorageclass",
        "-fvisibility-from-dllstorageclass",
        "-fvisibility-global-new-delete",
        "-fvisibility-inlines-hidden-static-local-var",
        "-fvisibility-nodllstorageclass",
        "-fxl-pragma-pack",
        "-fzero-call-used-regs",
        "-gno-column-info",
        "-gstrict-dwarf",
        "-long-calls",
        "-mcmodel",
        "-mconstructor-aliases",
        "-menable-no-infs",
        "-menable-no-nans",
        "-mframe-pointer",
        "-mlarge-data-threshold",
        "-mnoexecstack",
        "-mqdsp6-compat",
        "-mreassociate",
        "-mrelax-all",
        "-msoft-float",
        "-mspeculative-load-hardening",
        "-mstack-alignment",
        "-no-integrated-as",
        "-noabicalls",
        "-nostdsysteminc",
        "-pic-is-pie",
        "-relaxed-aliasing",
        "-vectorize-loops",
        "-vectorize-slp",
        "-w",
    ]
)
"""Options that have no value, or have it behind an equals sign."""

_HARMLESS = re.compile(r"-O[0-3sz]|-D_\w+|-W[a-z][\w=-]*")
_OWN = frozenset({"-fdebug-compilation-dir=.", "-fprofile-instrument-use-path=profile.profdata"})
"""What `workers.llvm.cc1` itself makes of options with paths."""

_LLVM = frozenset({"-emit-jump-table-sizes-section", "-hexagon-autohvx", "-machine-sink-split=0"})
"""What drivers tell LLVM itself."""

_VALUE = re.compile(r"[\w.,+=-]*")


def unknown_word(arguments: Sequence[str]) -> str | None:
    """The first argument that may make results depend on something else, `None` if there is none."""
    words = iter(arguments)
    for word in words:
        name, _, value = word.partition("=")
        if word in _WITH_VALUE:
            value = next(words, "")
            if not _is_plain(value):
                return f"{word} {value}"
        elif word == "-mllvm":
            value = next(words, "")
            if value not in _LLVM:
                return f"{word} {value}"
        elif word not in _OWN and not _HARMLESS.fullmatch(word) and not (name in _ALONE and _is_plain(value)):
            return word
    return None


def _is_plain(value: str) -> bool:
    """Whether a value is what it says: no path, and not the name of whatever this machine is."""
    return _VALUE.fullmatch(value) is not None and "native" not in value

"""What ld.lld's words are about: generating code, the link as a whole, or only what comes out of it.

Keys are made of words, so a word must not be dropped unless it is known not to matter. All options of lld 22 stand here
with the way they take a value; a word that is none of them makes whoever asks do without a key.

Notation: `name` may stand behind one dash or two, `--name` behind two only, `-name` behind one only. Nothing behind it:
the option has no value. `=`: the value follows an equals sign, or is the next word; `=.`: an equals sign only. `.`:
the value follows at once; `:`: it is the next word; `~`: one or the other.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from attrs import frozen

__all__ = ["Effect", "Word", "code_words", "expanded", "is_plain_llvm_option", "link_words", "parsed"]


class Effect(enum.Enum):
    """How far an option reaches."""

    CODE = "code"
    """Code generation."""
    CODE_FILE = "code file"
    """Code generation, by what is in a file."""
    LLVM = "llvm"
    """LLVM's own options: see `is_plain_llvm_option`."""
    OUTSIDE = "outside"
    """LTO reads or writes more than it is given, or says more than is kept."""
    LINK = "link"
    """Which symbols are resolved how."""
    LINK_FILE = "link file"
    """The same, by what is in a file."""
    LINK_PLACE = "link place"
    """The same, by what is in a directory."""
    OUTPUT = "output"
    """What the linked file looks like, or what else the final link writes."""
    NOTHING = "nothing"
    """How the work is done."""
    FILE = "file"
    """No option: an input."""
    UNKNOWN = "unknown"


_OPTIONS = {
    Effect.CODE: """
        --disable-verify disable-verify --lto-O. --lto-CGO. plugin-opt=O. plugin-opt=disable-verify plugin-opt=mcpu=.
        plugin-opt=thinlto. --lto=. --lto-aa-pipeline=. --lto-newpm-passes=. --lto-partitions=.
        plugin-opt=lto-partitions=. --lto-basic-block-address-map --no-lto-basic-block-address-map
        --lto-unique-basic-block-section-names --no-lto-unique-basic-block-section-names
        --lto-whole-program-visibility --no-lto-whole-program-visibility --lto-validate-all-vtables-have-type-infos
        --no-lto-validate-all-vtables-have-type-infos --lto-known-safe-vtables= --lto-cs-profile-generate
        plugin-opt=cs-profile-generate --lto-pgo-warn-mismatch --no-lto-pgo-warn-mismatch pie pic-executable no-pie
        shared Bshareable relocatable -r -m~ --fat-lto-objects --no-fat-lto-objects
    """,
    Effect.CODE_FILE: """
        --lto-sample-profile=. plugin-opt=sample-profile=. --lto-cs-profile-file=. plugin-opt=cs-profile-path=.
        --lto-basic-block-sections=. --load-pass-plugin=
    """,
    Effect.LLVM: "mllvm= plugin-opt=-.",
    Effect.OUTSIDE: """
        save-temps --save-temps=. plugin-opt=save-temps plugin-opt=dwo_dir=. plugin-opt=stats-file=.
        --opt-remarks-filename: --opt-remarks-passes: --opt-remarks-format: --opt-remarks-with-hotness
        --opt-remarks-hotness-threshold= plugin-opt=opt-remarks-filename=. plugin-opt=opt-remarks-passes=.
        plugin-opt=opt-remarks-format=. plugin-opt=opt-remarks-with-hotness plugin-opt=opt-remarks-hotness-threshold=.
        --time-trace --time-trace=. --time-trace-granularity= plugin-opt=time-trace=. --lto-debug-pass-manager
        plugin-opt=debug-pass-manager --lto-emit-asm --lto-emit-llvm plugin-opt=emit-asm plugin-opt=emit-llvm
        --lto-obj-path=. plugin-opt=obj-path=. --thinlto-emit-imports-files --thinlto-emit-index-files
        --thinlto-index-only --thinlto-index-only=. --thinlto-object-suffix-replace=. --thinlto-prefix-replace=.
        --thinlto-single-module=. --thinlto-distributor= --thinlto-distributor-arg= --thinlto-remote-compiler=
        --thinlto-remote-compiler-arg= --thinlto-remote-compiler-prepend-arg= plugin-opt=thinlto-emit-imports-files
        plugin-opt=thinlto-index-only plugin-opt=thinlto-index-only=. plugin-opt=thinlto-object-suffix-replace=.
        plugin-opt=thinlto-prefix-replace=. --chroot: --reproduce= --rsp-quoting=
    """,
    Effect.LINK: """
        -l~ library= -u~ undefined= --undefined-glob= -e~ entry= init= fini= wrap= defsym= -z~ -F: -f: filter=
        auxiliary= -b: format= whole-archive no-whole-archive as-needed no-as-needed push-state pop-state start-group
        -( end-group -) start-lib end-lib Bstatic static dn non_shared Bdynamic dy call_shared Bsymbolic
        Bsymbolic-functions Bsymbolic-non-weak Bsymbolic-non-weak-functions Bno-symbolic export-dynamic -E
        no-export-dynamic --export-dynamic-symbol= exclude-libs= allow-multiple-definition
        no-allow-multiple-definition allow-shlib-undefined no-allow-shlib-undefined no-undefined undefined-version
        no-undefined-version unresolved-symbols= error-unresolved-symbols warn-unresolved-symbols gc-sections
        no-gc-sections --fortran-common --no-fortran-common --dependent-libraries --no-dependent-libraries nostdlib
        --remap-inputs= --warn-backrefs --no-warn-backrefs --warn-backrefs-exclude= warn-common no-warn-common
        fatal-warnings no-fatal-warnings --no-warnings -w --gnu-unique --no-gnu-unique icf=all icf=safe icf=none
        keep-unique= --ignore-data-address-equality --ignore-function-address-equality no-dynamic-linker EB EL
        noinhibit-exec no-warn-mismatch --warn-ifunc-textrel --no-warn-ifunc-textrel section-start= Ttext= Tdata= Tbss=
        Ttext-segment= --image-base= nmagic -n no-nmagic --omagic -N no-omagic orphan-handling= unique
        --enable-non-contiguous-regions --force-group-allocation emit-relocs -q discard-all -x discard-locals -X
        discard-none sort-section= --oformat= check-sections no-check-sections --randomize-section-padding=.
        --shuffle-sections= --apply-dynamic-relocs --no-apply-dynamic-relocs --relax --no-relax --relax-gp
        --no-relax-gp --toc-optimize --no-toc-optimize --pcrel-optimize --no-pcrel-optimize --power10-stubs
        --power10-stubs=. --no-power10-stubs --optimize-bb-jumps --no-optimize-bb-jumps --branch-to-branch
        --no-branch-to-branch split-stack-adjust-size= --execute-only --no-execute-only --rosegment --no-rosegment
        --xosegment --no-xosegment pic-veneer be8 --cmse-implib fix-cortex-a53-843419 fix-cortex-a8 target1-abs
        target1-rel target2= merge-exidx-entries no-merge-exidx-entries mips-got-size= --check-dynamic-relocations
        --no-check-dynamic-relocations --android-memtag-heap --no-android-memtag-heap --android-memtag-stack
        --no-android-memtag-stack --android-memtag-mode= eh-frame-hdr no-eh-frame-hdr --warn-symbol-ordering
        --no-warn-symbol-ordering --bp-compression-sort=. --bp-compression-sort-startup-functions
        --no-bp-compression-sort-startup-functions --bp-startup-sort=. --call-graph-profile-sort=.
        --no-call-graph-profile-sort strip-all -s strip-debug -S
    """,
    Effect.LINK_FILE: """
        version-script= dynamic-list= --export-dynamic-symbol-list= retain-symbols-file= script= -T~ --default-script=
        -dT: just-symbols= --symbol-ordering-file= call-graph-ordering-file= --irpgo-profile= --in-implib=
        --remap-inputs-file=.
    """,
    Effect.LINK_PLACE: "-L~ library-path= sysroot=",
    Effect.OUTPUT: """
        build-id build-id=. compress-debug-sections= --compress-sections= --debug-names --no-debug-names --gdb-index
        --no-gdb-index hash-style= rpath= -R~ soname= -h~ dynamic-linker= enable-new-dtags disable-new-dtags -O~
        --package-metadata=. --pack-dyn-relocs= --use-android-relr-tags --no-use-android-relr-tags Map= print-map -M
        --cref print-gc-sections print-gc-sections=. no-print-gc-sections print-icf-sections no-print-icf-sections
        print-archive-stats=. --print-archive-stats=. print-symbol-order= print-memory-usage trace -t trace-symbol= -y~
        --why-extract=. --why-live= --out-implib= verbose --verbose-bp-section-orderer
    """,
    Effect.NOTHING: """
        -o~ --output= --threads= --thinlto-jobs=. plugin-opt=jobs=. --thinlto-cache-dir=. --thinlto-cache-policy=
        --color-diagnostics --color-diagnostics=. --no-color-diagnostics --error-limit= --error-handling-script=
        --vs-diagnostics demangle no-demangle --dependency-file= --mmap-output-file --no-mmap-output-file plugin=
        plugin-opt=-fresolution=. plugin-opt=-pass-through=. plugin-opt=. -v -V version help -d -g long-plt
        --no-add-needed no-copy-dt-needed-entries no-ctors-in-init-array no-keep-memory rpath-link= secure-plt
        sort-common stats warn-execstack warn-once warn-shared-textrel -G~
    """,
}

_NO_FILES = frozenset({"all", "none", "labels"})
"""Values of `--lto-basic-block-sections` that name no file."""

_LLVM_OPTION = re.compile(r"--?([A-Za-z][A-Za-z0-9_.-]*)(?:=(.*))?", re.DOTALL)
# Names of files have dots and slashes in them; numbers and features of CPUs (`sse4.2`) have dots between digits only.
_LLVM_VALUE = re.compile(r"(?:[A-Za-z0-9_+,:=-]|(?<=\d)\.(?=\d))*")
_OUTSIDE_PARTS = re.compile(
    r"file|path|output|dump|print|prof|pgo|remark|plugin|replay|debug|bisect|workload|stat(?:s|istics)|sections|embed"
    r"|(?:^|[-_.])(?:dir|directory|dot|view|time|load|log|logging|trace|tracing|save|temps?|cache|record|report|write|read"
    r"|input|inputs|map|list|model|train|training|seed|rng|random|counter|crash|config|verify|cutoff|limit-count|count"
    r"|cfg|dag|graph|source|src|name|names|host|native|server|port|pipe|fd|stream|asm|symbol|info|version|help|h)(?=$|[-_.])"
)
"""What is in the names of LLVM options that may read, write or count beyond the module that is compiled."""


@frozen
class Word:
    """One option with its value, or an input. `text` is the option as it was found here, without its value."""

    effect: Effect
    text: str
    value: str | None

    @property
    def known_by(self) -> str:
        """What a user knows it by."""
        return self.text if self.value is None else f"{self.text} {self.value}"


@frozen
class CodeWords:
    """What code generation depends on among a line's words.

    `words` are for a key, in order; `files` stand in them as their options only, and their contents are for it, too.
    With a `problem`, words are not all.
    """

    words: tuple[str, ...]
    files: tuple[str, ...]
    problem: str | None = None


@frozen
class LinkWords:
    """What the resolution of symbols and LTO depend on among a line's words; as `CodeWords`.

    `files` are named by words. Each has the name of its option with it, or that of the file if it is an input.
    """

    words: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    problem: str | None = None


@frozen
class _Option:
    name: str
    effect: Effect
    dashes: frozenset[str]
    directly: bool
    next_word: bool


def parsed(words: Iterable[str]) -> Iterator[Word]:
    """Options with their values, and inputs, as lld understands them."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            yield Word(Effect.UNKNOWN if word.startswith("@") else Effect.FILE, "", word)
            continue
        option = _option(word)
        if option is None:
            yield Word(Effect.UNKNOWN, word, None)
            continue
        dashes = "--" if word.startswith("--") and "--" in option.dashes else "-"
        value = word[len(dashes) + len(option.name) :]
        if option.directly and (value or not option.next_word):
            yield Word(option.effect, dashes + option.name, value)
        elif option.next_word:
            yield Word(option.effect, dashes + option.name, next(rest, ""))
        else:
            yield Word(option.effect, word, None)


def code_words(words: Iterable[str]) -> CodeWords:
    """What code generation in LTO depends on; the words are `expanded`. Pure."""
    kept: list[str] = []
    files: list[str] = []
    for word in parsed(words):
        match word.effect:
            case Effect.CODE:
                kept.append(_normal(word))
                if word.value == "native":
                    return CodeWords((), (), f"{word.known_by} depends on the machine")
            case Effect.LLVM:
                value = f"-{word.value}" if word.text.endswith("=-") else word.value or ""
                if not is_plain_llvm_option(value):
                    return CodeWords((), (), f"the LLVM option {value} may depend on more than is known")
                kept.append(f"mllvm {value}")
            case Effect.CODE_FILE if word.value not in _NO_FILES:
                kept.append(_normal(evolve_value(word, "")))
                files.append(word.value or "")
            case Effect.CODE_FILE:
                kept.append(_normal(word))
            case Effect.OUTSIDE:
                return CodeWords((), (), f"{word.known_by} reads or writes more than is known")
            case Effect.UNKNOWN:
                return CodeWords((), (), f"{word.known_by} is unknown")
            case _:
                pass
    return CodeWords(tuple(kept), tuple(files))

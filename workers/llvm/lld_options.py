"""ld.lld's options: how each takes its value, and how far it reaches. Pure.

All options of lld 22 stand here. Notation: `name` may stand behind one dash or two, `--name` behind two only, `-name`
behind one only. With nothing behind it, the option has no value. `=`: the value follows an equals sign, or is the next
word; `=.`: an equals sign only. `.`: the value follows at once; `:`: it is the next word; `~`: one or the other.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping

from attrs import frozen

__all__ = ["Effect", "Word", "parsed"]


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
    """What the linked file looks like, or what messages do."""
    REPORT = "report"
    """What else the final link writes, or says."""
    NOTHING = "nothing"
    """How the work is done."""
    FILE = "file"
    """No option: an input."""
    UNKNOWN = "unknown"


_OPTIONS = {
    Effect.CODE: """
        disable-verify --lto-O. --lto-CGO. plugin-opt=O. plugin-opt=disable-verify plugin-opt=mcpu=.
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
        --thinlto-single-module=. --thinlto-distributor=. --thinlto-distributor-arg= --thinlto-remote-compiler=.
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
        --package-metadata=. --pack-dyn-relocs= --use-android-relr-tags --no-use-android-relr-tags
        --color-diagnostics --color-diagnostics=. --no-color-diagnostics --vs-diagnostics demangle no-demangle
    """,
    Effect.REPORT: """
        Map= print-map -M --cref print-gc-sections --print-gc-sections=. print-icf-sections print-archive-stats=.
        --print-archive-stats=. print-symbol-order= print-memory-usage trace -t trace-symbol= -y~ --why-extract=.
        --why-live= --out-implib= --dependency-file= verbose --verbose-bp-section-orderer -v -V version help
    """,
    Effect.NOTHING: """
        -o~ --output= --threads= --thinlto-jobs=. plugin-opt=jobs=. --thinlto-cache-dir=. --thinlto-cache-policy=
        --error-limit= --error-handling-script= --mmap-output-file --no-mmap-output-file no-print-gc-sections
        no-print-icf-sections plugin= plugin-opt=-fresolution=. plugin-opt=-pass-through=. plugin-opt=. -d -g long-plt
        --no-add-needed no-copy-dt-needed-entries no-ctors-in-init-array no-keep-memory rpath-link= secure-plt
        sort-common stats warn-execstack warn-once warn-shared-textrel -G~
    """,
}


@frozen
class Word:
    """One option with its value, or an input, whose path is the `value`. `text` is the option without the value."""

    effect: Effect
    text: str
    value: str | None = None

    def __str__(self) -> str:
        return "=".join(part for part in (self.text, self.value) if part)


@frozen
class _Option:
    effect: Effect
    takes_rest: bool = False
    takes_next: bool = False


def _read_options() -> Mapping[str, _Option]:
    """The options by how they are spelled, dashes included, up to where the value follows at once."""
    found: dict[str, _Option] = {}

    def add(name: str, option: _Option) -> None:
        for dashes in ("",) if name.startswith("-") else ("-", "--"):
            found[dashes + name] = option

    for effect, names in _OPTIONS.items():
        for name in names.split():
            if name.endswith("=."):
                add(name[:-1], _Option(effect, takes_rest=True))
            elif name.endswith("="):
                add(name, _Option(effect, takes_rest=True))
                add(name[:-1], _Option(effect, takes_next=True))
            elif name.endswith("."):
                add(name[:-1], _Option(effect, takes_rest=True))
            elif name.endswith(":"):
                add(name[:-1], _Option(effect, takes_next=True))
            elif name.endswith("~"):
                add(name[:-1], _Option(effect, takes_rest=True, takes_next=True))
            else:
                add(name, _Option(effect))
    return found


_BY_SPELLING = _read_options()


def parsed(words: Iterable[str]) -> Iterator[Word]:
    """Options with their values, and inputs, as lld understands them. Of several options that fit, the longest does."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            yield Word(Effect.UNKNOWN if word.startswith("@") else Effect.FILE, "", word)
            continue
        for end in range(len(word), 0, -1):
            option = _BY_SPELLING.get(word[:end])
            if option is not None and (end == len(word) or option.takes_rest):
                value = word[end:] or (next(rest, "") if option.takes_next else "" if option.takes_rest else None)
                yield Word(option.effect, word[:end].removesuffix("="), value)
                break
        else:
            yield Word(Effect.UNKNOWN, word)

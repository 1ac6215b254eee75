"""Which objects LLVM can make that carry bitcode for LTO, and what is left to do about them when it has made them.

LLVM's own way is FatLTO: one run, which takes the bitcode between the two halves of the pipeline. It knows ELF and
COFF. For Mach-O and WebAssembly, and where something comes between the halves or one of them is done already, there
are two runs: one up to the bitcode, and one that makes the object of it. Clang then names the section as for
`-fembed-bitcode`; linkers for Mach-O and WebAssembly leave that section out, and for ELF and COFF it becomes here what
FatLTO would have made. LLVM cannot do it for any other format.
"""

from __future__ import annotations

from pathlib import Path

from workers.llvm import coff, elf
from workers.llvm.bitcode import BitcodeError, read_header
from workers.llvm.content import ContentError, open_file
from workers.llvm.kind import ContentKind, sniff
from workers.llvm.objectfile import EMBEDDED, FAT_LTO, ObjectError, find_embedded
from workers.target import TargetFlags
from workers.work import Optimize

__all__ = ["in_one_run", "knows_fat_lto", "mark_for_lto", "why_not_embedded"]


def knows_fat_lto(triple: str) -> bool:
    """Whether to leave the embedding to LLVM's FatLTO, and with it the refusal of what it cannot do."""
    flags = TargetFlags.from_triple(triple)
    return not (flags.is_like_darwin or flags.is_like_wasm)


def in_one_run(item: Optimize, triple: str) -> bool:
    """Whether one run makes the object.

    Not with sanitizers: FatLTO runs them in both halves of the pipeline.
    """
    options = item.options
    is_plain = options.prepopulate_passes and not options.extra_passes and not options.sanitizers
    return is_plain and not item.pre_linked and knows_fat_lto(triple)


def why_not_embedded(bitcode: Path) -> str | None:
    """Why no code can be generated of bitcode for LTO; `None`: it can."""
    try:
        with open_file(bitcode) as source:
            count = read_header(source).module_count
    except (BitcodeError, ContentError) as error:
        return f"its bitcode for LTO cannot be used: {error}"
    if count > 1:
        return (
            "its type metadata splits it into a part for fat LTO and one for ThinLTO, of which no object can be made: "
            "emit bc, or compile the source without -fwhole-program-vtables and control flow integrity"
        )
    return None


def mark_for_lto(path: Path) -> None:
    """Make of embedded bitcode what FatLTO makes of it, if the format has that.

    Raises `ObjectError` where there is none, or where the object is not what clang writes, `ContentError` or `OSError`
    where it cannot be read or written.
    """
    with open_file(path) as source:
        kind = sniff(source)
        section = find_embedded(source)
    if section is None:
        raise ObjectError("an object without bitcode")
    if section.name == EMBEDDED:
        if kind is ContentKind.ELF:
            elf.exclude_as(path, section, FAT_LTO)
        elif kind is ContentKind.COFF:
            coff.exclude_as(path, section, FAT_LTO)

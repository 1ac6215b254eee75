"""What keeps a module from llvmlite, read from its bytes alone; neither LLVM nor any other import belongs here."""

from __future__ import annotations

__all__ = ["BITCODE_MAGICS", "needs_toolchain"]

BITCODE_MAGICS = (b"BC\xc0\xde", b"\xde\xc0\x17\x0b")
"""How raw bitcode begins, and bitcode behind the wrapper header that Apple's tools write."""

_STRUCTORS = (b"llvm.global_ctors", b"llvm.global_dtors")
_DEBUG_INFO = b"llvm.dbg.cu"


def _bit_shifted(needle: bytes) -> tuple[bytes, ...]:
    """The whole bytes of `needle` at each of the eight bit offsets it can have in a bitstream."""
    value = int.from_bytes(needle, "little")
    inner = len(needle) - 1
    shifted = ((value << shift >> 8) & ((1 << 8 * inner) - 1) for shift in range(1, 8))
    return (needle, *(bits.to_bytes(inner, "little") for bits in shifted))


_DEBUG_INFO_ANYWHERE = _bit_shifted(_DEBUG_INFO)


def needs_toolchain(content: bytes, *, optimizes: bool) -> str | None:
    """Why llvmlite would compile `content`, bitcode or textual IR, differently from clang; `None`: it would not.

    * Static constructors would land in `.ctors`, which today's C runtimes do not run: `.init_array` is a field of
      LLVM's target options that llvmlite does not set.
    * Debug info of optimised code would describe fewer variables: clang adds assignment tracking to the pipeline,
      and llvmlite's API cannot. Code itself is the same.

    Names of globals stand in bitcode as plain bytes; that of a metadata node may begin at any bit. A name that
    occurs in a string of the program is taken for the real thing, which costs a tool start and nothing else.
    """
    for name in _STRUCTORS:
        if name in content:
            return f"llvmlite cannot place {name.decode()} in .init_array or .fini_array"
    if optimizes:
        names = _DEBUG_INFO_ANYWHERE if content.startswith(BITCODE_MAGICS) else (_DEBUG_INFO,)
        if any(name in content for name in names):
            return "llvmlite cannot track assignments for the debug info of optimised code"
    return None

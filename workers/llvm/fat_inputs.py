"""What the files of a fat link say before it is run: how much it is, and what is special about the modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

from workers.fat import FatLink
from workers.llvm.bitcode import BitcodeError
from workers.llvm.fat_pipeline import is_ordinary
from workers.llvm.fat_symbols import Promotion, promotion
from workers.llvm.fat_ties import Ties
from workers.llvm.irsymtab import Symbol, read_symbols
from workers.work import Estimate, LinkFile, LinkKind, NeedsFatLto, count

__all__ = ["Survey", "code_bytes", "estimate_merge", "estimate_part", "path_of", "survey"]

# Seen at -O2 with the wheel's lld, for programs of 0.1 to 6 MB of functions.
_START_SECONDS = 0.03
_MERGE_SECONDS_PER_BYTE = 2e-6
_MERGE_RSS_AT_LEAST = 70 * 2**20
_MERGE_RSS_PER_BYTE = 130
_PART_SECONDS_PER_BYTE = 2e-6
_PART_RSS_AT_LEAST = 64 * 2**20
_PART_RSS_PER_BYTE = 60


def estimate_merge(item: FatLink) -> Estimate:
    """What merging is expected to need, from the bytes of functions: debug information is not among them."""
    code = code_bytes(item)
    return Estimate(_START_SECONDS + code * _MERGE_SECONDS_PER_BYTE, _MERGE_RSS_AT_LEAST + code * _MERGE_RSS_PER_BYTE)


def estimate_part(size: int) -> Estimate:
    """What a part whose file has `size` bytes is expected to need."""
    return Estimate(_START_SECONDS + size * _PART_SECONDS_PER_BYTE, _PART_RSS_AT_LEAST + size * _PART_RSS_PER_BYTE)


def code_bytes(item: FatLink) -> int:
    """Bytes of functions in all modules."""
    return sum(file.code_bytes for file in item.files if isinstance(file, NeedsFatLto))


def path_of(file: NeedsFatLto | LinkFile) -> Path:
    """Where a file is, as lld is told."""
    return (file.bitcode if isinstance(file, NeedsFatLto) else file.path).absolute()


@frozen
class Survey:
    """What is special about the modules: whether the pipeline may be cut, which names parts keep (`None`: nobody
    knows), which modules need what none of them defines, and the owners of what only one of them defines.
    """

    is_ordinary: bool = False
    names: Promotion | None = None
    needs: Mapping[str, tuple[str, ...]] = field(factory=dict, repr=count)
    owners: Mapping[str, str] = field(factory=dict, repr=count)
    together: str | None = None
    """Why the program must not be split, in words."""


def survey(item: FatLink) -> Survey:
    """Read all modules. One that cannot be read is lld's to complain about."""
    ordinary = True
    symbols: list[Symbol] = []
    needs: dict[str, list[str]] = {}
    owners: dict[str, str | None] = {}
    ties = Ties()
    try:
        for file in item.files:
            if isinstance(file, NeedsFatLto):
                content = file.bitcode.read_bytes()
                ordinary = ordinary and is_ordinary(content)
                found = read_symbols(content)
                ties.add(file.module, content, found or ())
                if found is None:
                    return Survey(together=ties.why())
                symbols += found
                for symbol in found:
                    if symbol.undefined:
                        needs.setdefault(symbol.name, []).append(file.module)
                    else:
                        owners[symbol.name] = None if symbol.name in owners else file.module
    except (OSError, BitcodeError):
        return Survey()
    for symbol in symbols:
        if not symbol.undefined and not symbol.local:
            needs.pop(symbol.name, None)
    is_final = item.link is not None and item.link.kind is not LinkKind.STATIC
    return Survey(
        ordinary,
        promotion(symbols, frozenset(item.exports), is_final=is_final),
        {name: tuple(sorted(set(users))) for name, users in needs.items()},
        {name: owner for name, owner in owners.items() if owner is not None},
        ties.why(),
    )

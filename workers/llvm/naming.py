"""How modules get their names from where they came: short where that is unique, and always fit for a file name."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence, Set
from pathlib import Path

from attrs import frozen

__all__ = ["Origin", "module_names"]

_STDIN = "stdin"
_UNFIT = re.compile(r"[\x00-\x1f\x7f]")
_MAX_COMPONENT = 200  # bytes; file systems take 255, and artifacts add to it


@frozen
class Origin:
    """Where a module came from: the file, and the member of it where that is an archive."""

    path: Path | None
    """Absolute; `None` is standard input."""
    member: str | None = None


def module_names(origins: Sequence[Origin]) -> list[str]:
    """A name for each module, in the same order, no two alike.

    A file is named without directory and extension; a member after its archive and itself: `libx.a(m.o)` is
    `libx/m`, the next equal one of that archive `libx/m.2`. Those whose names collide are all named by their
    path relative to their deepest common directory, and with the extension if that is not enough. Standard input
    is always `stdin`: a file of that name gets its directory's name in front.
    """
    directories = [_directory(origin.path) for origin in origins]
    fixed = {index for index, origin in enumerate(origins) if origin.path is None}
    short = _short_names(origins)
    names = ["/".join(parts) for parts in short]
    bases: dict[int, int] = {}
    for parts in (short, [_long_name(origin) for origin in origins]):
        for group in _collisions(names):
            files = [index for index in group if index not in fixed]
            common = _common([directories[index] for index in files])
            if len(files) < len(group):
                common = max(0, min(common, *(len(directories[index]) - 1 for index in files)))
            for index in files:
                bases[index] = min(common, bases.get(index, common))
                names[index] = "/".join((*directories[index][bases[index] :], *parts[index]))
    return _numbered(names, fixed)


def _common(directories: Sequence[tuple[str, ...]]) -> int:
    """How many leading components all of `directories` share."""
    first, last = min(directories), max(directories)
    return next((depth for depth, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def _directory(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    parts = Path(os.path.normpath(path)).parent.parts
    return tuple(_component(part) for part in parts[1:])


def _short_names(origins: Sequence[Origin]) -> list[tuple[str, ...]]:
    seen: dict[tuple[Path, str], int] = defaultdict(int)
    names: list[tuple[str, ...]] = []
    for origin in origins:
        if origin.path is None:
            names.append((_STDIN,))
            continue
        stem = _stem(origin.path.name)
        if origin.member is None:
            names.append((_component(stem),))
            continue
        member = _stem(_base_name(origin.member))
        seen[origin.path, member] += 1
        number = seen[origin.path, member]
        names.append((_component(stem), _component(member if number == 1 else f"{member}.{number}")))
    return names


def _long_name(origin: Origin) -> tuple[str, ...]:
    if origin.path is None:
        return (_STDIN,)
    file = _component(origin.path.name)
    return (file,) if origin.member is None else (file, _component(_base_name(origin.member)))


def _base_name(member: str) -> str:
    """The last part of a member's name, which may be a path, of Windows too."""
    return re.split(r"[/\\]", member)[-1]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 - Path.stem makes '.' of '..bc'


def _component(text: str) -> str:
    """`text` as one component of a path: nothing that leads elsewhere, no control characters, not too long."""
    text = _UNFIT.sub("_", text)
    if text in ("", ".", ".."):
        return "_" * max(1, len(text))
    raw = os.fsencode(text)
    if len(raw) <= _MAX_COMPONENT:
        return text
    return os.fsdecode(raw[: _MAX_COMPONENT - 17]) + "-" + hashlib.sha256(raw).hexdigest()[:16]


def _collisions(names: Sequence[str]) -> list[list[int]]:
    """Groups of indexes with equal names."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        groups[name].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _numbered(names: list[str], fixed: Set[int]) -> list[str]:
    """`names` with numbers behind those that are still equal; those at the indexes `fixed` stay."""
    taken = set(names)
    for group in _collisions(names):
        number = 2
        for index in sorted(group, key=lambda index: index not in fixed)[1:]:
            while f"{names[index]}.{number}" in taken:
                number += 1
            names[index] = f"{names[index]}.{number}"
            taken.add(names[index])
    return names

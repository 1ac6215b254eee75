"""Where a thin link's modules are for lld, and under which names.

lld compares modules' names: it sorts by them, and takes one for another if it is a part of it. In the sorted order a
backend imports from modules, which shows in objects: in tables of symbols, for one. So the order must be that of the
names by which linkers know the modules. Mostly their own paths do; else each module gets a name of ours in a directory
of the link, a number of one width.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from attrs import field, frozen

from workers.llvm.content import Stamp, stamp_of
from workers.thin import ThinLink
from workers.work import NeedsThinLto, count

__all__ = ["Layout", "lay_out"]

_LONGEST = 3000
"""Indexes are kept under the whole path of what they are of, and a path has at most 4,096 bytes."""


@frozen
class Layout:
    """What lld is given: paths, and whether they are lazy, in link order.

    `paths` are the modules' by name; `names` are of modules and objects by path; `labels` are of modules by path, short
    names that sort as the paths do.
    """

    files: tuple[tuple[str, bool], ...] = field(repr=count)
    paths: Mapping[str, Path] = field(repr=count)
    names: Mapping[str, str] = field(repr=count)
    labels: Mapping[str, str] = field(repr=count)
    stamps: Mapping[str, Stamp] = field(repr=count)
    """Of all files, by path."""


def lay_out(item: ThinLink, directory: Path) -> Layout:
    """Give modules their places; `directory` is for those that need one of ours. Raises `OSError`."""
    directory.mkdir(parents=True, exist_ok=True)
    thin = [file for file in item.files if isinstance(file, NeedsThinLto)]
    ranked = sorted(thin, key=lambda file: os.fsencode(file.origin or file.module))
    own = [file.bitcode.absolute() for file in ranked]
    width = max(5, len(str(len(thin))))
    labels = [f"{number:0{width}}.bc" for number in range(len(thin))]
    places = own
    if not _usable([os.fsencode(path) for path in own]):
        places = [directory / label for label in labels]
        for place, path in zip(places, own, strict=True):
            place.unlink(missing_ok=True)
            place.symlink_to(path)
    paths = {file.module: place for file, place in zip(ranked, places, strict=True)}
    files: list[tuple[str, bool]] = []
    names: dict[str, str] = {}
    stamps: dict[str, Stamp] = {}
    for one in item.files:
        shown = str(paths[one.module] if isinstance(one, NeedsThinLto) else one.path.absolute())
        files.append((shown, one.lazy))
        names[shown] = one.module
        try:
            stamps[shown] = stamp_of(shown)
        except OSError as error:
            what, path = ("bitcode", one.bitcode) if isinstance(one, NeedsThinLto) else ("object", one.path)
            raise OSError(error.errno, f"the {what} of {one.module} is gone: {error.strerror}", str(path)) from error
    by_path = {str(place): label for place, label in zip(places, labels, strict=True)}
    return Layout(tuple(files), paths, names, by_path, stamps)


def _usable(paths: Sequence[bytes]) -> bool:
    """Whether lld may be given these absolute paths: they are in order, and none is a part of another."""
    # lld lists modules one on each line, and writes indexes under their paths.
    if any(b"\n" in path or b"/../" in path or len(path) > _LONGEST for path in paths):
        return False
    if any(second.startswith(first) or second < first for first, second in pairwise(paths)):
        return False
    for path in paths:
        slash = path.find(b"/", 1)
        while slash >= 0:
            rest = path[slash:]
            place = bisect_left(paths, rest)
            # None begins another, so only the last one before `rest` can begin it.
            if (place < len(paths) and paths[place] == rest) or (place and rest.startswith(paths[place - 1])):
                return False
            slash = path.find(b"/", slash + 1)
    return True

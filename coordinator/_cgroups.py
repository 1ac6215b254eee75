"""Where the control groups of this process are mounted, and what they and /proc say in numbers.

Only finding and reading: what a limit means is decided by `_memory` and `_tokens`. Every function takes the
root of the file system, so that a tree laid out by a test (or a container's) reads like the machine's own. A
file that is missing, unreadable or garbled says nothing: limits that cannot be read are limits that we do not
know, never an error.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from attrs import frozen

__all__ = ["enclosing_groups", "read_numbers", "read_text"]


def read_text(path: Path) -> str:
    """The text of a small file, empty when it cannot be read; never raises."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):  # ValueError: a NUL byte in a garbled path
        return ""


def read_numbers(path: Path) -> list[int | None]:
    """The words of a control file: `None` for 'max' and for anything else that is no number."""
    return [int(word) if re.fullmatch(r"-?[0-9]{1,30}", word) else None for word in read_text(path).split()]


def enclosing_groups(controller: str, root: Path = Path("/")) -> list[Path]:
    """Directories of the groups whose `controller` binds this process: innermost first, up to each mount point.

    Version 1 and version 2 hierarchies alike, both on a hybrid machine; the control files in a directory tell
    which it is, and a directory may be missing. Empty where no hierarchy is mounted.
    """
    memberships = _memberships(read_text(root / "proc/self/cgroup"), controller)
    mounts = _mounts(read_text(root / "proc/self/mountinfo"), controller)
    found: list[Path] = []
    for version, group in memberships.items():
        candidates = [mount for mount in mounts if mount.version == version]
        # A hierarchy can be mounted more than once, some mounts showing subtrees of others. Those that show
        # our group all say the same. If none does (a namespace, a container with the host's /proc), the
        # best that can be known is the top of what we are shown.
        showing = [mount for mount in candidates if _below(group, mount.root) is not None]
        for mount in showing or candidates[:1]:
            inner = _below(group, mount.root) or PurePosixPath()
            top = root / mount.point.lstrip("/")
            found += [top / part for part in (inner, *inner.parents)]
    return list(dict.fromkeys(found))


@frozen
class _Mount:
    """One mount of a hierarchy: `root` is the group that appears at `point`."""

    version: int
    root: str
    point: str


def _memberships(text: str, controller: str) -> dict[int, str]:
    """From /proc/self/cgroup: hierarchy version → path of our group."""
    found: dict[int, str] = {}
    for line in text.splitlines():
        match line.split(":", 2):
            case ["0", "", group]:
                found[2] = group
            case [_, controllers, group] if controller in controllers.split(","):
                found[1] = group
    return found


def _mounts(text: str, controller: str) -> list[_Mount]:
    """From /proc/self/mountinfo: the mounts of hierarchies that can carry `controller`."""
    found = []
    for line in text.splitlines():
        # id parent device root point options optional... - type source super-options
        place, separator, kind = line.partition(" - ")
        place_words, kind_words = place.split(" "), kind.split(" ")
        if not separator or len(place_words) < 6 or len(kind_words) < 3:
            continue
        if kind_words[0] == "cgroup2":
            version = 2
        elif kind_words[0] == "cgroup" and controller in kind_words[2].split(","):
            version = 1
        else:
            continue
        found.append(_Mount(version, _unescape(place_words[3]), _unescape(place_words[4])))
    return found


def _unescape(word: str) -> str:
    """Undo mountinfo's octal escapes of blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def _below(group: str, mount_root: str) -> PurePosixPath | None:
    """The path of `group` relative to `mount_root`; `None` when it is not inside.

    The kernel writes `..` for groups outside of our namespace; those are not visible anywhere.
    """
    path = PurePosixPath(group)
    if ".." in path.parts or not path.is_relative_to(mount_root):
        return None
    return path.relative_to(mount_root)

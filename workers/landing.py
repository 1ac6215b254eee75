"""Where an output comes down: at which file, or in which device, and never on anything else."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["landing"]

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
}


def landing(destination: Path) -> Path | None:
    """The file that an output at `destination` becomes, all links resolved; `None`: it goes into a character device.

    Raises `OSError` where something else is that is not a regular file, and for links that run in a circle.
    """
    try:
        mode = destination.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    if stat.S_ISCHR(mode):
        return None
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, f"it is {_KINDS.get(stat.S_IFMT(mode), 'special')}", str(destination))
    return Path(os.path.realpath(destination)) if destination.is_symlink() else destination

"""How an output gets to where it was asked for: whole or not at all, and never onto what is not a file.

Who makes the output, and what it is, is the business of others.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from workers.errors import ModuleError
from workers.keeper import unused_name, watched
from workers.landing import landing
from workers.work import Optimize, artifact_path

__all__ = ["check_destinations", "place"]

_COPY_CHUNK = 1024 * 1024


def check_destinations(item: Optimize) -> None:
    """A name must not lead out of the output directory, nor onto the module itself. Raises `ModuleError`."""
    parts = item.name.split("/")
    if "\0" in item.name or any(part in ("", ".", "..") for part in parts):
        raise ModuleError(item.name, "its name cannot be a path below the output directory; rename it")
    content = item.module.content
    for kind in item.options.emit:
        destination = artifact_path(item.out_dir, item.name, kind)
        try:
            same = isinstance(content, Path) and destination.samefile(content)
        except OSError:
            same = False
        if same:
            raise ModuleError(item.name, f"{destination} would overwrite its input; choose another output directory")


def place(source: Path, destination: Path, mode: int = 0o644) -> int:
    """Move an output to its destination atomically, as a file of `mode` less the umask. Returns its bytes.

    Directories above it are made. On the same file system it is a rename, else a copy under a temporary name in the
    destination's directory followed by a rename. A symbolic link stays, and what it points to is replaced; into a
    character device (`/dev/null`) the output is written. Raises `OSError`, and leaves no temporary file, when that
    fails or something else is there that is not a regular file: that is never replaced.
    """
    target = landing(destination)
    found = source.stat()
    if target is None:
        _write_through(source, destination)
        return found.st_size
    target.parent.mkdir(parents=True, exist_ok=True)
    # The tool made the file with its bits less the umask: clearing bits keeps the umask without reading it, which
    # cannot be done without setting it for a moment.
    source.chmod(stat.S_IMODE(found.st_mode) & mode)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _place_across(source, target, mode)
    return found.st_size


def _write_through(source: Path, device: Path) -> None:
    # Neither O_CREAT nor O_TRUNC: should the device be gone by now, nothing takes its place.
    with source.open("rb") as data, os.fdopen(os.open(device, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY), "wb") as out:
        shutil.copyfileobj(data, out, _COPY_CHUNK)
    source.unlink()


def _place_across(source: Path, destination: Path, mode: int) -> None:
    temporary = unused_name(destination.parent, ".ltod-")
    with watched(temporary):
        try:
            wanted = stat.S_IMODE(source.stat().st_mode) & mode
            target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, wanted)
            with source.open("rb") as data, os.fdopen(target, "wb") as copy:
                shutil.copyfileobj(data, copy, _COPY_CHUNK)
            temporary.replace(destination)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    source.unlink()

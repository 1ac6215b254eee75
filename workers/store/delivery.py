"""Verified blobs to where they are wanted, all of them or none.

Here belongs what a hit does with destinations. Each blob first gets a temporary name beside its destination and is
verified *there*, so what is verified is what is placed, whatever happens in the store meanwhile. Only when all are
right do they take their places.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from workers.keeper import unused_name, watched
from workers.landing import landing
from workers.store.files import Unusable, copy_hashed, discard, open_file, read_all, write_all
from workers.store.interface import Output
from workers.store.layout import Layout

__all__ = ["deliver", "read_blob"]

_MEMORY_BYTES = 1024 * 1024
"""Blobs up to this size are read at once, larger ones piece by piece."""


def deliver(layout: Layout, wanted: Iterable[tuple[Output, Path]]) -> None:
    """Place the outputs at their destinations. Raises `Unusable` for the store's fault, `OSError` for a destination's.

    What is at a destination is treated as `workers.placing` does it: links stay, and only regular files are replaced.
    """
    with ExitStack() as cleanup:
        ready: list[tuple[Path, Path]] = []
        devices: list[tuple[Path, bytes]] = []
        for output, destination in wanted:
            target = landing(destination)
            if target is None:
                devices.append((destination, read_blob(layout, output)))
                continue
            temporary = unused_name(target.parent, ".ltod-")
            cleanup.enter_context(watched(temporary))
            cleanup.callback(discard, str(temporary))
            _copy(layout, output, temporary)
            ready.append((temporary, target))
        for temporary, target in ready:
            temporary.replace(target)
        for device, content in devices:
            _write_through(content, device)


def read_blob(layout: Layout, output: Output) -> bytes:
    """The verified content of a blob. Raises `Unusable`."""
    path = layout.blob(output.digest)
    fd, status = open_file(path)
    try:
        if status.st_size != output.size:
            raise Unusable(path, damaged=True)
        content = read_all(fd, output.size, path)
    finally:
        os.close(fd)
    if hashlib.sha256(content).hexdigest() != output.digest:
        raise Unusable(path, damaged=True)
    return content


def _copy(layout: Layout, output: Output, temporary: Path) -> None:
    path = layout.blob(output.digest)
    if output.size <= _MEMORY_BYTES:
        content = read_blob(layout, output)
        target = _create(temporary, output.executable)
        try:
            write_all(target, content)
        finally:
            os.close(target)
        return
    source, status = open_file(path)
    try:
        if status.st_size != output.size:
            raise Unusable(path, damaged=True)
        target = _create(temporary, output.executable)
        try:
            found = copy_hashed(source, target, output.size, path)
        finally:
            os.close(target)
    finally:
        os.close(source)
    if found != (output.digest, output.size):
        raise Unusable(path, damaged=True)


def _create(path: Path, executable: bool) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    mode = 0o755 if executable else 0o644
    try:
        return os.open(path, flags, mode)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, mode)


def _write_through(content: bytes, device: Path) -> None:
    # Neither O_CREAT nor O_TRUNC: should the device be gone by now, nothing takes its place.
    fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        write_all(fd, content)
    finally:
        os.close(fd)

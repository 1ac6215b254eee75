"""Where the store is and how large it may become, where nobody says more than the environment does."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path

from workers.errors import RequestError

__all__ = ["default_directory", "default_limit", "parse_size"]

_LIMIT_BYTES = 10 * 2**30
"""Objects of some dozen large programs; less than what anybody would call a full disk."""

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)


def default_directory(environ: Mapping[str, str]) -> Path:
    """`$LTOD_CACHE_DIR`, else `ltod` in `$XDG_CACHE_HOME` or in `~/.cache`. Not made, and it may be relative.

    Raises `RequestError` where there is not even a home directory.
    """
    if directory := environ.get("LTOD_CACHE_DIR"):
        return Path(directory)
    # The XDG base directory specification has relative paths ignored.
    caches = Path(environ.get("XDG_CACHE_HOME", ""))
    if caches.is_absolute():
        return caches / "ltod"
    home = Path(environ.get("HOME", ""))
    if not home.is_absolute():
        try:
            home = Path(pwd.getpwuid(os.getuid()).pw_dir)
        except KeyError:
            raise RequestError("no home directory is known to have a cache in: set LTOD_CACHE_DIR") from None
    return home / ".cache" / "ltod"


def default_limit(environ: Mapping[str, str]) -> int:
    """Bytes: `$LTOD_CACHE_SIZE`, such as `500M` or `10G`, else 10 GiB. Raises `RequestError` for what is no size."""
    text = environ.get("LTOD_CACHE_SIZE", "").strip()
    if not text:
        return _LIMIT_BYTES
    size = parse_size(text)
    if size is None:
        raise RequestError(f"LTOD_CACHE_SIZE is {text!r}: write bytes, or a number with K, M, G or T, such as 10G")
    return size


def parse_size(text: str) -> int | None:
    """Bytes: a number, perhaps with K, M, G or T for powers of 1024; `None` for what is no size above 0."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " ")) if match else 0
    return size if 0 < size < 2**63 else None

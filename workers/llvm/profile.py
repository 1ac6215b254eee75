"""Profiles for optimisation: whether a file is one that the backend can use."""

from __future__ import annotations

from pathlib import Path

from workers.errors import RequestError

__all__ = ["check_profile"]

_PROFILE_MAGIC = b"\xfflprofi\x81"
_PROFILE_OF_IR = 1 << 56


def check_profile(path: Path) -> None:
    """Refuse profiles that would be without effect on IR, or are none. Raises `RequestError`."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise RequestError(f"cannot read the profile {path}: {error.strerror}") from error
    if len(head) < 16 or not head.startswith(_PROFILE_MAGIC):
        raise RequestError(f"{path} is not an indexed profile: make one with llvm-profdata merge")
    if not int.from_bytes(head[8:16], "little") & _PROFILE_OF_IR:
        raise RequestError(
            f"{path} was recorded by a front end's counters, which only the front end can use: "
            "record with -fprofile-generate instead of -fprofile-instr-generate"
        )

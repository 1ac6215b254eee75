"""What a store is to those who use it.

Here belong the values that cross the seam, and the Protocols on both sides of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, Self

from attrs import field, frozen

__all__ = [
    "Claim",
    "Entry",
    "Output",
    "Remote",
    "RemoteOff",
    "RemoteTrouble",
    "Stats",
    "Store",
    "check_key",
    "is_digest",
]

_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether `text` is a SHA-256 in the form that names blobs and keys: 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def check_key(key: str) -> None:
    """Raise `ValueError` for what is no key."""
    if not is_digest(key):
        raise ValueError(f"not a key: {key!r}")


def _is_a_digest(_: object, __: object, value: str) -> None:
    # It becomes part of a path.
    if not is_digest(value):
        raise ValueError(f"not a SHA-256: {value!r}")


@frozen
class Output:
    """One file that an action wrote: `name` is the action's word for it, `digest` its SHA-256, `size` in bytes."""

    name: str
    digest: str = field(validator=_is_a_digest)
    size: int
    executable: bool = False


@frozen
class Entry:
    """What an action gave: its outputs sorted by name, and a small note that only its writer can read."""

    outputs: tuple[Output, ...]
    note: bytes = field(default=b"", repr=lambda note: f"<{len(note)} bytes>")


@frozen(kw_only=True)
class Stats:
    """What a store has seen since it was opened."""

    hits: int = 0
    """Entries found, with outputs that seemed to be there."""
    misses: int = 0
    """Entries asked for that were not there, or not whole; not those asked for again by who has the claim."""
    lost: int = 0
    """Fetches and reads that failed after all, as an output was damaged or gone."""
    damaged: int = 0
    """Files in the store that were not what they should be, and were removed."""
    not_stored: int = 0
    """Results that could not be kept."""
    bytes_read: int = 0
    """Bytes of verified outputs handed over."""
    bytes_written: int = 0
    """Bytes of outputs that were not in the store before."""
    remote_hits: int = 0
    """Those of the hits that came from the second tier."""
    remote_failures: int = 0
    """Requests to the second tier that raised, or were answered with something damaged."""
    remote_skipped: int = 0
    """Requests not made: the second tier is switched off for now or takes no uploads, or too many uploads wait."""
    remote_troubles: tuple[str, ...] = ()
    """What kept the second tier from working, each said once, in words for a user."""
    trouble: str = ""
    """The first thing that kept the store from working, in words for a user; empty while there was none."""


class RemoteTrouble(Exception):
    """A request to the second tier failed. The text is for a user: no secrets, the same for the same trouble."""


class RemoteOff(Exception):
    """The second tier was not asked: it is switched off for a while, or takes no uploads. Its trouble was told."""


class Claim(Protocol):
    """The right to compute an action. It ends with `close`, or with the process that has it."""

    def close(self) -> None:
        """Give the right back; a second time does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Store(Protocol):
    """A content store and action cache; a Protocol as a build may run without one.

    Keys are SHA-256 digests in hexadecimal; other text raises `ValueError`. A store belongs to one trio run. Its own
    troubles (a full disk, a directory that cannot be written or is gone) never leave it but as misses and counts.
    """

    @property
    def stats(self) -> Stats:
        """What happened so far."""
        ...

    async def find(self, key: str) -> Entry | None:
        """The entry of an action, only if all its outputs are there as well. Counts as a use of them."""
        ...

    async def fetch(self, entry: Entry, destinations: Mapping[str, Path]) -> bool:
        """Place the outputs that `destinations` names, each verified; directories above them are made.

        False: something was damaged or gone; nothing is placed, what was damaged is removed, and the entry is to be
        treated as a miss. A user may do anything to what was placed without harm to the store.

        Raises `OSError` when a *destination* cannot be written, and `KeyError` for a name that `entry` lacks.
        """
        ...

    async def read(self, output: Output) -> bytes | None:
        """The verified content of one output; `None`: it was damaged or gone."""
        ...

    async def add(self, key: str, outputs: Mapping[str, Path | bytes], note: bytes = b"") -> Entry | None:
        """Keep what an action gave: files, which are copied, or the content itself. `None`: it could not be kept."""
        ...

    def recall(self, key: str) -> bytes | None:
        """What was last remembered under `key`, if it is still there."""
        ...

    def remember(self, key: str, note: bytes) -> None:
        """Keep a small fact that is a shortcut and nothing more: who cannot `recall` it finds it out again.

        It may be lost at any time, also at once. Facts and entries are apart, even under the same key. No other
        machine is told of a fact, so it may be true on this one only; neither method counts as a hit or a miss. Both
        are done at once: a fact is small.
        """
        ...

    def claim(self, key: str) -> Claim | None:
        """The right to compute an action; `None`: another build has it, here or in another process.

        Who gets it should `find` once more: the one before may have been done in the meantime.
        """
        ...

    async def wait(self, key: str) -> None:
        """Return when nobody has the claim any more, also because its holder was killed; at once if nobody has it.

        Nothing is promised about what comes next: look for the entry, and try to claim.
        """
        ...

    def session(self) -> AbstractContextManager[None]:
        """A build: nothing that is used from now until the block is left is pruned by anyone."""
        ...


class Remote(Protocol):
    """A second tier: asked after a local miss, told after a local add.

    Actions are encoded ActionResults of the remote execution API. Whatever a method raises is counted and treated as
    a miss; only the text of a `RemoteTrouble` is shown to anybody. What a method gives is verified. Time limits and
    retries are its own business.
    """

    async def get_action(self, key: str) -> bytes | None:
        """The encoded entry, `None` if there is none."""
        ...

    async def put_action(self, key: str, message: bytes) -> None:
        """Keep an encoded entry. Its blobs were put before; returns when it is kept."""
        ...

    async def get_blob(self, digest: str, size: int, into: Path) -> bool:
        """Write a blob, which should have `size` bytes, to the new file `into`; False: it is not there."""
        ...

    async def put_blob(self, digest: str, source: Path) -> None:
        """Keep the content of `source`, which may vanish at any time. Raises unless it is kept."""
        ...

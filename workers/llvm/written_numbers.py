"""Numbers as bitstreams write them, and what they stand for.

Texts of bits have the first bit first. The same few come again and again, so what they stand for is looked up.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CHARACTERS", "FIXED_NUMBERS", "number", "vbr_numbers", "written"]

_MAX_KNOWN = 1 << 16
_CHAR6_TEXT = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._"


def number(chunks: bytes) -> int:
    """The value that is written as `chunks`."""
    return _known_vbr8s[chunks]


def written(value: int) -> bytes:
    """How `value` is written in chunks of eight bits, the shortest way."""
    return _known_written[value]


class _Written(dict[int, bytes]):
    """Numbers as they are written in chunks of eight bits."""

    def __missing__(self, value: int) -> bytes:
        chunks = bytearray()
        rest = value
        while rest > 127:
            chunks.append(rest & 127 | 128)
            rest >>= 7
        chunks.append(rest)
        if len(self) > _MAX_KNOWN:
            self.clear()
        self[value] = made = bytes(chunks)
        return made


class _VbrNumbers(dict[str, int]):
    """Numbers by their text in chunks of a width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def __missing__(self, text: str) -> int:
        width = self._width
        if len(text) == width:
            value = int(text[::-1], 2)
        elif len(text) == width * 2:
            value = int(text[-2 : width - 1 : -1] + text[width - 2 :: -1], 2)
        else:
            chunks = [text[at : at + width - 1] for at in range(0, len(text), width)]
            value = int("".join(chunks)[::-1], 2)
        if len(self) > _MAX_KNOWN:
            self.clear()
        self[text] = value
        return value


class _Vbr8Numbers(dict[bytes, int]):
    """Numbers by the bytes of their chunks of eight bits."""

    def __missing__(self, chunks: bytes) -> int:
        value = 0
        for chunk in reversed(chunks):
            value = value << 7 | chunk & 127
        if len(self) > _MAX_KNOWN:
            self.clear()
        self[chunks] = value
        return value


class _FixedNumbers(dict[str, int]):
    """Numbers by their bits; those of many bits are not worth remembering."""

    def __missing__(self, text: str) -> int:
        value = int(text[::-1], 2)
        if len(text) <= 8:
            self[text] = value
        return value


class _Characters(dict[str, int]):
    """Characters by the bits that stand for them."""

    def __missing__(self, text: str) -> int:
        self[text] = value = _CHAR6_TEXT[int(text[::-1], 2)]
        return value


_known_vbrs: dict[int, _VbrNumbers] = {}
_known_vbr8s = _Vbr8Numbers()
_known_written = _Written()

FIXED_NUMBERS: Mapping[str, int] = _FixedNumbers()
"""Numbers by their bits."""
CHARACTERS: Mapping[str, int] = _Characters()
"""Characters by the six bits that stand for them."""


def vbr_numbers(width: int) -> Mapping[str, int]:
    """Numbers by their text in chunks of `width` bits, of which the last of each says that it goes on."""
    known = _known_vbrs.get(width)
    return known if known is not None else _known_vbrs.setdefault(width, _VbrNumbers(width))

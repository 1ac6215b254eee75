"""Pure layer: entries as encoded ActionResults."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.store.action_result import DecodeError, decode, encode
from workers.store.interface import Entry, Output
from workers.store.layout import seal, unseal

pytestmark = pytest.mark.pure

DIGEST = "0123456789abcdef" * 4

outputs = st.builds(
    Output,
    st.text(min_size=1).filter(lambda name: name.isprintable()),
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.integers(0, (1 << 63) - 1),
    st.booleans(),
)
entries = st.builds(
    lambda found, note: Entry(tuple(sorted(found, key=lambda output: output.name)), note),
    st.lists(outputs, unique_by=lambda output: output.name, max_size=5),
    st.binary(max_size=300),
)

FILE = b"\x0a\x01o" + b"\x12\x45" + b"\x0a\x40" + DIGEST.encode() + b"\x10\xd2\x09"
"""path "o"; digest: hash and 1234 bytes."""


def field(tag: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([tag, len(content)]) + content


@given(entries)
def test_what_is_encoded_is_decoded(entry: Entry) -> None:
    assert decode(encode(entry)) == entry


def test_the_bytes_are_those_of_the_public_message() -> None:
    entry = Entry((Output("o", DIGEST, 1234, executable=True),), b"note")
    assert encode(entry) == field(0x12, FILE + b"\x20\x01") + field(0x2A, b"note")


def test_defaults_are_not_written() -> None:
    assert encode(Entry(())) == b""
    file = b"\x0a\x01e" + b"\x12\x42" + b"\x0a\x40" + DIGEST.encode()
    assert encode(Entry((Output("e", DIGEST, 0),))) == field(0x12, file)


def test_what_others_add_is_skipped() -> None:
    metadata = field(0x4A, b"\x0a\x06worker")
    fixed = b"\x99\x06" + bytes(8) + b"\x9d\x06" + bytes(4)
    contents = FILE + field(0x2A, b"inlined")
    message = b"\x20\x00" + metadata + field(0x12, contents) + fixed
    assert decode(message) == Entry((Output("o", DIGEST, 1234),))


def test_outputs_come_sorted() -> None:
    other = FILE.replace(b"\x01o", b"\x01a")
    assert [output.name for output in decode(field(0x12, FILE) + field(0x12, other)).outputs] == ["a", "o"]


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(field(0x12, FILE) * 2, id="an output twice"),
        pytest.param(field(0x2A, b"a") * 2, id="the note twice"),
        pytest.param(field(0x12, FILE + b"\x0a\x01p"), id="two names"),
        pytest.param(field(0x12, FILE.replace(b"\x01o", b"\x01\xff")), id="a name that is not UTF-8"),
        pytest.param(field(0x12, FILE[3:]), id="no name"),
        pytest.param(field(0x12, FILE[:3]), id="no digest"),
        pytest.param(field(0x12, FILE.replace(b"abc", b"ABC")), id="a digest in capitals"),
        pytest.param(field(0x12, FILE.replace(b"0123", b"../x")), id="a path as digest"),
        pytest.param(field(0x12, FILE[:3] + b"\x12\x4d" + FILE[5:-2] + b"\xff" * 9 + b"\x01"), id="a negative size"),
        pytest.param(b"\x20\x01", id="a failed action"),
        pytest.param(b"\x10\x01", id="a number for a file"),
        pytest.param(b"\x22\x00", id="bytes for a number"),
        pytest.param(b"\x15\x00\x00\x00\x00", id="a fixed field for a file"),
        pytest.param(b"\x13", id="a group"),
        pytest.param(b"\x02\x00", id="field 0"),
        pytest.param(b"\x20" + b"\x80" * 10 + b"\x01", id="an endless number"),
        pytest.param(b"\x20" + b"\xff" * 9 + b"\x7f", id="a number over 64 bits"),
    ],
)
def test_what_cannot_be_right_is_refused(message: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(message)


@given(st.binary(max_size=100) | st.binary(max_size=20).map(lambda data: field(0x12, FILE + data)))
def test_nothing_else_is_raised(message: bytes) -> None:
    try:
        entry = decode(message)
    except DecodeError:
        return
    assert decode(encode(entry)) == entry


@given(entries, st.data())
def test_any_damage_to_a_sealed_entry_is_seen(entry: Entry, data: st.DataObject) -> None:
    sealed = seal(DIGEST, encode(entry))
    assert unseal(DIGEST, sealed) == encode(entry)
    at = data.draw(st.integers(0, len(sealed) - 1))
    bit = data.draw(st.integers(0, 7))
    flipped = sealed[:at] + bytes([sealed[at] ^ 1 << bit]) + sealed[at + 1 :]
    assert unseal(DIGEST, flipped) is None
    assert unseal(DIGEST, sealed[:at]) is None
    assert unseal(DIGEST, sealed + b"\0") is None
    assert unseal(DIGEST[::-1], sealed) is None

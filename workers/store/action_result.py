"""An entry as an encoded `ActionResult` of the remote execution API (REAPI), which shared caches keep under `/ac/`.

Here belongs the wire format and nothing else. The message is small and its encoding is simple, so there is no need
for a protobuf library. Field numbers are those of `build.bazel.remote.execution.v2`.

The encoder is deterministic: fields in order of their numbers, none that has its default value. The decoder reads
what others write as well, so fields it does not know are skipped; but it is strict about everything that an entry
needs, for what cannot be right must not be believed.
"""

from __future__ import annotations

from collections.abc import Iterator

from workers.store.interface import Entry, Output, is_digest

__all__ = ["DecodeError", "decode", "encode"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_RESULT_OUTPUT_FILES = 2
_RESULT_EXIT_CODE = 4
_RESULT_STDOUT_RAW = 5
_FILE_PATH = 1
_FILE_DIGEST = 2
_FILE_IS_EXECUTABLE = 4
_DIGEST_HASH = 1
_DIGEST_SIZE_BYTES = 2

_MOST_BYTES = (1 << 63) - 1
_VARINT_BYTES = 10


class DecodeError(ValueError):
    """Not an encoded result of an action that succeeded."""


def encode(entry: Entry) -> bytes:
    """The bytes of `entry`, the same for equal entries. Its note becomes the tool's standard output."""
    message = b"".join(_field(_RESULT_OUTPUT_FILES, _encode_file(output)) for output in entry.outputs)
    return message + (_field(_RESULT_STDOUT_RAW, entry.note) if entry.note else b"")


def decode(message: bytes) -> Entry:
    """The entry that `message` holds, its outputs sorted by name. Raises `DecodeError`."""
    outputs: dict[str, Output] = {}
    note: bytes | None = None
    for number, value in _fields(message):
        if number == _RESULT_OUTPUT_FILES:
            output = _decode_file(_as_bytes(value))
            if output.name in outputs:
                raise DecodeError("an output is there twice")
            outputs[output.name] = output
        elif number == _RESULT_STDOUT_RAW:
            if note is not None:
                raise DecodeError("the note is there twice")
            note = _as_bytes(value)
        elif number == _RESULT_EXIT_CODE and value != 0:
            raise DecodeError("the result of an action that failed")
    return Entry(tuple(outputs[name] for name in sorted(outputs)), note or b"")


def _encode_file(output: Output) -> bytes:
    digest = _field(_DIGEST_HASH, output.digest.encode("ascii"))
    if output.size:
        digest += _tag(_DIGEST_SIZE_BYTES, _VARINT) + _varint(output.size)
    file = _field(_FILE_PATH, output.name.encode()) + _field(_FILE_DIGEST, digest)
    return file + (_tag(_FILE_IS_EXECUTABLE, _VARINT) + b"\1" if output.executable else b"")


def _decode_file(message: bytes) -> Output:
    known = _once(message, (_FILE_PATH, _FILE_DIGEST, _FILE_IS_EXECUTABLE))
    digest = _once(_as_bytes(known.get(_FILE_DIGEST, b"")), (_DIGEST_HASH, _DIGEST_SIZE_BYTES))
    name = _as_text(known.get(_FILE_PATH, b""))
    sha256 = _as_text(digest.get(_DIGEST_HASH, b""))
    size = _as_number(digest.get(_DIGEST_SIZE_BYTES, 0))
    if not name or not is_digest(sha256) or size > _MOST_BYTES:
        raise DecodeError("an output without a name, a SHA-256 or a size")
    return Output(name, sha256, size, executable=_as_number(known.get(_FILE_IS_EXECUTABLE, 0)) != 0)


def _once(message: bytes, numbers: tuple[int, ...]) -> dict[int, int | bytes]:
    found: dict[int, int | bytes] = {}
    for number, value in _fields(message):
        if number in numbers:
            if number in found:
                raise DecodeError("a field is there twice")
            found[number] = value
    return found


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers with their values; those of a fixed width come as bytes that no field here may have."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise DecodeError("no such field number")
        if kind == _VARINT:
            value, at = _read_varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(message, at)
        elif kind == _FIXED64:
            size = 8
        elif kind == _FIXED32:
            size = 4
        else:
            raise DecodeError("no such wire type")
        if size > len(message) - at:
            raise DecodeError("it ends too early")
        if kind == _BYTES:
            yield number, message[at : at + size]
        elif number <= _RESULT_STDOUT_RAW:
            raise DecodeError("a field of the wrong wire type")
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(message[at : at + _VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            if value >> 64:
                break
            return value, at + count + 1
    raise DecodeError("a number that does not end")


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise DecodeError("a field of the wrong wire type")
    return value


def _as_number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise DecodeError("a field of the wrong wire type")
    return value


def _as_text(value: int | bytes) -> str:
    try:
        return _as_bytes(value).decode()
    except UnicodeDecodeError as error:
        raise DecodeError("text that is not UTF-8") from error


def _field(number: int, content: bytes) -> bytes:
    return _tag(number, _BYTES) + _varint(len(content)) + content


def _tag(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

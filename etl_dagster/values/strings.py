"""Texts as UTF-8, whatever bytes the database stores."""

from __future__ import annotations

import codecs
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_dagster.values.parsed import Odd, Parsed

#: With more bytes than this, offsets don't fit into an ordinary string array.
_INT32_END: Final = 2**31 - 1
_ESCAPE: Final = "backslashreplace"
_JSON_ESCAPE: Final = "etl_dagster.json_escape"
_BACKSLASH: Final = 0x5C


def _escape_in_json(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    odd = error.object[error.start : error.end]
    return "".join(rf"\\x{byte:02x}" for byte in odd), error.end


codecs.register_error(_JSON_ESCAPE, _escape_in_json)


def buffer_of(array: npt.NDArray[Any]) -> pa.Buffer:
    """The memory of a NumPy array, for Arrow."""
    memory: Any = array
    return pa.py_buffer(memory)


def as_strings(binary: pa.Array[Any]) -> pa.Array[Any]:
    """The same bytes as a string array, not yet validated."""
    is_large = binary.type == pa.large_binary()
    strings: pa.Array[Any] = binary.view(pa.large_string() if is_large else pa.string())
    return strings


def read_text(strings: pa.Array[Any]) -> Parsed:
    """The texts themselves."""
    valid = valid_text(strings)
    return Parsed(valid.array.cast(pa.string()), valid.odd)


def decode_stored(strings: pa.Array[Any], codec: str, *, is_json: bool) -> Parsed:
    r"""Texts that are stored in another encoding, as UTF-8.

    A byte that is not a character in that encoding becomes four characters, such as ``\x81``; in
    JSON ``\\x81``, so that it stays JSON. Texts with such a byte are odd.

    Args:
        strings: a string or large string array of the bytes as they are stored.
        codec: Python's name for the encoding.

    Returns:
        An array of the same type; the texts of odd values are their bytes (`bytes_text`).
    """
    errors = _JSON_ESCAPE if is_json else _ESCAPE
    if codec == "utf-8":
        return valid_text(strings, errors)
    is_large = strings.type == pa.large_string()
    buffers: list[Any] = strings.buffers()
    _, offset_buffer, data_buffer = buffers
    if data_buffer is None:
        return Parsed(strings)
    offsets = np.frombuffer(offset_buffer, np.int64 if is_large else np.int32)
    begin, end = offsets[strings.offset], offsets[strings.offset + len(strings)]
    if not (np.frombuffer(data_buffer, np.uint8)[begin:end] >= 0x80).any():
        return Parsed(strings)  # ASCII is the same in every encoding of a database
    return _decoded(strings, codec, errors)


def valid_text(strings: pa.Array[Any], errors: str = _ESCAPE) -> Parsed:
    """The strings, with bytes that aren't UTF-8 escaped: a SQL_ASCII database stores any byte."""
    try:
        strings.validate(full=True)
    except pa.ArrowInvalid:
        return _decoded(strings, "utf-8", errors)
    return Parsed(strings)


def _decoded(strings: pa.Array[Any], codec: str, errors: str) -> Parsed:
    r"""The texts, each distinct one decoded by Python; an invalid byte becomes such as ``\x81``.

    Not U+FFFD, which would be the same for all such bytes: two keys must not become one.
    """
    encoded: Any = strings.cast(pa.large_binary()).dictionary_encode()
    values = encoded.dictionary.to_pylist()
    texts = [value.decode(codec, errors) for value in values]
    array: Any = pa.array(texts, strings.type).take(encoded.indices)
    is_odd = np.array([_is_odd(value, codec) for value in values], bool)
    if not is_odd.any():
        return Parsed(array)
    codes = encoded.indices.fill_null(0)
    places = np.flatnonzero(
        is_odd[codes.to_numpy()] & strings.is_valid().to_numpy(zero_copy_only=False)
    )
    kept = pa.array(
        [bytes_text(value) if odd else None for value, odd in zip(values, is_odd, strict=True)],
        pa.string(),
    )
    return Parsed(array, Odd(places, kept.take(pa.array(codes.to_numpy()[places]))))


def bytes_text(value: bytes) -> str:
    r"""The bytes of a text that isn't in its database's encoding, as DuckDB prints a BLOB.

    ASCII is unchanged, except for the backslash; that and all other bytes are written as ``\x5C``.
    So different texts stay different, and DuckDB's cast to BLOB returns the bytes.
    """
    return "".join(
        chr(byte) if byte != _BACKSLASH and 0x20 <= byte < 0x7F else f"\\x{byte:02X}"
        for byte in value
    )


def _is_odd(value: bytes, codec: str) -> bool:
    try:
        value.decode(codec)
    except UnicodeDecodeError:
        return True
    return False


def cut(
    data: npt.NDArray[np.uint8],
    begins: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    is_valid: npt.NDArray[np.bool_] | None = None,
) -> pa.Array[Any]:
    """The texts between these places, as a string array; it may hold what isn't UTF-8.

    Args:
        begins, ends: ascending; each text ends before the next one begins.
        is_valid: false for null, where `begins` equals `ends`; None: there are no nulls.
    """
    count = len(begins)
    is_large = len(data) > _INT32_END
    string_type: Any = pa.large_string() if is_large else pa.string()
    # Arrow strings lie one after the other. So the buffer as a whole becomes an array in which
    # each value is followed by what lies between it and the next one; `take` then copies every
    # other element, in C++.
    offsets = np.empty(2 * count + 1, np.int64 if is_large else np.int32)
    offsets[0 : 2 * count : 2] = begins
    offsets[1 : 2 * count : 2] = ends
    offsets[2 * count] = ends[-1] if count else 0
    both: Any = pa.Array.from_buffers(
        string_type, 2 * count, [None, buffer_of(offsets), buffer_of(data)]
    )
    # Not pa.array(), which imports pandas where it is installed; that takes a second.
    even = buffer_of(np.arange(0, 2 * count, 2, dtype=np.int64))
    strings = both.take(pa.Array.from_buffers(pa.int64(), count, [None, even]))
    if is_valid is None:
        return strings  # type: ignore[no-any-return]
    validity = buffer_of(np.packbits(is_valid, bitorder="little"))
    return pa.Array.from_buffers(string_type, count, [validity, *strings.buffers()[1:]])


def ascii_scalar(text: str, string_type: pa.DataType) -> Any:
    """An ASCII string of the given type.

    pa.scalar() and pa.array() import pandas if it is installed, which takes a second; the code that
    every stream runs doesn't call them.
    """
    number = np.int64 if string_type == pa.large_string() else np.int32
    offsets = buffer_of(np.array([0, len(text)], number))
    return pa.Array.from_buffers(string_type, 1, [None, offsets, pa.py_buffer(text.encode())])[0]

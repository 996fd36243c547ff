"""Bytes and bits."""

from __future__ import annotations

from base64 import b64decode, b64encode
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa

from etl_dagster.values import oids
from etl_dagster.values.casts import bits_of, one_by_one
from etl_dagster.values.families.texts import own_text, printed
from etl_dagster.values.form import AnyArray, BuiltIn, Edge, Form
from etl_dagster.values.parsed import Parsed
from etl_dagster.values.strings import buffer_of, valid_text

_NO_DIGIT: Final = 255
_HEX: Final = np.full(256, _NO_DIGIT, np.uint8)
for _digit in "0123456789abcdefABCDEF":
    _HEX[ord(_digit)] = int(_digit, 16)


def _read_bytes(strings: AnyArray) -> Parsed:
    r"""Decode ``\x00ff``: all values at once, since they lie one after the other."""
    large: Any = strings.cast(pa.large_string())
    count = len(large)
    _, offset_buffer, data_buffer = large.buffers()
    if not count or data_buffer is None:
        return Parsed(large.cast(pa.binary()))
    offsets = np.frombuffer(offset_buffer, np.int64)[large.offset : large.offset + count + 1]
    data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    begins = (offsets[:-1] - offsets[0])[lengths > 0]
    is_digit = np.ones(len(data), bool)
    if (lengths == 1).any() or (lengths % 2).any() or (data[begins] != ord("\\")).any():
        return one_by_one(valid_text(strings).array, _bytes_of, pa.binary())
    is_digit[begins] = False
    is_digit[begins + 1] = False
    digits = _HEX[data[is_digit]]
    if (data[begins + 1] != ord("x")).any() or (digits == _NO_DIGIT).any():
        return one_by_one(valid_text(strings).array, _bytes_of, pa.binary())
    values = digits[0::2] << 4 | digits[1::2]
    new_offsets = np.zeros(count + 1, np.int32)
    np.cumsum(np.maximum(lengths - 2, 0) // 2, out=new_offsets[1:])
    validity = None
    if large.null_count:
        is_valid = large.is_valid().to_numpy(zero_copy_only=False)
        validity = buffer_of(np.packbits(is_valid, bitorder="little"))
    buffers = [validity, buffer_of(new_offsets), buffer_of(values)]
    return Parsed(pa.Array.from_buffers(pa.binary(), count, buffers))


def _bytes_of(text: str) -> bytes | None:
    if not text.startswith("\\x"):
        return None
    try:
        return bytes.fromhex(text[2:])
    except ValueError:
        return None


def _print_bytes(array: AnyArray) -> list[str | None]:
    return [None if value is None else "\\x" + value.hex() for value in array.to_pylist()]


def _to_json(value: bytes) -> str:
    return b64encode(value).decode("ascii")


def _from_json(text: str) -> bytes:
    return b64decode(text, validate=True)


_BYTEA: Final = Form(
    pa.binary(),
    _read_bytes,
    to_json=_to_json,
    from_json=_from_json,
    print=_print_bytes,
    spelling="base64",
    json="string in base64 (RFC 4648, with padding)",
)

_NOT_EMPTY: Final = "DuckDB's BIT has no value without a bit, and reads the empty text as `0`"

ROWS: Final = (
    BuiltIn(
        oid=oids.BYTEA,
        name="bytea",
        form=_BYTEA,
        adbc=partial(bits_of, pa.binary()),
        is_ascii=True,
        edges=(Edge("\\x"), Edge("\\x00ff10"), Edge("\\x" + "ab" * 3000)),
    ),
    # Only a column made from an expression has no length, and may be without a bit.
    printed(1560, "bit", "1", own=own_text("BIT", Edge("", f"null; {_NOT_EMPTY}", True))),
    printed(1562, "bit varying", "10", "", bound="length", stays_text=_NOT_EMPTY),
)

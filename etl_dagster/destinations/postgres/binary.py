"""Rows as COPY reads them in its binary format, which spares the server to read texts.

Not every type has a form here, and not every value of those that have: then the rows are copied as
texts (`printing.py`). What a type's receive function reads is the same value that its input
function reads of the text.

Source: PostgreSQL documentation, "COPY", Binary Format; the receive function of each type.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.destinations.postgres.printing import staged_type
from etl_dagster.values import oids
from etl_dagster.values.form import AnyArray
from etl_dagster.values.oids import DATE_INFINITY, TIMESTAMP_INFINITY
from etl_dagster.values.registry import REGISTRY

_compute: Any = pc

#: Before the rows, and after them.
HEADER: Final = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
TRAILER: Final = struct.pack("!h", -1)
#: From 1970-01-01 to 2000-01-01, where Postgres counts from.
_EPOCH_DAYS: Final = 10_957
_EPOCH_US: Final = _EPOCH_DAYS * 86_400_000_000
#: Longer texts don't fit the offsets of an ordinary binary array.
_LARGE_BYTES: Final = 2**28
_TEXTS: Final = re.compile(
    r"(text|json|name|bpchar|(character varying|varchar|character)(\(\d+\))?)"
)
_NUMERIC: Final = re.compile(r"numeric\((\d+),(\d+)\)")
#: A numeric of so many digits is a whole number of 64 bits, also with three zeros at its end.
_MOST_DIGITS: Final = 15
_NULL: Final = -1


@dataclass(frozen=True, slots=True)
class Field:
    """The values of one column."""

    #: Of all rows: one number or one row of bytes for each, all of the same length; or else a
    #: binary array.
    data: Any
    #: Stands before each value, and counts as part of it.
    prefix: bytes = b""

    @property
    def width(self) -> int | None:
        """Bytes of each value, where all have as many."""
        if not isinstance(self.data, np.ndarray):
            return None
        return int(self.data.dtype.itemsize * np.prod(self.data.shape[1:]))


#: None: there is a value that has no form here.
Encoder: TypeAlias = Callable[[AnyArray], "Field | None"]


def encoders(schema: pa.Schema, types: Mapping[str, str]) -> list[Encoder] | None:
    """How the columns are written; None where one of them can only be copied as text.

    Args:
        types: of the table's columns, as SQL, in the order of the rows'.
    """
    found = [_encoder(field.type, types[field.name]) for field in schema if field.name in types]
    complete = [each for each in found if each is not None]
    return complete if complete and len(complete) == len(found) else None


def encoded(rows: pa.RecordBatch, encoders: Sequence[Encoder]) -> memoryview | None:
    """The rows without header and trailer; None where a value has no form here."""
    count = rows.num_rows
    fields: list[tuple[Field, Any]] = []
    for column, encode in zip(rows.columns, encoders, strict=True):
        if not column.null_count:
            field, is_null = encode(column), None
        else:
            is_null = column.is_null().to_numpy(zero_copy_only=False)
            if column.null_count == count:
                field = Field(pa.array([b""] * count, pa.binary()))
            else:
                field = encode(_compute.fill_null(column, _filler(column)))
        if field is None:
            return None
        fields.append((field, is_null))
    large = rows.nbytes > _LARGE_BYTES
    kind = pa.large_binary() if large else pa.binary()
    segments = [segment.cast(kind) for segment in _segments(fields, count, large=large)]
    return memoryview(_data(_compute.binary_join_element_wise(*segments, pa.scalar(b"", kind))))


def _segments(fields: Sequence[tuple[Field, Any]], count: int, *, large: bool) -> Iterator[Any]:
    """The rows cut into as few binary arrays as there can be: what has one length in all rows is
    one of them, up to the next value that has not."""
    block: list[tuple[str, Any]] = [(">i2", len(fields))]
    for field, is_null in fields:
        data, prefix = field.data, [("u1", byte) for byte in field.prefix]
        if is_null is None and field.width is not None:
            block += [(">i4", field.width + len(prefix)), *prefix, (data.dtype.str, data)]
            continue
        length: Any = field.width
        if length is None:
            length = _compute.binary_length(data).to_numpy(zero_copy_only=False)
        length = length + len(prefix)
        if is_null is None:
            yield _block([*block, (">i4", length), *prefix], count, large=large)
            yield data
        else:
            yield _block([*block, (">i4", np.where(is_null, _NULL, length))], count, large=large)
            if field.width is not None:
                data = _block([(data.dtype.str, data)], count, large=large)
            if prefix:
                first, end = pa.scalar(field.prefix, data.type), pa.scalar(b"", data.type)
                data = _compute.binary_join_element_wise(first, data, end)
            yield _compute.if_else(pa.array(is_null), pa.scalar(b"", data.type), data)
        block = []
    if block:
        yield _block(block, count, large=large)


def _block(members: Sequence[tuple[str, Any]], count: int, *, large: bool) -> Any:
    """Members of all rows, side by side, as a binary array."""
    shaped = [
        (f"m{place}", kind, value.shape[1:] if isinstance(value, np.ndarray) else ())
        for place, (kind, value) in enumerate(members)
    ]
    block = np.empty(count, shaped)
    for place, (_, value) in enumerate(members):
        block[f"m{place}"] = value
    width = block.dtype.itemsize
    kind, number = (pa.large_binary(), np.int64) if large else (pa.binary(), np.int32)
    offsets: Any = np.arange(0, (count + 1) * width, width, dtype=number)
    memory: Any = block
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(offsets), pa.py_buffer(memory)])


def _filler(column: AnyArray) -> Any:
    """A value of the type, that stands where a null is, and isn't written."""
    kind: Any = column.type
    if staged_type(kind) == "text":
        return column.drop_null()[0]
    if staged_type(kind) == "bytea":
        return pa.scalar(b"", kind)
    number = pa.int64() if pa.types.is_time64(kind) else pa.int32()
    return pa.array([0], number).cast(kind)[0]


def _data(array: Any) -> Any:
    count = len(array)
    _, offsets, data = array.buffers()
    width = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    ends = np.frombuffer(offsets, width)[[array.offset, array.offset + count]]
    return data[int(ends[0]) : int(ends[1])] if data is not None else b""


# -- types ---------------------------------------------------------------------------------------


def _encoder(arrow: pa.DataType, type_: str) -> Encoder | None:
    if (plain := _PLAIN.get(arrow)) is not None:
        name, dtype = plain
        return (lambda array: _numbers(array, dtype)) if type_ == name else None
    if pa.types.is_binary(arrow) or pa.types.is_large_binary(arrow):
        return Field if type_ == "bytea" else None
    if pa.types.is_date32(arrow):
        return _dates if type_ == "date" else None
    if pa.types.is_time64(arrow):
        return _times if type_ == "time without time zone" else None
    if not pa.types.is_string(arrow) and not pa.types.is_large_string(arrow):
        return None
    if _TEXTS.fullmatch(type_):
        return _text
    if type_ == "jsonb":
        return lambda array: Field(_bytes(array), prefix=b"\1")
    if type_ == "uuid":
        return _uuids
    if (moment := _MOMENTS.get(type_)) is not None:
        return lambda array: _moments(array, moment)
    if (digits := _NUMERIC.fullmatch(type_)) is not None and int(digits[1]) <= _MOST_DIGITS:
        precision, scale = int(digits[1]), int(digits[2])
        return (lambda array: _numerics(array, precision, scale)) if scale <= precision else None
    return None


_PLAIN: Final = {
    pa.bool_(): ("boolean", "u1"),
    pa.int16(): ("smallint", ">i2"),
    pa.int32(): ("integer", ">i4"),
    pa.int64(): ("bigint", ">i8"),
    pa.float32(): ("real", ">f4"),
    pa.float64(): ("double precision", ">f8"),
}
#: By name, the type of which the texts are.
_MOMENTS: Final = {
    "timestamp without time zone": oids.TIMESTAMP,
    "TIMESTAMP WITH TIME ZONE": oids.TIMESTAMPTZ,
}


def _numbers(array: AnyArray, dtype: str) -> Field:
    return Field(array.to_numpy(zero_copy_only=False).astype(dtype))


def _text(array: AnyArray) -> Field:
    return Field(_bytes(array))


def _bytes(array: AnyArray) -> Any:
    is_large = pa.types.is_large_string(array.type)
    return array.cast(pa.large_binary() if is_large else pa.binary())


def _dates(array: AnyArray) -> Field:
    days = array.cast(pa.int32()).to_numpy().astype(np.int64)
    counted = days - _EPOCH_DAYS
    counted[days == DATE_INFINITY] = 2**31 - 1
    counted[days == -DATE_INFINITY] = -(2**31)
    return Field(counted.astype(">i4"))


def _times(array: AnyArray) -> Field:
    return Field(array.cast(pa.int64()).to_numpy().astype(">i8"))


def _moments(array: AnyArray, type_oid: int) -> Field | None:
    parsed = REGISTRY[type_oid].form_for(-1).read(array)
    if parsed.odd is not None:
        return None
    micros = parsed.array.cast(pa.int64()).to_numpy()
    is_last, is_first = micros == TIMESTAMP_INFINITY, micros == -TIMESTAMP_INFINITY
    # Below zero past the year 290000 BC, of which Postgres has none.
    counted = micros - _EPOCH_US
    counted[is_last] = 2**63 - 1
    counted[is_first] = -(2**63)
    return Field(counted.astype(">i8"))


def _uuids(array: AnyArray) -> Field | None:
    texts = _bytes(array)
    lengths = _compute.binary_length(texts).to_numpy(zero_copy_only=False)
    if not (lengths == 36).all():
        return None
    characters = np.frombuffer(_data(texts), np.uint8).reshape(-1, 36)
    digits = _HEX[np.delete(characters, (8, 13, 18, 23), axis=1)]
    return Field((digits[:, 0::2] << 4) | digits[:, 1::2])


_HEX: Final = np.zeros(256, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def _numerics(array: AnyArray, precision: int, scale: int) -> Field | None:
    """Groups of four decimal digits; as many for each value, since zeros are cut off."""
    try:
        decimals: Any = array.cast(pa.decimal128(precision, scale))
    except pa.ArrowInvalid:
        return None  # NaN, say
    # A decimal is two words of 64 bits, the lower one first; these fit the lower one.
    words = np.frombuffer(decimals.buffers()[1], "<i8")
    start = 2 * decimals.offset
    values = words[start : start + 2 * len(decimals) : 2]
    before, after = -(-(precision - scale) // 4), -(-scale // 4)
    rest = np.abs(values) * 10 ** (4 * after - scale)
    whole = np.empty((len(values), 4 + before + after), ">i2")
    for place in reversed(range(4, 4 + before + after)):
        rest, whole[:, place] = np.divmod(rest, 10_000)
    whole[:, 0], whole[:, 1], whole[:, 3] = before + after, before - 1, scale
    whole[:, 2] = np.where(values < 0, 0x4000, 0)
    return Field(whole)

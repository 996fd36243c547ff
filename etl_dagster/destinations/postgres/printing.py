"""From Arrow to the texts that Postgres reads, a column at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.values import oids
from etl_dagster.values.form import AnyArray
from etl_dagster.values.python import to_objects
from etl_dagster.values.registry import REGISTRY

_compute: Any = pc
#: From this size on, texts may be past what an ordinary string array holds.
_LARGE_BYTES: Final = 2**28
_DAY_US: Final = 86_400_000_000
#: From 0001-01-01 to 9999-12-31 Arrow prints what Postgres reads.
_DAYS: Final = (-719_162, 2_932_896)
_HEX: Final = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)
#: What COPY reads otherwise than it stands there.
_ESCAPED: Final = (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))
_IS_ESCAPED: Final = np.zeros(256, bool)
_IS_ESCAPED[[ord(each) for each, _ in _ESCAPED]] = True
_IS_QUOTED: Final = np.zeros(256, bool)
_IS_QUOTED[[ord(each) for each in '\\"']] = True


def copied(rows: pa.RecordBatch) -> memoryview:
    """The rows as COPY reads them in its text format."""
    if not rows.num_columns:
        return memoryview(b"\n" * rows.num_rows)
    kind = pa.large_string() if rows.nbytes > _LARGE_BYTES else pa.string()
    columns = [_escaped(texts(column).cast(kind), column.type) for column in rows.columns]
    empty, end = pa.scalar("", kind), pa.scalar("\n", kind)
    columns[-1] = _compute.binary_join_element_wise(columns[-1], empty, end)
    lines = _compute.binary_join_element_wise(*columns, pa.scalar("\t", kind))
    return memoryview(_data(lines))


def array_literal(array: AnyArray) -> str:
    """All values as the text of one Postgres array."""
    found = texts(array)
    if _is_text(array.type):
        if _occur(found, _IS_QUOTED):
            found = _compute.replace_substring(found, "\\", "\\\\")
            found = _compute.replace_substring(found, '"', '\\"')
        quote, none = pa.scalar('"', found.type), pa.scalar("", found.type)
        found = _compute.binary_join_element_wise(quote, found, quote, none)
    found = _compute.fill_null(found, "NULL").cast(pa.large_string())
    whole = pa.ListArray.from_arrays(pa.array([0, len(found)], pa.int32()), found)
    joined: str = _compute.binary_join(whole, pa.scalar(",", found.type))[0].as_py()
    return "{" + joined + "}"


def staged_type(arrow: pa.DataType) -> str:
    """The type by which a column of staged rows is read from such texts."""
    if (known := _STAGED.get(arrow)) is not None:
        return known
    if pa.types.is_timestamp(arrow):
        return "timestamp" if arrow.tz is None else "timestamptz"
    if pa.types.is_decimal(arrow):
        return "numeric"
    return "text"


_STAGED: Final = {
    pa.bool_(): "boolean",
    pa.int8(): "smallint",
    pa.int16(): "smallint",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.uint8(): "smallint",
    pa.uint16(): "integer",
    pa.uint32(): "bigint",
    pa.uint64(): "numeric",
    pa.float32(): "real",
    pa.float64(): "double precision",
    pa.date32(): "date",
    pa.time64("us"): "time",
    pa.binary(): "bytea",
    pa.large_binary(): "bytea",
}


def texts(array: AnyArray) -> AnyArray:
    """Values as texts that Postgres reads as the same values; nulls stay null."""
    kind: Any = array.type
    if isinstance(kind, pa.DictionaryType):
        array, kind = array.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return array
    if pa.types.is_date32(kind):
        return _moments(array, pa.int32(), _DAYS, oids.DATE)
    if pa.types.is_timestamp(kind):
        low, high = (days * _DAY_US for days in (_DAYS[0], _DAYS[1] + 1))
        plain = array.cast(pa.int64()).cast(pa.timestamp("us"))
        return _moments(plain, pa.int64(), (low, high - 1), oids.TIMESTAMP)
    if pa.types.is_time64(kind):
        return _moments(array, pa.int64(), (0, _DAY_US - 1), oids.TIME)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _hexadecimal(array)
    if pa.types.is_nested(kind):
        return _json(array)
    return array.cast(pa.string())


def _moments(
    array: AnyArray, number: pa.DataType, span: tuple[int, int], type_oid: int
) -> AnyArray:
    """Values within the span as Arrow prints them, the others one by one."""
    numbers = array.cast(number)
    ends = _compute.min_max(numbers).as_py()
    if ends["min"] is None or (ends["min"] >= span[0] and ends["max"] <= span[1]):
        return array.cast(pa.string())
    is_odd = _compute.or_(
        _compute.less(numbers, pa.scalar(span[0], number)),
        _compute.greater(numbers, pa.scalar(span[1], number)),
    ).fill_null(False)
    form = REGISTRY[type_oid].form_for(-1)
    others = pa.array(form.print(array.filter(is_odd)), pa.string())
    ordinary = _compute.if_else(is_odd, None, array).cast(pa.string())
    found: AnyArray = _compute.replace_with_mask(ordinary, is_odd, others)
    return found


def _hexadecimal(array: AnyArray) -> AnyArray:
    large: Any = array.cast(pa.large_binary())
    count = len(large)
    _, offsets, data = large.buffers()
    if not count or data is None:
        digits: Any = pa.array([""] * count, pa.large_string())
    else:
        places = np.frombuffer(offsets, np.int64)[large.offset : large.offset + count + 1]
        content = np.frombuffer(data, np.uint8)[places[0] : places[-1]]
        memory: Any = _HEX[content]
        begins: Any = (places - places[0]) * 2
        buffers = [None, pa.py_buffer(begins), pa.py_buffer(memory)]
        digits = pa.Array.from_buffers(pa.large_string(), count, buffers)
    prefix, none = pa.scalar("\\x", pa.large_string()), pa.scalar("", pa.large_string())
    printed = _compute.binary_join_element_wise(prefix, digits, none)
    found: AnyArray = _compute.if_else(large.is_valid(), printed, None)
    return found


def _json(array: AnyArray) -> AnyArray:
    """Values with parts; a pipeline sends their texts, so these are few."""
    found = [
        None if value is None else json.dumps(value, default=str) for value in to_objects(array)
    ]
    return pa.array(found, pa.string())


def _is_text(kind: pa.DataType) -> bool:
    """Whether texts of such values may have any character."""
    return staged_type(kind) in ("text", "bytea", "timestamp", "timestamptz", "date")


def _escaped(found: AnyArray, kind: pa.DataType) -> AnyArray:
    if _is_text(kind) and _occur(found, _IS_ESCAPED):
        for each, written in _ESCAPED:
            found = _compute.replace_substring(found, each, written)
    if found.null_count:
        found = _compute.fill_null(found, "\\N")
    return found


def _occur(strings: Any, which: Any) -> bool:
    return bool(which[np.frombuffer(_data(strings), np.uint8)].any())


def _data(strings: Any) -> Any:
    """The bytes of all texts, one after the other; of null ones perhaps, too."""
    count = len(strings)
    _, offsets, data = strings.buffers()
    if not count or data is None:
        return b""
    width = np.int64 if pa.types.is_large_string(strings.type) else np.int32
    ends = np.frombuffer(offsets, width)[[strings.offset, strings.offset + count]]
    return data[int(ends[0]) : int(ends[1])]


def columns_of(rows: pa.RecordBatch) -> Sequence[tuple[str, str]]:
    """Names and types of the columns of staged rows."""
    return [(field.name, staged_type(field.type)) for field in rows.schema]

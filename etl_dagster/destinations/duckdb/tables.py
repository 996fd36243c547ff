"""Column types as DuckDB has them, and rows that it can read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.destinations.sql.dialect import literal, quote
from etl_dagster.model.schema import ColumnSchema
from etl_dagster.values.form import Form
from etl_dagster.values.forms import form_of, labels_of

_BY_ARROW = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.date32(): "DATE",
    pa.time64("us"): "TIME",
}


def column_type(column: ColumnSchema) -> str:
    """The DuckDB type for a column's values; of an enum, the one that its labels are cast to."""
    return _type_of(form_of(column))


def declared_type(column: ColumnSchema) -> str:
    """The type that the column has in DuckDB."""
    labels = labels_of(column) if column.own_type else None
    return column_type(column) if labels is None else enum_type(labels)


def enum_type(labels: Iterable[str]) -> str:
    """The type of an enum, in SQL."""
    return f"ENUM({', '.join(map(literal, labels))})"


def _type_of(form: Form) -> str:
    if form.duckdb is not None:
        return form.duckdb
    if not form.parts:
        return _plain_type(form.arrow)
    types = [_type_of(part) for part in form.parts]
    if pa.types.is_struct(form.arrow):
        fields = zip((field.name for field in form.arrow), types, strict=True)
        return f"STRUCT({', '.join(f'{quote(name)} {type_}' for name, type_ in fields)})"
    if pa.types.is_map(form.arrow):
        return f"MAP({', '.join(types)})"
    depth = 0
    inner: Any = form.arrow
    while inner != form.parts[0].arrow:
        depth, inner = depth + 1, inner.value_type
    return types[0] + "[]" * depth


def _plain_type(arrow: pa.DataType) -> str:
    if known := _BY_ARROW.get(arrow):
        return known
    if pa.types.is_timestamp(arrow):
        return "TIMESTAMP" if arrow.tz is None else "TIMESTAMP WITH TIME ZONE"
    if pa.types.is_decimal(arrow) and 0 <= arrow.scale <= arrow.precision <= 38:
        return f"DECIMAL({arrow.precision},{arrow.scale})"
    if pa.types.is_binary(arrow) or pa.types.is_large_binary(arrow):
        return "BLOB"
    return "VARCHAR"


def readable(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with what DuckDB can't take from Arrow, such as 76 digits, as text."""
    arrays, fields = [], []
    for field, array in zip(rows.schema, rows.columns, strict=True):
        if pa.types.is_decimal256(field.type):
            array = _plain_text(array)
        elif pa.types.is_dictionary(field.type):
            array = array.cast(field.type.value_type)
        arrays.append(array)
        fields.append(pa.field(field.name, array.type))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _plain_text(numbers: pa.Array[Any]) -> pa.Array[Any]:
    """Decimals as text without an exponent: Arrow prints 0.00000001 as 1E-8."""
    text = numbers.cast(pa.string())
    found = pc.match_substring(text, "E").fill_null(False)
    has_exponent = cast("pa.BooleanArray", found)
    if not has_exponent.true_count:
        return text
    plain = [format(number, "f") for number in numbers.filter(has_exponent).to_pylist()]
    replaced: pa.Array[Any] = pc.replace_with_mask(text, has_exponent, pa.array(plain, pa.string()))
    return replaced

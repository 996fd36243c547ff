"""Which Arrow type a Postgres type becomes, and how its values get there.

| Postgres | Arrow |
|---|---|
| bool; int2, int4, int8; float4, float8 | bool; int16, int32, int64; float32, float64 |
| oid | uint32 |
| numeric(p, s) | decimal128 up to 38 digits, decimal256 up to 76 |
| numeric without precision, or wider | string, exactly as printed |
| text, varchar, char(n), name, "char" | string |
| bytea | binary |
| date, time, timestamp | date32, time64[us], timestamp[us] |
| timestamptz | timestamp[us, UTC] |
| uuid, json, jsonb, xml, enums, everything else | string, exactly as printed |

A uuid stays a string: of 36 characters, and of a type that every destination and every Arrow
function takes. A destination that has a UUID type knows the column by its `type_oid`.

Dates and timestamps may be ``infinity``. Arrow has no word for it; the numbers for it here are
those of DuckDB, the largest of the type and its negative. `24:00:00` is 86,400,000,000 us.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.oids import (
    BOOL,
    BPCHAR,
    BYTEA,
    CHAR,
    DATE,
    FLOAT4,
    FLOAT8,
    INT2,
    INT4,
    INT8,
    JSON,
    JSONB,
    NAME,
    NUMERIC,
    OID,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    UUID,
    VARCHAR,
)

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_DECIMAL_DIGITS: Final = 76

#: What the ADBC driver reads from a binary COPY with the values that the text would give. Not
#: in it: "char", whose empty value ADBC reads as a zero character; numeric and uuid.
_EXACT: Final = frozenset(
    [
        *(BOOL, INT2, INT4, INT8, OID, FLOAT4, FLOAT8),
        *(TEXT, VARCHAR, BPCHAR, NAME, JSON, JSONB, BYTEA),
        *(DATE, TIME, TIMESTAMP, TIMESTAMPTZ),
    ]
)
#: What prints in ASCII, whatever the encoding of the database.
_ASCII: Final = frozenset(
    [
        *(BOOL, INT2, INT4, INT8, OID, FLOAT4, FLOAT8, NUMERIC, UUID, BYTEA),
        *(DATE, TIME, TIMESTAMP, TIMESTAMPTZ),
    ]
)
#: Where ``::text`` is the type's output function, or its equal.
_CAST_IS_OUTPUT: Final = frozenset((CHAR, NUMERIC, UUID))


def arrow_type(column: ColumnSchema) -> pa.DataType:
    """The Arrow type of the column's values."""
    found: pa.DataType = _arrow_type(column.effective_type_oid, column.type_modifier)
    return found


@lru_cache(maxsize=4096)
def _arrow_type(type_oid: int, type_modifier: int) -> Any:
    import pyarrow as pa

    if type_oid == NUMERIC:
        return _decimal(type_modifier)
    simple = {
        BOOL: pa.bool_(),
        BYTEA: pa.binary(),
        INT2: pa.int16(),
        INT4: pa.int32(),
        INT8: pa.int64(),
        OID: pa.uint32(),
        FLOAT4: pa.float32(),
        FLOAT8: pa.float64(),
        DATE: pa.date32(),
        TIME: pa.time64("us"),
        TIMESTAMP: pa.timestamp("us"),
        TIMESTAMPTZ: pa.timestamp("us", "UTC"),
    }
    return simple.get(type_oid, pa.string())


def _decimal(type_modifier: int) -> Any:
    """Source: numeric_typmod_precision() and numeric_typmod_scale() in Postgres' numeric.c."""
    import pyarrow as pa

    if type_modifier < 4:
        return pa.string()
    precision = ((type_modifier - 4) >> 16) & 0xFFFF
    # Eleven bits with a sign: since version 15 the scale may be negative, or above the precision.
    scale = (((type_modifier - 4) & 0x7FF) ^ 1024) - 1024
    if scale < 0:
        precision, scale = precision - scale, 0
    precision = max(precision, scale)
    if precision > _MAX_DECIMAL_DIGITS:
        return pa.string()
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


def parse_text(column: ColumnSchema, strings: pa.Array[Any]) -> tuple[pa.Array[Any], int]:
    """Values from the text that Postgres prints for them.

    Args:
        strings: a string or large string array.

    Returns:
        An array of `arrow_type(column)`, and how many of its nulls stand for a value that the
        type can't hold.
    """
    from etl_dagster.values.text import parse

    return parse(column.effective_type_oid, arrow_type(column), strings)


def missing_value(column: ColumnSchema) -> pa.Array[Any] | None:
    """What an added column holds in the rows that were there: one value, or None for null."""
    import pyarrow as pa

    if column.missing_value is None:
        return None
    values, _ = parse_text(column, pa.array([column.missing_value], pa.string()))
    return values if not values.null_count else None


def missing_object(column: ColumnSchema) -> Any:
    """`missing_value` as an object, such as rows as dictionaries have."""
    import pyarrow as pa

    from etl_dagster.values.text import to_dicts

    values = missing_value(column)
    if values is None:
        return None
    return to_dicts(pa.RecordBatch.from_arrays([values], ["value"]))[0]["value"]


def adbc_is_exact(column: ColumnSchema) -> bool:
    """Whether the ADBC driver reads the column with the values that its text would give."""
    return column.effective_type_oid in _EXACT


def is_ascii(column: ColumnSchema) -> bool:
    """Whether the column's values print in ASCII, whatever the encoding of the database."""
    return column.effective_type_oid in _ASCII


def decode_text(
    column: ColumnSchema, strings: pa.Array[Any], codec: str
) -> tuple[pa.Array[Any], int]:
    r"""Texts that are kept in another encoding than UTF-8, as UTF-8.

    A byte that stands for no character becomes four, such as ``\x81``; in a JSON column it is
    ``\\x81``, so that it stays JSON.

    Args:
        strings: a string or large string array of the bytes as they are stored.
        codec: what Python calls the encoding.

    Returns:
        An array of the same type, and how many values had bytes that stand for no character.
    """
    from etl_dagster.values.text import decode_strings

    return decode_strings(strings, codec, is_json=column.effective_type_oid in (JSON, JSONB))


def as_strings(binary: pa.Array[Any]) -> pa.Array[Any]:
    """The same bytes as a string array, which nobody has looked at yet."""
    import pyarrow as pa

    is_large = binary.type == pa.large_binary()
    strings: pa.Array[Any] = binary.view(pa.large_string() if is_large else pa.string())
    return strings


def text_expression(column: ColumnSchema) -> str:
    """An SQL template (``{}`` is the column) with the text that the stream would send.

    A cast isn't always that: ``inet::text`` adds a netmask, and a type may bring a cast of its
    own. format() calls the output function, but turns null into an empty string.
    """
    if column.effective_type_oid in _CAST_IS_OUTPUT:
        return "{0}::text"
    # `is not null` asks something else of a composite.
    return "case when {0} is distinct from null then format('%s', {0}) end"


def fix_adbc(column: ColumnSchema, array: pa.Array[Any]) -> pa.Array[Any]:
    """What ADBC read for a column that `adbc_is_exact`, as an array of `arrow_type(column)`."""
    from etl_dagster.values.text import from_adbc

    fixed: pa.Array[Any] = from_adbc(column.effective_type_oid, arrow_type(column), array)
    return fixed

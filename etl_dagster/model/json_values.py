"""Rows and events as JSON that loses nothing, and the way back for rows.

| Postgres | JSON |
|---|---|
| bool; int2, int4 | ``true`` or ``false``; number |
| float4, float8 | number; ``"NaN"``, ``"Infinity"``, ``"-Infinity"`` |
| int8, oid, numeric | string of digits: many JSON readers keep only 53 bits of a number |
| date | ``"2024-05-01"``; ``"infinity"``, ``"-infinity"`` |
| time | ``"12:00:00.500000"``, up to ``"24:00:00"`` |
| timestamp | ``"2024-05-01T12:00:00"``; ``"infinity"``, ``"-infinity"`` |
| timestamptz | ``"2024-05-01T12:00:00+00:00"``, always in UTC; the infinities |
| bytea | string in base64 (RFC 4648, with padding) |
| json, jsonb | string: the value's own text |
| everything else | string as Postgres prints it |

Years outside of 1 to 9999 have a sign and at least six digits, as in ISO 8601 with expanded years
and in ECMAScript: ``"-000043-03-15"`` is in 44 BC. Nothing here is ever a NaN of Python, so
``json.dumps(..., allow_nan=False)`` takes it all.
"""

from __future__ import annotations

import math
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, TypeAlias, assert_never

import numpy as np

from etl_dagster.model.events import (
    BeginEvent,
    CommitEvent,
    DeleteEvent,
    Event,
    InsertEvent,
    RelationEvent,
    RowEvent,
    TruncateEvent,
    UpdateEvent,
)
from etl_dagster.model.position import Position
from etl_dagster.model.schema import ReplicaIdentity, TableSchema
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.oids import (
    BOOL,
    BYTEA,
    DATE,
    FLOAT4,
    FLOAT8,
    INT2,
    INT4,
    INT8,
    NUMERIC,
    OID,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
)
from etl_dagster.values.reading import arrow_type, missing_object

#: What json.dumps() takes.
JsonObject: TypeAlias = dict[str, Any]

_EPOCH: Final = datetime(1970, 1, 1)
_EPOCH_DAY: Final = _EPOCH.toordinal()
_DAY_US: Final = 86_400_000_000
_MICROSECOND: Final = timedelta(microseconds=1)


# -- rows --------------------------------------------------------------------------------------


def row_to_json(schema: TableSchema, row: Mapping[str, Any]) -> JsonObject:
    """A row, as a `TableRows` or a `RowEvent` gives it, with values that json.dumps() takes.

    The row may lack columns; those of `schema` are all it may have.
    """
    type_oids = schema.type_oids
    converters = ((name, value, _TO_JSON.get(type_oids[name])) for name, value in row.items())
    return {
        name: value if value is None or convert is None else convert(value)
        for name, value, convert in converters
    }


def row_from_json(columns: Iterable[ColumnSchema], row: Mapping[str, Any]) -> dict[str, Any]:
    """The row that `row_to_json` was given: a date is a date again, bytes are bytes.

    Raises:
        ValueError: a value isn't what `row_to_json` makes of its column's type.
    """
    converters = {column.name: _from_json(column) for column in columns}
    return {
        name: value if value is None or (convert := converters[name]) is None else convert(value)
        for name, value in row.items()
    }


# -- events ------------------------------------------------------------------------------------

_IDENTITIES: Final[dict[ReplicaIdentity, str]] = {
    "d": "default",
    "i": "index",
    "f": "full",
    "n": "nothing",
}


def event_to_json(event: Event) -> JsonObject:
    """An event with all that is known of it; ``type`` says which.

    ``insert``, ``update`` and ``delete`` have the table's ``key`` columns, so that a receiver can
    find the row without knowing the table. ``row`` lacks what isn't known: ``unchanged`` columns of
    an update, and what Postgres doesn't send of a deleted row. ``filled`` of a ``relation`` has the
    values that added columns have in the rows that were there; null where it lacks the column.
    """
    match event:
        case RowEvent():
            return _row_event(event)
        case TruncateEvent():
            return {
                "type": "truncate",
                **_of_table(event.schema),
                "position": position_to_json(event.position),
                "commit_time": timestamp_to_json(event.commit_time_us),
                "cascade": event.cascade,
                "restart_identity": event.restart_identity,
            }
        case RelationEvent():
            return {
                "type": "relation",
                **_of_table(event.schema),
                **_description(event.schema),
                "previous": event.previous and schema_to_json(event.previous),
                "filled": _filled(event),
            }
        case BeginEvent():
            return {
                "type": "begin",
                "commit_lsn": str(event.commit_lsn),
                "commit_time": timestamp_to_json(event.commit_time_us),
                "xid": event.xid,
            }
        case CommitEvent():
            return {
                "type": "commit",
                "commit_lsn": str(event.commit_lsn),
                "end_lsn": str(event.end_lsn),
                "commit_time": timestamp_to_json(event.commit_time_us),
            }
    assert_never(event)


def _filled(event: RelationEvent) -> JsonObject:
    before = event.previous.columns if event.previous is not None else ()
    values = {
        column.name: missing_object(column)
        for column in event.schema.columns
        if column.missing_value is not None
        and column.attnum not in {known.attnum for known in before}
    }
    return row_to_json(event.schema, values)


def _row_event(event: RowEvent) -> JsonObject:
    schema = event.schema
    row = _known(schema, event.row) if isinstance(event, DeleteEvent) else event.row
    old_row = None if event.old_row is None else _known(schema, event.old_row)
    return {
        "type": _ROW_EVENTS[type(event)],
        **_of_table(schema),
        "position": position_to_json(event.position),
        "commit_time": timestamp_to_json(event.commit_time_us),
        "key": list(schema.key_columns),
        "row": row_to_json(schema, row),
        "old_row": None if old_row is None else row_to_json(schema, old_row),
        "unchanged": sorted(event.unchanged),
    }


_ROW_EVENTS: Final[dict[type[RowEvent], str]] = {
    InsertEvent: "insert",
    UpdateEvent: "update",
    DeleteEvent: "delete",
}


def _known(schema: TableSchema, old_row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The columns that Postgres sends of an old row; the others are null only for lack of them."""
    if schema.replica_identity == "f":
        return old_row
    return {name: old_row[name] for name in schema.identity_columns if name in old_row}


def _of_table(schema: TableSchema) -> JsonObject:
    return {"table": schema.name, "table_id": schema.id}


def schema_to_json(schema: TableSchema) -> JsonObject:
    """A table's name, and its columns in order.

    A column's ``attnum`` stays when it is renamed, and is never used again once it was dropped.
    ``key`` is its 1-based place among the key columns, null outside of the key.
    """
    return {**_of_table(schema), **_description(schema)}


def _description(schema: TableSchema) -> JsonObject:
    places = {name: place for place, name in enumerate(schema.key_columns, start=1)}
    return {
        "snapshot_id": str(schema.snapshot_id),
        "replica_identity": _IDENTITIES[schema.replica_identity],
        "columns": [
            {
                "name": column.name,
                "type": column.type_name or _NAMES.get(column.type_oid, "unknown"),
                "type_oid": column.type_oid,
                "nullable": column.nullable,
                "key": places.get(column.name),
                "attnum": column.attnum,
            }
            for column in schema.columns
        ],
    }


#: As format_type() spells them, for columns that only a Relation message described.
_NAMES: Final = {
    BOOL: "boolean",
    BYTEA: "bytea",
    INT2: "smallint",
    INT4: "integer",
    INT8: "bigint",
    OID: "oid",
    FLOAT4: "real",
    FLOAT8: "double precision",
    NUMERIC: "numeric",
    DATE: "date",
    TIME: "time without time zone",
    TIMESTAMP: "timestamp without time zone",
    TIMESTAMPTZ: "timestamp with time zone",
    18: '"char"',
    19: "name",
    25: "text",
    114: "json",
    142: "xml",
    869: "inet",
    1042: "character",
    1043: "character varying",
    2950: "uuid",
    3802: "jsonb",
}


def position_to_json(position: Position) -> JsonObject:
    """Compare two by the number that the LSN is, then by ``ordinal``.

    An LSN is two hexadecimal numbers of up to 32 bits each, without leading zeros, so its text
    doesn't sort; see `Lsn.parse`.
    """
    return {"commit_lsn": str(position.commit_lsn), "ordinal": position.ordinal}


def timestamp_to_json(microseconds: int) -> str:
    """Microseconds since 1970-01-01 UTC as an ISO 8601 text with its offset, ``+00:00``."""
    return _number_to_timestamp(microseconds) + "+00:00"


# -- values to JSON ----------------------------------------------------------------------------


def _float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _float4(value: float) -> float | str:
    """The shortest number that is the same float4, which is what Postgres prints."""
    return float(str(np.float32(value))) if math.isfinite(value) else _float(value)


def _numeric(value: Decimal | str) -> str:
    return value if isinstance(value, str) else format(value, "f")


def _bytea(value: bytes) -> str:
    return b64encode(value).decode("ascii")


def _date(value: date | int | str) -> str:
    """Python's date, the word for an infinity, or days since 1970-01-01 beyond Python's dates."""
    if isinstance(value, str):
        return value
    return _number_to_date(value) if isinstance(value, int) else value.isoformat()


def _time(value: time | str) -> str:
    return value if isinstance(value, str) else value.isoformat()


def _timestamp(value: datetime | int | str) -> str:
    if isinstance(value, str):
        return value
    return _number_to_timestamp(value) if isinstance(value, int) else value.isoformat()


def _timestamptz(value: datetime | int | str) -> str:
    return timestamp_to_json(value) if isinstance(value, int) else _timestamp(value)


_TO_JSON: Final[dict[int, Callable[[Any], Any]]] = {
    INT8: str,
    OID: str,
    FLOAT4: _float4,
    FLOAT8: _float,
    NUMERIC: _numeric,
    BYTEA: _bytea,
    DATE: _date,
    TIME: _time,
    TIMESTAMP: _timestamp,
    TIMESTAMPTZ: _timestamptz,
}


def _number_to_date(days: int) -> str:
    try:
        return date.fromordinal(days + _EPOCH_DAY).isoformat()
    except (ValueError, OverflowError):
        year, month, day = _civil(days)
        return f"{year:+07d}-{month:02d}-{day:02d}"


def _number_to_timestamp(microseconds: int) -> str:
    days, of_day = divmod(microseconds, _DAY_US)
    clock = (datetime.min + timedelta(microseconds=of_day)).time()
    return f"{_number_to_date(days)}T{clock.isoformat()}"


def _civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of a number of days since 1970-01-01; the year before 1 is 0.

    Proleptic Gregorian calendar, in eras of 400 years that begin on the first of March.
    """
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (
        day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096
    ) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month_from_march + 2) // 5 + 1
    month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    return year_of_era + era * 400 + (month <= 2), month, day


# -- values from JSON --------------------------------------------------------------------------

_INFINITIES: Final = ("infinity", "-infinity")
_EXPANDED: Final = re.compile(r"([+-]\d{6,})-(\d\d)-(\d\d)(?:T([0-9:.]+)(?:\+00:00)?)?")


def _from_json(column: ColumnSchema) -> Callable[[Any], Any] | None:
    if column.effective_type_oid == NUMERIC:
        # One without precision is a text in Arrow and in Python, too; see `types`.
        return None if str(arrow_type(column)) == "string" else Decimal
    return _FROM_JSON.get(column.effective_type_oid)


def _from_bytea(text: str) -> bytes:
    return b64decode(text, validate=True)


def _from_date(text: str) -> date | int | str:
    if text in _INFINITIES:
        return text
    return _expanded(text)[0] if text[0] in "+-" else date.fromisoformat(text)


def _from_time(text: str) -> time | str:
    return text if text == "24:00:00" else time.fromisoformat(text)


def _from_timestamp(text: str) -> datetime | int | str:
    if text in _INFINITIES:
        return text
    if text[0] not in "+-":
        return datetime.fromisoformat(text)
    days, clock = _expanded(text)
    since_midnight = datetime.combine(_EPOCH, clock) - _EPOCH
    return days * _DAY_US + since_midnight // _MICROSECOND


def _expanded(text: str) -> tuple[int, time]:
    """Days since 1970-01-01, and the time of day, of a text with an expanded year."""
    match = _EXPANDED.fullmatch(text)
    if match is None:
        raise ValueError("not a date with an expanded year")
    year, month, day = int(match[1]), int(match[2]), int(match[3])
    # The calendar repeats after 400 years, so that Python's dates know the month's place in any.
    eras, year_of_era = divmod(year - 1, 400)
    days = date(year_of_era + 1, month, day).toordinal() + eras * 146_097 - _EPOCH_DAY
    return days, time.fromisoformat(match[4] or "00:00")


_FROM_JSON: Final[dict[int, Callable[[Any], Any]]] = {
    INT8: int,
    OID: int,
    FLOAT4: lambda value: float(np.float32(value)),
    FLOAT8: float,
    BYTEA: _from_bytea,
    DATE: _from_date,
    TIME: _from_time,
    TIMESTAMP: _from_timestamp,
    TIMESTAMPTZ: _from_timestamp,
}

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
| array; multirange | list |
| range | object: ``lower``, ``upper`` (null: infinite), ``lower_inc``, ``upper_inc``, ``empty`` |
| composite; hstore | object with the attributes; with the keys |
| everything else | string as Postgres prints it |

Parts are spelled like values of their types. If `ColumnSchema.nested` isn't ``native``, values with
parts are strings. A column's description has the spelling of its values (`schema_to_json`).

Years outside of 1 to 9999 have a sign and at least six digits, as in ISO 8601 with expanded years
and in ECMAScript: ``"-000043-03-15"`` is in 44 BC. No value is ever a NaN of Python, so
``json.dumps(..., allow_nan=False)`` accepts all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias, assert_never

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
from etl_dagster.values.families.times import timestamp_to_json as timestamp_to_json
from etl_dagster.values.json import json_reader, spelling
from etl_dagster.values.registry import type_name
from etl_dagster.values.text import missing_object

#: What json.dumps() takes.
JsonObject: TypeAlias = dict[str, Any]


# -- rows --------------------------------------------------------------------------------------


def row_to_json(schema: TableSchema, row: Mapping[str, Any]) -> JsonObject:
    """A row of a `TableRows` or a `RowEvent`, with values that json.dumps() accepts.

    The row may lack columns of `schema`, and must not have others.
    """
    writers = schema.json_writers
    return {
        name: value if value is None or (write := writers[name]) is None else write(value)
        for name, value in row.items()
    }


def row_from_json(columns: Iterable[ColumnSchema], row: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `row_to_json`: a date is a date again, bytes are bytes.

    Raises:
        ValueError: a value is not one that `row_to_json` makes for its column's type.
    """
    readers = {column.name: json_reader(column) for column in columns}
    return {
        name: value if value is None or (read := readers[name]) is None else read(value)
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
    """An event with all that is known of it; ``type`` says which one it is.

    ``insert``, ``update`` and ``delete`` have the table's ``key`` columns, so that a receiver can
    find the row without knowing the table. ``row`` lacks values that aren't known: ``unchanged``
    columns of an update, and the columns of a deleted row that Postgres doesn't send. ``odd`` and
    ``old_odd``, if there are any, have the values of ``row`` and ``old_row`` that their columns'
    types can't hold, as Postgres printed them. ``filled`` of a ``relation`` has the values of added
    columns in the rows that existed before; a column that it lacks is null there.
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
    odd, old_odd = event.odd, event.old_odd
    if isinstance(event, DeleteEvent):
        odd = {name: text for name, text in odd.items() if name in row}
    if old_row is not None:
        old_odd = {name: text for name, text in old_odd.items() if name in old_row}
    return {
        "type": _ROW_EVENTS[type(event)],
        **_of_table(schema),
        "position": position_to_json(event.position),
        "commit_time": timestamp_to_json(event.commit_time_us),
        "key": list(schema.key_columns),
        "row": row_to_json(schema, row),
        "old_row": None if old_row is None else row_to_json(schema, old_row),
        "unchanged": sorted(event.unchanged),
        # Rare, so left out where there is none.
        **({"odd": dict(odd)} if odd else {}),
        **({"old_odd": dict(old_odd)} if old_odd else {}),
    }


_ROW_EVENTS: Final[dict[type[RowEvent], str]] = {
    InsertEvent: "insert",
    UpdateEvent: "update",
    DeleteEvent: "delete",
}


def _known(schema: TableSchema, old_row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The columns of an old row that Postgres sends; in `old_row`, the others are just null."""
    if schema.replica_identity == "f":
        return old_row
    return {name: old_row[name] for name in schema.identity_columns if name in old_row}


def _of_table(schema: TableSchema) -> JsonObject:
    return {"table": schema.name, "table_id": schema.id}


def schema_to_json(schema: TableSchema) -> JsonObject:
    """A table's name, and its columns in order.

    A column's ``attnum`` stays when it is renamed, and is not used again after it was dropped.
    ``key`` is its 1-based place among the key columns, null outside of the key. ``value`` is the
    spelling of its values, with that of their parts: see `spelling`.
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
                "type": column.type_name or type_name(column.type_oid) or "unknown",
                "type_oid": column.type_oid,
                "nullable": column.nullable,
                "key": places.get(column.name),
                "attnum": column.attnum,
                "value": spelling(column),
            }
            for column in schema.columns
        ],
    }


def position_to_json(position: Position) -> JsonObject:
    """A position. Compare two of them by the LSN as a number, then by ``ordinal``.

    An LSN is two hexadecimal numbers of up to 32 bits each, without leading zeros, so LSNs can't be
    compared as texts; see `Lsn.parse`.
    """
    return {"commit_lsn": str(position.commit_lsn), "ordinal": position.ordinal}

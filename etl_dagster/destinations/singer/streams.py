"""What a table is to a target: a stream, its JSON schema and its key.

| Postgres | JSON schema |
|---|---|
| bool | ``boolean`` |
| int2, int4, int8, oid | ``integer``, with the type's ``minimum`` and ``maximum`` |
| float4, float8 | ``number`` |
| numeric(p, s) | ``string``, ``x-singer.decimal``, ``precision``, ``scale``; or ``number`` |
| date; time; timestamp, timestamptz | ``string`` with ``date``; ``time``; ``date-time`` |
| uuid | ``string`` with ``uuid`` |
| bytea | ``string`` with ``contentEncoding: base64`` |
| json, jsonb | ``string``; or any type |
| array, multirange | ``array`` |
| range, composite, hstore | ``object`` |
| everything else | ``string``, as Postgres prints it |

Outside of the key, every type may be ``null``: a record of a deleted row has the key alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Literal

import pyarrow as pa

from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.schema import TableSchema
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.form import Form
from etl_dagster.values.forms import form_of

_MOMENT: Final = {"type": ["null", "string"], "format": "date-time"}
_NUMBER: Final = {"type": ["null", "integer"], "minimum": 0, "maximum": 2**63 - 1}
#: What each record has besides its columns.
METADATA: Final[dict[str, dict[str, Any]]] = {
    "_sdc_extracted_at": _MOMENT,
    "_sdc_deleted_at": _MOMENT,
    "_sdc_sequence": _NUMBER,
    "_sdc_table_version": _NUMBER,
    "_sdc_lsn": _NUMBER,
    "_sdc_ordinal": _NUMBER,
    "_sdc_odd_values": {"type": ["null", "string"]},
}


_TEXT: Final = {"type": ["null", "string"]}
#: What each record of a log (mode append) has as well.
LOGGED: Final[dict[str, dict[str, Any]]] = {
    "_etl_op": _TEXT,
    "_etl_commit_lsn": _NUMBER,
    "_etl_ordinal": _NUMBER,
    "_etl_commit_time": _MOMENT,
    "_etl_xid": _NUMBER,
    "_etl_before": _TEXT,
    "_etl_unchanged": _TEXT,
}


@dataclass(frozen=True, slots=True)
class Spelling:
    """What a configuration chooses of a stream."""

    name: str = "{schema}-{table}"
    json_values: Literal["text", "value"] = "text"
    decimals: Literal["string", "number"] = "string"


def stream_name(template: str, schema: TableSchema) -> str:
    """The table's stream. A hyphen in a name becomes ``_``: targets cut streams at hyphens."""
    return template.format(
        schema=schema.schema_name.replace("-", "_"), table=schema.table_name.replace("-", "_")
    )


def schema_message(stream: str, schema: TableSchema, spelling: Spelling) -> bytes:
    """The SCHEMA line of a table. A log has no key: each of its records is a row.

    Raises:
        TableWriteFailed: a column has the name of what is added to each record.
    """
    for name in schema.column_names:
        if name.lower() in METADATA:
            raise TableWriteFailed(
                schema.id,
                f"{schema.name} has a column {name}, a name that is added to every record",
                solution="Leave the column out of the publication, or rename it; then retry the "
                "table.",
            )
    is_log = schema.mode == "append"
    keys = () if is_log else schema.key_columns
    columns = {
        column.name: property_of(column, spelling, in_key=column.name in keys)
        for column in schema.columns
    }
    more = METADATA | LOGGED if is_log else METADATA
    message = {
        "type": "SCHEMA",
        "stream": stream,
        "schema": {"type": "object", "properties": columns | more},
        "key_properties": list(keys),
        "bookmark_properties": [],
    }
    return line(message)


def property_of(column: ColumnSchema, spelling: Spelling, *, in_key: bool) -> dict[str, Any]:
    """The JSON schema of a column's values."""
    described = _property(form_of(column), spelling)
    kinds = described["type"] if isinstance(described["type"], list) else [described["type"]]
    return described | {"type": kinds if in_key else ["null", *kinds]}


def _property(form: Form, spelling: Spelling) -> dict[str, Any]:
    arrow = form.arrow
    if pa.types.is_list(arrow):
        item = form.parts[0] if form.parts else None
        if item is None or item.parts or pa.types.is_list(arrow.value_type):
            return {"type": "array"}
        # Targets disagree about anything that says more of an item than its JSON type.
        kind = "string" if item.spelling == "digits" else _property(item, spelling)["type"]
        return (
            {"type": "array", "items": {"type": ["null", kind]}}
            if _is_one(kind)
            else {"type": "array"}
        )
    if form.parts:
        return {"type": "object"}
    if pa.types.is_boolean(arrow):
        return {"type": "boolean"}
    if pa.types.is_integer(arrow):
        signed = pa.types.is_signed_integer(arrow)
        high = 2 ** (arrow.bit_width - signed) - 1
        return {"type": "integer", "minimum": -high - 1 if signed else 0, "maximum": high}
    if pa.types.is_floating(arrow):
        return {"type": "number"}
    if pa.types.is_decimal(arrow):
        if spelling.decimals == "number":
            return {"type": "number"}
        digits = {"precision": arrow.precision, "scale": arrow.scale}
        return {"type": "string", "format": "x-singer.decimal"} | digits
    if pa.types.is_date(arrow):
        return {"type": "string", "format": "date"}
    if pa.types.is_time(arrow):
        return {"type": "string", "format": "time"}
    if pa.types.is_timestamp(arrow):
        return {"type": "string", "format": "date-time"}
    if form.spelling == "base64":
        return {"type": "string", "contentEncoding": "base64"}
    if form.meaning == "uuid":
        return {"type": "string", "format": "uuid"}
    if form.meaning == "json" and spelling.json_values == "value":
        return {"type": ["object", "array", "string", "number", "integer", "boolean"]}
    return {"type": "string"}


def _is_one(kind: Any) -> bool:
    return isinstance(kind, str) and kind not in ("array", "object", "number")


def line(message: Any) -> bytes:
    """A message as the target reads it."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

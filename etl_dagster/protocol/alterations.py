"""What the event trigger on the source reports of a table that was altered.

Source: `etl_dagster/source/alterations.sql`, which writes these messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, cast

from etl_dagster.model.schema import ReplicaIdentity, TableId
from etl_dagster.values.columns import ColumnSchema

#: The prefix of the trigger's messages.
ALTERATION_PREFIX: Final = "etl_dagster alteration"
#: pg_event_trigger_table_rewrite_reason(): bits.
PERSISTENCE, DEFAULT_VALUE, COLUMN_REWRITE = 1, 2, 4


@dataclass(frozen=True, slots=True)
class DescribedColumn:
    """A column after the command, published or not."""

    schema: ColumnSchema
    #: pg_attribute.attgenerated: empty, ``s`` or ``v``.
    generated: str = ""
    #: Whether all partitions agree on the `missing_value`.
    is_missing_clear: bool = True


@dataclass(frozen=True, slots=True)
class ColumnsAltered:
    """A table as a command left it; the command may have left it as it was."""

    table_id: TableId
    schema_name: str
    table_name: str
    replica_identity: ReplicaIdentity
    columns: tuple[DescribedColumn, ...]
    #: Whether rows may print otherwise since, because a type was altered.
    changes_values: bool = False
    #: pg_class.relpersistence: ``p`` or ``u``.
    persistence: str = "p"
    #: The attnums in the table's column list, for each publication that has one.
    lists: Mapping[str, Sequence[int]] = field(default_factory=dict)
    #: Publications that send stored generated columns.
    with_generated: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class RowsRewritten:
    """ALTER TABLE is about to write the table's rows again; its `ColumnsAltered` follows."""

    table_id: TableId
    #: Bits: see above.
    reason: int
    #: Whether the command has no clause that computes values, such as USING.
    is_plain: bool


@dataclass(frozen=True, slots=True)
class UnknownAlteration:
    """The trigger failed to describe the table."""

    table_id: TableId


Alteration: TypeAlias = ColumnsAltered | RowsRewritten | UnknownAlteration


def decode_alterations(content: bytes) -> list[Alteration]:
    """Decode a message; of what another version sends, the tables it names are `Unknown`.

    What isn't the trigger's gives nothing: any user may write messages.
    """
    try:
        message = json.loads(content)
        tables = message.get("tables") or [message["table"]]
        table_ids = [_oid(int(table)) for table in tables]
    except _NOT_OURS:
        return []
    try:
        if message["format"] == 1 and message["kind"] == "columns":
            return [_columns(table_ids[0], message)]
        if message["format"] == 1 and message["kind"] == "rewrite":
            return [RowsRewritten(table_ids[0], int(message["reason"]), message["plain"] is True)]
    except _NOT_OURS:
        pass
    return [UnknownAlteration(table_id) for table_id in table_ids]


#: What comes of reading a message that isn't the trigger's.
_NOT_OURS: Final = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
)


def _columns(table_id: TableId, message: Mapping[str, Any]) -> ColumnsAltered:
    identity = message["identity"]
    if identity not in ("d", "i", "f", "n"):
        raise ValueError(identity)
    columns = tuple(map(_column, message["columns"] or ()))
    for each in ({c.schema.name for c in columns}, {c.schema.attnum for c in columns}):
        if len(each) < len(columns):
            raise ValueError("the same column twice")
    lists: Mapping[Any, Any] = message["lists"] or {}
    return ColumnsAltered(
        table_id,
        _name(message["schema"]),
        _name(message["name"]),
        cast(ReplicaIdentity, identity),
        columns,
        changes_values=message["values"] is True,
        persistence=message["persistence"],
        lists={name: tuple(map(_number, attnums)) for name, attnums in lists.items()},
        with_generated=tuple(map(_name, message["generated"] or ())),
    )


def _column(described: Mapping[str, Any]) -> DescribedColumn:
    key, missing, text = described["key"], described["missing"], described["text"]
    return DescribedColumn(
        ColumnSchema(
            name=_name(described["name"]),
            type_oid=_oid(int(described["type"])),
            type_modifier=_number(described["modifier"]),
            type_name=_name(text),
            attnum=_number(described["attnum"]),
            nullable=described["nullable"] is True,
            primary_key_ordinal=None if key is None else _number(key),
            is_identity=described["identity"] is True,
            base_type_oid=_oid(int(described["base"])),
            missing_value=None if missing is None else _text(missing),
        ),
        described["generated"],
        described["is_missing_clear"] is True,
    )


def _oid(number: int) -> int:
    if not 0 < number < 1 << 32:
        raise ValueError(number)
    return number


def _number(value: object) -> int:
    if type(value) is not int or not -(1 << 31) <= value < 1 << 31:
        raise TypeError(value)
    return value


def _name(value: object) -> str:
    if not value:
        raise ValueError(value)
    return _text(value)


def _text(value: object) -> str:
    """A text that Postgres can have: JSON may bring halves of characters, and NUL."""
    if not isinstance(value, str) or "\0" in value:
        raise TypeError(value)
    value.encode()
    return value

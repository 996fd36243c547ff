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
        table_ids = [int(table) for table in tables]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    try:
        if message["format"] == 1 and message["kind"] == "columns":
            return [_columns(table_ids[0], message)]
        if message["format"] == 1 and message["kind"] == "rewrite":
            return [RowsRewritten(table_ids[0], int(message["reason"]), message["plain"] is True)]
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return [UnknownAlteration(table_id) for table_id in table_ids]


def _columns(table_id: TableId, message: Mapping[str, Any]) -> ColumnsAltered:
    return ColumnsAltered(
        table_id,
        message["schema"],
        message["name"],
        cast(ReplicaIdentity, message["identity"]),
        tuple(map(_column, message["columns"] or ())),
        changes_values=message["values"] is True,
        persistence=message["persistence"],
        lists=message["lists"] or {},
        with_generated=message["generated"] or (),
    )


def _column(described: Mapping[str, Any]) -> DescribedColumn:
    return DescribedColumn(
        ColumnSchema(
            name=described["name"],
            type_oid=int(described["type"]),
            type_modifier=described["modifier"],
            type_name=described["text"],
            attnum=described["attnum"],
            nullable=described["nullable"],
            primary_key_ordinal=described["key"],
            is_identity=described["identity"],
            base_type_oid=int(described["base"]),
            missing_value=described["missing"],
        ),
        described["generated"],
        described["is_missing_clear"],
    )

"""Tables as the source describes them, in versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.modes import TableMode
from etl_dagster.model.shape import TableShape
from etl_dagster.table_name import TableName
from etl_dagster.values.columns import ColumnSchema as ColumnSchema

if TYPE_CHECKING:
    import pyarrow as pa

#: The OID of a table in the source (pg_class.oid). A renamed table keeps it; a table that is
#: dropped and created again gets another one.
TableId: TypeAlias = int

#: The LSN from which on a schema version is valid; ``0/0`` is the version of the initial copy.
SnapshotId: TypeAlias = Lsn
INITIAL_SNAPSHOT: SnapshotId = LSN_ZERO

#: pg_class.relreplident: default (primary key), using index, full, nothing.
ReplicaIdentity: TypeAlias = Literal["d", "i", "f", "n"]


@dataclass(frozen=True)
class TableSchema:
    """The published columns of a table from `snapshot_id` on, in the order Postgres sends them."""

    id: TableId
    schema_name: str
    table_name: str
    columns: tuple[ColumnSchema, ...]
    snapshot_id: SnapshotId = INITIAL_SNAPSHOT
    replica_identity: ReplicaIdentity = "d"
    #: How the destination keeps the table; chosen when it is copied, and kept until the next copy.
    mode: TableMode = "mirror"
    #: How the table differs at the destination; None: neither the table nor a column does.
    shape: TableShape | None = None

    @cached_property
    def name(self) -> str:
        """The text of its `TableName`: for people and as a key elsewhere, never as SQL."""
        return str(TableName(self.schema_name, self.table_name))

    @cached_property
    def target(self) -> TableName:
        """What the table is called at the destination."""
        if self.shape is None:
            return TableName(self.schema_name, self.table_name)
        return self.shape.target_of(self.schema_name, self.table_name)

    @cached_property
    def key_columns(self) -> tuple[str, ...]:
        """What identifies a row: the index of REPLICA IDENTITY USING INDEX, else the primary key.

        Empty without either, also with REPLICA IDENTITY FULL: there the whole row identifies it.
        With REPLICA IDENTITY NOTHING no update or delete is ever sent, but a primary key still
        counts: it makes the rows of a copy unique.
        """
        primary = [c for c in self.columns if c.primary_key_ordinal is not None]
        if self.replica_identity == "i":
            return tuple(c.name for c in self.columns if c.is_identity)
        return tuple(
            c.name for c in sorted(primary, key=lambda column: column.primary_key_ordinal or 0)
        )

    @cached_property
    def identity_columns(self) -> tuple[str, ...]:
        """The columns that Postgres sends of an old row."""
        return tuple(c.name for c in self.columns if c.is_identity)

    @cached_property
    def quarantine_columns(self) -> tuple[str, ...]:
        """The columns in which an odd value keeps its row apart from the table."""
        return tuple(c.name for c in self.columns if c.quarantine)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def type_oids(self) -> dict[str, int]:
        """By column name, the OID that decides how its values are decoded."""
        return {column.name: column.effective_type_oid for column in self.columns}

    @cached_property
    def json_writers(self) -> dict[str, Callable[[Any], Any] | None]:
        """By column name, the function that turns a value into JSON; None: it is JSON already."""
        from etl_dagster.values.json import json_writer

        return {column.name: json_writer(column) for column in self.columns}

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema of the table's rows, one field for each column, in order."""
        import pyarrow as pa

        from etl_dagster.values.forms import arrow_type

        return pa.schema(
            [pa.field(column.name, arrow_type(column), column.nullable) for column in self.columns]
        )

    def at(self, snapshot_id: SnapshotId) -> TableSchema:
        """The same description as a version of its own."""
        return replace(self, snapshot_id=snapshot_id)

    def describes_same_columns(self, other: TableSchema) -> bool:
        """Whether a row of one is a row of the other."""
        return (
            (self.schema_name, self.table_name) == (other.schema_name, other.table_name)
            and self.columns == other.columns
            and self.shape == other.shape
            and self.replica_identity == other.replica_identity
        )


@dataclass(frozen=True, slots=True)
class TableSchemaRetention:
    """Versions of a table's schema that ended before `lsn` are no longer needed.

    The version that is valid at `lsn`, which is the newest one at or before it, is always kept.
    """

    lsn: Lsn

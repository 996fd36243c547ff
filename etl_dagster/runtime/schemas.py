"""Which schema a table has at a place in the stream."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from etl_dagster.errors import SourceError
from etl_dagster.lsn import LSN_MAX, Lsn
from etl_dagster.model.events import EventBatch, RelationEvent, TableStep
from etl_dagster.model.schema import INITIAL_SNAPSHOT, ColumnSchema, TableId, TableSchema
from etl_dagster.model.stores import DestinationTableMetadata, PipelineStore
from etl_dagster.protocol.pgoutput import Relation, RelationColumn

_log = logging.getLogger(__name__)

#: Fetches the table as the source's catalog has it now; None when it left the publication.
FetchSchema = Callable[[TableId], TableSchema | None]


class SchemaTracker:
    """Turns Relation messages into schemas, and tells the destination when one changes.

    A Relation message has names and types but no attribute numbers, which tell a renamed column
    from a dropped and an added one. Those come from the catalog, when what it says now fits the
    message, else from the version before. Belongs to the thread that delivers.
    """

    def __init__(self, store: PipelineStore, fetch_schema: FetchSchema) -> None:
        self._store = store
        self._fetch_schema = fetch_schema
        #: The newest Relation message of each table, and its schema. An earlier one that comes
        #: back, because a change was undone, is another version.
        self._resolved: dict[TableId, tuple[Relation, TableSchema]] = {}
        #: What the destination has, as far as we know.
        self._applied: dict[TableId, TableSchema] = {}
        self._lsn = INITIAL_SNAPSHOT

    def at(self, lsn: Lsn) -> None:
        """New versions found from here on begin to hold at `lsn`."""
        self._lsn = max(self._lsn, lsn)

    def resolve(self, relation: Relation) -> TableSchema:
        """The schema that rows sent under this Relation message have.

        To be asked in the order of the stream.
        """
        before, schema = self._resolved.get(relation.id, (None, None))
        if schema is None or before != relation:
            schema = self._find(relation, schema or self.applied(relation.id))
            self._resolved[relation.id] = relation, schema
        return schema

    def _find(self, relation: Relation, known: TableSchema | None) -> TableSchema:
        if known is not None and _fits(known, relation):
            return known
        current = self._fetch(relation.id)
        if current is not None and _fits(current, relation):
            found = current
        else:
            found = _merge(relation, current, known)
        if known is None:
            return found.at(INITIAL_SNAPSHOT)
        version = max(self._lsn, Lsn(known.snapshot_id.offset + 1))
        _log.info("%s has a new schema from %s on", found.name, version)
        return found.at(version)

    def _fetch(self, table_id: TableId) -> TableSchema | None:
        try:
            return self._fetch_schema(table_id)
        except SourceError as error:
            _log.warning("the catalog can't be asked about table %s: %s", table_id, error)
            return None

    def applied(self, table_id: TableId) -> TableSchema | None:
        """The schema that the destination's table has; None before its copy."""
        if table_id not in self._applied:
            metadata = self._store.get_destination_table_metadata(table_id)
            # A change that was begun and not finished is announced again; it is idempotent.
            snapshot = metadata and (
                metadata.snapshot_id
                if metadata.status == "applied"
                else metadata.previous_snapshot_id or metadata.snapshot_id
            )
            known = self._store.get_table_schema(table_id, snapshot or LSN_MAX)
            if known is None:
                return None
            self._applied[table_id] = known
        return self._applied[table_id]

    def announce(self, events: EventBatch) -> EventBatch:
        """Put a RelationEvent before the first change that the destination's schema doesn't fit.

        One that no change follows is left out, until that change comes: only the position of a
        change tells whether the destination has it, and its schema, already.
        """
        tables: dict[TableId, list[TableStep]] = {}
        for table_id, steps in events.tables.items():
            applied = self.applied(table_id)
            announced: list[TableStep] = []
            for step in steps:
                if isinstance(step, RelationEvent):
                    continue
                schema = step.schema
                if applied is None or not applied.describes_same_columns(schema):
                    first = step.sequence
                    sequence = int(first if isinstance(first, int) else first[0])
                    announced.append(RelationEvent(schema, applied, sequence))
                applied = schema
                announced.append(step)
            tables[table_id] = announced
        return replace(events, tables=tables)

    def begin_changes(self, events: EventBatch) -> list[RelationEvent]:
        """Record the schema changes in the batch as begun; the last one for each table."""
        changes = {
            table_id: step
            for table_id, steps in events.tables.items()
            for step in steps
            if isinstance(step, RelationEvent)
        }
        for table_id, change in changes.items():
            self._store.store_table_schema(change.schema)
            previous = change.previous.snapshot_id if change.previous else None
            self._store.store_destination_table_metadata(
                table_id, destination_metadata(change.schema, "applying", previous)
            )
        return list(changes.values())

    def finish_changes(self, changes: list[RelationEvent]) -> None:
        """Record the changes as made, once the batch is durable."""
        for change in changes:
            self._store.store_destination_table_metadata(
                change.schema.id, destination_metadata(change.schema, "applied")
            )
            self._applied[change.schema.id] = change.schema

    def forget(self, table_id: TableId) -> None:
        """The table was or will be copied anew; what is known of it is out of date."""
        self._applied.pop(table_id, None)
        self._resolved.pop(table_id, None)


def destination_metadata(
    schema: TableSchema, status: str, previous: Lsn | None = None
) -> DestinationTableMetadata:
    """The destination's table under this schema, all of its columns replicated."""
    return DestinationTableMetadata(
        destination_table_id=schema.name,
        snapshot_id=schema.snapshot_id,
        status="applied" if status == "applied" else "applying",
        replication_mask=(True,) * len(schema.columns),
        previous_snapshot_id=previous,
    )


def _fits(schema: TableSchema, relation: Relation) -> bool:
    return (
        (schema.schema_name, schema.table_name) == (relation.schema_name, relation.table_name)
        and schema.replica_identity == relation.replica_identity
        and len(schema.columns) == len(relation.columns)
        and all(map(_column_fits, schema.columns, relation.columns))
    )


def _column_fits(column: ColumnSchema, sent: RelationColumn) -> bool:
    # A domain's own modifier is in the type, not in the message.
    is_domain = column.base_type_oid not in (0, column.type_oid)
    return (
        column.name == sent.name
        and column.type_oid == sent.type_oid
        and (is_domain or column.type_modifier == sent.type_modifier)
        and column.is_identity == sent.is_identity
    )


def _has_same_columns(relation: Relation, current: TableSchema | None, known: TableSchema) -> bool:
    """Whether columns were at most renamed or retyped, so that the place tells which is which.

    As many columns as before are the same ones when none of them was dropped to this day.
    """
    today = {column.attnum for column in current.columns} if current else set()
    return len(relation.columns) == len(known.columns) and all(
        column.attnum in today for column in known.columns
    )


def _merge(
    relation: Relation, current: TableSchema | None, known: TableSchema | None
) -> TableSchema:
    """What the message says, with what catalog and earlier version add for the same columns."""
    in_place = known.columns if known and _has_same_columns(relation, current, known) else ()
    today = {(c.attnum, c.type_oid): c for c in current.columns} if current else {}
    described: dict[tuple[str, int], ColumnSchema] = {}
    for schema in (current, known):
        if schema is not None:
            described |= {(c.name, c.type_oid): c for c in schema.columns}
    columns = []
    for place, sent in enumerate(relation.columns, start=1):
        column = described.get((sent.name, sent.type_oid))
        if in_place:
            column = in_place[place - 1]
            if column.type_oid != sent.type_oid:
                retyped = replace(column, type_oid=sent.type_oid, type_name="", base_type_oid=0)
                column = today.get((column.attnum, sent.type_oid), retyped)
            column = replace(column, name=sent.name)
        elif column is None:
            # Under the default identity, the flagged columns are the primary key.
            in_key = sent.is_identity and relation.replica_identity == "d"
            column = ColumnSchema(
                sent.name, sent.type_oid, primary_key_ordinal=place if in_key else None
            )
        columns.append(
            replace(column, type_modifier=sent.type_modifier, is_identity=sent.is_identity)
        )
    identity = relation.replica_identity
    return TableSchema(
        relation.id,
        relation.schema_name,
        relation.table_name,
        tuple(columns),
        replica_identity=identity,
    )

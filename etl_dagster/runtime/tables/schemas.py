"""Which schema a table has at a place in the stream."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from etl_dagster.errors import SourceError
from etl_dagster.lsn import LSN_MAX, Lsn
from etl_dagster.model.events import EventBatch, RelationEvent, TableStep
from etl_dagster.model.schema import INITIAL_SNAPSHOT, ColumnSchema, TableId, TableSchema
from etl_dagster.model.stores import DestinationTableMetadata, PipelineStore
from etl_dagster.protocol.alterations import Alteration, RowsRewritten, UnknownAlteration
from etl_dagster.protocol.pgoutput import Relation, RelationColumn
from etl_dagster.runtime.tables.alignment import Unclear, align
from etl_dagster.runtime.tables.altered import altered_schema, reason_to_copy
from etl_dagster.runtime.tables.new_labels import (
    completed,
    completed_schema,
    find_new_labels,
    read_enums,
    tables_with_renamed,
)
from etl_dagster.runtime.tables.representation import (
    describe,
    keep_choices,
    reason_of_columns,
    undescribed,
)
from etl_dagster.source.columns import TableToday
from etl_dagster.source.control import SourceControl
from etl_dagster.source.types import TypeCatalog, fetch_types
from etl_dagster.table_name import TableName
from etl_dagster.values.types import Enum

_log = logging.getLogger(__name__)

#: Fetches the table as the source's catalog has it now; None when it left the publication.
FetchTable = Callable[[TableId], TableToday | None]
#: Fetches what the source's catalog says of types now.
FetchTypes = Callable[[Collection[int]], TypeCatalog]

#: A transaction's versions are numbered from its commit LSN on; the next commit that changes a
#: table lies further away than this, because a change of the catalog takes some WAL.
_VERSIONS_IN_TRANSACTION = 99


class SchemaTracker:
    """Turns Relation messages into schemas, and tells the destination when one changes.

    A Relation message has names and types but no attribute numbers, which tell a renamed column
    from a dropped and an added one. They follow from the version before and from the catalog,
    where these leave one answer (`alignment.py`); where they don't, the table is `outdated`.
    Belongs to the thread that delivers.
    """

    def __init__(
        self,
        store: PipelineStore,
        fetch_table: FetchTable,
        fetch_types: FetchTypes,
        publication: str = "",
        choose: Callable[[TableSchema], TableSchema] = lambda schema: schema,
    ) -> None:
        """Args:
        choose: gives new columns the types that they have at the destination.
        """
        self._store = store
        self._choose = choose
        self._fetch_table = fetch_table
        self._fetch_types = fetch_types
        self._publication = publication
        #: The newest Relation message of each table, and its schema. An earlier one that comes
        #: back, because a change was undone, is another version.
        self._resolved: dict[TableId, tuple[Relation | None, TableSchema]] = {}
        #: Rewrites whose alteration is still to come.
        self._rewritten: dict[TableId, RowsRewritten] = {}
        #: What the destination has, as far as we know.
        self._applied: dict[TableId, TableSchema] = {}
        self._outdated: dict[TableId, str] = {}
        #: Of enums whose labels were asked about, what the catalog said last.
        self._enums: dict[int, Enum] = {}

    def resolve(self, relation: Relation, commit_lsn: Lsn) -> TableSchema:
        """The schema that rows sent under this Relation message have.

        To be asked in the order of the stream. A new version is named by the commit LSN of its
        transaction, so that it has the same name when it is streamed again.

        Raises:
            SourceError: the catalog can't be asked now, and waiting may help.
        """
        before, schema = self._resolved.get(relation.id, (None, None))
        if schema is None or before != relation:
            schema = self._find(relation, commit_lsn, schema)
            self._resolved[relation.id] = relation, schema
        return schema

    def _find(
        self, relation: Relation, commit_lsn: Lsn, resolved: TableSchema | None
    ) -> TableSchema:
        known = resolved or self.applied(relation.id)
        if known is not None:
            is_past = resolved is not None or known.snapshot_id < commit_lsn
            if is_past and _fits(known, relation):
                return known
            streamed_before = self._streamed_before(relation, commit_lsn, resolved)
            if streamed_before is not None:
                return streamed_before
        today = self._fetch(relation.id, is_known=known is not None)
        if known is None:
            if today is not None and _fits(today.schema, relation):
                return self._choose(today.schema).at(INITIAL_SNAPSHOT)
            columns = _by_name(relation, None if today is None else today.schema)
            described = _described(relation, columns, None)
            return self._with_types(described, None).at(INITIAL_SNAPSHOT)
        found = self._with_types(self._follow(relation, known, today), known)
        if (reason := reason_of_columns(found, known)) is not None:
            self._outdated.setdefault(relation.id, reason)
        version = max(commit_lsn, Lsn(known.snapshot_id.offset + 1))
        _log.info("%s has a new schema from %s on", found.name, version)
        return found.at(version)

    def _streamed_before(
        self, relation: Relation, commit_lsn: Lsn, resolved: TableSchema | None
    ) -> TableSchema | None:
        """The version that this message led to when the transaction was streamed before.

        After a restart the stream may begin before a change of the schema that the destination
        has already. Its rows lie before the destination's position; taken for new, the message
        would have the change undone.
        """
        begun = [] if resolved is None else [resolved.snapshot_id]
        version = self._store.get_table_schema(
            relation.id, Lsn(commit_lsn.offset + _VERSIONS_IN_TRANSACTION)
        )
        versions: list[TableSchema] = []
        while version is not None and all(version.snapshot_id > before for before in begun):
            versions.append(version)
            if version.snapshot_id < commit_lsn or version.snapshot_id == INITIAL_SNAPSHOT:
                break
            earlier = Lsn(version.snapshot_id.offset - 1)
            version = self._store.get_table_schema(relation.id, earlier)
        return next((found for found in reversed(versions) if _fits(found, relation)), None)

    def _follow(
        self, relation: Relation, known: TableSchema, today: TableToday | None
    ) -> TableSchema:
        """What became of the known schema."""
        if today is None or not all(column.attnum for column in known.columns):
            # The table is gone, or was never described by a catalog: names are all there is.
            return _described(relation, _by_name(relation, known), known)
        try:
            columns = align(relation, known, today)
        except Unclear as reason:
            self._outdated[relation.id] = f"its columns changed: {reason}"
            # For reading the rows only; they are not applied.
            columns = _by_name(relation, today.schema, known)
        attnums = [column.attnum for column in columns]
        if _fits(today.schema, relation) and attnums == [c.attnum for c in today.schema.columns]:
            return today.schema
        return _described(relation, columns, known)

    def alter(self, alteration: Alteration, commit_lsn: Lsn, number: int) -> TableSchema | None:
        """The schema after an alteration that the source reported; None where it stays the same.

        To be asked in the order of the stream, together with `resolve`.

        Args:
            number: counts the table's alterations in the transaction, from 0 on.
        """
        table_id = alteration.table_id
        if isinstance(alteration, RowsRewritten):
            self._rewritten[table_id] = alteration
            return None
        rewrite = self._rewritten.pop(table_id, None)
        _, resolved = self._resolved.get(table_id, (None, None))
        known = resolved or self.applied(table_id)
        if known is None:
            return None
        version = Lsn(commit_lsn.offset + number)
        if resolved is not None:
            version = max(version, Lsn(resolved.snapshot_id.offset + 1))
        elif version <= known.snapshot_id:
            # Streamed again: of an alteration that is past, the version that it led to.
            found = self._store.get_table_schema(table_id, version)
            if found is not None and found.snapshot_id == version:
                self._resolved[table_id] = None, found
            return None
        if isinstance(alteration, UnknownAlteration):
            self._outdated[table_id] = "it was altered, and the source could not report how"
            return None
        altered = altered_schema(alteration, self._publication).at(version)
        altered = self._with_types(altered, known)
        reason = reason_to_copy(alteration, rewrite, known, altered)
        reason = reason or reason_of_columns(altered, known)
        if reason is not None:
            self._outdated[table_id] = reason
        self._resolved[table_id] = None, altered
        return altered

    def _with_types(self, schema: TableSchema, known: TableSchema | None) -> TableSchema:
        """The schema with what its types are built of, and how their values are held.

        Messages bring an OID only. What new columns' types are built of is asked of the catalog,
        and then kept with the version; the others keep what is known of theirs.
        """
        asked = undescribed(schema, known)
        types = self._ask_types(asked, schema.name)
        return keep_choices(self._choose(describe(schema, types, asked)), known)

    def _ask_types(self, oids: Collection[int], table: str) -> TypeCatalog:
        if not oids:
            return TypeCatalog({})
        try:
            return self._fetch_types(oids)
        except SourceError as error:
            # What is found is kept with the version: types are not taken for unknown ones because
            # the source is away for a moment.
            if error.retryable:
                raise
            _log.warning("cannot read the types of %s: %s", table, error.reason)
            return TypeCatalog({})

    def with_labels(self, events: EventBatch) -> EventBatch:
        """The batch with schemas whose enums have all labels of its values, in their order.

        What the catalog says of an enum is kept with the version, as if it had been read then.
        """
        new = find_new_labels(events, self._enums)
        if new.enums:
            found = read_enums(self._ask_types(new.enums, "a table with new labels"), new.enums)
            self._enums |= found
            for table_id in tables_with_renamed(new, found):
                self._outdated[table_id] = "a value of an enum was renamed"
            for table_id in events.tables:
                self._keep_labels(table_id)
        return completed(events, self._enums)

    def _keep_labels(self, table_id: TableId) -> None:
        applied = self.applied(table_id)
        if applied is None:
            return
        schema = completed_schema(applied, self._enums)
        if schema is not applied:
            self._store.store_table_schema(schema)
            self._applied[table_id] = schema

    def take_outdated(self) -> Mapping[TableId, str]:
        """Tables that must be copied again, with the reason, found since the last call."""
        outdated, self._outdated = self._outdated, {}
        return outdated

    def _fetch(self, table_id: TableId, *, is_known: bool) -> TableToday | None:
        """The table as the catalog has it now; None when it left the publication.

        A failure is not an answer: without the catalog, a renamed column looks like one that was
        dropped and another one that was added, and its values would be lost.

        Args:
            is_known: whether the destination has the table, which is copied again where the
                catalog refuses to describe it.

        Raises:
            SourceError: waiting may help; the batch comes again.
        """
        try:
            return self._fetch_table(table_id)
        except SourceError as error:
            if error.retryable:
                raise
            _log.warning("cannot read the columns of table %s: %s", table_id, error.reason)
            if is_known:
                self._outdated[table_id] = (
                    f"its columns changed, and the catalog could not be read: {error.reason}"
                )
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

        One that no change follows is left out, until that change comes, unless the source reported
        it: only the position of a change tells whether the destination has it, and its schema,
        already, and versions that were reported follow the order of the stream.
        """
        tables: dict[TableId, list[TableStep]] = {}
        for table_id, steps in events.tables.items():
            applied = self.applied(table_id)
            announced: list[TableStep] = []
            for step in steps:
                if isinstance(step, RelationEvent):
                    if step.is_altered and not (applied and _is_same(applied, step.schema)):
                        announced.append(replace(step, previous=applied))
                        applied = step.schema
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

    def renamed(
        self, table_id: TableId, name: TableName, lsn: Lsn, sequence: int
    ) -> RelationEvent | None:
        """The table's new name as an event of its own; None where it is known already.

        To be asked once the stream has passed `lsn`, before which every earlier name came.
        """
        described, _ = self._resolved.get(table_id, (None, None))
        self.forget(table_id)
        known = self.applied(table_id)
        if known is None or (known.schema_name, known.table_name) == (
            name.schema_name,
            name.table_name,
        ):
            return None
        version = max(lsn, Lsn(known.snapshot_id.offset + 1))
        _log.info("%s is called %s now", known.name, name)
        schema = replace(
            known,
            schema_name=name.schema_name,
            table_name=name.table_name,
            snapshot_id=version,
        )
        if described is not None:
            # Postgres may continue sending rows under that message: a partition's rows come with a
            # new one of their root only once the partition itself is altered (pgoutput.c).
            self._resolved[table_id] = described, schema
        return RelationEvent(schema, known, sequence)

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
        """The table was or will be copied again; what is known of it is out of date."""
        self._applied.pop(table_id, None)
        self._resolved.pop(table_id, None)
        self._rewritten.pop(table_id, None)


def ask_types(control: SourceControl, oids: Collection[int]) -> TypeCatalog:
    """What the source's catalog says of types now.

    Raises:
        SourceError: it can't be asked.
    """
    return control.ask("reading types", fetch_types, oids)


def destination_metadata(
    schema: TableSchema, status: str, previous: Lsn | None = None
) -> DestinationTableMetadata:
    """The destination's table under this schema, all of its columns replicated."""
    return DestinationTableMetadata(
        destination_table_id=str(schema.target),
        snapshot_id=schema.snapshot_id,
        status="applied" if status == "applied" else "applying",
        replication_mask=(True,) * len(schema.columns),
        previous_snapshot_id=previous,
    )


def _is_same(applied: TableSchema, altered: TableSchema) -> bool:
    """Whether the destination has nothing to do."""
    return applied.snapshot_id >= altered.snapshot_id or applied.describes_same_columns(altered)


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


def _by_name(relation: Relation, *described: TableSchema | None) -> list[ColumnSchema]:
    """The message's columns with what is known of columns of the same name and type."""
    tables = [schema for schema in described if schema is not None]
    known = {(c.name, c.type_oid): c for schema in tables for c in schema.columns}
    return [
        replace(
            known.get((sent.name, sent.type_oid), ColumnSchema(sent.name, sent.type_oid)),
            type_modifier=sent.type_modifier,
            is_identity=sent.is_identity,
        )
        for sent in relation.columns
    ]


def _described(
    relation: Relation, columns: Sequence[ColumnSchema], known: TableSchema | None
) -> TableSchema:
    """The table of the message, with these columns; of a new key, in the order of the columns."""
    flagged = [column.is_identity for column in columns]
    in_key = [column.primary_key_ordinal is not None for column in columns]
    if relation.replica_identity == "d" and flagged != in_key:
        # Under the default identity, the flagged columns are the primary key.
        places = iter(range(1, len(columns) + 1))
        columns = [
            replace(column, primary_key_ordinal=next(places) if column.is_identity else None)
            for column in columns
        ]
    return TableSchema(
        relation.id,
        relation.schema_name,
        relation.table_name,
        tuple(columns),
        replica_identity=relation.replica_identity,
    )

"""A destination in SQL that commits data and positions together."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import ClassVar, Generic, TypeVar

import pyarrow as pa

from etl_dagster.destinations.sql.clashes import find_clashes
from etl_dagster.destinations.sql.copies import Copies
from etl_dagster.destinations.sql.dialect import Dialect
from etl_dagster.destinations.sql.fetch import FetchAhead
from etl_dagster.destinations.sql.kept_copies import KeptCopies
from etl_dagster.destinations.sql.ledger import Ledger
from etl_dagster.destinations.sql.marks import Marks
from etl_dagster.destinations.sql.merge import TableMerge
from etl_dagster.destinations.sql.modes import BY_NAME
from etl_dagster.destinations.sql.names import TableNames
from etl_dagster.destinations.sql.odd_values import OddEntries, OddValues
from etl_dagster.destinations.sql.quarantine import Quarantine
from etl_dagster.destinations.sql.removal import remove_tables
from etl_dagster.destinations.sql.repairs import begin_repair, end_repair, write_repair
from etl_dagster.destinations.sql.session import Session
from etl_dagster.destinations.sql.statements import insert
from etl_dagster.destinations.sql.tables import Target, create_table, drop_tables, move_table
from etl_dagster.destinations.sql.whole_tables import WholeTables
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import (
    Capabilities,
    ChecksNames,
    CopiesManyTables,
    RemovesTables,
    RepairsTables,
)
from etl_dagster.model.events import ChunkId, EventBatch, TableChanges, TableRows
from etl_dagster.model.identity import DestinationMark, HeldCopy
from etl_dagster.model.modes import MODES
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import DestinationStore

SessionT = TypeVar("SessionT", bound=Session)


class SqlDestination(ABC, Generic[SessionT]):
    """Tables in schemas named as the source's, and in schema ``_etl`` what was applied to them.

    Data and positions are committed together, so every change is applied exactly once. What a
    subclass adds is where the database is: how a transaction begins and ends there, how its
    failures are distinguished, and what it does around them.

    Args:
        dialect: how the database spells names; asked without a connection, too.
        changelog: also write the position of every applied change into ``_etl.changelog``.
    """

    capabilities: Capabilities = Capabilities(
        transactional=True,
        schema_changes=True,
        odd_values=True,
        quarantine=True,
        modes=frozenset(MODES),
        shards=True,
        offers=frozenset({ChecksNames, CopiesManyTables, RemovesTables, RepairsTables}),
    )

    #: Whether `Session.complete` takes long for a large table, and other sessions can write
    #: meanwhile.
    completes_apart: ClassVar[bool] = False

    def __init__(self, dialect: Dialect, *, changelog: bool = False) -> None:
        self._dialect = dialect
        self._changelog = changelog
        self._store: DestinationStore | None = None
        #: By pipeline, the newest revision that this object has committed; to be read at any time.
        self._revisions: dict[str, int] = {}
        self._lock = threading.Lock()

    # -- what a database has of its own --------------------------------------------------------

    @abstractmethod
    def _transaction(
        self, *, alone: bool = False, more_follows: bool | None = None
    ) -> AbstractContextManager[SessionT]:
        """A session inside a transaction, which is durable when the block ends well.

        Failures that concern the whole destination leave it as `DestinationError`.

        Args:
            alone: for a transaction that compares and sets (an epoch, a copy), or creates what
                another one might create too. Of all writers to the destination, only one at a
                time is in such a transaction. Chunks are written at the same time.
            more_follows: whether the next transaction is known to come soon, or known not to.
        """

    @abstractmethod
    def _reading(self) -> AbstractContextManager[SessionT | None]:
        """A session to read the ledger, also before `startup`; None where nothing is there yet."""

    @abstractmethod
    def _blaming(self, table_id: TableId, name: str) -> AbstractContextManager[None]:
        """Turn a failure inside of the block into `TableWriteFailed` where the table is to blame.

        Messages keep no value of a row.
        """

    def _prepare(self, session: SessionT) -> None:
        """Part of `startup`: bring what earlier versions wrote to the present one."""
        return

    def _before_commit(self, session: SessionT, events: EventBatch, dead_rows: int) -> None:
        """The batch is applied, and about to be committed.

        Args:
            dead_rows: how many rows it has deleted or replaced.
        """
        return

    # -- life ----------------------------------------------------------------------------------

    def startup(self, store: DestinationStore) -> None:
        """Create the ledger, or what it lacks.

        Raises:
            DestinationError: the destination can't be written.
        """
        self._store = store
        self._revisions = {}
        with self._transaction(alone=True) as session:
            Ledger(session).create()
            self._prepare(session)

    def check_names(self, schemas: Sequence[TableSchema]) -> Sequence[str]:
        return find_clashes(self._dialect, schemas)

    def _is_known(self, table_id: TableId) -> bool:
        """Whether the pipeline has the table; one that was dropped or left the publication is
        forgotten."""
        return self._store is not None and (
            self._store.get_table_replication_state(table_id) is not None
        )

    # -- copies --------------------------------------------------------------------------------

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        with self._about(schema, alone=True) as session:
            Ledger(session).forget_position(schema.id)
            Copies(session).end([schema.id])
            _drop_staging(session, schema)

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        chunk = rows.chunk
        if chunk is None:
            self._end_copy(schema, rows)
            return
        if not self._begin_copy(schema, rows.copy_id, chunk):
            return
        with FetchAhead(rows.pieces()) as fetched:
            fetched.wait_until_worthwhile()
            self._write_chunk(schema, chunk, fetched)

    def _begin_copy(self, schema: TableSchema, copy_id: str, chunk: ChunkId | None) -> bool:
        """Make the copy the current one; returns whether the chunk, or the end, is missing."""

        def is_missing(copies: Copies, status: str) -> bool:
            return status == "running" and not (chunk and copies.has_chunk(schema.id, chunk))

        # A transaction that is alone waits for every batch under way, so only the first chunk has
        # one. Whatever writes a chunk, or the end, looks again.
        with self._about(schema) as session:
            copies = Copies(session)
            if (status := copies.status(schema.id, copy_id)) is not None:
                return is_missing(copies, status)
        with self._about(schema, alone=True) as session:
            copies = Copies(session)
            if (status := copies.status(schema.id, copy_id)) is not None:
                return is_missing(copies, status)
            copies.begin(schema.id, copy_id)
            _drop_staging(session, schema)
            create_table(session, Target.staging(session.dialect, schema))
            return True

    def _write_chunk(self, schema: TableSchema, chunk: ChunkId, fetched: FetchAhead) -> None:
        odd: list[OddEntries] = []

        def batches() -> Iterator[pa.RecordBatch]:
            for piece in fetched:
                if piece.odd:
                    odd.append(OddEntries.copied(piece, schema.key_columns))
                yield piece.rows

        with self._about(schema) as session:
            copies = Copies(session)
            if copies.status(schema.id, chunk.copy_id) != "running" or copies.has_chunk(
                schema.id, chunk
            ):
                return
            copies.keep_chunk(schema.id, chunk)
            target = Target.staging(session.dialect, schema)
            # One statement for all: a column store then compresses and writes rows as they come.
            for stretch in session.stretches(target.sql, schema, batches()):
                stream = map(session.dialect.readable, stretch)
                first = next(stream, None)
                if first is None:
                    continue
                reader = pa.RecordBatchReader.from_batches(first.schema, chain([first], stream))
                try:
                    session.run(insert(target, reader))
                except Exception:
                    # A failure of the source would look like one of the database, which reads it.
                    fetched.raise_failure()
                    raise
            if odd:
                OddValues(session).keep_copied(schema.id, odd, target.types)

    def _end_copy(self, schema: TableSchema, rows: TableRows) -> None:
        """The copy becomes the table, in place of the one before."""
        if not self._begin_copy(schema, rows.copy_id, None):
            return
        if self.completes_apart and schema.mode == "mirror":
            with self._about(schema) as session:
                if Copies(session).status(schema.id, rows.copy_id) == "running":
                    staging = Target.staging(session.dialect, schema)
                    session.complete(staging.sql, schema)
        with self._about(schema, alone=True) as session:
            ledger, copies = Ledger(session), Copies(session)
            if copies.status(schema.id, rows.copy_id) != "running":
                return
            names = TableNames(session, ledger)
            kept = KeptCopies(session, ledger, names, self._is_known)
            if schema.mode != "mirror":
                kept.finish(BY_NAME[schema.mode], schema, rows)
                names.settle()
                return
            kept.make_way(schema)
            # Refused if a table that isn't ours has the name.
            staging = Target.staging(session.dialect, schema)
            session.complete(staging.sql, schema)
            move_table(session, staging.name, Target.of(session.dialect, schema).name)
            position = Position.just_before(rows.replay_from)
            has_odd_values = OddValues(session).complete([(schema, position)])
            ledger.keep_table(schema)
            ledger.note_odd_values(schema.id, bool(has_odd_values))
            if has_odd_values:
                Quarantine(session).hold_all(schema)
            ledger.keep_position(schema, position)
            copies.complete(schema.id, rows.copy_id, rows.replay_from)
            names.settle()

    def drop_tables_for_copy(self, schemas: Sequence[TableSchema]) -> None:
        with self._transaction(alone=True) as session:
            whole = WholeTables(session, self._blaming, self._is_known)
            whole.forget_copies([schema.id for schema in schemas])
            _drop_staging(session, *schemas)

    def write_whole_tables(self, copies: Sequence[tuple[TableSchema, TableRows]]) -> None:
        """Write whole tables, and that their copies are complete, in one transaction.

        Raises:
            TableWriteFailed: one table refuses; nothing is written.
        """
        # More groups may follow, and beginning a transaction may take longer than anything else.
        with self._transaction(alone=True, more_follows=True) as session:
            WholeTables(session, self._blaming, self._is_known).write(copies)

    # -- the stream ----------------------------------------------------------------------------

    def write_events(self, events: EventBatch) -> None:
        """Apply the batch in one transaction, all tables and their positions together.

        Raises:
            Superseded: a newer epoch has written.
            TableWriteFailed: one table refuses; nothing is applied.
            DestinationUnreachable: the destination can't be reached, or can't be written.
        """
        with self._transaction(alone=True, more_follows=events.more_follows) as session:
            revision = self._apply(session, events)
        self._note_revision(events.pipeline, revision)

    def _apply(self, session: SessionT, events: EventBatch) -> int:
        """Apply the batch; returns the pipeline's revision with it."""
        ledger = Ledger(session)
        revision = Marks(session).raise_mark(events)
        tables = ledger.tables_of_batch(events.tables)
        names = TableNames(session, ledger, tables)
        copies = Copies(session)
        replay_points, repairing = copies.standing(events.tables)
        # What a table keeps would be there twice, from before its copy and from after it.
        keeping = [table_id for table_id, table in tables.items() if table.mode != "mirror"]
        between = repairing | (copies.incomplete_among(keeping) if keeping else set())
        dead_rows = 0
        for table_id, steps in events.tables.items():
            if not steps or events.is_outdated(table_id, replay_points.get(table_id)):
                continue
            if table_id in between:
                continue
            schema = steps[0].schema
            mode = tables[table_id].mode if table_id in tables else schema.mode
            merge = TableMerge(
                session,
                ledger,
                tables.get(table_id),
                names,
                BY_NAME[mode],
                changelog=self._changelog,
            )
            with self._blaming(table_id, schema.name):
                merge.apply(steps)
            dead_rows += merge.dead_rows
        names.settle()
        self._before_commit(session, events, dead_rows)
        return revision

    def _note_revision(self, pipeline: str, revision: int) -> None:
        """The batch with this revision is committed."""
        with self._lock:
            before = self._revisions.get(pipeline, 0)
            self._revisions[pipeline] = max(before, revision)

    # -- repairs -------------------------------------------------------------------------------

    def begin_repair(self, schema: TableSchema, repair_id: str) -> None:
        """See `RepairsTables`."""
        with self._about(schema, alone=True) as session:
            begin_repair(session, schema, repair_id)
            _drop_staging(session, schema)

    def write_repair(self, changes: TableChanges, repair_id: str) -> None:
        """See `RepairsTables`."""
        with self._about(changes.schema, alone=True) as session:
            dead_rows = write_repair(session, changes, repair_id)
            events = EventBatch({changes.schema.id: [changes]}, more_follows=True)
            self._before_commit(session, events, dead_rows)

    def end_repair(self, schema: TableSchema, repair_id: str, replay_from: Lsn) -> None:
        """See `RepairsTables`."""
        with self._about(schema, alone=True) as session:
            end_repair(session, schema, repair_id, replay_from)

    # -- the end -------------------------------------------------------------------------------

    def remove_tables(self, pipeline: str, schemas: Sequence[TableSchema]) -> Sequence[str]:
        """Drop the tables in one transaction; see `removal.remove_tables`."""
        with self._transaction(alone=True, more_follows=False) as session:
            return remove_tables(session, pipeline, schemas)

    # -- the mark ------------------------------------------------------------------------------

    def read_mark(self, pipeline: str) -> DestinationMark | None:
        with self._reading() as session:
            return None if session is None else Marks(session).mark(pipeline)

    def held_copies(self, table_ids: Collection[TableId]) -> Mapping[TableId, HeldCopy]:
        with self._reading() as session:
            return {} if session is None else Copies(session).held(table_ids)

    def written_revision(self, pipeline: str) -> int:
        return self._revisions.get(pipeline, 0)

    @contextmanager
    def _about(self, schema: TableSchema, *, alone: bool = False) -> Iterator[SessionT]:
        """A transaction about one table."""
        with self._transaction(alone=alone) as session, self._blaming(schema.id, schema.name):
            yield session


def _drop_staging(session: Session, *schemas: TableSchema) -> None:
    """Drop what copies have written that aren't complete."""
    OddValues(session).forget_copied([schema.id for schema in schemas])
    drop_tables(session, (Target.staging(session.dialect, schema).name for schema in schemas))

"""The contract of a destination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

from etl_dagster.lsn import Lsn
from etl_dagster.model.events import EventBatch, TableChanges, TableRows
from etl_dagster.model.modes import TableMode
from etl_dagster.model.schema import TableSchema

if TYPE_CHECKING:
    import pyarrow as pa

    from etl_dagster.model.stores import DestinationStore
    from etl_dagster.values.digest import RowHashes

#: None: durable when the method returned. A future: durable when it completes, and failed when it
#: raises; progress waits for it.
WriteResult: TypeAlias = "Future[None] | None"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a destination promises beyond the least; the conformance suite checks what is set."""

    #: Data and position are committed together, so each change is applied exactly once. The newest
    #: epoch is kept, and a smaller one refused (`Superseded`). Copies and their chunks are kept,
    #: too: an abandoned copy is refused (`InvalidState`), and the old rows stay until the new copy
    #: is complete.
    transactional: bool = False
    #: Updates and deletes change rows in place; without this, every change is appended, with its
    #: operation and position.
    mirror: bool = True
    #: A truncate empties the table (or is appended).
    truncate: bool = True
    #: Columns and tables that are added, dropped or renamed in the source are so at the
    #: destination, too.
    schema_changes: bool = False
    #: Values that a column's type can't hold (`CopiedRows.odd`, `TableChanges.odd`, `RowEvent.odd`)
    #: are kept as Postgres printed them, and follow their row: they are replaced, moved to another
    #: key, and removed with it.
    odd_values: bool = False
    #: A row with such a value in one of `TableSchema.quarantine_columns` is not in its table but,
    #: whole, in a place of its own; it returns to the table as soon as it has none. For tables with
    #: a key. Without this, a configuration with ``odd_values: quarantine`` is refused.
    quarantine: bool = False
    #: The modes in which it can keep a table; `TableSchema.mode` says which one to use. The other
    #: capabilities describe `mirror`. A configuration with any other mode is refused.
    modes: frozenset[TableMode] = frozenset({"mirror"})
    #: Several processes, also on several machines, may write chunks of one copy at the same time.
    #: If two write the same chunk, the table has it once.
    shared_copies: bool = False
    #: Several pipelines may write to it at the same time, each its own tables, from one process or
    #: from several. Shards do so: without this, a configuration with `shards` is refused.
    shards: bool = False
    #: Which of `FURTHER_CONTRACTS` it fulfils. None: those whose methods it has. If this is set, it
    #: is exactly these, and the test suite finds a method that is missing or misspelled; a derived
    #: class declares what it adds.
    offers: frozenset[type] | None = None


@runtime_checkable
class Destination(Protocol):
    """Where rows and events go.

    Any object with these members is one. A class with this base has to define only `name`,
    `drop_table_for_copy`, `write_table_rows` and `write_events`, and inherits the rest.

    Delivery is at least once and, within a table, in commit order. Calls come from several
    threads: `write_table_rows` from the copy workers of any tables, `write_events` from one
    thread for each stream (the apply worker, and each table that is catching up); one table is
    never written by two streams at a time. If writes return futures, a stream may have several
    batches under way (`batch.max_in_flight`, by default one), never two with a table in common;
    they may become durable in any order. Raise a failure, as an `EtlError` if something can be
    done about it; then either nothing of that call may be visible, or all of it.
    """

    @property
    def name(self) -> str:
        """A short label, such as ``duckdb``; part of the tables' state IDs."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it promises beyond the least; by default nothing but `Capabilities()`."""
        return Capabilities()

    def startup(self, store: DestinationStore) -> None:
        """Open, check rights, finish what was interrupted. Called once, before reads and writes.

        Several processes may have the same destination open, each with an object of its own: the
        replicator, and every run that copies a table.
        """
        return

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        """Forget earlier copies of the table, before a copy begins; idempotent.

        `schema` is the newest version that the store has, which is the one that the destination
        wrote last; before the first copy it is the one that will be copied. The engine removes its
        own data about the table only after this has returned.

        The table's rows may stay readable until the end of the new copy, which replaces them.
        Remove all that the destination keeps of the table's positions and chunks.
        """
        ...

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> WriteResult:
        """Write one chunk of a copy, or finish the copy (`rows.is_end_of_copy`).

        The end creates the table if the copy had no rows, replaces the previous table if there was
        one, and is durable only once every chunk of the copy is. Both may come a second time after
        a crash; if the destination is transactional, they change nothing then.
        """
        ...

    def write_events(self, events: EventBatch) -> WriteResult:
        """Apply changes. A transactional destination skips those at or before a table's position.

        Per table, the steps come in commit order. Across tables `events` may be read in any order.
        """
        ...

    def shutdown(self) -> None:
        """Release everything, even if `startup` failed; called at most once, after the last write.

        Must not lose a write.
        """
        return


@runtime_checkable
class CopiesManyTables(Protocol):
    """A destination that takes whole copies of many small tables at once.

    Small tables are copied in groups. A destination without these methods gets each copy of a
    group by itself, through `drop_table_for_copy` and `write_table_rows`.
    """

    def drop_tables_for_copy(self, schemas: Sequence[TableSchema]) -> None:
        """As `Destination.drop_table_for_copy`, for each of the tables."""
        ...

    def write_whole_tables(self, copies: Sequence[tuple[TableSchema, TableRows]]) -> WriteResult:
        """Write each copy from its beginning to its end: its only chunk, and that it is complete.

        All of them become the tables' rows, or none. A copy that is complete already, because it
        comes a second time, stays as it is.

        Raises:
            TableWriteFailed: that table can't be written; the engine tries again without it.
        """
        ...


class EstimatedCount(int):
    """A number of rows that was not counted but estimated, such as by the database's planner."""


@runtime_checkable
class CountsRows(Protocol):
    """A destination that can count its tables' rows at little cost."""

    def count_rows(self) -> Mapping[str, int]:
        """Rows that the source has now, by ``schema.table``.

        Tables that don't exist yet are missing. Rows marked as deleted and versions that have ended
        don't count; in mode append, every row does. Called every few seconds: if counting would
        take long, return an `EstimatedCount`, which is shown as such.
        """
        ...


@runtime_checkable
class CountsOddValues(Protocol):
    """A destination that keeps the values that columns' types can't hold, and can count them."""

    def count_odd_values(self) -> Mapping[str, Mapping[str, int]]:
        """Such values now, by ``schema.table`` and column; tables without any are missing."""
        ...


@runtime_checkable
class CountsQuarantinedRows(Protocol):
    """A destination that keeps rows in quarantine, and can count them at little cost."""

    def count_quarantined_rows(self) -> Mapping[str, int]:
        """Such rows now, by ``schema.table``; tables without any are missing.

        `CountsRows.count_rows` doesn't include them: the source has the sum of both.
        """
        ...


@runtime_checkable
class ReadsRows(Protocol):
    """A destination whose rows can be compared with the source's; used by `etl-dagster repair`.

    Called on an object that was not started; for `RepairsTables` also on one that was, from several
    threads, each for another table. The schema is the one that the destination was given: shaped,
    and in mode `mirror`.
    """

    def read_rows(self, schema: TableSchema) -> AbstractContextManager[Iterator[pa.RecordBatch]]:
        """The rows of the table, with the schema's columns by name; batches of bounded size.

        A row that does not change meanwhile comes exactly once. Columns may have other Arrow types
        than in the schema, if `as_read` has the same ones.

        Raises:
            TableRewritten: the destination's table has other columns, or is not there.
            EtlError: it can't be read.
        """
        ...

    def as_read(self, schema: TableSchema, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows as `read_rows` would return them after they were written.

        Called from several threads.
        """
        ...


@runtime_checkable
class HashesRows(Protocol):
    """A destination that offers `ReadsRows`, and can hash rows faster than they could be read.

    Without it, the process that compares rows reads and hashes them. The hashes are only compared
    with each other. They are equal for equal rows, and different for different rows, except for one
    pair in 2**64.
    """

    def read_hashes(self, schema: TableSchema) -> AbstractContextManager[Iterator[RowHashes]]:
        """Hashes of the rows that `ReadsRows.read_rows` would return, with the same promises.

        Raises:
            TableRewritten: the destination's table has other columns, or is not there.
            EtlError: it can't be read.
        """
        ...

    def hash_rows(
        self, schema: TableSchema, rows: pa.RecordBatch, *, are_read: bool = False
    ) -> RowHashes:
        """The same hashes, of rows in this process; called from several threads.

        Args:
            are_read: whether the rows are from `ReadsRows.read_rows`. Else they are rows that would
                be written.
        """
        ...


@runtime_checkable
class RepairsTables(Protocol):
    """A destination in which rows of a table can be replaced without a new copy of the table.

    For tables with a key, in mode `mirror`, of destinations that are transactional and offer
    `ReadsRows`. Schemas are those that the destination was given: shaped. A repair counts as a
    copy: it has an ID, `KeepsMark.held_copies` has it, complete from `end_repair` on, and a newer
    copy or repair ends it.
    """

    def begin_repair(self, schema: TableSchema, repair_id: str) -> None:
        """From now until `end_repair`, `write_events` leaves out the changes of this table.

        Its rows stay as they are. Ends every earlier copy and repair of the table. If a copy
        follows instead of `end_repair`, what was written for the repair doesn't matter.

        Raises:
            TableRewritten: the destination's table has other columns or another key, or another
                mode or name, or is not there.
        """
        ...

    def write_repair(self, changes: TableChanges, repair_id: str) -> WriteResult:
        """Insert or replace rows by key, or delete them.

        All of it or nothing; a second call changes nothing. Ignore the positions of the changes.
        Each key comes once, as an update with all values, or as a delete.

        Raises:
            InvalidState: a newer copy or repair has begun.
        """
        ...

    def end_repair(self, schema: TableSchema, repair_id: str, replay_from: Lsn) -> None:
        """From now on the table has the source's rows as of `replay_from`, as at the end of a copy.

        Its position is just before that LSN. Changes are ignored if their sender applies the table
        from an earlier LSN on (`EventBatch.apply_from`); later ones are applied. A second call
        changes nothing.

        Raises:
            InvalidState: a newer copy or repair has begun.
        """
        ...


@runtime_checkable
class Interruptible(Protocol):
    """A destination whose calls may take long because they wait for others, such as for a lock."""

    def interrupt(self) -> None:
        """The pipeline was told to stop: retry nothing, begin nothing new, and don't wait here.

        Calls under way may end, and must not be undone. Calls that can't end may raise any
        `EtlError` that is retryable. Called from any thread, also from a signal handler.
        """
        ...


@runtime_checkable
class TellsWaits(Protocol):
    """A destination whose writes may wait, such as for a lock, and that knows what for."""

    def waiting_for(self) -> str | None:
        """In a few words, what a write has been waiting for during some seconds; else None.

        The status shows it. Must return at once, from memory; called from any thread. If it raises,
        the error is logged, and the status shows nothing.
        """
        ...


@runtime_checkable
class ChecksItself(Protocol):
    """A destination or store that can check whether it would work; used by `doctor` and `run`."""

    def check(self) -> str:
        """Check, change nothing, and return in a few words what was found.

        Called on an object that was not started. Must end by a timeout of its own.

        Raises:
            EtlError: it would not work; the solution says what to do.
        """
        ...


@runtime_checkable
class ChecksNames(Protocol):
    """A destination where names that differ in the source may be the same; used by `doctor`."""

    def check_names(self, schemas: Sequence[TableSchema]) -> Sequence[str]:
        """A sentence for each pair that can't exist at the same time; from the schemas alone."""
        ...


@runtime_checkable
class RemovesTables(Protocol):
    """A destination that can drop a pipeline's tables; used by `etl-dagster remove`."""

    def remove_tables(self, pipeline: str, schemas: Sequence[TableSchema]) -> Sequence[str]:
        """Drop the tables, and all that is kept of them and of the pipeline; idempotent.

        Called after `startup`, by one caller at a time. Other tables, and what belongs to other
        pipelines, stay. Returns the names of the tables that were dropped. Afterwards the object is
        only shut down.
        """
        ...


#: What a destination may offer beyond `Destination`; all of it is optional.
FURTHER_CONTRACTS: Final[tuple[type, ...]] = (
    ChecksItself,
    ChecksNames,
    CopiesManyTables,
    CountsOddValues,
    CountsQuarantinedRows,
    CountsRows,
    HashesRows,
    Interruptible,
    ReadsRows,
    RemovesTables,
    RepairsTables,
    TellsWaits,
)


def offered(destination: object, contract: type[_T]) -> _T | None:
    """The destination, typed as the contract; None if it doesn't offer it.

    Every caller uses this and not `isinstance`: what is declared counts, and a wrapper that passes
    calls on offers what it wraps, under any version of Python.
    """
    declared = getattr(getattr(destination, "capabilities", None), "offers", None)
    if declared is not None and contract not in declared:
        return None
    return None if lacking(destination, contract) else cast(_T, destination)


def lacking(destination: object, contract: type) -> list[str]:
    """The methods of a contract that the destination doesn't have."""
    return sorted(
        name for name in members(contract) if not callable(getattr(destination, name, None))
    )


def members(contract: type) -> set[str]:
    """The names that a class must have to fulfil a Protocol."""
    return {
        name
        for base in contract.__mro__
        if getattr(base, "_is_protocol", False)
        for name in vars(base)
        if not name.startswith("_")
    }

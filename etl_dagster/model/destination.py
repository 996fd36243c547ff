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

    #: Data and position are committed together, so each change is applied exactly once. Epochs are
    #: kept, and copies and their chunks: one that was given up is refused (`InvalidState`), and the
    #: old rows stay until the new copy is complete.
    transactional: bool = False
    #: Updates and deletes change rows in place; without it every change is appended, with its
    #: operation and position.
    mirror: bool = True
    #: A truncate empties the table (or is appended).
    truncate: bool = True
    #: Columns and tables that are added, dropped and renamed are so at the destination.
    schema_changes: bool = False
    #: What columns' types can't hold (`CopiedRows.odd`, `TableChanges.odd`, `RowEvent.odd`) is kept
    #: as Postgres printed it, and goes with its row: replaced, moved to another key and removed.
    odd_values: bool = False
    #: A row with such a value in one of `TableSchema.quarantine_columns` is not in its table but in
    #: a place of its own, whole, and in the table again as soon as it has none. For tables with a
    #: key. A configuration with ``odd_values: quarantine`` is refused without it.
    quarantine: bool = False
    #: The modes in which it keeps a table; which one, `TableSchema.mode` says. `mirror` is what the
    #: other capabilities describe. A configuration with another mode than these is refused.
    modes: frozenset[TableMode] = frozenset({"mirror"})
    #: Several processes, also on several machines, may write chunks of one copy at a time. If two
    #: write the same one, the table has it once.
    shared_copies: bool = False
    #: Several pipelines may write to it at a time, each its own tables, from one process or from
    #: several: as the shards of a pipeline do, which is refused without it.
    shards: bool = False
    #: The further contracts that it fulfils, of `FURTHER_CONTRACTS`. None: those whose methods it
    #: has. Declared, they are exactly these, and the suite finds a method that is missing or has
    #: another name; a class that is derived from it declares what it adds.
    offers: frozenset[type] | None = None


@runtime_checkable
class Destination(Protocol):
    """Where rows and events go.

    Any object with these members is one. A class that names it as its base has only `name`,
    `drop_table_for_copy`, `write_table_rows` and `write_events` to write, and inherits the rest.

    Delivery is at least once and, within a table, in commit order. Calls come from several
    threads: `write_table_rows` from the copy workers of any tables, `write_events` from one
    thread for each stream (the apply worker, and each table that is catching up); one table is
    never written by two streams at a time. Where writes return futures, a stream may have several
    batches under way (`batch.max_in_flight`, by default one), never two with a table in common;
    they may become durable in any order. A failure is raised (an `EtlError` where there is
    something to do about it) and then nothing of that call may be visible, or all of it.
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
        """Called once before anything else: open, check rights, finish what was interrupted.

        Several processes may have the same destination open, each with an object of its own: the
        replicator, and every run that copies a table.
        """
        return

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        """Forget earlier copies of the table, before a copy begins; idempotent.

        `schema` is the newest version that the store has of it, so the one that the destination
        wrote last; before the first copy it is what will be copied. What the engine itself keeps
        of the table is cleared only once this returns.

        The table's rows may stay readable until the end of the new copy, which replaces them.
        Everything the destination remembers of the table's positions and chunks goes.
        """
        ...

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> WriteResult:
        """Write one chunk of a copy, or finish the copy (`rows.is_end_of_copy`).

        The end creates the table when the copy had no rows, replaces the previous table where
        there was one, and is only durable once every chunk of the copy is. Both may come a second
        time after a crash and then change nothing where the destination is transactional.
        """
        ...

    def write_events(self, events: EventBatch) -> WriteResult:
        """Apply changes. A transactional destination skips those at or before a table's position.

        Per table, the steps come in commit order. Across tables `events` may be read in any order.
        """
        ...

    def shutdown(self) -> None:
        """Release everything, also where the start failed; called at most once, after the last
        write. Never loses a write.
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
            TableWriteFailed: that table refuses; the engine tries again without it.
        """
        ...


class EstimatedCount(int):
    """A number of rows that was not counted but estimated, such as by the database's planner."""


@runtime_checkable
class CountsRows(Protocol):
    """A destination that can say at little cost how many rows its tables hold."""

    def count_rows(self) -> Mapping[str, int]:
        """Rows that the source has now, by ``schema.table``.

        Tables that don't exist yet are missing. Rows that are deleted, or versions that are over,
        don't count; of tables of which every change is kept (mode append), every row does. It is
        asked every few seconds: where counting would take long, an `EstimatedCount` is shown as
        such.
        """
        ...


@runtime_checkable
class CountsOddValues(Protocol):
    """A destination that keeps what the columns' types can't hold, and can count that."""

    def count_odd_values(self) -> Mapping[str, Mapping[str, int]]:
        """Such values now, by ``schema.table`` and column; tables without any are missing."""
        ...


@runtime_checkable
class CountsQuarantinedRows(Protocol):
    """A destination that keeps rows in quarantine, and can say at little cost how many."""

    def count_quarantined_rows(self) -> Mapping[str, int]:
        """Such rows now, by ``schema.table``; tables without any are missing.

        They are not among those of `CountsRows.count_rows`: the source has the sum of both.
        """
        ...


@runtime_checkable
class ReadsRows(Protocol):
    """A destination whose rows can be compared with the source's; `etl-dagster repair` asks it.

    Called on an object that was not started; for `RepairsTables` also on one that was, from several
    threads, each about another table. The schema is the one that the
    destination was given: shaped, and in mode `mirror`.
    """

    def read_rows(self, schema: TableSchema) -> AbstractContextManager[Iterator[pa.RecordBatch]]:
        """The rows of the table, with the schema's columns by name; batches of bounded size.

        A row that does not change meanwhile comes exactly once. Columns may have other Arrow types
        than those of the schema, as long as they are those of `as_read`.

        Raises:
            TableRewritten: the destination's table has other columns, or is not there.
            EtlError: it can't be read.
        """
        ...

    def as_read(self, schema: TableSchema, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows as `read_rows` would give them, once they had been written.

        Called from several threads.
        """
        ...


@runtime_checkable
class HashesRows(Protocol):
    """A destination that offers `ReadsRows`, and hashes rows sooner than they could be read.

    Without it, the process that compares rows reads and hashes them. The hashes are compared with
    nothing else than each other: equal for equal rows, and different for rows that differ, but for
    one pair in 2**64.
    """

    def read_hashes(self, schema: TableSchema) -> AbstractContextManager[Iterator[RowHashes]]:
        """Hashes of the rows that `ReadsRows.read_rows` would give, with its promises.

        Raises:
            TableRewritten: the destination's table has other columns, or is not there.
            EtlError: it can't be read.
        """
        ...

    def hash_rows(
        self, schema: TableSchema, rows: pa.RecordBatch, *, are_read: bool = False
    ) -> RowHashes:
        """The same hashes of rows that are in this process; called from several threads.

        Args:
            are_read: whether `ReadsRows.read_rows` gave them. Else they are to be written.
        """
        ...


@runtime_checkable
class RepairsTables(Protocol):
    """A destination in which rows of a table can be replaced without a new copy of the table.

    For tables with a key, in mode `mirror`, of destinations that are transactional and offer
    `ReadsRows`. Schemas are those that the destination was given: shaped. A repair stands for a
    copy: it has an ID, is a copy among `KeepsMark.held_copies` that is complete from `end_repair`
    on, and a newer copy or repair ends it.
    """

    def begin_repair(self, schema: TableSchema, repair_id: str) -> None:
        """From here until `end_repair`, leave out the changes of the table that `write_events` has.

        Its rows stay as they are. Ends every earlier copy and repair of the table; where a copy
        follows instead of the end, what was written for the repair doesn't matter.

        Raises:
            TableRewritten: the destination's table has other columns or another key, or another
                mode or name, or is not there.
        """
        ...

    def write_repair(self, changes: TableChanges, repair_id: str) -> WriteResult:
        """Give keys these rows, whether there is a row with that key or not; or delete them.

        All of it or nothing, and doing it twice changes nothing. The positions of the changes mean
        nothing. Each key comes once, as an update with all values, or as a delete.

        Raises:
            InvalidState: a newer copy or repair has begun.
        """
        ...

    def end_repair(self, schema: TableSchema, repair_id: str, replay_from: Lsn) -> None:
        """The table is the source's as of `replay_from`, as after the end of a copy.

        Its position is just before, changes that were sent by who applies the table from an earlier
        LSN on are ignored (`EventBatch.apply_from`), and later ones are applied. A second call
        changes nothing.

        Raises:
            InvalidState: a newer copy or repair has begun.
        """
        ...


@runtime_checkable
class Interruptible(Protocol):
    """A destination that may take long over one call, for it waits for others."""

    def interrupt(self) -> None:
        """The pipeline was told to stop: try nothing again, begin nothing more; never wait here.

        What is under way may end, and must not be undone. Calls that can't end may raise any
        `EtlError` that is retryable. Comes from any thread, also from a signal handler.
        """
        ...


@runtime_checkable
class TellsWaits(Protocol):
    """A destination whose writes may wait for others, such as for a lock, and that knows whom."""

    def waiting_for(self) -> str | None:
        """What a write has been waiting for, for some seconds, in a few words; else None.

        The status shows it. Answered from memory, at once, from any thread. A failure is logged,
        and the status shows nothing.
        """
        ...


@runtime_checkable
class ChecksItself(Protocol):
    """A destination, or a store, that can look whether it would work; `doctor` and `run` ask it."""

    def check(self) -> str:
        """Look, change nothing, and say in a few words what was found.

        Called on an object that was not started. Bounded by a timeout of the destination's own.

        Raises:
            EtlError: it would not work, with what to do.
        """
        ...


@runtime_checkable
class ChecksNames(Protocol):
    """A destination to which names may be equal that differ in the source; `doctor` asks it."""

    def check_names(self, schemas: Sequence[TableSchema]) -> Sequence[str]:
        """What can't be there at the same time, a sentence for each; looks at nothing else."""
        ...


@runtime_checkable
class RemovesTables(Protocol):
    """A destination that can take a pipeline's tables away again; `etl-dagster remove` asks it."""

    def remove_tables(self, pipeline: str, schemas: Sequence[TableSchema]) -> Sequence[str]:
        """Drop the tables and all that is remembered of them and of the pipeline; idempotent.

        Called after `startup`, by one caller at a time. Of other pipelines, and of other
        tables, everything stays. Returns the names of what was dropped, as it was called.
        The object is only shut down after it has removed something.
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
    """The destination as one that fulfils a further contract; None where it doesn't.

    Every caller asks here, and not with `isinstance`: what is declared counts, and a wrapper that
    passes calls on offers what it wraps, under any version of Python.
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
    """What a class must have that fulfils a Protocol."""
    return {
        name
        for base in contract.__mro__
        if getattr(base, "_is_protocol", False)
        for name in vars(base)
        if not name.startswith("_")
    }

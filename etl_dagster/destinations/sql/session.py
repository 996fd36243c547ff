"""What the other modules need of a database: statements, and rows from Arrow, in a transaction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

if TYPE_CHECKING:
    import numpy as np

    from etl_dagster.destinations.sql.dialect import Dialect
    from etl_dagster.model.schema import TableSchema

#: What a statement can read by a name: some rows, or rows that are fetched while it runs.
Rows: TypeAlias = "pa.RecordBatch | pa.RecordBatchReader"


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement as data.

    Its text holds names and types only. Values are its parameters or stand in rows, so none of
    them is ever part of it.
    """

    sql: str
    #: Values of ``$1``, ``$2`` and so on.
    values: Sequence[object] = ()
    #: Rows that it reads like a table, by name.
    staged: Mapping[str, Rows] = field(default_factory=dict)
    #: If it only appends the one set of rows: the table as SQL, and the types of its columns by
    #: name. A session may do that in a faster way.
    appends_to: tuple[str, Mapping[str, str]] | None = None
    #: If it finds rows of a table by its key, one for each staged row: the table as SQL. A session
    #: may have its database use the key's index.
    by_key_of: str | None = None


class Session(ABC):
    """A connection inside a transaction that the caller begins and ends.

    What a method raises is the driver's own: whether it concerns one table or the whole
    destination is decided where the transaction is.
    """

    @property
    @abstractmethod
    def dialect(self) -> Dialect:
        """How this database spells SQL."""

    @abstractmethod
    def execute(self, sql: str, values: Sequence[object] = ()) -> int:
        """Run a statement; returns how many rows it inserted, deleted or changed.

        Args:
            values: of its parameters ``$1``, ``$2`` and so on; a list is an array.
        """

    @abstractmethod
    def fetch(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query; for few rows."""

    @abstractmethod
    def fetch_arrays(self, statement: Statement) -> Mapping[str, np.ndarray]:
        """The columns of a query by name; for many rows, without nulls."""

    @abstractmethod
    def stage(self, name: str, rows: Rows) -> None:
        """Let statements read the rows under this name; no two may have the same at a time.

        Args:
            rows: as `Dialect.readable` gives them.
        """

    @abstractmethod
    def release(self, name: str) -> None:
        """End what `stage` began."""

    def make_room(
        self, table: str, known: TableSchema, wanted: TableSchema, rows: pa.RecordBatch
    ) -> TableSchema:
        """Make the types of a table's columns hold the rows, before these are written.

        For a type that lists its values, such as an enum.

        Args:
            table: as SQL.
            known: what is known of it; it may hold more than that.
            wanted: what the source says of it.

        Returns:
            `known`, with what the table holds now.
        """
        return known

    def make_room_as(self, table: str, other: str, schema: TableSchema) -> None:
        """Make the types of a table's columns hold whatever those of another table hold.

        Args:
            schema: of both; as in `make_room`.
        """
        return

    def stretches(
        self, table: str, schema: TableSchema, batches: Iterator[pa.RecordBatch]
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        """The rows in stretches, with `make_room` done before each; one if that isn't needed.

        A stretch must be used up before the next one is asked for.
        """
        yield batches

    def prepare_types(self, schema: TableSchema) -> None:
        """Create the types that a table's columns need; it is about to be created or altered.

        Raises:
            TableWriteFailed: a name is taken.
        """
        return

    def complete(self, table: str, schema: TableSchema) -> None:
        """Create what is better created once a table has all rows of its copy, such as its key,
        unless that is done already."""
        return

    def follow_key(self, table: str, old: TableSchema, new: TableSchema) -> None:
        """A table's columns have changed: change its key, if it has one that has changed.

        Args:
            table: as SQL.
        """
        return

    def let_go(self, table: str, schema: TableSchema, mark: str) -> None:
        """A table stays, but is no longer written: rename what is named after it, such as its key,
        so that another table can have these names.

        Args:
            table: as SQL.
            mark: the ending of the names that its things get.
        """
        return

    def refuses_known_keys(self, table: str, schema: TableSchema, count: int) -> bool:
        """Whether `append_new` is a way to append this many rows: the table has a key, by which
        the database refuses a second row with the same.

        Args:
            table: as SQL.
        """
        return False

    def append_new(self, statement: Statement) -> bool:
        """Append rows with keys that the table is not expected to have.

        Returns:
            Whether all were appended; none is where one has a key that is there.
        """
        raise NotImplementedError

    def fetch_row(self, sql: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """The one row of a query, or None."""
        rows = self.fetch(sql, values)
        return rows[0] if rows else None

    def run(self, statement: Statement) -> int:
        """As `execute`, with the statement's rows staged meanwhile."""
        with self.staged(statement.staged):
            return self.execute(statement.sql, statement.values)

    def run_each(self, statements: Iterable[str]) -> None:
        """Run statements without parameters, one after the other."""
        for sql in statements:
            self.execute(sql)

    @contextmanager
    def staged(self, rows: Mapping[str, Rows]) -> Iterator[None]:
        """Stage the rows within the block.

        After a failure they stay: the transaction is over then, and the session with it.
        """
        for name, each in rows.items():
            if isinstance(each, pa.RecordBatch):
                each = self.dialect.readable(each)
            self.stage(name, each)
        yield
        for name in rows:
            self.release(name)

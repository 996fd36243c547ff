"""Rows of a table as Arrow, a chunk at a time."""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from psycopg import sql

from etl_dagster.config import SourceConfig
from etl_dagster.errors import (
    EtlError,
    SourceError,
    SourceUnreachable,
    TableLocked,
    TableRewritten,
)
from etl_dagster.model.coordination import CopyChunk
from etl_dagster.model.events import CopiedRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.pg.adbc import adbc, first_line, in_small_batches
from etl_dagster.pg.adbc import connect as open_adbc
from etl_dagster.pg.encodings import StoredEncoding
from etl_dagster.pg.failures import (
    failure_of_code,
    failure_of_text,
    is_about_a_value,
    without_values,
)
from etl_dagster.pg.settings import PIN_NEWER
from etl_dagster.source.catalog import Leaf
from etl_dagster.source.connection import error_for, solution_for_refusal, source_conninfo
from etl_dagster.source.partitions import ReadFrom
from etl_dagster.values.adbc import CopiedColumn
from etl_dagster.values.parsed import Odd
from etl_dagster.values.text import nulls_of

#: Of a connection, until it says what it reads.
_APPLICATION = "etl_dagster copy"
#: undefined_column, undefined_table: the table isn't any more what the copy was planned for.
_TABLE_CHANGED = ("42703", "42P01")
#: lock_not_available.
_LOCKED = "55P03"
#: No chunk spans more heap than this, however few rows the statistics promise.
_CHUNK_BLOCKS = 128 * 1024**2 // 8192
#: ... and none has more than this of values stored out of line, which are compressed there. They
#: all lie in the destination's memory until the chunk is committed.
_CHUNK_TOAST_BYTES = 8 * 1024**2


def plan_chunks(leaves: Sequence[Leaf], chunk_rows: int) -> tuple[CopyChunk, ...]:
    """Cut a table into block ranges of some `chunk_rows` rows, the biggest relations first.

    The last range of a relation has no end, so that rows added behind it while the copy runs are
    in it. Statistics that were never gathered (0 rows) count as 100 rows a block.
    """
    chunks: list[CopyChunk] = []
    for leaf in sorted(leaves, key=lambda leaf: (-leaf.block_count, leaf.relation_id)):
        rows = leaf.estimated_rows or leaf.block_count * 100
        pieces = max(
            math.ceil(rows / chunk_rows),
            math.ceil(leaf.block_count / _CHUNK_BLOCKS),
            math.ceil(leaf.toast_bytes / _CHUNK_TOAST_BYTES),
            1,
        )
        pieces = min(pieces, max(leaf.block_count, 1))
        edges = [leaf.block_count * piece // pieces for piece in range(pieces)]
        for first, end in zip(edges, [*edges[1:], None], strict=True):
            chunks.append(
                CopyChunk(len(chunks), leaf.relation_id, first, end, rows // pieces, leaf.file_node)
            )
    return tuple(chunks)


class CopyConnection:
    """A connection that reads rows as Arrow; for one thread, but for `cancel`.

    Args:
        snapshot_name: an exported snapshot to read under; without it, each chunk is read as of the
            moment when its reading begins.
        lock_timeout_s: how long to wait for a table that is locked; None waits for ever.
    """

    def __init__(
        self,
        config: SourceConfig,
        *,
        snapshot_name: str | None = None,
        application_name: str,
        lock_timeout_s: float | None = None,
    ) -> None:
        self.snapshot_name = snapshot_name
        #: What is being read.
        self.cursor: adbc.Cursor | None = None
        settings = {"application_name": application_name}
        if lock_timeout_s is not None:
            settings["lock_timeout"] = str(int(lock_timeout_s * 1000))
        try:
            self.connection = open_adbc(source_conninfo(config, application_name=_APPLICATION))
            try:
                with self.connection.cursor() as cursor:
                    for query in (PIN_NEWER, _set(settings)):
                        cursor.execute(query)
                        cursor.fetchall()
                self.connection.commit()
            except BaseException:
                self.connection.close()
                raise
        except adbc.Error as error:
            message = first_line(error)
            code = error.sqlstate
            failure = failure_of_code(code, message) if code else failure_of_text(message)
            raise error_for(failure, "no connection for a copy", message) from None
        if snapshot_name is not None:
            try:
                self.renew()
            except BaseException:
                self.connection.close()
                raise

    def renew(self) -> None:
        """Begin another transaction, under the same snapshot: locks are let go, errors forgotten.

        Raises:
            SourceUnreachable: the snapshot is gone.
        """
        try:
            self.connection.rollback()
            if self.snapshot_name is not None:
                name = sql.SQL("SET TRANSACTION SNAPSHOT {}").format(self.snapshot_name)
                with self.connection.cursor() as cursor:
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                    cursor.execute(name.as_string())
        except adbc.Error as error:
            raise SourceUnreachable(
                f"the snapshot of the copy is gone: {first_line(error)}",
                solution="No action needed: the copy restarts from the beginning.",
            ) from None

    def release(self) -> None:
        """End the transaction, and with it the locks on what was read.

        Raises:
            SourceUnreachable: the connection broke.
        """
        try:
            self.connection.rollback()
        except adbc.Error as error:
            raise SourceUnreachable(f"a copy was interrupted: {first_line(error)}") from None

    def cancel(self) -> None:
        """Have the server give up what is being read, if anything is. From any thread."""
        cursor = self.cursor
        if cursor is not None:
            cursor.adbc_cancel()

    def close(self) -> None:
        self.connection.close()


def _set(settings: Mapping[str, str]) -> str:
    """A query that sets them for the session."""
    calls = [
        sql.SQL("set_config({}, {}, false)").format(sql.Literal(name), sql.Literal(value))
        for name, value in settings.items()
    ]
    return sql.SQL("SELECT {}").format(sql.SQL(", ").join(calls)).as_string()


class TableReader:
    """Reads chunks of one table on a connection that others may use after it; for one thread."""

    def __init__(
        self,
        schema: TableSchema,
        connection: CopyConnection,
        *,
        row_filter: str | None = None,
        encoding: StoredEncoding | None = None,
        shape: Callable[[CopiedRows], CopiedRows] = lambda rows: rows,
    ) -> None:
        """Args:
        encoding: how the database keeps its text, where it is read as it is stored.
        shape: what becomes of rows before they are given; it may raise.
        """
        self._schema = schema
        self._row_filter = row_filter
        self._shape = shape
        #: Of the columns that are read.
        self._columns = {
            column.name: CopiedColumn(column, encoding)
            for column in schema.columns
            if column.is_read
        }
        self._on = connection
        #: How many values their column's type could not hold, by column name.
        self.replaced: Counter[str] = Counter()

    def read(self, chunk: CopyChunk, source: ReadFrom) -> Iterator[CopiedRows]:
        """The chunk's rows in batches of a few MiB with the table's Arrow schema.

        Args:
            source: from where the chunk's relation is read now.

        Raises:
            SourceError: the server refused.
            SourceUnreachable: the connection broke.
        """
        with self._named_failures():
            with self._on.connection.cursor() as cursor:
                self._on.cursor = cursor
                in_small_batches(cursor)
                cursor.execute(self._query(chunk, source))
                for batch in cursor.fetch_record_batch():
                    if batch.num_rows:
                        yield self._shape(self._typed(batch))
            if self._on.snapshot_name is None:
                self._on.connection.rollback()

    def hold(self, chunk: CopyChunk, source: ReadFrom) -> None:
        """See that the relation is what the copy was planned for, and keep it so while it is read.

        A statement that waits for a lock looks the table's name up again once it has it. By then
        that may be another table's, as after a migration that swaps the two. Columns may have
        swapped their names, too. A partition may have been detached: its rows aren't the table's
        any more, and the stream doesn't have their changes.

        Args: as of `read`, which is to follow.

        Raises:
            TableRewritten: they are not.
            EtlError: as of `read`.
        """
        table = sql.Identifier(source.schema_name, source.table_name).as_string()
        # Of a table nothing is read, but it is locked as by reading it. Names are asked for in ways
        # that look at the catalog as it is, not as the snapshot has it.
        query = sql.SQL(
            "select to_regclass({name})::oid::bigint, (select coalesce(bool_and("
            "(pg_identify_object_as_address('pg_class'::regclass, {table_id}, k.number))"
            ".object_names[3] is not distinct from k.name), true)"
            " from (values {columns}) k (number, name)),"
            " {relation_id} = {table_id} or exists (select from"
            " pg_partition_ancestors({relation_id}::oid::regclass) p where p.relid = {table_id})"
            " from (select) one left join only {table} on false"
        ).format(
            name=sql.Literal(table),
            table_id=sql.Literal(self._schema.id),
            relation_id=sql.Literal(chunk.relation_id),
            columns=sql.SQL(", ").join(
                sql.SQL("({}, {}::text)").format(sql.Literal(number), sql.Literal(name))
                for number, name in self._numbered_columns()
            ),
            table=sql.SQL(table),
        )
        with self._named_failures(), self._on.connection.cursor() as cursor:
            self._on.cursor = cursor
            cursor.execute(query.as_string())
            [(found, has_columns, is_of_table)] = cursor.fetchall()
        if found != (self._schema.id if source.condition else chunk.relation_id):
            raise TableRewritten(f"{self._schema.name} was renamed while it was copied")
        if not has_columns:
            raise TableRewritten(f"columns of {self._schema.name} were renamed while it was copied")
        if not is_of_table:
            raise TableRewritten(
                f"a partition of {self._schema.name} was detached while the table was copied"
            )

    def _numbered_columns(self) -> list[tuple[int, str]]:
        """Of the table as a whole: its partitions may have other numbers, but no other names."""
        known = [(c.attnum, c.name) for c in self._schema.columns if c.is_read and c.attnum]
        return known or [(-1, "ctid")]  # which every table has

    @contextlib.contextmanager
    def _named_failures(self) -> Iterator[None]:
        """Raise what reading fails with as an `EtlError`; no cursor is left to cancel then."""
        try:
            yield
        except adbc.Error as error:
            raise self._failure(error) from None
        except OSError as error:
            # What goes wrong after the first batch comes through Arrow, without an SQLSTATE.
            raise self._read_failure(error) from None
        finally:
            self._on.cursor = None

    def _failure(self, error: adbc.Error) -> EtlError:
        if error.sqlstate in _TABLE_CHANGED:
            return TableRewritten(f"{self._schema.name} was altered while it was copied")
        if error.sqlstate == _LOCKED:
            return TableLocked(f"{self._schema.name} is locked by another session")
        if isinstance(error, adbc.OperationalError):
            return SourceUnreachable(
                f"the copy of {self._schema.name} was interrupted: {first_line(error)}"
            )
        message = first_line(error)
        if is_about_a_value(error.sqlstate):
            message = without_values(message)
        solution = (
            "Read the server's message; SELECT on the table and USAGE on its schema are needed."
        )
        if "row-level security" in message:
            solution = solution_for_refusal(message)
        return SourceError(
            f"the copy of {self._schema.name} was refused: {message}", solution=solution
        )

    def _read_failure(self, error: OSError) -> SourceError:
        message = first_line(error)
        refusal = re.search(r"ERROR: +(?!canceling|terminating)(.*)", message)
        if refusal is None:
            return SourceUnreachable(f"the copy of {self._schema.name} was interrupted: {message}")
        # Without an SQLSTATE it isn't known whether what the server quotes is a value.
        reason = without_values(refusal[1])
        return SourceError(
            f"the copy of {self._schema.name} failed: {reason}",
            solution="Fix its cause in the table or in its row filter, then retry the table.",
        )

    def _query(self, chunk: CopyChunk, source: ReadFrom) -> str:
        columns: list[sql.Composable] = [
            sql.SQL(copied.expression).format(sql.Identifier(name))
            for name, copied in self._columns.items()
        ]
        if not columns and self._schema.columns:
            columns.append(sql.SQL("null::text"))  # rows are counted by a column
        conditions: list[sql.Composable] = []
        if source.condition:
            conditions.append(sql.SQL(source.condition))
        if chunk.first_block:
            conditions.append(sql.SQL("ctid >= {}::tid").format(f"({chunk.first_block},0)"))
        if chunk.end_block is not None:
            conditions.append(sql.SQL("ctid < {}::tid").format(f"({chunk.end_block},0)"))
        if self._row_filter:
            conditions.append(sql.SQL("({})").format(sql.SQL(self._row_filter)))
        where = (
            sql.SQL(" where ") + sql.SQL(" and ").join(conditions) if conditions else sql.SQL("")
        )
        return (
            sql.SQL("select {} from {}{}")
            .format(sql.SQL(", ").join(columns), source.from_clause(), where)
            .as_string()
        )

    def _typed(self, batch: pa.RecordBatch) -> CopiedRows:
        arrays: list[pa.Array[Any]] = []
        odd: dict[str, Odd] = {}
        read = iter(batch.columns)
        for column in self._schema.columns:
            if not column.is_read:
                arrays.append(nulls_of(column, batch.num_rows))
                continue
            try:
                parsed = self._columns[column.name].values(next(read))
            except pa.ArrowException:
                raise TableRewritten(
                    f"a column of {self._schema.name} got another type while it was copied"
                ) from None
            arrays.append(parsed.array)
            if parsed.odd is not None:
                odd[column.name] = parsed.odd
                self.replaced[column.name] += len(parsed.odd)
        rows = pa.RecordBatch.from_arrays(arrays, schema=self._schema.arrow_schema)
        return CopiedRows(rows, odd)


class ChunkReader(TableReader):
    """A reader with a connection of its own."""

    def __init__(
        self,
        config: SourceConfig,
        schema: TableSchema,
        *,
        row_filter: str | None = None,
        snapshot_name: str | None = None,
        application_name: str,
        encoding: StoredEncoding | None = None,
        shape: Callable[[CopiedRows], CopiedRows] = lambda rows: rows,
    ) -> None:
        """Connect; see `TableReader`."""
        connection = CopyConnection(
            config, snapshot_name=snapshot_name, application_name=application_name
        )
        super().__init__(schema, connection, row_filter=row_filter, encoding=encoding, shape=shape)

    def read(self, chunk: CopyChunk, source: ReadFrom) -> Iterator[CopiedRows]:
        """As `TableReader.read`, of no other table that has got the name meanwhile."""
        self.hold(chunk, source)
        yield from super().read(chunk, source)

    def cancel(self) -> None:
        """Have the server give up what is being read, if anything is. From any thread."""
        self._on.cancel()

    def close(self) -> None:
        self._on.close()

"""A Postgres connection as the session of a merge."""

# Values are never part of a query's text, and every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import numpy as np
import psycopg
import pyarrow as pa

from etl_dagster.destinations.postgres import binary, printing
from etl_dagster.destinations.postgres.dialect import PostgresDialect
from etl_dagster.destinations.postgres.keys import add_key, change_key, has_key, rename_key
from etl_dagster.destinations.postgres.own_types import Aside, OwnTypes
from etl_dagster.destinations.sql.dialect import Dialect, column_list, quote
from etl_dagster.destinations.sql.labels import pieces_with_room
from etl_dagster.destinations.sql.session import Rows, Session, Statement
from etl_dagster.model.schema import TableSchema
from etl_dagster.pg.connection import Connection

#: Begins a statement that takes no parameters.
_CREATE = "CREATE TEMP TABLE "
#: Change what other sessions see of the catalog, unless the table is a temporary one.
_CATALOG = ("CREATE ", "ALTER ", "DROP ", "COMMENT ", "DO ")
_TEMPORARY = (_CREATE, "DROP TABLE pg_temp.")
#: For fewer rows, it is not worth a query to find out whether the table has its key.
_MANY = 200


class AloneNeeded(Exception):
    """The catalog is to be changed, in a transaction that isn't the only one to write."""


class PostgresSession(Session):
    """Rows that are only appended go by COPY into their table; rows that a statement reads are
    arrays among its parameters, which leaves no trace in the catalog.

    Args:
        connection: in a transaction that the caller ends.
        aside: another transaction, next to that one; None where others write at the same time,
            and what would change the catalog raises `AloneNeeded`.
    """

    def __init__(self, connection: Connection, aside: Aside | None) -> None:
        self._cursor = psycopg.RawCursor(connection)
        self._dialect = PostgresDialect()
        self._is_alone = aside is not None
        self._types = OwnTypes(self, aside or _alone_needed)
        self._rows: dict[str, pa.RecordBatch] = {}
        #: Of these, those that are in a temporary table.
        self._kept: set[str] = set()
        #: By table, whether it has its key.
        self._keyed: dict[str, bool] = {}
        self._is_by_index = False

    @property
    def dialect(self) -> Dialect:
        return self._dialect

    def execute(self, sql: str, values: Sequence[object] = ()) -> int:
        return max(self._execute(sql, values).rowcount, 0)

    def fetch(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._execute(sql, values).fetchall()

    def fetch_arrays(self, statement: Statement) -> Mapping[str, np.ndarray]:
        with self.staged(statement.staged):
            cursor = self._execute(statement.sql, statement.values)
            names = [column.name for column in cursor.description or ()]
            rows = cursor.fetchall()
        columns = zip(*rows, strict=True) if rows else [()] * len(names)
        # Of no row, too, since they are places and numbers.
        return {
            name: np.array(column, np.int64) for name, column in zip(names, columns, strict=True)
        }

    def run(self, statement: Statement) -> int:
        if statement.appends_to is None:
            with self.staged(statement.staged):
                found = self._execute(statement.sql, statement.values, statement.by_key_of)
                return max(found.rowcount, 0)
        table, types = statement.appends_to
        [rows] = statement.staged.values()
        return self._copy(table, types, rows)

    def stage(self, name: str, rows: Rows) -> None:
        assert isinstance(rows, pa.RecordBatch)
        assert name not in self._rows
        self._rows[name] = rows

    def release(self, name: str) -> None:
        del self._rows[name]
        if name in self._kept:
            self._kept.remove(name)
            self._cursor.execute(f"DROP TABLE pg_temp.{quote(name)}".encode())

    def prepare_types(self, schema: TableSchema) -> None:
        self._types.prepare(schema)

    def make_room(
        self, table: str, known: TableSchema, wanted: TableSchema, rows: pa.RecordBatch
    ) -> TableSchema:
        return self._types.make_room(known, wanted, rows)

    def stretches(
        self, table: str, schema: TableSchema, batches: Iterator[pa.RecordBatch]
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        return pieces_with_room(self, table, schema, batches)

    def complete(self, table: str, schema: TableSchema) -> None:
        self._keyed.pop(table, None)
        add_key(self, table, schema)

    def follow_key(self, table: str, old: TableSchema, new: TableSchema) -> None:
        self._keyed.clear()
        change_key(self, table, old, new)

    def let_go(self, table: str, schema: TableSchema, mark: str) -> None:
        rename_key(self, schema, mark)

    def refuses_known_keys(self, table: str, schema: TableSchema, count: int) -> bool:
        if count < _MANY:
            return False
        if table not in self._keyed:
            self._keyed[table] = has_key(self, table, schema)
        return self._keyed[table]

    def append_new(self, statement: Statement) -> bool:
        self._cursor.execute(b"SAVEPOINT _etl_new")
        try:
            self.run(statement)
        except psycopg.errors.UniqueViolation:
            self._cursor.execute(b"ROLLBACK TO SAVEPOINT _etl_new; RELEASE SAVEPOINT _etl_new")
            return False
        self._cursor.execute(b"RELEASE SAVEPOINT _etl_new")
        return True

    # ------------------------------------------------------------------------------------------

    def _execute(
        self, sql: str, values: Sequence[object], by_key_of: str | None = None
    ) -> psycopg.RawCursor[Any]:
        self._find_by_index(by_key_of)
        if not self._is_alone and sql.startswith(_CATALOG) and not sql.startswith(_TEMPORARY):
            raise AloneNeeded
        if sql.startswith(_CREATE):
            self._keep()
        arrays = {name: rows for name, rows in self._rows.items() if name not in self._kept}
        parameters, relations = list(values), []
        for name, rows in arrays.items():
            columns = []
            for column, (_, type_) in zip(rows.columns, printing.columns_of(rows), strict=True):
                parameters.append(printing.array_literal(column))
                columns.append(f"${len(parameters)}::{type_}[]")
            relations.append(
                f"{quote(name)} ({column_list(rows.schema.names)}) "
                f"AS (SELECT * FROM unnest({', '.join(columns)}))"
            )
        if relations:
            sql = f"WITH {', '.join(relations)} {sql}"
        # Never prepared: a plan for any number of keys is one for few.
        return self._cursor.execute(sql.encode(), parameters or None, prepare=False)

    def _find_by_index(self, table: str | None) -> None:
        """Have rows of the table found by its key's index, if it is known to have that.

        That takes as long as there are keys to find; what the planner takes for many keys, as long
        as there are rows in the table.
        """
        is_wanted = table is not None and self._keyed.get(table, False)
        if is_wanted == self._is_by_index:
            return
        others = "off" if is_wanted else "DEFAULT"
        self._cursor.execute(
            f"SET LOCAL enable_hashjoin = {others}; SET LOCAL enable_mergejoin = {others}".encode()
        )
        self._is_by_index = is_wanted

    def _keep(self) -> None:
        for name, rows in self._rows.items():
            if name in self._kept:
                continue
            types = dict(printing.columns_of(rows))
            spelled = ", ".join(f"{quote(column)} {type_}" for column, type_ in types.items())
            self._cursor.execute(
                f"CREATE TEMP TABLE {quote(name)} ({spelled}) ON COMMIT DROP".encode()
            )
            self._copy(f"pg_temp.{quote(name)}", types, rows)
            self._kept.add(name)

    def _copy(self, table: str, types: Mapping[str, str], rows: Rows) -> int:
        """Append rows: in the binary format as far as all their values have a form there."""
        columns = list(types)
        named = f" ({column_list(columns)})" if columns else ""
        batches = iter([rows] if isinstance(rows, pa.RecordBatch) else rows)
        held, count = next(batches, None), 0
        encoders = None if held is None else binary.encoders(held.select(columns).schema, types)
        while held is not None:
            data = binary.encoded(held.select(columns), encoders) if encoders else None
            form = "text" if data is None else "binary"
            with self._cursor.copy(
                f"COPY {table}{named} FROM STDIN (FORMAT {form})".encode()
            ) as copy:
                if data is not None:
                    copy.write(binary.HEADER)
                while held is not None and (form == "text") == (data is None):
                    text = printing.copied(held.select(columns)) if data is None else data
                    copy.write(cast(bytes, text))
                    count += held.num_rows
                    held = next(batches, None)
                    if held is not None and encoders:
                        data = binary.encoded(held.select(columns), encoders)
                if form == "binary":
                    copy.write(binary.TRAILER)
        return count


def _alone_needed() -> AbstractContextManager[Connection]:
    raise AloneNeeded

"""Statements as texts, without a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.sql.dialect import Dialect, quote
from etl_dagster.destinations.sql.session import Rows, Session, Statement
from etl_dagster.model.schema import ColumnSchema, TableId
from etl_dagster.table_name import TableName
from etl_dagster.values.registry import REGISTRY


class PlainDialect(Dialect):
    """The least that a dialect has to say; much as Postgres would."""

    name: ClassVar[str] = "Plain"
    max_name_bytes: ClassVar[int | None] = 63
    row_id: ClassVar[str] = "ctid"
    temporary: ClassVar[str] = "pg_temp."
    uint64: ClassVar[str] = "NUMERIC(20)"
    uint32: ClassVar[str] = "BIGINT"

    def schema(self, schema_name: str) -> str:
        return quote(schema_name)

    def staging(self, schema_name: str, table_id: TableId) -> TableName:
        return TableName("_etl", f"copy_{table_id}")

    def column_type(self, column: ColumnSchema) -> str:
        return REGISTRY[column.type_oid].name

    def readable(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows

    def is_cast(self, type_: str) -> bool:
        return type_ not in ("bigint", "integer", "text")

    def move_table(self, old: TableName, new: TableName) -> list[str]:
        return [
            f"ALTER TABLE {self.table(old.schema_name, old.table_name)} "
            f"SET SCHEMA {quote(new.schema_name)}",
            f"ALTER TABLE {self.table(new.schema_name, old.table_name)} "
            f"RENAME TO {quote(new.table_name)}",
        ]


@dataclass
class RecordingSession(Session):
    """Runs nothing, and keeps every statement with the rows that it would have read."""

    of: Dialect
    #: What queries return, one after the other.
    answers: list[Any] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    #: The rows that were staged, by name, for each statement.
    read: list[dict[str, list[dict[str, Any]]]] = field(default_factory=list)
    _staged: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def dialect(self) -> Dialect:
        return self.of

    def execute(self, sql: str, values: Sequence[object] = ()) -> int:
        self._keep(sql)
        return 1

    def fetch(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        self._keep(sql)
        found: list[tuple[Any, ...]] = self.answers.pop(0)
        return found

    def fetch_arrays(self, statement: Statement) -> Mapping[str, np.ndarray]:
        with self.staged(statement.staged):
            self._keep(statement.sql)
        found: Mapping[str, np.ndarray] = self.answers.pop(0)
        return found

    def stage(self, name: str, rows: Rows) -> None:
        assert isinstance(rows, pa.RecordBatch)
        assert name not in self._staged
        self._staged[name] = rows.to_pylist()

    def release(self, name: str) -> None:
        del self._staged[name]

    def _keep(self, sql: str) -> None:
        self.texts.append(" ".join(sql.split()))
        self.read.append(dict(self._staged))


def lines(text: str) -> list[str]:
    """Statements written one below the other; an indented line belongs to the one before.

    >>> lines('''
    ...     DELETE FROM t
    ...       WHERE true
    ...     DROP TABLE t
    ... ''')
    ['DELETE FROM t WHERE true', 'DROP TABLE t']
    """
    written = [line for line in text.splitlines() if line.strip()]
    least = min(len(line) - len(line.lstrip()) for line in written)
    found: list[str] = []
    for line in written:
        if line[least] == " ":
            found[-1] += f" {line.strip()}"
        else:
            found.append(line.strip())
    return found

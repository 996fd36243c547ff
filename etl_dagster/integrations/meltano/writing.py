"""The transactions that write states; nobody else writes the same state during one."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import psycopg
from psycopg import errors

from etl_dagster.integrations.meltano.connections import Connection, Connections
from etl_dagster.integrations.meltano.errors import StateLocked
from etl_dagster.integrations.meltano.locks import Lease, own_name
from etl_dagster.integrations.meltano.migrate import StateTables, advisory_key
from etl_dagster.integrations.meltano.options import StorageOptions
from etl_dagster.integrations.meltano.statements import Statements

T = TypeVar("T")

#: The history is pruned at every so many-th version of a state.
_PRUNE_EVERY = 16


@dataclass(frozen=True, slots=True)
class Write:
    """Both halves of a state, as texts."""

    state_id: str
    partial: str | None
    completed: str | None
    operation: str
    expected_version: int | None = None
    write_id: uuid.UUID = field(default_factory=uuid.uuid4)


class Answer:
    """What a write said; asked only after its transaction, to save a round trip."""

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        self._cursor = cursor
        self._row: tuple[Any, ...] | None = None
        self._is_read = False

    @property
    def row(self) -> tuple[Any, ...] | None:
        if not self._is_read:
            self._row, self._is_read = self._cursor.fetchone(), True
        return self._row

    @property
    def version(self) -> int | None:
        """What was written; None when nothing was."""
        return self.row[0] if self.row else None


class Writing:
    """What the statements need besides the state: tables, options, author."""

    def __init__(
        self,
        connections: Connections,
        tables: StateTables,
        options: StorageOptions,
        *,
        writer: str | None,
        run_id: Callable[[], str | None],
    ) -> None:
        self.connections = connections
        self.sql = Statements.of(tables)
        self._tables = tables
        self._options = options
        self._writer = writer
        self._run_id = run_id

    def transaction(self, state_id: str, work: Callable[[Connection], T]) -> T:
        """Do the work in a transaction that writes this state; repeated when the connection breaks.

        Raises:
            StateLocked: another transaction writes it and doesn't end.
        """

        def transact(connection: Connection) -> T:
            with connection.pipeline(), connection.transaction():
                self.begin(connection, state_id)
                return work(connection)

        try:
            return self.connections.run(transact, lock_waits=True)
        except errors.LockNotAvailable:
            raise StateLocked(
                state_id, f"another transaction writes state {state_id!r} and doesn't end"
            ) from None

    def table_transaction(self, work: Callable[[Connection], psycopg.Cursor[Any]]) -> int:
        """Do the work while nobody else writes any state; returns the count that it selects."""

        def transact(connection: Connection) -> int:
            with connection.transaction():
                wait_ms = _milliseconds(self._options.wait_s)
                connection.execute("SELECT set_config('lock_timeout', %s, true)", (wait_ms,))
                connection.execute(self.sql.lock_table)
                row = work(connection).fetchone()
                return int(row[0]) if row else 0

        return self.connections.run(transact)

    def begin(self, connection: Connection, state_id: str, lease: Lease | None = None) -> None:
        """Send the first statement of a transaction that writes this state."""
        connection.execute(
            self.sql.begin,
            {
                "wait_ms": _milliseconds(self._options.wait_s),
                "idle_ms": _milliseconds(self._options.lease_s),
                "advisory_key": advisory_key(self._tables.schema, self._tables.state, state_id),
                "lock_key": lease.key if lease else None,
                "lock_id": lease.lock_id if lease else None,
            },
        )

    def author(self) -> dict[str, Any]:
        """Parameters of every statement that writes."""
        return {
            "writer": self._writer or own_name(),
            "run_id": self._run_id(),
            "keep": self._options.history_versions > 0,
        }

    def write(
        self, connection: Connection, write: Write, lease: Lease | None = None
    ) -> psycopg.Cursor[Any]:
        """Send it; with a lease, nothing is written once that was taken by another."""
        return connection.execute(
            self.sql.write,
            {
                **self.author(),
                "state_id": write.state_id,
                "partial": write.partial,
                "completed": write.completed,
                "operation": write.operation,
                "expected": write.expected_version,
                "write_id": write.write_id,
                "lock_key": lease.key if lease else None,
                "lock_id": lease.lock_id if lease else None,
            },
        )

    def delete(
        self, connection: Connection, state_id: str, lease: Lease | None
    ) -> psycopg.Cursor[Any]:
        """Send it; answers with whether it was allowed and whether there was one, as counts."""
        return connection.execute(
            self.sql.delete,
            {
                **self.author(),
                "state_id": state_id,
                "lock_key": lease.key if lease else None,
                "lock_id": lease.lock_id if lease else None,
            },
        )

    def mark(self, state_id: str) -> tuple[int, uuid.UUID | None]:
        """Version and last write; version 0 when there is no state."""
        row = self.connections.run(lambda c: c.execute(self.sql.mark, (state_id,)).fetchone())
        return (row[0], row[1]) if row else (0, None)

    def prune(self, state_id: str, version: int | None) -> None:
        """Let go of old history, at some of the versions."""
        options = self._options
        if not options.history_versions or not version or version % _PRUNE_EVERY:
            return
        parameters = {
            "state_id": state_id,
            "versions": options.history_versions,
            "age": timedelta(days=options.history_days),
        }
        self.connections.run(lambda c: c.execute(self.sql.prune, parameters))


def _milliseconds(seconds: float) -> str:
    """Never 0, which means for ever."""
    return str(max(1, round(1000 * seconds)))

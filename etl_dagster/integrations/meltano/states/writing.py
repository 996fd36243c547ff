"""The transactions that write states; no other process writes the same state during one."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import errors

from etl_dagster.integrations.meltano.states.connections import StateConnections
from etl_dagster.integrations.meltano.states.errors import StateLocked
from etl_dagster.integrations.meltano.states.locks import StateLease, own_name
from etl_dagster.integrations.meltano.states.migrate import StateTables
from etl_dagster.integrations.meltano.states.options import StorageOptions
from etl_dagster.integrations.meltano.states.statements import Statements
from etl_dagster.pg.advisory import text_key
from etl_dagster.pg.connection import Connection

#: A statement with its parameters.
Statement = tuple[bytes, Mapping[str, Any]]
Answer = tuple[Any, ...] | None

BEGIN: Statement = (b"BEGIN", {})
COMMIT: Statement = (b"COMMIT", {})
#: The history is pruned at every so many-th version of a state.
_PRUNE_EVERY = 16


def send(connection: Connection, *statements: Statement) -> list[Answer]:
    """Run several statements in one round trip; returns the first row of each.

    Without BEGIN and COMMIT they are one transaction all the same: Postgres takes a string of
    several statements for one. At the first error nothing more is run.

    Source: PostgreSQL documentation, "Multiple Statements in a Simple Query".
    """
    cursor = psycopg.ClientCursor(connection)
    script = ";\n".join(cursor.mogrify(text, parameters) for text, parameters in statements)
    cursor.execute(script.encode())
    rows: list[Answer] = []
    while True:
        rows.append(cursor.fetchone() if cursor.description else None)
        if not cursor.nextset():
            return rows


@dataclass(frozen=True, slots=True)
class Write:
    """Both halves of a state, as texts."""

    state_id: str
    partial: str | None
    completed: str | None
    operation: str
    expected_version: int | None = None
    write_id: uuid.UUID = field(default_factory=uuid.uuid4)


class Writing:
    """What the statements need besides the state: tables, options, author."""

    def __init__(
        self,
        connections: StateConnections,
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

    def transaction(self, state_id: str, *statements: Statement) -> Answer:
        """Run them while no other process writes this state; the last one's row.

        Raises:
            StateLocked: another transaction writes it and doesn't end.
        """
        work = (self.begin(state_id), *statements)
        return self._unlocked(state_id, lambda connection: send(connection, *work)[-1])

    def read_and_write(self, state_id: str, change: Callable[[Answer], Statement]) -> Answer:
        """The same for a write that depends on what is stored; `change` may be called again."""

        def work(connection: Connection) -> Answer:
            try:
                get = (self.sql.get, {"state_id": state_id})
                row = send(connection, BEGIN, self.begin(state_id), get)[-1]
                return send(connection, change(row), COMMIT)[0]
            except BaseException:
                if not connection.closed:
                    connection.rollback()
                raise

        return self._unlocked(state_id, work)

    def table_transaction(self, statement: Statement) -> int:
        """Run it while no other process writes any state; the count that it selects."""
        wait: Statement = (self.sql.wait, {"wait_ms": self._wait_ms()})
        lock: Statement = (self.sql.lock_table, {})
        row = self._unlocked("*", lambda connection: send(connection, wait, lock, statement)[-1])
        return int(row[0]) if row else 0

    def write_each(self, writes: Sequence[Write]) -> dict[str, int]:
        """Write those of different states that others let go at once and that are as expected.

        All in one transaction; returns the new versions of those that were written. The writes have
        one operation, and each has an expected version.

        Every advisory lock is taken before any table's, and none is waited for: so this can't be
        part of a deadlock.
        """
        if not writes:
            return {}
        write_id = writes[0].write_id
        keys = [self._key(write.state_id) for write in writes]

        def work(connection: Connection) -> Answer:
            try:
                lock = (self.sql.lock_each, {"advisory_keys": keys})
                locked = send(connection, BEGIN, lock)[-1]
                free = [writes[place - 1] for place in (locked[2] if locked else ())]
                ids = [write.state_id for write in free]
                parameters = {
                    **self.author(),
                    "ids": ids,
                    "partials": [write.partial for write in free],
                    "completeds": [write.completed for write in free],
                    "expected": [write.expected_version for write in free],
                    "operation": writes[0].operation,
                    "write_id": write_id,
                }
                # Those that an attempt wrote whose answer was lost count as well.
                written = (self.sql.written, {"ids": ids, "write_id": write_id})
                return send(connection, (self.sql.write_each, parameters), written, COMMIT)[1]
            except BaseException:
                if not connection.closed:
                    connection.rollback()
                raise

        row = self._unlocked("*", work)
        return dict(zip(row[0], row[1], strict=True)) if row and row[0] else {}

    def begin(self, state_id: str, lease: StateLease | None = None) -> Statement:
        """The first statement of a transaction that writes this state."""
        return (
            self.sql.begin,
            {
                "wait_ms": self._wait_ms(),
                "idle_ms": _milliseconds(self._options.lease_s),
                "advisory_key": self._key(state_id),
                **_fence(lease),
            },
        )

    def write(self, write: Write, lease: StateLease | None = None) -> Statement:
        """With a lease, nothing is written once that was taken by another: then there is no row."""
        parameters = {
            **self.author(),
            **_fence(lease),
            "state_id": write.state_id,
            "partial": write.partial,
            "completed": write.completed,
            "operation": write.operation,
            "expected": write.expected_version,
            "write_id": write.write_id,
        }
        return self.sql.write, parameters

    def delete(self, state_id: str, lease: StateLease | None = None) -> Statement:
        """Its row says whether it was allowed and whether there was one, as counts."""
        return self.sql.delete, {**self.author(), **_fence(lease), "state_id": state_id}

    def author(self) -> dict[str, Any]:
        """Parameters of every statement that writes."""
        return {
            "writer": self._writer or own_name(),
            "run_id": self._run_id(),
            "keep": self._options.history_versions > 0,
        }

    def mark(self, state_id: str) -> Statement:
        """Version and last write."""
        return self.sql.mark, {"state_id": state_id}

    def prune(self, state_id: str, version: int) -> None:
        """Let go of old history, at some of the versions."""
        options = self._options
        if not options.history_versions or version % _PRUNE_EVERY:
            return
        parameters = {
            "state_id": state_id,
            "versions": options.history_versions,
            "age": timedelta(days=options.history_days),
        }
        self.connections.run(lambda c: c.execute(self.sql.prune, parameters))

    def _key(self, state_id: str) -> int:
        return text_key(self._tables.schema, self._tables.state, state_id)

    def _wait_ms(self) -> str:
        """For transactions of others, which are short; also for those who won't wait for locks."""
        return _milliseconds(max(1.0, self._options.wait_s))

    def _unlocked(self, state_id: str, work: Callable[[Connection], Answer]) -> Answer:
        try:
            return self.connections.run(work, lock_waits=True)
        except errors.LockNotAvailable:
            raise StateLocked(
                state_id, f"another transaction writes state {state_id!r} and doesn't end"
            ) from None


def _fence(lease: StateLease | None) -> dict[str, Any]:
    return {
        "lock_key": lease.key if lease else None,
        "lock_id": lease.lock_id if lease else None,
    }


def _milliseconds(seconds: float) -> str:
    """Never 0, which means for ever."""
    return str(max(1, round(1000 * seconds)))

"""The transactions that write states; no other process writes the same state during one."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, LiteralString

import psycopg
from psycopg import errors

from etl_dagster.integrations.meltano.states import statements
from etl_dagster.integrations.meltano.states.connections import BULK_S, StateConnections
from etl_dagster.integrations.meltano.states.errors import StateLocked
from etl_dagster.integrations.meltano.states.locks import StateLease, own_name
from etl_dagster.integrations.meltano.states.options import StorageOptions
from etl_dagster.integrations.meltano.states.statements import filled
from etl_dagster.integrations.meltano.states.tables import StateTables
from etl_dagster.pg.advisory import text_key
from etl_dagster.pg.connection import Connection

#: A statement with its parameters.
Statement = tuple[bytes, Mapping[str, Any]]
Answer = tuple[Any, ...] | None

BEGIN: Statement = (b"BEGIN", {})
COMMIT: Statement = (b"COMMIT", {})
#: The history of a state is pruned whenever its version is a multiple of this.
_PRUNE_EVERY = 16


def send(connection: Connection, *statements: Statement) -> list[Answer]:
    """Run several statements in one round trip; returns the first row of each.

    Without BEGIN and COMMIT they are one transaction, too: Postgres runs a string of several
    statements as one. After an error, the statements that follow are not run.

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
    """A state to be written, its halves as texts."""

    state_id: str
    partial: str | None
    completed: str | None
    operation: str
    #: Lets a repeated attempt find what was written; states that are written together share it.
    write_id: uuid.UUID
    #: The state is only written over this version; 0: there must be none; None: over any.
    expected_version: int | None = None
    #: Whether the history keeps this version.
    is_kept: bool = True


class Writing:
    """Makes and runs the statements; knows the tables, the options and the author."""

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
        self._tables = tables
        self._options = options
        self._writer = writer
        self._run_id = run_id

    # -- whole transactions ----------------------------------------------------------------------

    def alone(self, state_id: str | None, *work: Statement) -> Answer:
        """Run statements while no other process writes the state; returns the last one's row.

        Args:
            state_id: None where no state may be written.

        Raises:
            StateLocked: another transaction writes it and doesn't end.
        """
        if state_id is None:
            lock = [self._settings(), self._statement(statements.LOCK_TABLE)]
        else:
            lock = self.begin(state_id)
        return self._unlocked(
            state_id,
            lambda connection: send(connection, *lock, *work)[-1],
            answer_s=BULK_S if state_id is None else None,
        )

    def put(self, state_id: str | None, writes: Sequence[Write]) -> dict[str, int]:
        """Write states as `alone` does; returns the new versions of those that were written."""
        # Including those that an attempt wrote whose answer was lost.
        return _versions(self.alone(state_id, self.write(writes), self._written(writes)))

    def put_free(self, writes: Sequence[Write]) -> dict[str, int]:
        """Write the states that no other process is writing now; returns their new versions.

        The advisory locks are all taken before any lock of a table, and without waiting. So this
        can't be part of a deadlock.
        """
        keys = [self._key(write.state_id) for write in writes]
        lock = self._statement(statements.LOCK_FREE, {"advisory_keys": keys})

        def work(connection: Connection) -> Answer:
            try:
                locked = send(connection, BEGIN, self._settings(), lock)[-1]
                free = [writes[place - 1] for place in (locked[0] if locked else ())]
                if not free:
                    connection.rollback()
                    return None
                return send(connection, self.write(free), self._written(free), COMMIT)[-2]
            except BaseException:
                if not connection.closed:
                    connection.rollback()
                raise

        return _versions(self._unlocked(None, work))

    # -- their statements ------------------------------------------------------------------------

    def begin(self, state_id: str, lease: StateLease | None = None) -> list[Statement]:
        """The first statements of a transaction that writes this state."""
        key = {"advisory_key": self._key(state_id), **_fence(lease)}
        return [self._settings(), self._statement(statements.LOCK_STATE, key)]

    def get(self, state_id: str) -> Statement:
        """Read the state; no other process can write it until the transaction ends."""
        return self._statement(statements.GET_FOR_UPDATE, {"state_id": state_id})

    def write(self, writes: Sequence[Write], lease: StateLease | None = None) -> Statement:
        """Write different states, which share operation and write ID.

        With a lease, nothing is written after another process has taken it. The statement's row has
        the IDs and versions of the states that were written, or nulls.
        """
        keeps_any = self._options.history_versions > 0
        parameters = {
            **self._author(),
            **_fence(lease),
            "ids": [write.state_id for write in writes],
            "partials": [write.partial for write in writes],
            "completeds": [write.completed for write in writes],
            "expected": [write.expected_version for write in writes],
            "kept": [write.is_kept and keeps_any for write in writes],
            "operation": writes[0].operation,
            "write_id": writes[0].write_id,
        }
        return self._statement(statements.WRITE, parameters)

    def delete(self, state_id: str | None, lease: StateLease | None = None) -> Statement:
        """Delete one state, or all if the ID is None.

        The statement's row says whether that was allowed, and how many states there were.
        """
        parameters = {"state_id": state_id, "kept": self._options.history_versions > 0}
        return self._statement(statements.DELETE, {**self._author(), **_fence(lease), **parameters})

    def mark(self, state_id: str) -> Statement:
        """Read the state's version and the ID of its last write."""
        return self._statement(statements.MARK, {"state_id": state_id})

    def prune(self, versions: Mapping[str, int]) -> None:
        """Delete old history of states, where it is due.

        Args:
            versions: a version of each state that was just written.
        """
        options = self._options
        text = filled(statements.PRUNE, self._tables)
        for state_id, version in versions.items():
            if not options.history_versions or version % _PRUNE_EVERY:
                continue
            parameters = {
                "state_id": state_id,
                "versions": options.history_versions,
                "age": timedelta(days=options.history_days),
            }
            self.connections.run(functools.partial(_execute, text, parameters))

    def _written(self, writes: Sequence[Write]) -> Statement:
        ids = [write.state_id for write in writes]
        return self._statement(statements.WRITTEN, {"ids": ids, "write_id": writes[0].write_id})

    def _settings(self) -> Statement:
        parameters = {
            # At least a second, also for callers that don't wait for locks: the transactions of
            # others are short.
            "wait_ms": _milliseconds(max(1.0, self._options.wait_s)),
            "idle_ms": _milliseconds(self._options.lease_s),
        }
        return self._statement(statements.SETTINGS, parameters)

    def _statement(
        self, text: LiteralString, parameters: Mapping[str, Any] | None = None
    ) -> Statement:
        return filled(text, self._tables), parameters or {}

    def _author(self) -> dict[str, Any]:
        return {"writer": self._writer or own_name(), "run_id": self._run_id()}

    def _key(self, state_id: str) -> int:
        return text_key(self._tables.schema, self._tables.state, state_id)

    def _unlocked(
        self,
        state_id: str | None,
        work: Callable[[Connection], Answer],
        *,
        answer_s: float | None = None,
    ) -> Answer:
        try:
            return self.connections.run(
                work, untranslated=errors.LockNotAvailable, answer_s=answer_s
            )
        except errors.LockNotAvailable:
            what = "the states" if state_id is None else f"state {state_id!r}"
            raise StateLocked(
                state_id or "*", f"another transaction writes {what} and doesn't end"
            ) from None


def _execute(text: bytes, parameters: Mapping[str, Any], connection: Connection) -> None:
    connection.execute(text, parameters)


def _versions(row: Answer) -> dict[str, int]:
    return dict(zip(row[0], row[1], strict=True)) if row and row[0] else {}


def _fence(lease: StateLease | None) -> dict[str, Any]:
    return {
        "lock_key": lease.key if lease else None,
        "lock_id": lease.lock_id if lease else None,
    }


def _milliseconds(seconds: float) -> str:
    """Never 0, which means for ever."""
    return str(max(1, round(1000 * seconds)))

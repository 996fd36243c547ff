"""The source as of one LSN, and every change since: a snapshot and a slot that last a while."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator
from typing import Any, Final

import psycopg
from psycopg import sql

from etl_dagster.config import SourceConfig
from etl_dagster.errors import EtlError
from etl_dagster.pg.cancelling import cancelled_by
from etl_dagster.pg.encodings import stored_encoding
from etl_dagster.protocol.batch import RawBatch
from etl_dagster.protocol.frames import XLOG_DATA_HEADER
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.source.connection import connect, translate
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import create_slot
from etl_dagster.source.standby_slots import helped

Connection = psycopg.Connection[Any]

#: How long to wait for the transactions that are open when the slot is made.
_SLOT_LOCK_TIMEOUT_S: Final = 60.0
#: How long a count waits for a table that another session has to itself.
_TABLE_LOCK_TIMEOUT_S: Final = 5.0
#: Messages are fetched in stretches of at least so many, where there are more.
_MESSAGES_AT_ONCE: Final = 10_000


class Witness:
    """A temporary slot, which Postgres drops with its connection, and the snapshot it exported.

    The snapshot shows every transaction whose commit record begins before `lsn`, and no other; the
    slot keeps every change from there on. A transaction of a second connection keeps the snapshot
    while the first one reads the slot. It holds no lock on any table.

    Raises:
        SlotNotCreated: transactions stayed open, or the server has no slot left.
        EtlError: the source can't be reached or refuses.
    """

    def __init__(self, config: SourceConfig, pipeline: str) -> None:
        self._publication = config.publication
        self._name = f"etl_dagster_compare_{secrets.token_hex(8)}"
        name = f"etl_dagster compare {pipeline}"
        with contextlib.ExitStack() as opened:
            self._slot: Connection = opened.enter_context(
                contextlib.closing(
                    connect(
                        config,
                        application_name=name,
                        replication=True,
                        lock_timeout_s=_SLOT_LOCK_TIMEOUT_S,
                    )
                )
            )
            holder: Connection = opened.enter_context(
                contextlib.closing(connect(config, application_name=name))
            )
            control = SourceControl(config, application_name=name)
            with (
                contextlib.closing(control),
                helped(control, self._slot, self._name, give_up_after_s=_SLOT_LOCK_TIMEOUT_S),
            ):
                made = create_slot(self._slot, self._name, export_snapshot=True, is_temporary=True)
            assert made.snapshot_name is not None
            #: The snapshot shows what was committed before.
            self.lsn = made.consistent_point
            #: For SET TRANSACTION SNAPSHOT, until `close`.
            self.snapshot_name = _held(holder, made.snapshot_name)
            encoding = stored_encoding(self._slot)
            self._holder = holder
            self._codec = None if encoding is None else encoding.codec
            if encoding is not None:
                self._slot.execute(f"SET client_encoding = '{encoding.name}'")
            self._session = ReplicationSession()
            self._session.expect_codec(self._codec)
            self._opened = opened.pop_all()

    def changes(self) -> Iterator[RawBatch]:
        """Every change that any reader of the WAL can have seen by now; each of them once.

        A later call continues where this one ended.

        Raises:
            EtlError: the slot can't be read.
        """
        try:
            # A walsender sends what is flushed, and nothing else.
            row = self._slot.execute(
                "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn()"
                " else pg_current_wal_flush_lsn() end::text"
            ).fetchone()
            assert row is not None
            query = sql.SQL(
                "select data from pg_logical_slot_get_binary_changes({}, {}, {}, "
                "'proto_version', '1', 'publication_names', {}, 'messages', 'true')"
            ).format(
                sql.Literal(self._name),
                sql.Literal(row[0]),
                sql.Literal(_MESSAGES_AT_ONCE),
                sql.Literal('"' + self._publication.replace('"', '""') + '"'),
            )
            count = _MESSAGES_AT_ONCE
            while count >= _MESSAGES_AT_ONCE:
                messages = self._slot.execute(query).fetchall()
                count = len(messages)
                for (message,) in messages:
                    self._session.feed(XLOG_DATA_HEADER.pack(b"w", 0, 0, 0) + message)
                if not self._session.is_empty:
                    yield self._session.take_batch()
        except psycopg.Error as error:
            raise self._failure(error) from None

    def count_rows(
        self, schema_name: str, table_name: str, row_filter: str | None, *, stop: threading.Event
    ) -> int:
        """How many rows a table has as of `lsn`, without those of tables that inherit from it.

        Args:
            row_filter: the publication's condition, an SQL expression; None for all rows.
            stop: gives the count up.

        Raises:
            EtlError: the table can't be read, or is locked by another session.
        """
        query = sql.SQL("SELECT count(*) FROM ONLY {}{}").format(
            sql.Identifier(schema_name, table_name),
            sql.SQL(f" WHERE ({row_filter})" if row_filter else ""),
        )
        count = 0
        try:
            with (
                cancelled_by(stop, self._holder.cancel),
                # Rolled back, so that the lock on the table is let go; the snapshot stays.
                self._holder.transaction(force_rollback=True),
            ):
                self._holder.execute(f"SET LOCAL lock_timeout = '{_TABLE_LOCK_TIMEOUT_S:.0f}s'")
                row = self._holder.execute(query).fetchone()
                assert row is not None
                count = int(row[0])
        except psycopg.Error as error:
            raise translate(error, f"counting {schema_name}.{table_name}") from None
        return count

    def _failure(self, error: psycopg.Error) -> EtlError:
        return translate(error, "reading the changes since the comparison began")

    def close(self) -> None:
        """Drop the slot, and end the snapshot."""
        self._opened.close()


def _held(connection: Connection, snapshot_name: str) -> str:
    """The same snapshot under another name, which lasts as long as the connection."""
    try:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        connection.execute(
            sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot_name))
        )
        row = connection.execute("SELECT pg_export_snapshot()").fetchone()
    except psycopg.Error as error:
        raise translate(error, "keeping a snapshot") from None
    assert row is not None
    name: str = row[0]
    return name

"""The replication stream: one COPY BOTH connection, read by one thread and answered by another."""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import psycopg
from psycopg import pq, sql

from etl_dagster.config import SourceConfig
from etl_dagster.errors import (
    PublicationRecreated,
    SlotInUse,
    SlotInvalidated,
    SlotMissing,
    SourceError,
    SourceSilent,
    SourceUnreachable,
    SpoolError,
)
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.pg.encodings import stored_encoding
from etl_dagster.pg.failures import message_of
from etl_dagster.protocol.frames import encode_standby_status_update
from etl_dagster.protocol.receiver import Receiver
from etl_dagster.protocol.silence import Silence, SilenceWatch
from etl_dagster.protocol.streamed import StreamedTransactions
from etl_dagster.source.connection import connect, translate
from etl_dagster.source.spool import Spools

#: Seconds from 1970-01-01 to 2000-01-01 UTC, where Postgres' clock begins.
_POSTGRES_EPOCH_S = 946_684_800
#: Status updates go out at least this often, or three times in a shorter wal_sender_timeout.
_STATUS_INTERVAL_S = 10.0
#: ... and at most this often, however fast positions are confirmed.
_STATUS_DEBOUNCE_S = 0.1
#: From the first byte on, this long is left to the server to send more: rows that are taken one by
#: one cost both sides a system call each.
_GATHER_S = 0.002
#: The same while so much arrives in that time: then the server has the processor that waking up
#: for less would take, which with few of them is most of what a large transaction waits for.
_BUSY_GATHER_S = 0.005
_BUSY_READS = 4
#: A read that has got something waits this long for more of it ...
_LULL_S = 0.002
#: ... and ends after this time even if there is more.
_STRETCH_S = 0.05


class ReplicationStream:
    """Feeds a `Receiver` from a slot, and confirms positions.

    `read` belongs to one thread; `confirm` and `request_keepalive` may come from any. A thread of
    its own sends the status updates, so the server hears from us also while no thread reads:
    a destination may take minutes, the server's patience is wal_sender_timeout.

    Args:
        also_of: further publications whose changes are streamed.
        spools: where transactions in progress are kept, which are asked for then. Without, or
            where they can't be kept, each comes once it has committed.
        connect: as `source.connection.connect`.
        clock: seconds that only grow, by which the server's silence is measured.
    """

    def __init__(
        self,
        config: SourceConfig,
        slot_name: str,
        session: Receiver,
        start_lsn: Lsn,
        *,
        application_name: str,
        spools: Spools | None = None,
        also_of: Sequence[str] = (),
        connect: Callable[..., psycopg.Connection[Any]] = connect,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._publications = (config.publication, *also_of)
        self._connect = connect
        self._clock = clock
        self._silence = SilenceWatch(config.receiver_timeout_s, clock())
        self._slot_name = slot_name
        self._session: Receiver | StreamedTransactions = session
        self._receiver = session
        self._spools = spools
        self._streamed: StreamedTransactions | None = None
        self._start_lsn = start_lsn
        self._application_name = application_name
        self._connection: psycopg.Connection[Any] | None = None
        self._codec = "utf-8"
        # libpq connections are not for two threads at a time.
        self._wire = threading.Lock()
        self._flushed = start_lsn
        self._received = LSN_ZERO
        self._wants_keepalive = False
        self._is_busy = False
        self._status_interval_s = _STATUS_INTERVAL_S
        self._status_due = threading.Event()
        self._closed = threading.Event()
        self._feedback: threading.Thread | None = None
        # A number that was closed may be another file's by now.
        self._waking = threading.Lock()
        self._wake_reader, self._wake_writer = -1, -1
        self._poll = select.poll()

    def open(self) -> None:
        """Connect and start streaming.

        Raises:
            SlotInUse, SlotMissing, SlotInvalidated: see there.
            EtlError: the source can't be reached or refuses.
        """
        self._connection = self._connect(
            self._config, application_name=self._application_name, replication=True
        )
        try:
            self._status_interval_s = _status_interval_s(self._connection)
            self._take_text_as_stored(self._connection)
            self._start_replication(self._connection)
            self._silence.heard(self._clock())
            self._wake_reader, self._wake_writer = os.pipe()
            os.set_blocking(self._wake_writer, False)
            self._poll.register(self._wake_reader, select.POLLIN)
            self._poll.register(self._connection.pgconn.socket, select.POLLIN)
            self._feedback = threading.Thread(
                target=self._send_feedback, name=f"feedback {self._slot_name}", daemon=True
            )
            self._feedback.start()
        except BaseException:
            # An open connection would keep the slot from the next try.
            self._connection.close()
            self._connection = None
            self._close_pipe()
            raise

    def _take_text_as_stored(self, connection: psycopg.Connection[Any]) -> None:
        """The server's own conversion would end the stream at a byte that it can't convert."""
        encoding = stored_encoding(connection)
        if encoding is not None:
            connection.execute(f"SET client_encoding = '{encoding.name}'")
            self._codec = encoding.codec
            self._receiver.expect_codec(encoding.codec)

    def _start_replication(self, connection: psycopg.Connection[Any]) -> None:
        command = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version {}, publication_names {}, "
            "messages 'true'{})"
        ).format(
            sql.Identifier(self._slot_name),
            sql.SQL(str(self._start_lsn)),
            *self._protocol(connection.info.server_version),
        )
        result = connection.pgconn.exec_(command.as_string().encode(self._codec))
        if result.status == pq.ExecStatus.COPY_BOTH:
            return
        error = psycopg.errors.error_from_result(result)
        if isinstance(error, psycopg.errors.ObjectInUse):
            raise SlotInUse(f"slot {self._slot_name!r} is read by another process") from error
        if isinstance(error, psycopg.errors.UndefinedObject):
            raise SlotMissing(f"slot {self._slot_name!r} does not exist on the source") from error
        if isinstance(error, psycopg.errors.ObjectNotInPrerequisiteState):
            raise SlotInvalidated(
                f"slot {self._slot_name!r} can't be read any more: {error.diag.message_primary}"
            ) from error
        raise translate(error, "starting the replication stream") from error

    def _protocol(self, server_version: int) -> tuple[sql.Composable, ...]:
        """The protocol's version, the publications, and further options."""
        # A list of identifiers inside of a literal; each quoted, then the whole.
        quoted = ('"' + name.replace('"', '""') + '"' for name in self._publications)
        publications = sql.Literal(",".join(quoted))
        if self._spools is None or server_version < 140000 or not self._spools.is_usable():
            return sql.Literal("1"), publications, sql.SQL("")
        self._session = self._streamed = StreamedTransactions(
            self._receiver, self._spools.open, sends_empty=server_version < 150000
        )
        version = "4" if server_version >= 160000 else "2"
        return sql.Literal(version), publications, sql.SQL(", streaming 'on'")

    # -- reading -------------------------------------------------------------------------------

    def read(self, timeout_s: float) -> bool:
        """Move what has arrived into the session, waiting up to `timeout_s` for something.

        Returns whether the session's batch is full: take it before reading on.

        Raises:
            SourceUnreachable: the stream ended.
            SourceSilent: the server has sent nothing for too long, and doesn't answer.
            DecodeError: what arrived is not pgoutput.
            SpoolError: a transaction in progress can't be kept.
        """
        assert self._connection is not None
        pgconn = self._connection.pgconn
        status = self._drain(pgconn)
        has_waited = status == 0 and timeout_s >= 0
        stretch_end: float | None = None
        # The server sends rows one by one, and a caller between two reads does more than one row
        # is worth: so continue while more arrives.
        while status == 0 and timeout_s >= 0 and self._wait_readable(timeout_s):
            time.sleep(_BUSY_GATHER_S if self._is_busy else _GATHER_S)
            status = self._receive(pgconn, time.monotonic() + _STRETCH_S)
            now = time.monotonic()
            if stretch_end is None:
                stretch_end = now + min(timeout_s, _STRETCH_S)
            timeout_s = min(stretch_end - now, _LULL_S)
        if stretch_end is not None:
            self._silence.heard(self._clock())
        elif has_waited:
            self._require_sound()
        self._received = max(self._received, self._session.last_wal_end)
        if self._session.take_reply_request():
            self._status_due.set()
        return status > 0

    def _require_sound(self) -> None:
        """Notice a server that has vanished behind an open connection, which no read ends."""
        silence = self._silence
        match silence.nothing_came(self._clock()):
            case Silence.ASK:
                self.request_keepalive()
            case Silence.GIVE_UP:
                raise SourceSilent(
                    f"the source has sent nothing on the replication stream of "
                    f"{self._slot_name!r} for {silence.timeout_s:g} s, and has not answered a "
                    "request for a keepalive"
                )

    def _receive(self, pgconn: pq.abc.PGconn, until: float) -> int:
        """Take all that is there, as `ReplicationSession.drain`; libpq reads 16 KiB at a time."""
        status = reads = 0
        while status == 0:
            with self._wire:
                try:
                    pgconn.consume_input()
                except psycopg.OperationalError as error:
                    raise self._ended(error) from error
            reads += 1
            status = self._drain(pgconn)
            if pgconn.socket not in self._ready(0):
                break
            # What is put aside fills no batch that would end this.
            if self._streamed is not None and time.monotonic() > until:
                break
        self._is_busy = reads >= _BUSY_READS
        return status

    def _drain(self, pgconn: pq.abc.PGconn) -> int:
        get = partial(pgconn.get_copy_data, 1)
        with self._wire:
            try:
                status = self._session.drain(get)
            except psycopg.OperationalError as error:
                raise self._ended(error) from error
            except SpoolError as error:
                assert self._spools is not None
                self._spools.give_up(error)
                raise
            if self._streamed is not None and self._spools is not None:
                self._spools.transactions = self._streamed.count
            if status == -1:
                result = pgconn.get_result()
                raise self._ended(psycopg.errors.error_from_result(result) if result else None)
        return status

    def _wait_readable(self, timeout_s: float) -> bool:
        """Whether something arrives in time, without an interruption."""
        ready = self._ready(timeout_s)
        if self._wake_reader in ready:
            os.read(self._wake_reader, 4096)
            return False
        return bool(ready)

    def _ready(self, timeout_s: float) -> list[int]:
        return [number for number, _ in self._poll.poll(timeout_s * 1000)]

    def interrupt(self) -> None:
        """Have a waiting `read` return now. From any thread."""
        with self._waking:
            if self._wake_writer >= 0:
                try:
                    os.write(self._wake_writer, b"x")
                except BlockingIOError:
                    pass  # the pipe is full of earlier calls; the reader will see those

    def _ended(self, error: psycopg.Error | None) -> SourceError:
        if isinstance(error, psycopg.errors.UndefinedObject) and "publication" in str(error):
            # It is looked up as of the change that is decoded; from 18 on, it may be missing.
            name = " or ".join(map(repr, self._publications))
            return PublicationRecreated(
                f"publication {name} did not exist when changes were made that are still to be "
                "streamed: it was dropped and created again, or renamed"
            )
        why = "no reason" if error is None else message_of(error)
        return SourceUnreachable(f"the replication stream of {self._slot_name!r} ended: {why}")

    @property
    def start_lsn(self) -> Lsn:
        """Transactions that were committed before are not streamed."""
        return self._start_lsn

    @property
    def is_over(self) -> bool:
        """A slot has no end."""
        return False

    # -- answering -----------------------------------------------------------------------------

    def confirm(self, lsn: Lsn) -> None:
        """Tell the server that everything before is durable; a smaller LSN changes nothing."""
        if lsn > self._flushed:
            self._flushed = lsn
            self._status_due.set()

    @property
    def confirmed(self) -> Lsn:
        return self._flushed

    def request_keepalive(self) -> None:
        """Ask the server how far it is; the answer is a keepalive in the stream."""
        self._wants_keepalive = True
        self._status_due.set()

    def _send_feedback(self) -> None:
        while not self._closed.is_set():
            self._status_due.wait(self._status_interval_s)
            self._status_due.clear()
            if self._closed.is_set():
                return
            try:
                self._send_status()
            except psycopg.OperationalError:
                return  # the reader meets the same end, and reports it
            self._closed.wait(_STATUS_DEBOUNCE_S)

    def _send_status(self) -> None:
        assert self._connection is not None
        pgconn = self._connection.pgconn
        wants_keepalive, self._wants_keepalive = self._wants_keepalive, False
        flushed = self._flushed
        message = encode_standby_status_update(
            written=max(self._received, flushed),
            flushed=flushed,
            applied=flushed,
            now_us=int((time.time() - _POSTGRES_EPOCH_S) * 1_000_000),
            reply_requested=wants_keepalive,
        )
        with self._wire:
            pgconn.put_copy_data(message)
            pgconn.flush()

    def close(self) -> None:
        """Send the last position and end the connection; the slot is free a moment later."""
        if self._closed.is_set() or self._connection is None:
            return
        self._closed.set()
        self._forget_unfinished()
        self._status_due.set()
        if self._feedback is not None:
            self._feedback.join()
        try:
            self._send_status()
        except psycopg.OperationalError:
            pass  # it is gone already; the store has the position
        self._connection.close()
        self._close_pipe()

    def _close_pipe(self) -> None:
        with self._waking:
            if self._wake_reader >= 0:
                os.close(self._wake_reader)
                os.close(self._wake_writer)
            self._wake_reader = self._wake_writer = -1

    def _forget_unfinished(self) -> None:
        """Postgres sends them again."""
        if self._streamed is not None and self._spools is not None:
            self._streamed.close()
            self._spools.transactions = 0


def _status_interval_s(connection: psycopg.Connection[Any]) -> float:
    """SHOW answers with a unit, such as ``1min`` or ``500ms``; 0 means none."""
    row = connection.execute("SHOW wal_sender_timeout").fetchone()
    match = re.fullmatch(r"(\d+)(ms|s|min|h|d)", row[0]) if row else None
    if match is None:
        return _STATUS_INTERVAL_S
    unit_s = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400}[match[2]]
    return min(_STATUS_INTERVAL_S, int(match[1]) * unit_s / 3)

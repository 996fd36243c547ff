"""A stream with all that takes its changes to the destination: session, loop and delivery."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from etl_dagster.config import SourceConfig
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.streaming.delivery import Delivery, Kept, Undecoded
from etl_dagster.runtime.streaming.role import Role
from etl_dagster.runtime.streaming.stream_loop import ChangeStream, StreamLoop
from etl_dagster.runtime.tables.renames import Renames
from etl_dagster.runtime.tables.schemas import SchemaTracker
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.spool import Spools
from etl_dagster.source.stream import ReplicationStream

#: Makes the stream that fills a session.
OpenStream: TypeAlias = Callable[[ReplicationSession], ChangeStream]


def stream_of_slot(
    config: SourceConfig,
    slot_name: str,
    start_lsn: Lsn,
    *,
    application_name: str,
    spools: Spools | None = None,
    also_of: Sequence[str] = (),
) -> OpenStream:
    """The stream of a slot, by a connection of its own; see `ReplicationStream`."""

    def open_stream(session: ReplicationSession) -> ChangeStream:
        return ReplicationStream(
            config,
            slot_name,
            session,
            start_lsn,
            application_name=application_name,
            spools=spools,
            also_of=also_of,
        )

    return open_stream


class Feed:
    """One stream's worth of reading and writing; what is read, and for whom, comes in.

    Args:
        role: whose stream it is.
        open_stream: called once, now; nothing is read before `run`.
        schemas: knows the tables as they are at this stream's position.
        kept: whose progress is stored, and what this stream must bring.
        name: of the thread that writes.
        wall_clock: seconds since 1970-01-01 UTC.
    """

    def __init__(
        self,
        parts: WorkerParts,
        role: Role,
        open_stream: OpenStream,
        schemas: SchemaTracker,
        *,
        kept: Kept,
        renames: Renames | None = None,
        name: str,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        batch = parts.config.batch
        self._clock = parts.clock
        self._ask_every_s = parts.timing.ask_position_s
        #: When to ask the server for its position again, and what for.
        self._ask_at, self._asked_for = 0.0, LSN_ZERO
        self._wall_clock = wall_clock
        self._session = ReplicationSession(
            max_bytes=parts.memory.batch_bytes(batch.max_bytes), max_rows=batch.max_rows
        )
        self._stream = open_stream(self._session)
        self._delivery = Delivery(parts, role, schemas, kept=kept, renames=renames, name=name)
        self._loop = StreamLoop(parts, role, self._stream, self._session, self._delivery)

    def run(self) -> None:
        """Stream until stopped; raises what it failed with."""
        self._loop.run()

    # -- from the thread that reads --------------------------------------------------------------

    @property
    def position(self) -> Lsn:
        """The smallest LSN past every transaction of which something was read."""
        return self._loop.position

    def has_passed(self, lsn: Lsn) -> bool:
        """Whether every change that was committed before `lsn` was read, and no later one in part.

        Where not, the server is asked how far it is, now and then.
        """
        if self.position >= lsn and self._loop.is_between_transactions:
            return True
        now = self._clock.now_s()
        if lsn != self._asked_for or now >= self._ask_at:
            self._asked_for, self._ask_at = lsn, now + self._ask_every_s
            self._stream.request_keepalive()
        return False

    def deliver_all(self) -> None:
        """Wait until everything that was read is durable.

        Raises:
            Stopped: the pipeline stops.
            EtlError: what the delivery failed with.
        """
        self._loop.close_batch()
        self._delivery.flush()

    def put(self, rows: Undecoded, apply_from: Mapping[TableId, Lsn]) -> None:
        """Write rows that are not from the stream, before what is read next. After `deliver_all`.

        Raises:
            Stopped: the pipeline stops.
            EtlError: what the delivery failed with.
        """
        self._delivery.put(rows, apply_from)

    def raise_failure(self) -> None:
        """Raise what the delivery failed with, if it did."""
        self._delivery.raise_failure()

    # -- from any thread -------------------------------------------------------------------------

    def confirm(self, lsn: Lsn) -> None:
        """Everything before is durable."""
        self._stream.confirm(lsn)

    def hurry(self, goal: Lsn) -> None:
        """Make what was committed before `goal` durable as soon as possible."""
        self._loop.hurry(goal)

    def confirm_from(self, lsn: Lsn) -> None:
        """Confirm an idle position past `lsn` at once; the stream is to reach it by itself."""
        self._loop.confirm_from(lsn)

    def interrupt(self) -> None:
        self._stream.interrupt()

    # -- how far it is ---------------------------------------------------------------------------

    @property
    def is_writing(self) -> bool:
        """Whether a batch was closed that is not durable yet."""
        return not self._delivery.is_idle

    @property
    def received(self) -> Lsn:
        return max(self._session.last_commit_end, self._session.last_keepalive_end)

    @property
    def server_end(self) -> Lsn:
        return self._session.last_wal_end

    @property
    def lag_s(self) -> float:
        """Age of the oldest commit that is received and not yet durable, seconds; 0 without one.

        By two clocks, the source's and ours.
        """
        waiting = (self._delivery.oldest_commit_time_us, self._session.first_commit_time_us)
        oldest = min((moment for moment in waiting if moment is not None), default=None)
        return 0.0 if oldest is None else max(self._wall_clock() - oldest / 1e6, 0.0)

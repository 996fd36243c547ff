"""A stream with all that takes its changes to the destination: session, loop and delivery."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from etl_dagster.config import BatchConfig, SourceConfig
from etl_dagster.lsn import Lsn
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.streaming.delivery import Delivery
from etl_dagster.runtime.streaming.stream_loop import ChangeStream, Guide, StreamLoop
from etl_dagster.source.stream import ReplicationStream

#: Makes the stream that fills a session.
OpenStream: TypeAlias = Callable[[ReplicationSession], ChangeStream]


def stream_of_slot(
    config: SourceConfig, slot_name: str, start_lsn: Lsn, *, application_name: str
) -> OpenStream:
    """The stream of a slot, by a connection of its own."""

    def open_stream(session: ReplicationSession) -> ChangeStream:
        return ReplicationStream(
            config, slot_name, session, start_lsn, application_name=application_name
        )

    return open_stream


class Feed:
    """One stream's worth of reading and writing; what is read, and for whom, comes in.

    Args:
        open_stream: called once, now; nothing is read before `run`.
        clock, wall_clock: seconds; the second since 1970-01-01 UTC.
    """

    def __init__(
        self,
        open_stream: OpenStream,
        delivery: Delivery,
        guide: Guide,
        batch: BatchConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        stop: threading.Event,
    ) -> None:
        self._session = ReplicationSession(max_bytes=batch.max_bytes, max_rows=batch.max_rows)
        self._stream = open_stream(self._session)
        self._delivery = delivery
        self._wall_clock = wall_clock
        self.loop = StreamLoop(
            self._stream, self._session, delivery, guide, batch, clock=clock, stop=stop
        )

    def run(self) -> None:
        """Stream until stopped; raises what it failed with."""
        self.loop.run()

    # -- from any thread -------------------------------------------------------------------------

    def confirm(self, lsn: Lsn) -> None:
        """Everything before is durable."""
        self._stream.confirm(lsn)

    def hurry(self, goal: Lsn) -> None:
        """Make what was committed before `goal` durable as soon as possible."""
        self.loop.hurry(goal)

    def interrupt(self) -> None:
        self._stream.interrupt()

    def request_keepalive(self) -> None:
        self._stream.request_keepalive()

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

"""One stream from slot to destination: reads, closes batches, hands them to the delivery."""

from __future__ import annotations

from typing import Protocol

from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.memory import PAUSE_S
from etl_dagster.runtime.streaming.delivery import Delivery
from etl_dagster.runtime.streaming.role import Role
from etl_dagster.runtime.worker_parts import WorkerParts

#: How often the role is asked though nothing happens.
_TURN_S = 0.25


class ChangeStream(Protocol):
    """Moves changes into a session, and takes back how far they are durable.

    A replication connection of its own (`source.stream.ReplicationStream`), or whatever else brings
    the same frames. `read` belongs to one thread; `interrupt`, `confirm` and `request_keepalive`
    may come from any.
    """

    @property
    def start_lsn(self) -> Lsn:
        """Transactions that were committed before are not streamed."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether to stop reading here without a failure: another stream continues it."""
        ...

    def open(self) -> None: ...

    def read(self, timeout_s: float) -> bool:
        """Move what has arrived into the session, waiting up to `timeout_s` for something.

        Returns whether the session's batch is full: take it before reading on.

        Raises:
            EtlError: the stream ended.
        """
        ...

    def interrupt(self) -> None:
        """Have a waiting `read` return now."""
        ...

    def confirm(self, lsn: Lsn) -> None:
        """Everything before is durable; a smaller LSN changes nothing."""
        ...

    def request_keepalive(self) -> None:
        """Ask how far the server is; the answer is a keepalive in the stream."""
        ...

    def close(self) -> None: ...


class StreamLoop:
    """Runs in the calling thread until its role says so, it is stopped, or something fails."""

    def __init__(
        self,
        parts: WorkerParts,
        role: Role,
        stream: ChangeStream,
        session: ReplicationSession,
        delivery: Delivery,
    ) -> None:
        self._clock = parts.clock
        self._timing = parts.timing
        self._stream = stream
        self._session = session
        self._delivery = delivery
        self._role = role
        self._max_fill_s = parts.config.batch.max_fill_ms / 1000
        self._stop = parts.stop
        self._memory = parts.memory
        #: When the first row of the open batch was seen; None while it has none.
        self._opened_at: float | None = None
        self._confirmed_idle = LSN_ZERO
        self._confirm_idle_at = 0.0
        self._hurry = False
        #: An idle position from here on is confirmed at once.
        self._confirm_from: Lsn | None = None
        #: Close the open batch once everything committed before is in it; None without a request.
        self._goal: Lsn | None = None

    def run(self) -> None:
        """Stream.

        Raises:
            EtlError: what the stream, the delivery or the role failed with.
        """
        reader = self._memory.reader(lambda: self.is_busy)
        try:
            self._stream.open()
            self._delivery.start()
            while self._goes_on():
                if reader.may_read():
                    full = self._stream.read(self._patience_s())
                else:
                    # What was read so far is written meanwhile.
                    full = bool(self._session.row_count) or self._is_at_goal()
                    self._clock.wait(self._stop, 0.0 if full else PAUSE_S)
                self._delivery.raise_failure()
                if full or self._is_old() or self._is_at_goal():
                    self.close_batch()
                self._confirm_when_idle()
        except Stopped:
            pass
        finally:
            reader.close()
            try:
                self._delivery.finish()
            finally:
                self._stream.close()
        self._delivery.raise_failure()

    def _goes_on(self) -> bool:
        if self._stop.is_set() or self._stream.is_over:
            return False
        return self._role.between_reads()

    def close_batch(self) -> None:
        """Hand the open batch to the delivery, if it holds anything."""
        self._opened_at = None
        if not self._session.is_empty:
            self._delivery.put(self._session.take_batch(), self._role.apply_from)

    @property
    def is_busy(self) -> bool:
        """Whether rows were read that are not durable yet."""
        return bool(self._session.row_count) or not self._delivery.is_idle

    def hurry(self, goal: Lsn) -> None:
        """Make everything that was committed before `goal` durable without delay, once.

        The batch that reaches the goal is closed at once, whatever its age; an idle position past
        it is confirmed at once. From any thread.
        """
        self._goal = goal
        self._hurry = True
        self._stream.request_keepalive()

    def confirm_from(self, lsn: Lsn) -> None:
        """Confirm an idle position past `lsn` at once; batches stay as they are. From any thread.

        The stream is to reach it by itself.
        """
        self._confirm_from = lsn
        # It may have been reached already.
        self._stream.interrupt()

    @property
    def position(self) -> Lsn:
        """The smallest LSN past every transaction of which something was read."""
        session = self._session
        past_open = session.open_commit_lsn
        reached = max(session.last_commit_end, session.last_keepalive_end)
        # Before the first frame: what lies before the start was read by an earlier session.
        reached = max(reached, self._stream.start_lsn)
        return reached if past_open is None else max(reached, Lsn(past_open.offset + 1))

    @property
    def is_between_transactions(self) -> bool:
        return self._session.open_commit_lsn is None

    def _patience_s(self) -> float:
        if self._session.row_count and self._opened_at is None:
            self._opened_at = self._clock.now_s()
        if self._opened_at is None:
            return _TURN_S
        left = self._opened_at + self._max_fill_s - self._clock.now_s()
        return min(max(left, 0.0), _TURN_S)

    def _is_old(self) -> bool:
        if self._opened_at is None:
            return False
        return self._clock.now_s() - self._opened_at >= self._max_fill_s

    def _is_at_goal(self) -> bool:
        goal = self._goal
        if goal is None or not self.is_between_transactions or self.position < goal:
            return False
        self._goal = None
        return True

    def _confirm_when_idle(self) -> None:
        """Let the server forget WAL that holds nothing of ours.

        Marks without rows in the open batch are nothing to wait for.
        """
        if self._session.row_count or not self.is_between_transactions:
            return
        now = self._clock.now_s()
        position = self.position
        wanted = self._confirm_from
        is_awaited = wanted is not None and self._confirmed_idle < wanted <= position
        is_due = self._hurry or is_awaited or now >= self._confirm_idle_at
        if position <= self._confirmed_idle or not is_due:
            return
        if self._delivery.is_idle:
            without_rows = self._session.take_batch()
            self._hurry = False
            self._confirmed_idle = position
            self._confirm_idle_at = now + self._timing.idle_confirm_s
            self._delivery.put_progress(position, without_rows)

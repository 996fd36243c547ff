"""Where the changes of one destination among several come from: the shared slot, or its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from etl_dagster.backoff import doubled_s
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError, SourceUnreachable
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.fan_out.pacing import FanOutPace
from etl_dagster.runtime.fan_out.shared import SharedSlot
from etl_dagster.runtime.fan_out.tee import Branch
from etl_dagster.runtime.slot import fetch_idle_slot, require_continuable
from etl_dagster.runtime.streaming.feed import OpenStream
from etl_dagster.runtime.streaming.stream_loop import ChangeStream
from etl_dagster.runtime.streaming.wire import InProgress, in_progress, spools_of
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import apply_slot_name, drop_slot, fetch_slot
from etl_dagster.source.spool import Spools
from etl_dagster.source.stream import ReplicationStream

_log = logging.getLogger(__name__)

#: A destination that is at most this far behind the end of the WAL returns to the shared stream.
_NEAR_BYTES = 16 * 1024**2


class MemberWire:
    """A `runtime.streaming.wire.Wire` that reads the shared slot while it can.

    Whether the destination is set aside is known by one thing: it has a slot of its own. So
    nothing has to be written down, and nothing can contradict it after a crash. The own slot is
    made before the shared one moves on, and dropped after the shared one keeps all that is needed.

    `prepare` belongs to the pipeline's threads, the rest is for any.
    """

    def __init__(
        self,
        shared: SharedSlot,
        config: PipelineConfig,
        store: CoordinatingStore,
        control: SourceControl,
        stop: threading.Event,
        pace: FanOutPace,
        *,
        why: str,
        remark: Callable[[], str | None],
    ) -> None:
        """Args:
        why: the destination was set aside, if it has a slot of its own already.
        remark: what else a reader of the status should know.
        """
        assert config.membership is not None
        self._shared = shared
        self._config = config
        self._store = store
        self._control = control
        self._stop = stop
        self._pace = pace
        self._name = config.membership.name
        self.own_slot = apply_slot_name(config.membership.own_slot_of)
        #: What is read now, or will be by the next stream.
        self._branch: Branch | None = None
        #: What will be read once the own slot's stream has come as far.
        self._ahead: Branch | None = None
        self._own_stream: _OwnStream | None = None
        self._returns = 0
        self._return_at = 0.0
        self._is_aside = False
        self._why = why
        self._remark = remark
        self._own_spools = spools_of(config)

    @property
    def is_aside(self) -> bool:
        """Whether the destination has a slot of its own now."""
        return self._is_aside

    @property
    def slot_name(self) -> str:
        return self.own_slot if self._is_aside else self._shared.name

    @property
    def note(self) -> str | None:
        """What a reader of the status should know of the slot."""
        spools = self._spools
        notes = [
            f"set aside: reads a slot of its own ({self._why})" if self._is_aside else None,
            None if spools is None else spools.note,
            self._remark(),
        ]
        return "; ".join(note for note in notes if note) or None

    @property
    def in_progress(self) -> InProgress:
        return in_progress(self._spools)

    @property
    def _spools(self) -> Spools | None:
        return self._own_spools if self._is_aside else self._shared.spools

    def prepare(self) -> Lsn:
        with self._shared.deciding(self._name):
            return self._prepare()

    def set_aside(self, why: str) -> bool:
        """Give the destination a slot of its own, now; False where its slot is just decided on.

        Its stream ends, and the next one reads that slot.
        """
        lock = self._shared.deciding(self._name)
        if not lock.acquire(blocking=False):
            return False
        try:
            self._shared.set_aside(self._name, self.own_slot, self._progress())
            self._is_aside, self._why = True, why
        finally:
            lock.release()
        return True

    def _prepare(self) -> Lsn:
        if self._branch is not None and self._branch.is_alive and not self._branch.is_opened:
            return self._branch.start_lsn
        self._branch = None
        own = fetch_idle_slot(self._control, self.own_slot, self._stop)
        if own is None:
            self._is_aside = False
            branch = self._shared.branch(self._name, self._progress(), stop=self._stop)
            if branch is not None:
                if self._progress() is None:
                    # Nothing is applied before: a new destination, or one that is copied again.
                    self._store.upsert_replication_progress(ApplyWorker(), branch.start_lsn)
                self._branch = branch
                return branch.start_lsn
            self._shared.set_aside(self._name, self.own_slot, self._progress())
            self._why = "its stream was interrupted"
            _log.warning("%s is set aside, with a slot of its own: %s", self._name, self._why)
            own = fetch_idle_slot(self._control, self.own_slot, self._stop)
        self._is_aside = True
        if self._has_reached_ahead() and (branch := self._return()) is not None:
            return branch.start_lsn
        self._leave_ahead()
        start = require_continuable(own, self.own_slot, self._store)
        if start is None:
            raise SourceUnreachable(f"slot {self.own_slot!r} was dropped just now")
        self._shared.keep_for_standbys(self.own_slot)
        if self._progress() is None:
            self._store.upsert_replication_progress(ApplyWorker(), start)
        self._shared.leave(self._name)
        return start

    def open(self, start_lsn: Lsn) -> OpenStream:
        branch = self._branch
        if branch is not None:
            return branch.reads_into

        def open_stream(session: ReplicationSession) -> ChangeStream:
            self._own_stream = _OwnStream(
                self, self._config, self.own_slot, session, start_lsn, self._own_spools
            )
            return self._own_stream

        return open_stream

    def _progress(self) -> Lsn | None:
        return self._store.get_replication_progress(ApplyWorker())

    # -- back to the shared stream ---------------------------------------------------------------

    def approach(self, server_end: Lsn) -> Lsn | None:
        """Ask for a place in the shared stream once the own one is near the end of the WAL.

        Returns what must be durable before the return; None while there is nothing to hurry for.
        """
        stream = self._own_stream
        if not self._is_aside or stream is None:
            return None
        lock = self._shared.deciding(self._name)
        if not lock.acquire(blocking=False):
            return None
        try:
            return self._approach(stream, server_end)
        finally:
            lock.release()

    @property
    def is_returning(self) -> bool:
        """Whether it has a place in the shared stream, and reads its own slot up to that."""
        return self._ahead is not None

    def give_up_return(self) -> None:
        """Try again later; it continues with its own slot, where that is not just decided on."""
        lock = self._shared.deciding(self._name)
        if not lock.acquire(blocking=False):
            return
        try:
            _log.info("%s was too slow to return to the shared stream; later again", self._name)
            self._leave_ahead()
        finally:
            lock.release()

    def _approach(self, stream: _OwnStream, server_end: Lsn) -> Lsn | None:
        ahead = self._ahead
        if ahead is not None and ahead.is_lost:
            _log.info("%s was too slow to return to the shared stream; later again", self._name)
            self._leave_ahead()
            ahead = None
        now = time.monotonic()
        if ahead is None:
            behind = server_end.offset - stream.confirmed.offset
            if behind > _NEAR_BYTES or now < self._return_at:
                return None
            try:
                ahead = self._ahead = self._shared.join_ahead(self._name)
            except EtlError:
                self._return_at = now + self._pace.return_s
                return None
        return ahead.start_lsn if ahead.is_alive else None

    def _has_reached_ahead(self) -> bool:
        ahead = self._ahead
        return ahead is not None and ahead.is_alive and self._is_past(ahead)

    def _is_past(self, ahead: Branch) -> bool:
        return (self._progress() or LSN_ZERO) >= ahead.start_lsn

    def _return(self) -> Branch | None:
        """Take the place in the shared stream, then drop the own slot; None where it is lost.

        From its place on the destination is pinned, so the shared slot is not further.
        """
        branch, self._ahead = self._ahead, None
        if branch is None or not branch.take_over():
            return None
        shared = self._control.ask("looking at the shared slot", fetch_slot, self._shared.name)
        progress = self._progress() or LSN_ZERO
        if (
            shared is None
            or shared.confirmed_flush_lsn is None
            or shared.is_lost
            or shared.confirmed_flush_lsn > progress
        ):
            branch.close()
            return None
        try:
            self._control.ask("dropping a slot", drop_slot, self.own_slot)
        except BaseException:
            branch.close()
            raise
        self._shared.expects(self._name)
        self._branch, self._own_stream, self._is_aside = branch, None, False
        self._returns = 0
        _log.info("%s has caught up and reads the shared slot again", self._name)
        return branch

    def _leave_ahead(self) -> None:
        branch, self._ahead = self._ahead, None
        if branch is None:
            return
        self._shared.leave(self._name)
        pause_s = doubled_s(self._pace.return_s, self._pace.return_at_most_s, self._returns)
        self._return_at = time.monotonic() + pause_s
        self._returns += 1


class _OwnStream(ReplicationStream):
    """The stream of the own slot, which ends where the shared one can continue it."""

    def __init__(
        self,
        wire: MemberWire,
        config: PipelineConfig,
        slot_name: str,
        session: ReplicationSession,
        start_lsn: Lsn,
        spools: Spools | None,
    ) -> None:
        super().__init__(
            config.source,
            slot_name,
            session,
            start_lsn,
            application_name=f"etl_dagster apply {config.pipeline}",
            spools=spools,
        )
        self._member = wire

    @property
    def is_over(self) -> bool:
        ahead = self._member._ahead
        return ahead is not None and ahead.is_alive and self.confirmed >= ahead.start_lsn

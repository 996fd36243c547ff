"""How the apply worker takes a table over.

In one thread: while the apply worker waits for the store to change, the test plays the table sync
worker, and moves the clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial

import pytest

from etl_dagster.errors import CopyMissing, DestinationUnreachable, EtlError
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import (
    Catchup,
    Errored,
    FinishedCopy,
    Init,
    Ready,
    SyncDone,
    SyncWait,
    TableState,
)
from etl_dagster.runtime.streaming.ownership import Ownership
from etl_dagster.runtime.timing import Timing
from etl_dagster.stores.memory import MemoryStore
from tests.support.scripted import ManualClock, worker_parts

TABLE, OTHER = 16384, 16385


class Store(MemoryStore):
    """Where the apply worker waits, the test continues."""

    def __init__(self) -> None:
        super().__init__()
        self.while_waiting: list[Callable[[], None]] = []
        self.before_withdrawal: Callable[[], None] = lambda: None
        self.clock = ManualClock()

    def wait_for_change(self, timeout_s: float) -> bool:
        if not self.while_waiting:
            self.clock.pass_by(timeout_s)
            return False
        self.while_waiting.pop(0)()
        return True

    def transition_table_state(
        self, table_id: TableId, expected: TableState, new: TableState
    ) -> bool:
        if isinstance(new, SyncWait):
            self.before_withdrawal()
        return super().transition_table_state(table_id, expected, new)


class ApplySide:
    """An apply worker whose stream stands at a position that the test sets."""

    def __init__(self) -> None:
        self.store = Store()
        #: Of table sync workers that live.
        self.leases = {t: self.store.acquire_lease(f"table:{t}") for t in (TABLE, OTHER)}
        self.position = Lsn(1000)
        self.stop = threading.Event()
        self.missing: dict[TableId, EtlError] = {}
        self.unreachable: EtlError | None = None
        self.timing = Timing(catchup_wait_s=5.0, withdrawn_pause_s=2.0)
        parts = worker_parts(
            store=self.store, stop=self.stop, clock=self.store.clock, timing=self.timing
        )
        self.ownership = Ownership(parts, self, self)

    def missing_copies(self, table_ids: Collection[TableId]) -> Mapping[TableId, EtlError]:
        if self.unreachable is not None:
            raise self.unreachable
        return {t: error for t, error in self.missing.items() if t in table_ids}

    def set_state(self, state: TableState, table_id: TableId = TABLE) -> None:
        self.store.update_table_replication_states([(table_id, state)])

    def state(self, table_id: TableId = TABLE) -> TableState | None:
        return self.store.get_table_replication_state(table_id)

    def answer(self, lsn: Lsn | None = None, table_id: TableId = TABLE) -> None:
        """As a table sync worker does that has reached the target, or is past it."""
        target = self.state(table_id)
        assert isinstance(target, Catchup)
        done = SyncDone(lsn or target.target_lsn)
        assert self.store.transition_table_state(table_id, target, done)

    def die(self, table_id: TableId = TABLE) -> None:
        """As a table sync worker does: its lease ends, and the state stays."""
        lease = self.leases[table_id]
        assert lease is not None
        lease.release()

    def meanwhile(self, *steps: Callable[[], None]) -> None:
        """What happens one after the other, each time the apply worker waits."""
        self.store.while_waiting += steps

    def refresh(self) -> None:
        self.ownership.invalidate()
        self.ownership.refresh()


@pytest.fixture
def side() -> ApplySide:
    return ApplySide()


def test_a_ready_table_is_applied_from_its_lsn_on(side: ApplySide) -> None:
    side.set_state(Ready(Lsn(7)))
    side.refresh()
    assert side.ownership.apply_from == {TABLE: Lsn(7)}


def test_a_table_that_is_still_copied_is_not_applied(side: ApplySide) -> None:
    side.set_state(FinishedCopy())
    side.refresh()
    assert side.ownership.apply_from == {}


@pytest.mark.parametrize(("waiting_at", "target"), [(500, 1000), (2000, 2000)])
def test_the_target_lies_past_both_workers(side: ApplySide, waiting_at: int, target: int) -> None:
    named: list[TableState | None] = []
    side.set_state(SyncWait(Lsn(waiting_at)))
    side.meanwhile(lambda: named.append(side.state()), side.answer)

    side.refresh()

    assert named == [Catchup(Lsn(target))]
    assert side.state() == Ready(Lsn(target))
    assert side.ownership.apply_from == {TABLE: Lsn(target)}


def test_a_table_is_applied_from_where_its_worker_really_ended(side: ApplySide) -> None:
    side.set_state(SyncWait(Lsn(1)))
    side.meanwhile(partial(side.answer, Lsn(1234)))

    side.refresh()

    assert side.ownership.apply_from == {TABLE: Lsn(1234)}


def test_a_target_that_is_not_reached_is_withdrawn_and_the_stream_continues(
    side: ApplySide,
) -> None:
    side.set_state(SyncWait(Lsn(1)))

    side.refresh()

    assert side.state() == SyncWait(Lsn(1000))
    assert side.ownership.apply_from == {}
    assert side.store.clock.now_s() == pytest.approx(5.0, abs=0.1)


def test_a_table_whose_target_was_withdrawn_waits_a_moment_for_the_next(side: ApplySide) -> None:
    """So that the stream continues, and the other tables get on."""
    side.set_state(SyncWait(Lsn(1)))
    side.refresh()
    began = side.store.clock.now_s()

    side.refresh()
    assert side.store.clock.now_s() == began

    side.store.clock.pass_by(2.0)
    side.position = Lsn(3000)
    side.meanwhile(side.answer)
    side.refresh()
    assert side.ownership.apply_from == {TABLE: Lsn(3000)}


def test_a_table_that_is_done_as_its_target_is_withdrawn_is_taken(side: ApplySide) -> None:
    """The worker reached its target between the last look and the withdrawal."""
    side.set_state(SyncWait(Lsn(1)))
    side.store.before_withdrawal = side.answer

    side.refresh()

    assert side.state() == Ready(Lsn(1000))
    assert side.ownership.apply_from == {TABLE: Lsn(1000)}


def test_one_slow_table_does_not_keep_the_others_from_being_taken(side: ApplySide) -> None:
    side.set_state(SyncWait(Lsn(1)))
    side.set_state(SyncWait(Lsn(2)), OTHER)
    side.meanwhile(partial(side.answer, table_id=OTHER))

    side.refresh()

    assert side.ownership.apply_from == {OTHER: Lsn(1000)}
    assert side.state() == SyncWait(Lsn(1000))


def test_a_table_whose_worker_died_is_not_waited_for(side: ApplySide) -> None:
    side.set_state(SyncWait(Lsn(1)))
    side.set_state(SyncWait(Lsn(2)), OTHER)
    side.die()
    side.meanwhile(partial(side.answer, table_id=OTHER))

    side.refresh()

    assert side.ownership.apply_from == {OTHER: Lsn(1000)}
    assert side.state() == SyncWait(Lsn(1))
    assert side.store.clock.now_s() == 0.0


def test_the_next_worker_of_a_table_is_waited_for_at_once(side: ApplySide) -> None:
    side.set_state(SyncWait(Lsn(1)))
    side.die()
    side.refresh()
    assert side.store.acquire_lease(f"table:{TABLE}") is not None
    side.meanwhile(side.answer)

    side.refresh()

    assert side.ownership.apply_from == {TABLE: Lsn(1000)}
    assert side.store.clock.now_s() == 0.0


def test_a_worker_that_dies_while_it_is_waited_for_is_waited_for_no_longer(side: ApplySide) -> None:
    side.set_state(SyncWait(Lsn(1)))
    side.meanwhile(side.die)

    side.refresh()

    assert side.state() == SyncWait(Lsn(1000))
    assert side.store.clock.now_s() == pytest.approx(side.timing.lease_check_s, abs=0.1)


def test_a_worker_that_hangs_is_waited_for_less_and_less(side: ApplySide) -> None:
    """It keeps its lease; each wait keeps the changes of all other tables."""
    side.set_state(SyncWait(Lsn(1)))
    waited = []
    for _ in range(60):
        before = side.store.clock.now_s()
        side.refresh()
        waited.append(side.store.clock.now_s() - before)
        side.store.clock.pass_by(1.0)
    assert sum(waited) < 0.4 * side.store.clock.now_s()


def test_a_table_that_is_reset_while_it_is_waited_for_is_waited_for_no_longer(
    side: ApplySide,
) -> None:
    side.set_state(SyncWait(Lsn(1)))
    side.meanwhile(lambda: side.store.request_copy(TABLE))

    side.refresh()

    assert (side.state(), side.ownership.apply_from) == (Init(), {})
    assert side.store.clock.now_s() == 0.0


def test_a_target_of_an_earlier_apply_worker_holds_no_longer(side: ApplySide) -> None:
    side.set_state(Catchup(Lsn(900)))
    side.ownership.start()
    assert side.state() == SyncWait(Lsn(900))


def test_a_table_that_was_finished_meanwhile_is_taken(side: ApplySide) -> None:
    side.set_state(SyncDone(Lsn(1055)))
    side.refresh()
    assert side.state() == Ready(Lsn(1055))
    assert side.ownership.apply_from == {TABLE: Lsn(1055)}


def test_a_table_handed_over_behind_the_stream_stops_with_an_error(side: ApplySide) -> None:
    """What lies between was never read; applying the rest would hide it."""
    side.set_state(SyncDone(Lsn(999)))

    side.refresh()

    state = side.state()
    assert isinstance(state, Errored)
    assert "handed over at 0/3E7" in state.reason
    assert side.ownership.apply_from == {}


def test_a_copy_that_is_not_at_the_destination_is_refused(side: ApplySide) -> None:
    side.missing = {TABLE: CopyMissing("the copy is in another file")}
    side.set_state(SyncWait(Lsn(1)))
    side.set_state(SyncWait(Lsn(1)), OTHER)
    side.meanwhile(partial(side.answer, table_id=OTHER))

    side.refresh()

    state = side.state()
    assert isinstance(state, Errored)
    assert state.reason == "the copy is in another file"
    assert side.ownership.apply_from == {OTHER: Lsn(1000)}


def test_no_target_is_named_while_the_destination_cannot_be_asked(side: ApplySide) -> None:
    side.unreachable = DestinationUnreachable("away")
    side.set_state(SyncWait(Lsn(1)))
    side.refresh()
    assert side.state() == SyncWait(Lsn(1))

    side.unreachable = None
    side.store.clock.pass_by(2.0)
    side.meanwhile(side.answer)
    side.refresh()
    assert side.state() == Ready(Lsn(1000))


def test_a_stop_ends_the_wait_for_a_table(side: ApplySide) -> None:
    side.set_state(SyncWait(Lsn(1)))
    side.meanwhile(side.stop.set)
    side.refresh()
    assert side.ownership.apply_from == {}


def test_states_are_read_again_once_a_second_or_on_notice(side: ApplySide) -> None:
    side.ownership.refresh()
    side.set_state(Ready(Lsn(7)))
    side.ownership.refresh()
    assert side.ownership.apply_from == {}

    side.store.clock.pass_by(side.timing.refresh_s)
    side.ownership.refresh()
    assert side.ownership.apply_from == {TABLE: Lsn(7)}

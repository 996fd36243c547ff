"""How the apply worker takes a table over."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from etl_dagster.lsn import Lsn
from etl_dagster.model.states import Catchup, FinishedCopy, Ready, SyncDone, SyncWait
from etl_dagster.runtime.streaming import ownership as ownership_module
from etl_dagster.runtime.streaming.ownership import Ownership
from etl_dagster.stores.memory import MemoryStore

TABLE = 16384


class ApplySide:
    """An apply worker whose stream stands at a position that the test sets."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.position = Lsn(1000)
        self.taken: list[int] = []
        self.stop = threading.Event()
        self.ownership = Ownership(
            self.store, position=lambda: self.position, on_taken=self.taken.append, stop=self.stop
        )

    def set_state(self, state: object) -> None:
        self.store.update_table_replication_states([(TABLE, state)])  # type: ignore[list-item]

    @property
    def state(self) -> object:
        return self.store.get_table_replication_state(TABLE)

    def refresh(self) -> None:
        self.ownership.invalidate()
        self.ownership.refresh()

    def answered_by(self, answer: Callable[[Catchup], None]) -> threading.Thread:
        """A table sync worker that answers the target as soon as it is named."""

        def run() -> None:
            while not isinstance(state := self.state, Catchup):
                self.store.wait_for_change(5)
            answer(state)

        thread = threading.Thread(target=run)
        thread.start()
        return thread


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
    named: list[Catchup] = []

    def answer(state: Catchup) -> None:
        named.append(state)
        side.store.transition_table_state(TABLE, state, SyncDone(state.target_lsn))

    side.set_state(SyncWait(Lsn(waiting_at)))
    worker = side.answered_by(answer)
    side.refresh()
    worker.join()

    assert named == [Catchup(Lsn(target))]
    assert side.state == Ready(Lsn(target))
    assert side.ownership.apply_from == {TABLE: Lsn(target)}
    assert side.taken == [TABLE]


def test_a_table_is_applied_from_where_its_worker_really_ended(side: ApplySide) -> None:
    side.set_state(SyncWait(Lsn(1)))
    worker = side.answered_by(
        lambda state: side.store.transition_table_state(TABLE, state, SyncDone(Lsn(1234)))
    )
    side.refresh()
    worker.join()

    assert side.ownership.apply_from == {TABLE: Lsn(1234)}


def test_a_target_that_is_not_reached_is_withdrawn_and_the_stream_goes_on(
    side: ApplySide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership_module, "_CATCHUP_WAIT_S", 0.05)
    side.set_state(SyncWait(Lsn(1)))

    side.refresh()

    assert side.state == SyncWait(Lsn(1000))
    assert side.ownership.apply_from == {}
    # It is left alone for a moment, so that the others get on.
    side.refresh()
    assert side.state == SyncWait(Lsn(1000))


def test_a_target_of_an_earlier_apply_worker_holds_no_longer(side: ApplySide) -> None:
    side.set_state(Catchup(Lsn(900)))
    side.ownership.start()
    assert side.state == SyncWait(Lsn(900))


def test_a_table_that_was_done_while_nobody_looked_is_taken(side: ApplySide) -> None:
    side.set_state(SyncDone(Lsn(1055)))
    side.refresh()
    assert side.state == Ready(Lsn(1055))
    assert side.ownership.apply_from == {TABLE: Lsn(1055)}


def test_a_stop_ends_the_wait_for_a_table(side: ApplySide) -> None:
    side.set_state(SyncWait(Lsn(1)))
    worker = side.answered_by(lambda state: side.stop.set())
    side.refresh()
    worker.join()
    assert side.ownership.apply_from == {}

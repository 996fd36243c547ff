"""What is kept for tables that stopped, how much of it, and what is reported."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from etl_dagster.lsn import Lsn
from etl_dagster.model.states import Errored, ManualRetry, TimedRetry
from etl_dagster.runtime.kept_slots import KeptSlots
from etl_dagster.runtime.showing.stopped import what_to_do, where_it_stopped
from etl_dagster.source.slots import Slot, drop_slot, fetch_copying_slots, table_sync_slot_name
from etl_dagster.stores.memory import MemoryStore
from tests.support.scripted import ManualClock, ScriptedSource, config

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STOPPED = Errored("refused", "Move it.", ManualRetry(), since=NOON, lsn=Lsn(7), is_kept=True)
NAME = table_sync_slot_name("scripted", 1)
SLOT = Slot(NAME, "pgoutput", "d", False, None, "reserved", Lsn(5), Lsn(6), 1000)


class Fixture:
    def __init__(self) -> None:
        self.store, self.clock = MemoryStore(), ManualClock()
        self.store.update_table_replication_states([(1, STOPPED)])
        self.slots = [SLOT]
        source = ScriptedSource(
            {
                fetch_copying_slots: lambda pipeline: list(self.slots),
                drop_slot: lambda name: self.slots.clear(),
            }
        )
        settings = config(retry={"max_retained_wal": 1000})
        self.source = source
        self.kept = KeptSlots(settings, self.store, source, self.clock)

    def look(self) -> Errored:
        self.clock.pass_by(60)
        self.kept.look()
        state = self.store.get_table_replication_state(1)
        assert isinstance(state, Errored)
        return state


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


def test_a_slot_within_its_budget_is_measured_and_stays(fixture: Fixture) -> None:
    assert fixture.look() == STOPPED
    assert fixture.kept.wal == {1: 1000}
    assert fixture.slots == [SLOT]


@pytest.mark.parametrize("retry", [ManualRetry(), TimedRetry(NOON)])
@pytest.mark.parametrize(
    ("slot", "reason"),
    [
        (replace(SLOT, retained_bytes=1001), "more than retry.max_retained_wal"),
        (replace(SLOT, wal_status="lost", invalidation_reason="idle_timeout"), "idle_timeout"),
        (None, "its slot is gone"),
    ],
    ids=["too large", "lost", "gone"],
)
def test_a_table_that_cannot_be_kept_waits_for_an_operator_and_a_copy(
    fixture: Fixture, slot: Slot | None, reason: str, retry: ManualRetry | TimedRetry
) -> None:
    """Not even an automatic retry: it would be a copy that was not asked for."""
    fixture.store.update_table_replication_states([(1, replace(STOPPED, retry=retry))])
    fixture.slots = [] if slot is None else [slot]

    state = fixture.look()

    assert (state.is_kept, state.retry, state.lsn) == (False, ManualRetry(), Lsn(7))
    assert reason in state.reason
    assert fixture.slots == []
    fixture.look()
    assert fixture.kept.wal == {}


def test_a_slot_that_a_worker_resumes_is_left_alone(fixture: Fixture) -> None:
    fixture.slots = [replace(SLOT, retained_bytes=1001)]
    assert fixture.store.acquire_lease("table:1") is not None

    assert fixture.look() == STOPPED
    assert len(fixture.slots) == 1


def test_the_source_is_not_queried_unless_a_table_has_stopped(fixture: Fixture) -> None:
    fixture.store.delete_table_pipeline_state(1)
    fixture.kept.look()

    assert fixture.source.asked == []


def test_a_table_that_stopped_is_shown_with_how_to_resume_it() -> None:
    lost = replace(STOPPED, is_kept=False)
    by_itself = replace(STOPPED, retry=TimedRetry(NOON))
    while_copied = Errored("refused", "Move it.", ManualRetry())

    assert "without a copy: `etl-dagster retry public.a`" in what_to_do(STOPPED, "public.a")
    assert "`etl-dagster resync public.a`" in what_to_do(lost, "public.a")
    again = "Move it. The table is tried again at 2026-01-01 12:00:00 UTC."
    assert what_to_do(by_itself, "public.a") == again
    assert what_to_do(while_copied, "public.a") == "Move it."
    assert where_it_stopped(NOON.isoformat(), "0/7", 2048) == (
        "stopped at 0/7 since 2026-01-01 12:00:00 UTC; the source keeps 2.0 KiB of WAL for it"
    )

"""When the sensor says something about a table, and what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dagster import AssetCheckEvaluation, AssetCheckSeverity, AssetKey, AssetMaterialization

from etl_dagster.integrations.dagster.reports import Event, Reports
from etl_dagster.runtime.status import PipelineStatus, TableStatus

KEY = AssetKey(["shop", "public", "orders"])
READY = TableStatus(
    table_id=1,
    name="public.orders",
    state="ready",
    state_id="dev:shop-to-duckdb:public.orders",
    row_count=10,
)


class Ticks:
    """Reports on a clock that the test moves."""

    def __init__(self, was_reported: bool = True) -> None:
        self.now = 1000.0
        self.was_reported = was_reported
        self.reports = Reports(clock=lambda: self.now)

    def tick(
        self, table: TableStatus, *, after_s: float = 5.0, generation: int = 1, **status: Any
    ) -> list[Event]:
        self.now += after_s
        whole = PipelineStatus("shop", "duckdb", "streaming", tables={table.name: table}, **status)
        return self.reports.due(
            whole,
            generation,
            {table.name: KEY},
            every_s=30.0,
            was_reported=lambda key: self.was_reported,
        )


def reported(events: list[Event]) -> list[dict[str, Any]]:
    return [
        {name: value.value for name, value in event.metadata.items()}
        for event in events
        if isinstance(event, AssetMaterialization)
    ]


def checked(events: list[Event]) -> list[AssetCheckEvaluation]:
    return [event for event in events if isinstance(event, AssetCheckEvaluation)]


def test_a_table_that_changes_all_the_time_is_reported_once_in_the_interval() -> None:
    ticks = Ticks()
    counts = []
    for number in range(1, 21):
        counts += reported(ticks.tick(replace(READY, rows_inserted=number * 10)))
    # 100 s of ticks: the first at once, then every 30 s.
    assert [each["rows_inserted"] for each in counts] == [10, 60, 60, 60]


def test_an_idle_table_is_not_reported_again() -> None:
    ticks = Ticks()
    assert len(reported(ticks.tick(replace(READY, rows_deleted=1)))) == 1
    for _ in range(20):
        assert not reported(ticks.tick(replace(READY, rows_deleted=1)))


def test_after_its_copy_a_table_is_reported_though_nothing_changed() -> None:
    assert len(reported(Ticks(was_reported=False).tick(READY))) == 1


def test_a_reload_of_the_code_does_not_report_an_idle_table() -> None:
    """Every materialization may set downstream automation going."""
    assert not reported(Ticks(was_reported=True).tick(READY))


def test_a_new_replicator_counts_from_zero() -> None:
    ticks = Ticks()
    ticks.tick(replace(READY, rows_updated=100))
    (after,) = reported(ticks.tick(replace(READY, rows_updated=7), after_s=31, generation=2))
    assert after["rows_updated"] == 7


def test_a_table_that_is_being_copied_is_not_reported() -> None:
    assert not Ticks().tick(replace(READY, state="data_sync", rows_inserted=5))


def test_a_report_waits_for_the_row_count() -> None:
    """The UI drops its row count when the latest event has none."""
    ticks = Ticks()
    uncounted = replace(READY, row_count=None, rows_inserted=1)
    assert not reported(ticks.tick(uncounted))
    assert reported(ticks.tick(replace(uncounted, row_count=11)))[0]["dagster/row_count"] == 11


def test_a_destination_that_can_not_count_is_reported_all_the_same() -> None:
    ticks = Ticks()
    uncounted = replace(READY, row_count=None, rows_inserted=1)
    ticks.tick(uncounted)
    assert reported(ticks.tick(uncounted, after_s=20))


def test_a_table_that_stopped_fails_its_check_with_reason_and_solution() -> None:
    ticks = Ticks()
    assert checked(ticks.tick(READY))[0].passed
    stopped = replace(READY, state="errored", error="it broke", solution="mend it")
    (check,) = checked(ticks.tick(stopped))
    assert not check.passed
    assert check.severity is AssetCheckSeverity.ERROR
    assert check.description == "it broke\n\nWhat to do: mend it"
    assert not checked(ticks.tick(stopped))


def test_a_stream_that_is_late_warns_until_it_has_caught_up() -> None:
    ticks = Ticks()
    outcomes = [
        [check.passed for check in checked(ticks.tick(READY, lag_seconds=lag))]
        for lag in (0.0, 400.0, 500.0, 1.0)
    ]
    assert outcomes == [[True], [False], [], [True]]

"""When the sensor says something about a table, and what."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from dagster import AssetCheckEvaluation, AssetCheckSeverity, AssetKey, AssetMaterialization

from etl_dagster.integrations.dagster.checks.lag import dead
from etl_dagster.integrations.dagster.history import LastEvents
from etl_dagster.integrations.dagster.sensor.in_tick import TickCounts
from etl_dagster.integrations.dagster.sensor.reports import Event, Reports
from etl_dagster.integrations.dagster.sensor.settings import BUSY_REPORT_EVERY_S, REPORT_EVERY_S
from etl_dagster.integrations.dagster.worst_lag import WorstLag
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus

KEY = AssetKey(["shop", "public", "orders"])
READY = TableStatus(
    table_id=1,
    name="public.orders",
    state="ready",
    state_id="dev:shop-to-duckdb:public.orders",
    row_count=10,
)


class Ticks:
    """Reports on a clock that the test moves; Dagster stores what they give, unless told not to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.last = LastEvents(materialized_at=900.0)
        self.number = 0
        self.reports = Reports(clock=lambda: self.now, wall_clock=lambda: self.now)
        self.worst_lag = WorstLag(clock=lambda: self.now)

    def tick(
        self,
        table: TableStatus,
        *,
        after_s: float = 5.0,
        generation: int = 1,
        stored: bool = True,
        waiting: str | None = None,
        idle_every_s: float | None = None,
        busy_every_s: float | None = None,
        **status: Any,
    ) -> list[Event]:
        self.now += after_s
        self.reports.settle(f"tick {self.number}" if self.number else None)
        self.number += 1
        status = {"phase": "streaming", "at": self.now} | status
        whole = PipelineStatus("shop", "duckdb", tables={table.name: table}, **status)
        self.worst_lag.note(whole)
        events = self.reports.due(
            whole,
            generation,
            {table.name: KEY},
            every_s=30.0,
            busy_every_s=busy_every_s,
            idle_every_s=idle_every_s,
            worst_lag=self.worst_lag,
            history={KEY: self.last},
            waiting={} if waiting is None else {table.name: waiting},
        )
        self.reports.expect(f"tick {self.number}" if stored else "lost")
        if stored and reported(events):
            self.last = LastEvents(materialized_at=self.now)
        return events


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


def test_a_table_that_gets_the_name_of_another_is_reported_with_its_own_counts() -> None:
    """A table was dropped and created again: the counts of the new one begin at zero."""
    ticks = Ticks()
    assert reported(ticks.tick(replace(READY, rows_inserted=1000)))
    another = replace(READY, table_id=2, state="init")
    assert not reported(ticks.tick(another))
    ready = replace(READY, table_id=2, rows_inserted=5)
    (report,) = reported(ticks.tick(ready, after_s=60.0))
    assert report["rows_inserted"] == 5
    # How long these five took is not known.
    assert "rows_per_second" not in report


def test_the_counts_of_ticks_add_up_for_a_table_and_not_for_its_name() -> None:
    counts = TickCounts()
    added = []
    for table_id, name in ((1, "public.orders"), (1, "public.old"), (2, "public.orders")):
        table = replace(READY, table_id=table_id, name=name, rows_inserted=10)
        status = PipelineStatus("shop", "duckdb", "streaming", tables={name: table})
        added.append(counts.add(status).tables[name].rows_inserted)
    assert added == [10, 20, 10]


def test_reports_of_a_table_that_changes_all_the_time_come_less_and_less_often() -> None:
    """Dagster keeps each of them for good."""
    ticks, times = Ticks(), list[float]()
    for number in range(1, 400):
        if reported(ticks.tick(replace(READY, rows_inserted=number), busy_every_s=300.0)):
            times.append(ticks.now)
    apart = [after - before for before, after in itertools.pairwise(times)]
    assert apart[:5] == [30.0, 60.0, 120.0, 240.0, 300.0]
    assert set(apart[5:]) == {300.0}
    # After a rest of twice the pause, a change is reported at once, and the next one soon.
    ticks.tick(replace(READY, rows_inserted=400), after_s=300.0, busy_every_s=300.0)
    ticks.tick(replace(READY, rows_inserted=400), after_s=301.0, busy_every_s=300.0)
    changed = replace(READY, rows_inserted=401)
    assert reported(ticks.tick(changed, after_s=400.0, busy_every_s=300.0))
    changed = replace(READY, rows_inserted=402)
    assert reported(ticks.tick(changed, after_s=30.0, busy_every_s=300.0))


def test_fifty_busy_tables_take_less_than_50_mb_of_the_event_log_a_day() -> None:
    """Dagster never removes an event; the guide says so, and what each takes.

    Ticks are far apart here, as in the mode ``tick``, so that a tick can't report every table.
    """
    hours, kilobytes = 2, {"report": 2.0, "check": 3.6}
    now = 0.0
    reports = Reports(clock=lambda: now, wall_clock=lambda: now)
    names = [f"public.t{number}" for number in range(50)]
    keys = {name: AssetKey(name.split(".")) for name in names}
    history = {key: LastEvents(materialized_at=0.0) for key in keys.values()}
    events: list[Event] = []
    for number in range(1, (1 + hours) * 120):
        now = number * 30.0
        tables = {name: replace(READY, name=name, rows_inserted=number) for name in names}
        status = PipelineStatus("shop", "duckdb", "streaming", tables=tables, at=now)
        found = reports.due(
            status,
            1,
            keys,
            every_s=REPORT_EVERY_S,
            busy_every_s=BUSY_REPORT_EVERY_S,
            history=history,
        )
        reports.settle(None)
        # In the first hour the pauses grow.
        events += found if now > 3600.0 else []
    checks_of_tables, checks_of_the_pipeline = 3, 4
    checks = checks_of_tables * len(checked(events)) + checks_of_the_pipeline * hours
    used = len(reported(events)) * kilobytes["report"] + checks * kilobytes["check"]

    assert 40.0 < used / 1000 * 24 / hours < 50.0


def test_a_report_has_the_largest_lag_and_the_rows_per_second_since_the_last_one() -> None:
    ticks = Ticks()
    (first,) = reported(ticks.tick(replace(READY, rows_inserted=5), lag_seconds=3.0, lag_bytes=8))
    assert (first["lag_seconds"], first["lag_bytes"]) == (3.0, 8)
    assert "rows_per_second" not in first
    for lag in (0.5, 7.0, 0.1, 0.0, 0.0):
        ticks.tick(replace(READY, rows_inserted=50), lag_seconds=lag, lag_bytes=round(lag * 1000))
    (second,) = reported(ticks.tick(replace(READY, rows_inserted=50, rows_deleted=15)))
    assert (second["lag_seconds"], second["lag_bytes"]) == (7.0, 7000)
    assert second["rows_per_second"] == (45 + 15) / 30
    (third,) = reported(ticks.tick(replace(READY, rows_inserted=51, rows_deleted=15), after_s=30))
    assert third["lag_seconds"] == 0.0


def test_an_idle_table_is_not_reported_again() -> None:
    ticks = Ticks()
    assert len(reported(ticks.tick(replace(READY, rows_deleted=1)))) == 1
    for _ in range(20):
        assert not reported(ticks.tick(replace(READY, rows_deleted=1)))


def test_a_table_of_which_dagster_has_no_event_is_reported_though_nothing_changed() -> None:
    """Its copy may have been made outside of Dagster."""
    ticks = Ticks()
    ticks.last = LastEvents()
    assert len(reported(ticks.tick(READY))) == 1


def test_after_its_copy_in_a_run_a_table_is_not_reported_again() -> None:
    """Every materialization may set downstream automation going; the copy has one of its own."""
    ticks = Ticks()
    ticks.tick(replace(READY, state="data_sync"))
    ticks.last = LastEvents(materialized_at=ticks.now, run_id="copy")
    for _ in range(20):
        assert not reported(ticks.tick(READY))


def test_a_reload_of_the_code_does_not_report_an_idle_table() -> None:
    assert not reported(Ticks().tick(READY, idle_every_s=3600.0))


def test_an_idle_table_is_reported_now_and_then_while_the_stream_lives() -> None:
    """Otherwise its freshness would tell nothing."""
    ticks = Ticks()
    reports = [
        len(reported(ticks.tick(READY, after_s=60.0, idle_every_s=3600.0))) for _ in range(130)
    ]
    assert sum(reports) == 2
    dead = [
        reported(ticks.tick(READY, after_s=60.0, idle_every_s=3600.0, phase="retrying", error="-"))
        for _ in range(130)
    ]
    assert not any(dead)


def test_events_that_dagster_has_not_stored_are_sent_again() -> None:
    ticks = Ticks()
    changed = replace(READY, rows_inserted=3)
    lost = ticks.tick(changed, stored=False)
    again = ticks.tick(changed)
    assert [e["rows_inserted"] for e in reported(lost)] == [3]
    assert [e["rows_inserted"] for e in reported(again)] == [3]
    assert len(checked(lost)) == len(checked(again)) == 1
    assert not ticks.tick(changed)


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


def test_a_destination_that_cannot_count_is_reported_all_the_same() -> None:
    ticks = Ticks()
    uncounted = replace(READY, row_count=None, rows_inserted=1)
    ticks.tick(uncounted)
    assert reported(ticks.tick(uncounted, after_s=20))


def test_a_table_that_stopped_fails_its_check_with_reason_and_solution() -> None:
    ticks = Ticks()
    assert checked(ticks.tick(READY))[0].passed
    stopped = replace(READY, state="errored", error="it broke", solution="fix it")
    (check,) = checked(ticks.tick(stopped))
    assert not check.passed
    assert check.severity is AssetCheckSeverity.ERROR
    assert check.description == "it broke\n\nWhat to do: fix it"
    assert not checked(ticks.tick(stopped))


def test_a_stream_that_is_late_warns_until_it_has_caught_up() -> None:
    ticks = Ticks()
    outcomes = [
        [check.passed for check in checked(ticks.tick(READY, lag_seconds=lag))]
        for lag in (0.0, 400.0, 500.0, 1.0)
    ]
    assert outcomes == [[True], [False], [], [True]]


def test_wal_that_is_kept_past_the_bound_warns_until_it_is_released() -> None:
    ticks = Ticks()
    outcomes = [
        [
            (check.passed, check.severity, "keeps" in (check.description or ""))
            for check in checked(
                ticks.tick(READY, retained_wal_bytes=kept, wal_warned_above_bytes=5_000_000)
            )
        ]
        for kept in (5_000_000, 5_000_001, 1)
    ]
    warn = AssetCheckSeverity.WARN
    assert outcomes == [[(True, warn, False)], [(False, warn, True)], [(True, warn, False)]]


def test_a_check_is_sent_again_once_a_run_of_the_table_has_ended() -> None:
    """Dagster shows an evaluation until the next run of the asset, also where that is canceled."""
    ticks = Ticks()
    assert checked(ticks.tick(READY))
    assert not checked(ticks.tick(READY))
    ticks.last = LastEvents(900.0, run_id="a copy", is_running=True)
    assert not checked(ticks.tick(READY))
    ticks.last = LastEvents(900.0, run_id="a copy")
    assert checked(ticks.tick(READY))
    assert not checked(ticks.tick(READY))


def test_a_check_that_was_sent_during_a_run_is_sent_again_after_it() -> None:
    """A table is in step moments before its copy's materialization, which hides the evaluation."""
    ticks = Ticks()
    ticks.last = LastEvents(None, run_id="a copy", is_running=True)
    assert checked(ticks.tick(READY))
    assert not checked(ticks.tick(READY))
    ticks.last = LastEvents(900.0, run_id="a copy")
    assert checked(ticks.tick(READY))
    assert not checked(ticks.tick(READY))


def test_a_check_is_not_hidden_while_the_run_of_a_table_copies_others() -> None:
    """A run of all tables may go through them for hours."""
    ticks = Ticks()
    assert checked(ticks.tick(READY))
    done = LastEvents(ticks.now + 4.0, run_id="a copy", is_running=True, has_materialized=True)
    ticks.last = done
    # Its evaluation must be later than the materialization by whole seconds.
    assert not checked(ticks.tick(READY, after_s=5.0))
    assert checked(ticks.tick(READY, after_s=5.0))
    ticks.last = replace(done, is_running=False)
    assert not checked(ticks.tick(READY))


def test_a_check_that_passes_has_the_time_of_its_status_and_is_refreshed() -> None:
    ticks = Ticks()
    (first,) = checked(ticks.tick(READY, at=1.0e9, after_s=1.0e9 - 1000))
    assert first.description is not None
    assert first.description.endswith("as of 2001-09-09 01:46:40 UTC.")
    later = [checked(ticks.tick(READY, after_s=60.0)) for _ in range(20)]
    assert len([events for events in later if events]) == 2


def test_a_status_that_is_old_says_nothing_about_now() -> None:
    ticks = Ticks()
    assert checked(ticks.tick(READY))[0].passed
    (check,) = checked(ticks.tick(READY, after_s=120.0, at=1005.0))
    assert not check.passed
    assert check.severity is AssetCheckSeverity.ERROR
    assert "Nothing streams: the replicator last reported at" in (check.description or "")


def test_a_stream_that_is_stopping_fails_the_check_and_says_so() -> None:
    ticks = Ticks()
    (check,) = checked(ticks.tick(READY, phase="stopping"))
    assert not check.passed
    assert "Nothing streams: the replicator is stopping" in (check.description or "")


def test_an_interruption_of_some_seconds_sends_no_event() -> None:
    ticks = Ticks()
    assert checked(ticks.tick(READY))[0].passed
    broken = {"phase": "retrying", "error": "the source is away", "solution": "Start it."}
    assert not checked(ticks.tick(READY, **broken))
    (check,) = checked(ticks.tick(READY, after_s=20.0, **broken))
    assert not check.passed
    assert check.description == (
        "The stream is interrupted: the source is away\n\nWhat to do: Start it."
    )
    assert checked(ticks.tick(READY))[0].passed


def test_the_checks_of_a_dead_stream_fail_once_for_each_reason() -> None:
    ticks, keys = Ticks(), {READY.name: KEY}
    ticks.tick(READY)
    ticks.reports.settle("tick 1")
    (check,) = ticks.reports.dead("the slot is gone", "Reset it.", keys)
    assert (check.passed, check.severity) == (False, AssetCheckSeverity.ERROR)
    assert check.description == "the slot is gone\n\nWhat to do: Reset it."
    assert not ticks.reports.dead("the slot is gone", "Reset it.", keys)
    assert ticks.reports.dead("the password is wrong", "Correct it.", keys)
    ticks.number = 0
    ticks.reports.expect(None)
    assert checked(ticks.tick(READY))[0].passed


def test_a_table_whose_copy_is_held_back_fails_its_check_with_the_reason() -> None:
    ticks = Ticks()
    (check,) = checked(ticks.tick(replace(READY, state="init"), waiting="It was canceled."))
    assert (check.passed, check.description) == (False, "It was canceled.")


def test_commands_in_a_solution_are_quoted_as_plain_text() -> None:
    """The UI shows the words of a check as they are."""
    assert dead("Nothing streams", "Start `etl-dagster run`.").words == (
        "Nothing streams\n\nWhat to do: Start 'etl-dagster run'."
    )

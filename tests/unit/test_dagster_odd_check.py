"""The check that warns of values that a column's type can't hold, and when the sensor sends it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from dagster import AssetCheckEvaluation, AssetCheckSeverity, AssetKey

from etl_dagster.integrations.dagster.checks.check_names import ODD_CHECK
from etl_dagster.integrations.dagster.checks.lag import LagVerdict, dead
from etl_dagster.integrations.dagster.checks.odd_check import OddReports, held
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus

KEY = AssetKey(["shop", "public", "orders"])
NAME = "public.orders"
IN_STEP = LagVerdict(True, False, "in step", "")
DEAD = dead("the slot is gone", "Reset the pipeline.")


def _table(**odd_values: int) -> TableStatus:
    return TableStatus(1, NAME, "ready", "dev:shop-to-duckdb:public.orders", odd_values=odd_values)


UNCOUNTED = replace(_table(), odd_values=None)


# -- what it says --------------------------------------------------------------------------------


def test_it_passes_if_the_types_can_hold_every_value() -> None:
    assert held(_table(), IN_STEP).passed


def test_it_warns_with_the_count_of_each_column() -> None:
    found = held(_table(price=1200, amount=3), IN_STEP).result(KEY)

    assert (found.passed, found.severity) == (False, AssetCheckSeverity.WARN)
    assert found.check_name == ODD_CHECK
    assert "amount 3, price 1,200" in (found.description or "")
    assert found.metadata["odd_values"].value == {"price": 1200, "amount": 3}


def test_it_says_how_many_rows_are_in_quarantine() -> None:
    found = held(replace(_table(amount=3), rows_quarantined=2), IN_STEP).result(KEY)

    assert not found.passed
    assert "; 2 rows with such a value are in quarantine" in (found.description or "")
    assert found.metadata["rows_quarantined"].value == 2


@pytest.mark.parametrize(
    ("table", "stream", "told"),
    [
        (None, IN_STEP, "has not seen this table"),
        (UNCOUNTED, IN_STEP, "not counted yet"),
        (_table(), DEAD, "the slot is gone"),
        (_table(amount=3), DEAD, "What to do: Reset the pipeline."),
    ],
)
def test_it_does_not_pass_where_nothing_is_known(
    table: TableStatus | None, stream: LagVerdict, told: str
) -> None:
    found = held(table, stream)

    assert not found.passed
    assert told in found.words


@pytest.mark.parametrize("table", [_table(amount=3), UNCOUNTED])
def test_counts_reach_other_processes_with_the_status(table: TableStatus) -> None:
    status = PipelineStatus("shop", "duckdb", "streaming", tables={"t": table})

    assert PipelineStatus.from_json(status.to_json()) == status


# -- when the sensor sends it --------------------------------------------------------------------


class Ticks:
    """Reports on a clock that the test moves; Dagster stores what they give, unless told not to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.reports = OddReports(clock=lambda: self.now, wall_clock=lambda: self.now)

    def tick(
        self,
        table: TableStatus,
        *,
        after_s: float = 5.0,
        stored: bool = True,
        again: bool = False,
        at: float | None = None,
    ) -> list[AssetCheckEvaluation]:
        self.now += after_s
        status = PipelineStatus(
            "shop", "duckdb", "streaming", tables={NAME: table}, at=at or self.now
        )
        events = self.reports.due(status, {NAME: KEY}, again=[NAME] if again else [])
        self.reports.settle(stored)
        return events


def _passed(events: list[AssetCheckEvaluation]) -> list[bool]:
    assert {event.check_name for event in events} <= {ODD_CHECK}
    return [event.passed for event in events]


def test_it_is_sent_when_values_come_that_a_type_cannot_hold_and_when_they_are_gone() -> None:
    ticks = Ticks()
    sent: list[Any] = [
        _passed(ticks.tick(table))
        for table in (_table(), _table(), _table(amount=1), _table(amount=1), _table(), _table())
    ]

    assert sent == [[True], [], [False], [], [True], []]


def test_another_column_is_news_and_another_number_only_after_a_while() -> None:
    ticks = Ticks()
    ticks.tick(_table(amount=1))

    assert _passed(ticks.tick(_table(amount=2))) == []
    assert _passed(ticks.tick(_table(amount=2, price=1))) == [False]
    assert _passed(ticks.tick(_table(amount=3, price=1), after_s=299)) == []
    [event] = ticks.tick(_table(amount=4, price=1), after_s=1)
    assert event.metadata["odd_values"].value == {"amount": 4, "price": 1}


def test_it_is_sent_again_after_ten_minutes_after_a_run_and_when_it_was_not_stored() -> None:
    ticks = Ticks()
    ticks.tick(_table())

    assert _passed(ticks.tick(_table(), after_s=599)) == []
    assert _passed(ticks.tick(_table(), after_s=1, stored=False)) == [True]
    assert _passed(ticks.tick(_table())) == [True]
    assert _passed(ticks.tick(_table(), again=True)) == [True]
    assert _passed(ticks.tick(_table())) == []


def test_the_last_outcome_stays_while_a_table_is_copied_or_not_counted() -> None:
    ticks = Ticks()
    ticks.tick(_table(amount=1))

    assert ticks.tick(UNCOUNTED) == []
    assert ticks.tick(replace(_table(), state="data_sync")) == []
    assert _passed(ticks.tick(_table())) == [True]


def test_a_stream_that_has_ended_is_not_green_and_is_reported_once() -> None:
    ticks = Ticks()
    assert _passed(ticks.tick(_table())) == [True]

    [event] = ticks.tick(_table(), at=ticks.now - 3600)
    assert not event.passed
    assert "Nothing streams" in (event.description or "")
    assert _passed(ticks.reports.dead(DEAD, {NAME: KEY})) == [False]
    ticks.reports.settle(True)
    assert _passed(ticks.reports.dead(DEAD, {NAME: KEY})) == []
    assert _passed(ticks.tick(_table())) == [True]

"""What Dagster says of a table that stopped, that is tried again, and that catches up."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from etl_dagster.integrations.dagster.checks.lag import LagVerdict, Published
from etl_dagster.integrations.dagster.sensor import words
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import (
    Catchup,
    DataSync,
    Errored,
    FinishedCopy,
    ManualRetry,
    SyncWait,
    TableState,
    TimedRetry,
)
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus
from etl_dagster.runtime.showing.stopped import retry_at

READY = TableStatus(1, "public.orders", "ready", "dev:shop-to-duckdb:public.orders")
SINCE = datetime(2026, 11, 27, 1, 0, tzinfo=UTC)
STOPPED = Errored("no room", "Make room.", ManualRetry(), SINCE, Lsn(0x64), is_kept=True)
ASKED = replace(STOPPED, retry=TimedRetry(SINCE, attempt=0))
AGAIN = replace(STOPPED, retry=TimedRetry(datetime(2026, 11, 27, 1, 5, tzinfo=UTC), attempt=2))


def verdict(state: TableState) -> LagVerdict:
    """The check's verdict if the state is newer than what was published."""
    status = PipelineStatus(
        "shop", "duckdb", "streaming", at=time.time(), tables={READY.name: READY}
    )
    return Published(status, True, {1: state}).verdict("shop", READY.name)


def line(table: TableStatus) -> str:
    status = PipelineStatus("shop", "duckdb", "streaming", tables={table.name: table})
    return words.line(status, {})


def test_a_table_that_stopped_names_the_command_that_resumes_it() -> None:
    found = verdict(STOPPED)

    assert (found.passed, found.is_severe) == (False, True)
    assert found.words.startswith("no room (stopped at 0/64 since 2026-11-27 01:00:00 UTC)")
    assert "without a copy: 'etl-dagster retry public.orders'" in found.words
    assert "stopped: public.orders" in line(replace(READY, state="errored"))


def test_a_table_whose_retry_was_asked_for_asks_for_nothing_more() -> None:
    found = verdict(ASKED)

    assert (found.passed, found.is_severe) == (False, False)
    assert "a retry was asked for, and the table is resumed without a copy" in found.words
    assert "etl-dagster" not in found.words
    assert found.kind != verdict(STOPPED).kind


def test_a_table_that_is_tried_again_by_itself_says_when() -> None:
    found = verdict(AGAIN)

    assert (found.passed, found.is_severe) == (False, False)
    assert "Make room. The table is tried again at 2026-11-27 01:05:00 UTC." in found.words
    told = line(replace(READY, state="errored", retry_at=retry_at(AGAIN)))
    assert "tried again: public.orders" in told
    assert "stopped" not in told


@pytest.mark.parametrize("state", [FinishedCopy(), SyncWait(Lsn(1)), Catchup(Lsn(1))])
def test_a_table_that_is_resumed_is_not_said_to_be_copied(state: TableState) -> None:
    found = verdict(state)

    assert "since it stopped, are being applied" in found.words
    assert "copied" not in found.words


def test_a_tick_distinguishes_a_table_that_catches_up_from_one_that_is_copied() -> None:
    assert "catching up: public.orders" in line(replace(READY, state="finished_copy"))
    assert "being copied: public.orders" in line(replace(READY, state="data_sync"))
    assert "is being copied (state data_sync)" in verdict(DataSync()).words

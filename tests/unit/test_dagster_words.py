"""What a tick of the sensor says."""

from __future__ import annotations

from etl_dagster.integrations.dagster import words
from etl_dagster.runtime.showing.status import PipelineStatus


def test_a_tick_says_what_the_status_notes_and_logs_it_once() -> None:
    told = [
        PipelineStatus("shop__left", "duckdb", "streaming", note=note)
        for note in (None, "can't be set aside", "can't be set aside")
    ]
    log = words.TickLog(clock=lambda: 0.0)

    assert ["can't be set aside" in words.line(status, {}) for status in told] == [
        False,
        True,
        True,
    ]
    assert [log.is_due(words.gist(status, None, 0, {})) for status in told] == [True, True, False]

"""What the log of a copy's run says while the copy is under way."""

from __future__ import annotations

import logging

from etl_dagster.integrations.dagster.copies.run_log import CopyPace, Warnings, engine_warnings
from etl_dagster.runtime.copying.table_sync import CopyProgress


def progress(chunks: int, rows: int) -> CopyProgress:
    return CopyProgress("data_sync", chunks, 8, rows, 0, 400_000)


def test_a_copy_logs_its_rate_and_how_long_the_rest_takes() -> None:
    now = 100.0
    pace = CopyPace(clock=lambda: now)
    first = pace.line("public.orders", progress(0, 0))
    now += 5.0
    later = pace.line("public.orders", progress(2, 100_000))
    now += 15.0
    last = pace.line("public.orders", progress(8, 400_000))

    assert first == "public.orders: 0 of 8 chunks copied, 0 rows of about 400,000"
    assert later == (
        "public.orders: 2 of 8 chunks copied, 100,000 rows of about 400,000; 20,000 rows/s, "
        "about 15 s left"
    )
    assert last == "public.orders: 8 of 8 chunks copied, 400,000 rows; 20,000 rows/s"


def test_chunks_of_an_earlier_run_do_not_count_for_the_rate() -> None:
    now = 100.0
    pace = CopyPace(clock=lambda: now)
    pace.line("public.orders", progress(6, 300_000))
    now += 10.0

    assert pace.line("public.orders", progress(7, 350_000)).endswith(
        "5,000 rows/s, about 10 s left"
    )


def test_what_the_engine_warns_of_is_for_the_log_of_the_run() -> None:
    """Otherwise a copy that waits for its source looks like one that hangs."""
    engine = logging.getLogger("etl_dagster.runtime.copying.table_copy")
    with engine_warnings() as warnings:
        engine.warning("chunk %d of %s failed; again in %.1f s", 3, "public.orders", 0.5)
        engine.info("a chunk is durable")
        said = warnings.take()
    engine.warning("after the step")

    assert said == ["chunk 3 of public.orders failed; again in 0.5 s"]
    assert warnings.take() == []


def test_copy_threads_that_fail_together_are_one_line_every_half_minute() -> None:
    now = 0.0
    warnings = Warnings(clock=lambda: now)

    def warn(text: str) -> list[str]:
        warnings.emit(logging.LogRecord("etl_dagster", logging.WARNING, "", 0, text, None, None))
        return warnings.take()

    assert warn("chunk 1 failed (refused); again in 0.5 s")
    assert not warn("chunk 2 failed (refused); again in 1.0 s")
    assert warn("chunk 2 failed (no room); again in 1.0 s")
    now = 30.0
    assert warn("chunk 1 failed (refused); again in 8.0 s")

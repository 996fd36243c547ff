"""The live display in terminals of any width."""

from __future__ import annotations

import io
import pty
import re
import termios
from contextlib import closing
from dataclasses import replace
from os import close, fdopen

import pytest
from rich.console import Console

from etl_dagster.cli.views import KeyEcho, render
from etl_dagster.runtime.showing.metrics import CopyMeter
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus

STATUS = PipelineStatus(
    "shop", "duckdb", "streaming", rows_total=12_345_678, rows_per_second=98_765.4,
    lag_bytes=123_456_789, lag_seconds=12.5, confirmed_lsn="1A/2B3C4D5E", retained_wal_bytes=10**9,
)  # fmt: skip
READY = TableStatus(
    1, "public.orders", "ready", "id", 1_234_567, 890_123, 45_678, 0, 9_876_543
)  # fmt: skip
COPIED = TableStatus(
    2, "public.visits", "data_sync", "id", copy_chunks_done=1, copy_chunks_total=4,
    copy_rows_done=1_500_000, copy_rows_estimated=4_000_000, copy_rows_per_second=62_500.0,
)  # fmt: skip


def shown(*tables: TableStatus, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    status = replace(STATUS, tables={table.name: table for table in tables})
    console.print(render(status, limit=10, width=width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [50, 60, 70, 80, 100, 140])
@pytest.mark.parametrize("tables", [(READY,), (READY, COPIED)], ids=["streaming", "copying"])
def test_every_number_that_is_shown_is_whole(tables: tuple[TableStatus, ...], width: int) -> None:
    text = shown(*tables, width=width)

    assert "…" not in text
    assert {len(line) for line in text.splitlines()} == {width}
    for figure in ("12,345,678", "98,765 rows/s", "1A/2B3C4D5E"):
        assert figure in text
    for number in re.findall(r"\d[\d,]+\d", text.split("deleted")[-1]):
        assert re.fullmatch(r"\d+|\d{1,3}(,\d{3})+", number), number


def test_a_wide_terminal_shows_every_column() -> None:
    text = shown(READY, COPIED, width=140)

    for column in ("copy", "rows", "speed", "inserted", "updated", "deleted"):
        assert column in text
    assert "1,500,000 of ~4,000,000" in text
    assert "62,500/s, 40 s left" in text


def test_a_narrow_terminal_shows_how_far_a_copy_is_in_percent() -> None:
    assert "38%" in shown(READY, COPIED, width=60)


def test_a_copy_has_columns_only_while_there_is_one() -> None:
    text = shown(READY, width=140)

    assert "copy" not in text
    assert "speed" not in text


def test_keys_pressed_during_the_display_are_not_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C would move the cursor, and the next picture would be drawn one line too low."""
    control, terminal = pty.openpty()
    with closing(fdopen(terminal)) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        before = termios.tcgetattr(terminal)
        echo = KeyEcho()

        echo.turn_off()
        assert before[3] & termios.ECHO
        assert not termios.tcgetattr(terminal)[3] & termios.ECHO
        echo.restore()
        assert termios.tcgetattr(terminal) == before
    close(control)


def test_a_copy_moves_within_its_chunks_and_has_a_speed() -> None:
    now = 100.0
    meter = CopyMeter(lambda: now)
    meter.begin(7)
    meter.sample(7, 0)
    assert meter.rows_per_second(7) is None

    meter.read(7, 0, 500)
    meter.read(7, 1, 300)
    now = 110.0
    meter.sample(7, meter.unfinished(7, finished=()))
    assert meter.unfinished(7, finished={0}) == 300
    assert meter.rows_per_second(7) == 80.0

    # A chunk that failed is read again; a copy that is made again has a speed of its own.
    meter.read(7, 1, 0)
    meter.sample(7, meter.unfinished(7, finished=()))
    assert meter.rows_per_second(7) is None
    meter.keep([])
    assert meter.unfinished(7, finished=()) == 0


def test_old_samples_no_longer_count() -> None:
    now = 0.0
    meter = CopyMeter(lambda: now)
    for second in range(100):
        now = float(second)
        meter.sample(7, min(second, 50) * 10 + max(second - 50, 0) * 2)
    assert meter.rows_per_second(7) == 2.0

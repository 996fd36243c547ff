"""What a change to a mirrored state means, told from its content alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from etl_dagster.integrations.meltano.positions.bookmarks import TablePosition
from etl_dagster.integrations.meltano.positions.comparison import compare, stale_after
from etl_dagster.integrations.meltano.positions.mirrored import StoredBookmark
from etl_dagster.integrations.meltano.positions.verdicts import (
    Cleared,
    Edited,
    New,
    Refused,
    Renamed,
    StateRow,
    Unchanged,
    Verdict,
    judge,
)
from etl_dagster.integrations.meltano.positions.written import WrittenPositions
from etl_dagster.lsn import Lsn
from etl_dagster.source.slots import Slot

POSITION = TablePosition("dev:a-to-b:s.t", "a", 1, "s.t", "ready", Lsn(500))


def verdict(
    state: Any,
    *,
    was_mirrored: bool = True,
    is_ours: bool = False,
    known_lsns: Collection[int] = (),
    has_history: bool = True,
    moved_to: str | None = None,
    position: TablePosition = POSITION,
) -> Verdict:
    row = None if state is None else StateRow(3, state, is_ours)
    return judge(
        position,
        row,
        was_mirrored=was_mirrored,
        known_lsns=known_lsns,
        has_history=lambda: has_history,
        find_move=lambda: moved_to,
    )


def marked(**bookmark: Any) -> dict[str, Any]:
    return {"singer_state": {"bookmarks": {"s-t": bookmark}}}


def test_missing_is_cleared_only_where_it_was_written_before() -> None:
    assert verdict(None, was_mirrored=False) == New()
    assert isinstance(verdict(None), Cleared)
    assert verdict(None, moved_to="elsewhere") == Renamed("elsewhere")


def test_missing_is_not_cleared_where_the_place_was_restored_to_a_time_before() -> None:
    assert verdict(None, has_history=False) == New()


@pytest.mark.parametrize(
    "state",
    [
        {"singer_state": {}},
        {"singer_state": {"bookmarks": {}}},
        {"singer_state": {"bookmarks": None}},
        {"singer_state": None},
        {},
    ],
)
def test_a_state_without_bookmarks_is_a_cleared_one(state: Any) -> None:
    """For a Singer tap it means: from the beginning."""
    assert isinstance(verdict(state), Cleared)
    assert verdict(state, was_mirrored=False) == New()


@pytest.mark.parametrize(
    "state",
    [
        {"singer_state": {"bookmarks": {"s-other": {"lsn": 500}}}},
        {"singer_state": {"bookmarks": ["s-t"]}},
        {"singer_state": "s-t"},
        {"singer_state": {"bookmarks": {"s-t": 500}}},
    ],
)
def test_a_state_of_something_else_is_refused(state: Any) -> None:
    assert isinstance(verdict(state), Refused)


def test_a_state_that_is_not_a_json_object_is_refused() -> None:
    assert isinstance(
        judge(
            POSITION,
            StateRow(3, None, False),
            was_mirrored=True,
            known_lsns=(),
            has_history=lambda: True,
            find_move=lambda: None,
        ),
        Refused,
    )


@pytest.mark.parametrize("lsn", [499, 501, 0, -1, None, "500", 500.5, True])
def test_no_other_position_can_be_set(lsn: Any) -> None:
    assert isinstance(verdict(marked(lsn=lsn, phase="ready")), Refused)


def test_a_phase_is_not_set_by_hand() -> None:
    assert isinstance(verdict(marked(lsn=500, phase="init")), Refused)


def test_what_is_displayed_may_be_changed_until_it_is_written_again() -> None:
    assert verdict(marked(lsn=500, phase="ready", rows_copied=7)) == Edited()
    assert verdict(marked(lsn=400, phase="ready"), known_lsns=(300, 400)) == Edited()


def test_the_mirrors_own_is_left_alone_whatever_it_says() -> None:
    assert verdict(marked(lsn=1), is_ours=True) == Unchanged()
    assert verdict(marked(lsn=1), is_ours=True, was_mirrored=False) == Unchanged()


def test_a_table_that_is_copied_has_no_position_to_set() -> None:
    copying = TablePosition("dev:a-to-b:s.t", "a", 1, "s.t", "data_sync")
    refused = verdict(marked(lsn=500, phase="ready"), position=copying)
    assert isinstance(refused, Refused)
    assert "not streamed yet" in refused.reason


# -- the slot next to it --------------------------------------------------------------------------

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def slot(confirmed: int, wal_status: str = "reserved") -> Slot:
    at = Lsn(confirmed)
    return Slot("s", "pgoutput", "d", True, 1, wal_status, at, at, 0)


def stored(lsn: int | None, *, age: timedelta = timedelta()) -> StoredBookmark:
    state = marked(phase="ready" if lsn is not None else "data_sync", lsn=lsn)
    return StoredBookmark(state, NOW - age)


@pytest.mark.parametrize(
    ("bookmark", "slot", "passed", "is_severe"),
    [
        (stored(500), slot(500), True, False),
        # One of the two is always read a moment after the other.
        (stored(500), slot(900), True, False),
        (stored(900), slot(500), True, False),
        (stored(None), slot(500), True, False),
        (stored(500, age=timedelta(hours=1)), slot(500), True, False),
        (stored(500, age=timedelta(hours=1)), slot(501), False, False),
        (stored(100 * 1024**2), slot(500), False, False),
        (None, slot(500), False, False),
        (stored(500), None, False, True),
        (stored(500), slot(500, "lost"), False, True),
    ],
)
def test_a_bookmark_is_in_step_with_the_slot(
    bookmark: StoredBookmark | None, slot: Slot | None, passed: bool, is_severe: bool
) -> None:
    old = stale_after(interval_s=5.0, tables=1)
    assert old == timedelta(minutes=3)
    found = compare("s.t", bookmark, slot, now=NOW, stale_after=old)
    assert (found.passed, found.is_severe) == (passed, is_severe)
    assert found.words


@pytest.mark.parametrize(("interval_s", "tables"), [(5.0, 1), (5.0, 1_000), (120.0, 3)])
def test_a_state_that_is_written_when_it_is_due_is_never_old(
    interval_s: float, tables: int
) -> None:
    """States of many tables, and of a long interval, are written less often than every 3 min."""
    clock_s = 0.0
    written = WrittenPositions(interval_s, lambda: clock_s)
    positions = [
        dataclasses.replace(POSITION, state_id=f"dev:a-to-b:s.t{number}")
        for number in range(tables)
    ]
    for position in positions:
        written.add(position, 1)
    moved = dataclasses.replace(positions[0], lsn=Lsn(501))
    while not written.is_due(moved, is_last=False):
        clock_s += 1.0
    bookmark = stored(500, age=timedelta(seconds=clock_s))
    old = stale_after(interval_s, tables)
    assert compare("s.t", bookmark, slot(501), now=NOW, stale_after=old).passed

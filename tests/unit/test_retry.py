"""When a table that failed is tried again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from etl_dagster.model.states import Errored, ManualRetry, TimedRetry
from etl_dagster.runtime.retry import is_sync_due

FAILED = datetime(2026, 5, 1, 12, tzinfo=UTC)
NEXT = FAILED + timedelta(seconds=30)


@pytest.mark.parametrize(
    ("now", "is_due"),
    [
        (FAILED, False),
        (NEXT - timedelta(seconds=1), False),
        (NEXT, True),
        (FAILED - timedelta(seconds=30), False),
        (FAILED - timedelta(days=365), True),
    ],
    ids=["at once", "before", "then", "by another machine's clock", "by a clock that was set back"],
)
def test_a_table_is_tried_again_after_its_pause(now: datetime, is_due: bool) -> None:
    """If the clock was far ahead when it failed, it does not wait until that time."""
    errored = Errored("locked", "Wait.", TimedRetry(NEXT, attempt=1), since=FAILED)

    assert is_sync_due(errored, now) is is_due


def test_a_table_that_needs_a_manual_retry_waits_by_any_clock() -> None:
    errored = Errored("broken", "Repair it.", ManualRetry(), since=FAILED)

    assert not is_sync_due(errored, FAILED - timedelta(days=365))

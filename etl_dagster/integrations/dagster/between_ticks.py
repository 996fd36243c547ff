"""A pipeline that is streamed in ticks is on, although most of the time no process runs it.

The note is for readers between two ticks: a run that waits for its hand-over, a check.
"""

from __future__ import annotations

import time

from etl_dagster.model.coordination import Notes
from etl_dagster.runtime.showing.status import PipelineStatus

_KEY = "streamed in ticks"


def keep_status(store: Notes, status: PipelineStatus, *, next_within_s: float) -> None:
    """Remember how the stream was at the end of a tick.

    Args:
        next_within_s: when no tick has come for this long, the sensor counts as off.
    """
    until = time.time() + next_within_s
    store.put_note(_KEY, {"until": until, "status": status.to_json()})


def kept_status(store: Notes) -> PipelineStatus | None:
    """How the stream was at the end of the last tick; None where the next one is overdue."""
    note = store.get_note(_KEY)
    if note is None or time.time() > float(note["until"]):
        return None
    return PipelineStatus.from_json(note["status"])

"""The status that a tick leaves in the store, for a pipeline that is streamed in ticks.

Such a pipeline is on, although most of the time no process runs it. The note tells that to a run
that waits for its hand-over between two ticks, or to a check.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from etl_dagster.model.coordination import Notes
from etl_dagster.runtime.showing.status import PipelineStatus

_KEY = "streamed in ticks"


def keep_status(
    store: Notes,
    status: PipelineStatus,
    *,
    next_within_s: float,
    clock: Callable[[], float] = time.time,
) -> None:
    """Remember how the stream was at the end of a tick.

    Args:
        next_within_s: when no tick has come for this long, the sensor counts as off.
        clock: seconds since 1970-01-01 UTC.
    """
    now = clock()
    note = {"since": now, "until": now + next_within_s, "status": status.to_json()}
    store.put_note(_KEY, note)


def kept_status(store: Notes, *, clock: Callable[[], float] = time.time) -> PipelineStatus | None:
    """How the stream was at the end of the last tick; None without one, or if the next is overdue.

    A note from further in the future than a tick may be late is from before the clock was set
    back. It no longer counts: the sensor, if it is on, writes another within seconds.
    """
    note = store.get_note(_KEY)
    if note is None:
        return None
    now, until = clock(), float(note["until"])
    # Earlier versions wrote no "since".
    since = float(note.get("since", now))
    if not 2 * since - until <= now <= until:
        return None
    return PipelineStatus.from_json(note["status"])

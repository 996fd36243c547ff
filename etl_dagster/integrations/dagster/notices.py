"""What the mirror of positions did about people's changes, for the sensor's line."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.resources import EtlResource
from etl_dagster.integrations.meltano.positions.memory import load_notices

#: Asking opens the store.
_EVERY_S = 15.0
_RECENT = timedelta(minutes=10)
_SHOWN = 2

_known: dict[str, tuple[float, list[str]]] = {}
_lock = threading.Lock()


def recent_notices(pipeline: str, resource: EtlResource) -> list[str]:
    """The last few of the last ten minutes, looked up four times a minute."""
    now = time.monotonic()
    with _lock:
        due, lines = _known.get(pipeline, (0.0, []))
        if now < due:
            return lines
        lines = _load(resource)
        _known[pipeline] = now + _EVERY_S, lines
        return lines


def _load(resource: EtlResource) -> list[str]:
    try:
        with resource.get_store() as store:
            notices, problem = load_notices(store)
    except EtlError:
        # The replicator meets it, too, and its words are in the same line.
        return []
    since = (datetime.now(UTC) - _RECENT).isoformat()
    lines = [
        f"Meltano state of {notice.table}: {notice.text}"
        for notice in notices
        if notice.at >= since and notice.kind != "edited"
    ][-_SHOWN:]
    return [*lines, f"positions are not mirrored now: {problem}"] if problem else lines

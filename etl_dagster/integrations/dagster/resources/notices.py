"""What became of Meltano states that people changed, for the sensor's line."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.meltano.positions.memory import load_notices

_RECENT = timedelta(minutes=10)
_SHOWN = 2


class RecentNotices:
    """The latest notices of the last ten minutes, looked up now and then."""

    def __init__(self) -> None:
        self._due_s = 0.0
        self._lines: list[str] = []

    def lines(self, resource: EtlResource) -> list[str]:
        now = time.monotonic()
        if now >= self._due_s:
            self._lines = _load(resource)
            self._due_s = now + resource.get_timing().notices_s
        return self._lines


def _load(resource: EtlResource) -> list[str]:
    try:
        with resource.get_store() as store:
            notices, problem = load_notices(store)
    except EtlError:
        # The replicator meets the same error, and the same line reports it.
        return []
    since = (datetime.now(UTC) - _RECENT).isoformat()
    lines = [
        f"Meltano state of {notice.table}: {notice.text}"
        for notice in notices
        if notice.at >= since and notice.kind != "edited"
    ][-_SHOWN:]
    return [*lines, f"positions are not mirrored now: {problem}"] if problem else lines

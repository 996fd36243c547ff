"""What a sensor has reported and seen, from one tick to the next."""

from __future__ import annotations

import threading

from etl_dagster.integrations.dagster.checks.bookmark_check import BookmarkReports
from etl_dagster.integrations.dagster.checks.odd_check import OddReports
from etl_dagster.integrations.dagster.history import EventHistory
from etl_dagster.integrations.dagster.resources.notices import RecentNotices
from etl_dagster.integrations.dagster.sensor import words
from etl_dagster.integrations.dagster.sensor.pipeline_reports import PipelineReports
from etl_dagster.integrations.dagster.sensor.reports import Reports
from etl_dagster.integrations.dagster.sensor.requests import EndedRuns


class SensorMemory:
    """What this process has reported and seen of one pipeline."""

    def __init__(self) -> None:
        self.reports = Reports()
        self.bookmarks = BookmarkReports()
        self.odd = OddReports()
        self.pipeline = PipelineReports()
        self.history = EventHistory()
        self.notices = RecentNotices()
        self.ended = EndedRuns()
        self.log = words.TickLog()
        self.ticks = 0

    def settle(self, cursor: str | None) -> None:
        """Count the last tick's events as reported, if Dagster has stored them."""
        is_stored = self.reports.settle(cursor)
        self.bookmarks.settle(is_stored)
        self.odd.settle(is_stored)
        self.pipeline.settle(is_stored)


_memories: dict[str, SensorMemory] = {}
_memories_lock = threading.Lock()


def memory_of(pipeline: str, cursor: str | None, *, is_preview: bool = False) -> SensorMemory:
    """The process's memory of the pipeline.

    A preview begins with nothing, and so does a sensor whose cursor was removed: by a person who
    wants everything reported again, or together with Dagster's database.
    """
    if is_preview:
        return SensorMemory()
    with _memories_lock:
        memory = _memories.setdefault(pipeline, SensorMemory())
        if cursor is None and memory.reports.has_cursor:
            memory = _memories[pipeline] = SensorMemory()
        return memory

"""The moment that the rows of a copy show, for modes that keep times."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import time_ns

from etl_dagster.model.events import TableRows
from etl_dagster.model.position import Position


@dataclass(frozen=True, slots=True)
class CopyMoment:
    """The position of a copy's rows in the stream, and the time that they show."""

    position: Position
    #: Microseconds since 1970-01-01 UTC.
    time_us: int

    @classmethod
    def of(cls, rows: TableRows) -> CopyMoment:
        """The moment of a copy; by this process's clock where the source's was not read."""
        now_us = time_ns() // 1000
        return cls(
            Position.just_before(rows.replay_from),
            now_us if rows.copied_at_us is None else rows.copied_at_us,
        )

    @property
    def lsn(self) -> int:
        """The commit LSN of its position, as a number."""
        return self.position.commit_lsn.offset

    @property
    def time(self) -> datetime:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.time_us)

"""A table's position in the shape of a Singer state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etl_dagster.lsn import Lsn
from etl_dagster.table_name import TableName

#: The key next to ``singer_state``: whose position this is, and what was done about a user's edit.
OURS = "etl_dagster"
#: From the hand-over on the table is complete.
_COMPLETED = ("sync_done", "ready")


@dataclass(frozen=True)
class TablePosition:
    """Where one table is, as Meltano shows it."""

    state_id: str
    pipeline: str
    table_id: int
    #: ``schema.table``.
    table: str
    #: `model.states.state_name`.
    phase: str
    #: Every commit before it is durable at the destination; None until the hand-over.
    lsn: Lsn | None = None
    #: The last commit that changed the table; at first the hand-over.
    commit_lsn: Lsn | None = None
    #: ISO 8601, UTC.
    commit_time: str | None = None
    #: Where the stream took the table over from its copy.
    handover_lsn: Lsn | None = None
    #: Rows that the copy has made durable so far; None where the store doesn't know any more.
    rows_copied: int | None = None
    chunks_done: int | None = None
    chunks_total: int | None = None
    error: str | None = None
    solution: str | None = None

    @property
    def is_completed(self) -> bool:
        return self.phase in _COMPLETED

    @property
    def stream(self) -> str:
        """The bookmark's name, as tap-postgres would have it."""
        return stream_name(self.table)

    def to_bookmark(self) -> dict[str, Any]:
        values = {
            "replication_method": "LOG_BASED",
            "lsn": None if self.lsn is None else self.lsn.offset,
            "commit_lsn": None if self.commit_lsn is None else str(self.commit_lsn),
            "commit_time": self.commit_time,
            "handover_lsn": None if self.handover_lsn is None else str(self.handover_lsn),
            "phase": self.phase,
            "rows_copied": self.rows_copied,
            "chunks_done": self.chunks_done,
            "chunks_total": self.chunks_total,
            "error": self.error,
            "solution": self.solution,
        }
        return {name: value for name, value in values.items() if value is not None}

    def to_state(self, note: str | None = None) -> dict[str, Any]:
        """The whole state.

        Args:
            note: what was done about a user's edit.
        """
        ours = {"state_id": self.state_id, "pipeline": self.pipeline, "table": self.table}
        if note is not None:
            ours["note"] = note
        return {"singer_state": {"bookmarks": {self.stream: self.to_bookmark()}}, OURS: ours}


def stream_name(table: str) -> str:
    """``public.orders`` is the stream ``public-orders``."""
    try:
        name = TableName.parse(table)
    except ValueError:  # as an earlier version wrote it
        return table.replace(".", "-", 1)
    return f"{name.schema_name}-{name.table_name}"


@dataclass(frozen=True)
class FoundState:
    """What a stored state says about one stream, whichever program wrote it."""

    #: Whether it has no bookmark at all: for a Singer tap, "from the beginning".
    is_empty: bool
    #: The stream's bookmark; None where others have one and it has none.
    bookmark: Mapping[str, Any] | None
    #: The ID that this program once wrote it for.
    written_for: str | None

    @classmethod
    def read(cls, state: Any, stream: str) -> FoundState:
        """Read any JSON; what isn't a state has no bookmark for the stream."""
        if not isinstance(state, Mapping):
            return cls(False, None, None)
        singer = state.get("singer_state")
        bookmarks = singer.get("bookmarks") if isinstance(singer, Mapping) else None
        ours = state.get(OURS)
        written_for = ours.get("state_id") if isinstance(ours, Mapping) else None
        bookmark = bookmarks.get(stream) if isinstance(bookmarks, Mapping) else None
        return cls(
            is_empty=not bookmarks and (not singer or isinstance(singer, Mapping)),
            bookmark=bookmark if isinstance(bookmark, Mapping) else None,
            written_for=written_for if isinstance(written_for, str) else None,
        )

    @property
    def position(self) -> tuple[Any, Any]:
        """What a user might try to set: `lsn` and `phase`."""
        bookmark = self.bookmark or {}
        return bookmark.get("lsn"), bookmark.get("phase")

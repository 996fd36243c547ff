"""What a comparison of a table's bookmark with the source's slot found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from etl_dagster.lsn import Lsn


@dataclass(frozen=True)
class BookmarkComparison:
    """One table's bookmark next to the slot."""

    passed: bool
    #: Whether changes may be lost; otherwise only what is displayed may be old.
    is_severe: bool
    #: The outcome, for people.
    words: str
    bookmark_lsn: Lsn | None = None
    confirmed_lsn: Lsn | None = None
    written_at: datetime | None = None
    #: False where the table's first state is not written yet.
    has_state: bool = True

    @property
    def slot_ahead_bytes(self) -> int | None:
        """How far the slot is past the bookmark; negative where it is behind."""
        if self.bookmark_lsn is None or self.confirmed_lsn is None:
            return None
        return self.confirmed_lsn.offset - self.bookmark_lsn.offset

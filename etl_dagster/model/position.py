"""Where a change stands in the stream."""

from __future__ import annotations

from dataclasses import dataclass

from etl_dagster.lsn import LSN_ZERO, Lsn


@dataclass(frozen=True, order=True, slots=True)
class Position:
    """The place of one change: the LSN of its commit record, and its number in the transaction.

    The ordinal counts row changes from 0: inserts, updates, deletes, and one for each table of a
    truncate. Relation messages don't count, because Postgres sends them again after each reconnect.
    So a change has the same position however often it is streamed.
    """

    commit_lsn: Lsn
    ordinal: int

    def __str__(self) -> str:
        return f"{self.commit_lsn}:{self.ordinal}"

    @classmethod
    def just_before(cls, commit_lsn: Lsn) -> Position:
        """After every change committed before `commit_lsn`, and before the first one there."""
        return cls(Lsn(max(commit_lsn.offset - 1, 0)), 2**62)


#: Before every change.
POSITION_ZERO = Position(LSN_ZERO, -1)

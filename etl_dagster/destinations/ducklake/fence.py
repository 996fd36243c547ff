"""What has DuckLake refuse one of two transactions that compare and set.

DuckLake has no keys, and lets two transactions commit that insert the same. But it refuses a
transaction that has updated a table which another one has changed since it began. So all that
compare and set also update the one row of ``_etl.turns``, and no two of them that overlap are both
committed, whatever became of a lock.

The row counts the transactions. A lake that was replaced, or that went back to an older copy of
itself, has fewer of them than this process has committed.
"""

# Statements are put together of constants only.
# ruff: noqa: S608

from __future__ import annotations

import duckdb

from etl_dagster.destinations.sql.ledger_tables import tables_there
from etl_dagster.destinations.sql.session import Session
from etl_dagster.errors import DestinationReplaced, DestinationRestored

_TABLE = "turns"


class Fence:
    """The count of one lake, as far as this process has seen it.

    Args:
        place: for people.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._identity: str | None = None
        self._seen = 0

    def create(self, session: Session) -> None:
        """Create what is missing; and from now on expect this lake."""
        if _TABLE not in tables_there(session):
            session.execute(f"CREATE TABLE _etl.{_TABLE} (turn UBIGINT NOT NULL)")
            session.execute(f"INSERT INTO _etl.{_TABLE} VALUES (0)")
        self._identity, self._seen = _read(session) or ("", 0)

    def pass_(self, session: Session) -> int:
        """Count the transaction; refused at its commit where another one did so since it began.

        Returns:
            What to give to `passed` after the commit.

        Raises:
            DestinationReplaced: it is another lake.
            DestinationRestored: it is an older copy.
        """
        session.execute(f"UPDATE _etl.{_TABLE} SET turn = turn + 1")
        found = _read(session)
        if found is None or (self._identity is not None and found[0] != self._identity):
            raise DestinationReplaced(
                f"{self._place} was replaced by another lake while the pipeline used it"
            )
        before = found[1] - 1
        if before < self._seen:
            raise DestinationRestored(
                f"{self._place} was replaced by an older copy of itself: {self._seen} writes were "
                f"committed, and it has {before} of them"
            )
        return found[1]

    def passed(self, turn: int) -> None:
        """A transaction with this count is durable."""
        self._seen = max(self._seen, turn)


def _read(session: Session) -> tuple[str, int] | None:
    try:
        row = session.fetch_row(f"SELECT identity, turn FROM _etl.identity, _etl.{_TABLE}")
    except duckdb.CatalogException:
        return None  # without a ledger
    return None if row is None else (str(row[0]), int(row[1]))

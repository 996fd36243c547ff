"""The copies of the tables, and which of their chunks are written."""

# Statements are put together of constants only.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Collection, Mapping

from etl_dagster.destinations.sql.chunks import Chunks
from etl_dagster.destinations.sql.dialect import AMONG
from etl_dagster.destinations.sql.ledger_tables import tables_there
from etl_dagster.destinations.sql.session import Session
from etl_dagster.errors import InvalidState
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import ChunkId
from etl_dagster.model.identity import HeldCopy
from etl_dagster.model.schema import TableId


class Copies:
    """Reads and writes ``_etl.copies``, and the chunks, inside a transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._chunks = Chunks.of(session)

    def status(self, table_id: TableId, copy_id: str) -> str | None:
        """running, repairing, complete, or None for an unknown copy.

        Raises:
            InvalidState: a newer copy has begun since.
        """
        row = self._session.fetch_row(
            "SELECT status FROM _etl.copies WHERE table_id = $1 AND copy_id = $2"
            # No other writer ends the copy, and drops its table, while a chunk is written.
            + self._session.dialect.row_lock,
            [table_id, copy_id],
        )
        if row == ("ended",):
            raise _is_ended(table_id, copy_id)
        return None if row is None else str(row[0])

    def complete_among(self, copies: Mapping[TableId, str]) -> set[TableId]:
        """The tables of which this copy is complete.

        Raises:
            InvalidState: a newer copy of a table has begun since.
        """
        rows = self._session.fetch(
            f"SELECT table_id, copy_id, status FROM _etl.copies WHERE table_id {AMONG}",
            [list(copies)],
        )
        known = {table: status for table, copy_id, status in rows if copies[table] == copy_id}
        for table_id, status in known.items():
            if status == "ended":
                raise _is_ended(table_id, copies[table_id])
        return {table_id for table_id, status in known.items() if status == "complete"}

    def begin(self, table_id: TableId, copy_id: str, status: str = "running") -> None:
        """Record the copy as the running one; a repair is a copy with the status `repairing`."""
        self.end([table_id])
        self._session.execute(
            "INSERT INTO _etl.copies VALUES ($1, $2, $3, NULL)", [table_id, copy_id, status]
        )

    def end(self, table_ids: Collection[TableId]) -> None:
        """From now on refuse every known copy of the tables."""
        self._session.execute(
            f"UPDATE _etl.copies SET status = 'ended' WHERE table_id {AMONG}", [list(table_ids)]
        )
        self._chunks.forget(table_ids)

    def complete(self, table_id: TableId, copy_id: str, replay_from: Lsn) -> None:
        """The copy is the table now."""
        self._session.execute(
            "UPDATE _etl.copies SET status = 'complete', replay_lsn = $1 "
            "WHERE table_id = $2 AND copy_id = $3",
            [replay_from.offset, table_id, copy_id],
        )
        self._chunks.forget([table_id])

    def standing(self, table_ids: Collection[TableId]) -> tuple[dict[TableId, Lsn], set[TableId]]:
        """Which changes of the tables count.

        Returns:
            For each table with a complete copy, the LSN from which changes are not in it; and the
            tables that are under repair.
        """
        rows = self._session.fetch(
            "SELECT table_id, status, replay_lsn FROM _etl.copies "
            f"WHERE table_id {AMONG} AND status IN ('complete', 'repairing')",
            [list(table_ids)],
        )
        points = {t: Lsn(replay_lsn) for t, status, replay_lsn in rows if status == "complete"}
        return points, {table_id for table_id, status, _ in rows if status == "repairing"}

    def incomplete_among(self, table_ids: Collection[TableId]) -> set[TableId]:
        """The tables with a copy that has begun, or is about to, and none that is complete."""
        rows = self._session.fetch(
            f"SELECT DISTINCT table_id, status FROM _etl.copies WHERE table_id {AMONG}",
            [list(table_ids)],
        )
        complete = {table_id for table_id, status in rows if status == "complete"}
        return {table_id for table_id, _ in rows} - complete

    def held(self, table_ids: Collection[TableId]) -> dict[TableId, HeldCopy]:
        """The tables' current copies, running or complete."""
        if "copies" not in tables_there(self._session):
            return {}
        rows = self._session.fetch(
            "SELECT table_id, copy_id, status = 'complete' "
            f"FROM _etl.copies WHERE table_id {AMONG} AND status <> 'ended'",
            [list(table_ids)],
        )
        chunks: dict[tuple[TableId, str], set[int]] = {}
        for table_id, chunk in self._chunks.held(table_ids):
            chunks.setdefault((table_id, chunk.copy_id), set()).add(chunk.index)
        return {
            table_id: HeldCopy(copy_id, is_complete, frozenset(chunks.get((table_id, copy_id), ())))
            for table_id, copy_id, is_complete in rows
        }

    def has_chunk(self, table_id: TableId, chunk: ChunkId) -> bool:
        return self._chunks.has(table_id, chunk)

    def keep_chunk(self, table_id: TableId, chunk: ChunkId) -> None:
        self._chunks.keep(table_id, chunk)


def _is_ended(table_id: TableId, copy_id: str) -> InvalidState:
    return InvalidState(f"a newer copy of table {table_id} has begun than {copy_id}")

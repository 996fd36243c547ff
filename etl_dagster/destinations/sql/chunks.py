"""Which chunks of running copies are written, so that none is written twice.

A writer records its chunk in the transaction that writes the rows. If two writers at a time have
both seen that the chunk is missing, the database refuses one of them.
"""

# Statements are put together of constants only.
# ruff: noqa: S608

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Final

from etl_dagster.destinations.sql.dialect import AMONG, quote
from etl_dagster.destinations.sql.session import Session
from etl_dagster.model.events import ChunkId
from etl_dagster.model.schema import TableId

#: Schema of the views that are named after chunks, in a database without keys.
SCHEMA: Final = "_etl_chunks"


class Chunks(ABC):
    """Reads and writes the chunks inside a transaction."""

    @classmethod
    def of(cls, session: Session) -> Chunks:
        return ChunkRows(session) if session.dialect.has_keys else ChunkNames(session)

    def __init__(self, session: Session) -> None:
        self._session = session

    @abstractmethod
    def has(self, table_id: TableId, chunk: ChunkId) -> bool:
        """Whether the chunk is written."""

    @abstractmethod
    def keep(self, table_id: TableId, chunk: ChunkId) -> None:
        """Record a chunk that wasn't there. It is refused, at the latest by the commit, if another
        transaction records the same one at the same time."""

    @abstractmethod
    def held(self, table_ids: Collection[TableId]) -> set[tuple[TableId, ChunkId]]:
        """All chunks of the tables."""

    @abstractmethod
    def forget(self, table_ids: Collection[TableId]) -> None:
        """Forget the chunks of the tables."""


class ChunkRows(Chunks):
    """In ``_etl.chunks``, whose primary key refuses the second writer."""

    def has(self, table_id: TableId, chunk: ChunkId) -> bool:
        row = self._session.fetch_row(
            "SELECT 1 FROM _etl.chunks WHERE table_id = $1 AND copy_id = $2 AND chunk_index = $3",
            [table_id, chunk.copy_id, chunk.index],
        )
        return row is not None

    def keep(self, table_id: TableId, chunk: ChunkId) -> None:
        self._session.execute(
            "INSERT INTO _etl.chunks VALUES ($1, $2, $3)", [table_id, chunk.copy_id, chunk.index]
        )

    def held(self, table_ids: Collection[TableId]) -> set[tuple[TableId, ChunkId]]:
        rows = self._session.fetch(
            f"SELECT table_id, copy_id, chunk_index FROM _etl.chunks WHERE table_id {AMONG}",
            [list(table_ids)],
        )
        return {(table_id, ChunkId(copy_id, index)) for table_id, copy_id, index in rows}

    def forget(self, table_ids: Collection[TableId]) -> None:
        self._session.execute(f"DELETE FROM _etl.chunks WHERE table_id {AMONG}", [list(table_ids)])


class ChunkNames(Chunks):
    """As names of views, for a database without keys: only one transaction can create a name.

    Also, writers of chunks then change no table that others change. In a database where all
    transactions that write one table conflict, even if their rows differ, the end of one table's
    copy would refuse the chunks of all others.
    """

    def has(self, table_id: TableId, chunk: ChunkId) -> bool:
        return chunk in self._of(table_id)

    def keep(self, table_id: TableId, chunk: ChunkId) -> None:
        self._session.execute(
            f"CREATE VIEW {self._name(f'{table_id} {chunk.index} {chunk.copy_id}')} AS SELECT 1"
        )

    def held(self, table_ids: Collection[TableId]) -> set[tuple[TableId, ChunkId]]:
        wanted = set(table_ids)
        return {each for each in self._all() if each[0] in wanted}

    def forget(self, table_ids: Collection[TableId]) -> None:
        for table_id, chunk in self.held(table_ids):
            name = self._name(f"{table_id} {chunk.index} {chunk.copy_id}")
            self._session.execute(f"DROP VIEW {name}")

    def _of(self, table_id: TableId) -> set[ChunkId]:
        return {chunk for _, chunk in self.held([table_id])}

    def _all(self) -> list[tuple[TableId, ChunkId]]:
        rows = self._session.fetch(
            f"SELECT table_name FROM {self._session.dialect.tables} AS there "
            "WHERE schema_name = $1 AND is_view",
            [SCHEMA],
        )
        found = []
        for (name,) in rows:
            table_id, index, copy_id = name.split(" ", 2)
            found.append((int(table_id), ChunkId(copy_id, int(index))))
        return found

    def _name(self, name: str) -> str:
        return f"{self._session.dialect.schema(SCHEMA)}.{quote(name)}"

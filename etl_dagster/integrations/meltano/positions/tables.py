"""Where the tables of a pipeline are, by its own store and its status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from etl_dagster.config import PipelineConfig
from etl_dagster.integrations.meltano.positions.bookmarks import FoundState, TablePosition
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import Coordination, Notes
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import (
    DataSync,
    Errored,
    Init,
    Ready,
    SyncDone,
    TableState,
    state_name,
    state_to_json,
)
from etl_dagster.model.stores import PipelineStore
from etl_dagster.runtime.copying.pausing import ask_for_copies
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus
from etl_dagster.runtime.showing.stopped import what_to_do


class Positions:
    """Reads positions. Remembers what can't change any more, so that asking stays cheap."""

    def __init__(self, config: PipelineConfig, store: PipelineStore) -> None:
        self._config = config
        self._store = store
        self._coordination = store if isinstance(store, Coordination) else None
        #: Of tables that were handed over: at which LSN, and how many rows were copied before.
        self._copied: dict[TableId, tuple[Lsn, int | None]] = {}
        #: LSN of the hand-over; LSN and time of the last commit, which a new status does not have.
        self._commits: dict[TableId, tuple[Lsn, Lsn, str | None]] = {}

    def of(self, status: PipelineStatus) -> list[TablePosition]:
        """All tables of a running pipeline."""
        states = self._store.get_table_replication_states()
        confirmed = Lsn.parse(status.confirmed_lsn)
        return [
            self.position(name, table.table_id, states.get(table.table_id), confirmed, table)
            for name, table in status.tables.items()
        ]

    def again(self, position: TablePosition) -> TablePosition:
        """The position of a table whose state was just changed."""
        state = self._store.get_table_replication_state(position.table_id)
        return self.position(position.table, position.table_id, state, position.lsn)

    def position(
        self,
        name: str,
        table_id: TableId,
        state: TableState | None,
        confirmed: Lsn | None,
        status: TableStatus | None = None,
    ) -> TablePosition:
        """One table.

        Args:
            confirmed: the stream's position; every commit before it is durable.
        """
        position = TablePosition(
            state_id=self._config.state_id(name),
            pipeline=self._config.pipeline,
            table_id=table_id,
            table=name,
            phase="init" if state is None else state_name(state),
        )
        match state:
            case Ready(handover) | SyncDone(handover):
                # Before it the table sync worker applied everything, from it on the stream does.
                is_streamed = isinstance(state, Ready) and confirmed is not None
                lsn = max(handover, confirmed) if is_streamed and confirmed else handover
                commit_lsn, commit_time = self._commit(table_id, handover, status)
                return replace(
                    position,
                    lsn=lsn,
                    handover_lsn=handover,
                    commit_lsn=commit_lsn,
                    commit_time=commit_time,
                    rows_copied=self._rows_copied(table_id, handover),
                )
            case DataSync() if status is not None:
                return replace(
                    position,
                    rows_copied=status.copy_rows_done,
                    chunks_done=status.copy_chunks_done,
                    chunks_total=status.copy_chunks_total,
                )
            case Errored(reason):
                solution = what_to_do(state, name, self._config)
                return replace(position, error=reason, solution=solution)
        return position

    def with_commit_of(
        self, position: TablePosition, state: Mapping[str, Any] | None
    ) -> TablePosition:
        """With the last commit that an earlier process wrote into the state, if none is known."""
        bookmark = FoundState.read(state, position.stream).bookmark or {}
        known = self._commits.get(position.table_id)
        if (
            known is None
            and position.handover_lsn is not None
            and position.commit_time is None
            and bookmark.get("handover_lsn") == str(position.handover_lsn)
            and bookmark.get("commit_time")
        ):
            commit = Lsn.parse(bookmark["commit_lsn"])
            known = position.handover_lsn, commit, bookmark["commit_time"]
            self._commits[position.table_id] = known
            return replace(position, commit_lsn=commit, commit_time=bookmark["commit_time"])
        return position

    def _commit(
        self, table_id: TableId, handover: Lsn, status: TableStatus | None
    ) -> tuple[Lsn, str | None]:
        if status is not None and status.last_commit_lsn is not None:
            commit = Lsn.parse(status.last_commit_lsn)
            self._commits[table_id] = handover, commit, status.last_commit_time
        known = self._commits.get(table_id)
        if known is None or known[0] != handover:
            return handover, None
        return known[1], known[2]

    def _rows_copied(self, table_id: TableId, handover: Lsn) -> int | None:
        known = self._copied.get(table_id)
        if known is None or known[0] != handover:
            plan = self._coordination.get_copy_plan(table_id) if self._coordination else None
            rows = sum(chunk.row_count for chunk in plan.finished.values()) if plan else None
            known = self._copied[table_id] = handover, rows
        return known[1]


def published_position(status: PipelineStatus, table: TableStatus) -> TablePosition:
    """A table's position by the status that its pipeline published; enough for display."""
    is_streamed = table.state in ("sync_done", "ready")
    last = table.last_commit_lsn
    return TablePosition(
        state_id=table.state_id,
        pipeline=status.pipeline,
        table_id=table.table_id,
        table=table.name,
        phase=table.state,
        lsn=Lsn.parse(status.confirmed_lsn) if is_streamed else None,
        commit_lsn=None if last is None else Lsn.parse(last),
        commit_time=table.last_commit_time,
    )


def state_key(store: Coordination | None, table_id: TableId, state: TableState) -> str:
    """A text that changes with the state, and when a table enters the same state again."""
    plan = store.get_copy_plan(table_id) if store and isinstance(state, DataSync) else None
    return json.dumps([state_to_json(state), plan.copy_id if plan else None])


def request_copy(store: PipelineStore, table_id: TableId) -> None:
    """Have the table copied from the beginning."""
    if isinstance(store, Coordination):
        if isinstance(store, Notes):
            ask_for_copies(store, [table_id])
        store.request_copy(table_id)
    else:
        store.update_table_replication_states([(table_id, Init())])

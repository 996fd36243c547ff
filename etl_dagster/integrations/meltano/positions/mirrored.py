"""The place that holds the mirrored states: read, and written only over what was read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg

from etl_dagster.config import PipelineConfig
from etl_dagster.integrations.meltano.positions.bookmarks import OURS, TablePosition
from etl_dagster.integrations.meltano.positions.memory import MirrorMemory
from etl_dagster.integrations.meltano.positions.verdicts import StateRow
from etl_dagster.integrations.meltano.states.errors import StateChanged, StateCorrupt
from etl_dagster.integrations.meltano.states.records import NewState, StoredState
from etl_dagster.integrations.meltano.states.storage import StateStorage
from etl_dagster.integrations.meltano.states.uri import StateLocation, locate, locate_dsn
from etl_dagster.model.coordination import Notes
from etl_dagster.stores.postgres.config import PostgresStoreConfig

#: How long a `meltano state move` may take, which writes one state and then deletes the other.
_MOVE_TAKES = timedelta(seconds=30)
#: What the history shows for writes of the mirror.
_OPERATION = "mirror"


@dataclass(frozen=True)
class StoredBookmark:
    """A state, and when it was written; by the server's clock."""

    state: Mapping[str, Any] | None
    written_at: datetime


@dataclass(frozen=True)
class PositionWrite:
    """A position that is to be written."""

    position: TablePosition
    #: What was done about a user's change; shown in the state.
    note: str | None
    #: The state as it was read; None where there was none.
    over: StateRow | None
    #: Whether the history keeps it. A position moves every few seconds: such versions would bury
    #: all others.
    is_step: bool

    @property
    def state(self) -> NewState:
        state, is_completed = self.position.to_state(self.note), self.position.is_completed
        return NewState(
            self.position.state_id,
            partial=None if is_completed else state,
            completed=state if is_completed else None,
            expected_version=0 if self.over is None else self.over.version,
            is_kept=self.is_step,
        )


class MirroredStates:
    """The states of one pipeline's tables. Not thread-safe."""

    def __init__(self, pipeline: str, prefix: str, location: StateLocation) -> None:
        self._prefix = prefix
        self._writer = f"etl-dagster, pipeline {pipeline}"
        self._storage = StateStorage(location, writer=self._writer)

    @classmethod
    def of(cls, config: PipelineConfig) -> MirroredStates | None:
        """Where the configuration says; None where nothing is mirrored.

        Raises:
            StateUriError: the URI can't be read.
        """
        location = state_location(config)
        if location is None:
            return None
        prefix = config.state_id("")
        return cls(config.pipeline, prefix, location)

    def migrate(self) -> None:
        """Make the tables if they are missing."""
        self._storage.migrate()

    def place(self) -> str:
        """A text that no other place has.

        A user may drop the tables, or restore an empty database under the same name: then no
        state is there, and none was cleared.
        """
        return self._storage.place()

    def read(self, state_ids: Iterable[str]) -> dict[str, StateRow]:
        """All states of the pipeline, and those of the given IDs, as far as they exist."""
        found = {state.state_id: state for state in self._storage.get_all(f"{self._prefix}*")}
        for state_id in state_ids:
            # An ID of an earlier environment or destination.
            if not state_id.startswith(self._prefix):
                state = self._storage.get(state_id)
                if state is not None:
                    found[state_id] = state
        return {state_id: self._row(state) for state_id, state in found.items()}

    def read_own(self, store: Notes) -> dict[str, StateRow]:
        """The states that the mirror wrote, including those that a user has changed since.

        Args:
            store: the pipeline's, where the mirror remembers them.
        """
        known = MirrorMemory.load(store, self.place()).entries
        rows = self.read(known)
        return {name: row for name, row in rows.items() if row.is_ours or name in known}

    def read_bookmarks(self) -> dict[str, StoredBookmark]:
        """All states of the pipeline."""
        return {
            stored.state_id: StoredBookmark(self._row(stored).state, stored.updated_at)
            for stored in self._storage.get_all(f"{self._prefix}*")
        }

    def write_each(self, writes: Sequence[PositionWrite]) -> dict[str, int]:
        """Write positions of different tables in one transaction.

        Returns:
            By ID, the new versions of the states that were written. A state that has a newer
            version, or that another process is writing now, was not.
        """
        return self._storage.set_each([write.state for write in writes], operation=_OPERATION)

    def write(self, write: PositionWrite) -> bool:
        """Write one position, after any other writer; False where there is a newer version."""
        try:
            self._storage.put(write.state, operation=_OPERATION)
        except StateChanged:
            return False
        return True

    def delete(self, state_id: str, row: StateRow) -> bool:
        """Delete a state that is as it was read; False where there is a newer version."""
        with self._storage.lock(state_id):
            state = self._storage.get(state_id)
            if state is not None and state.version != row.version:
                return False
            self._storage.delete(state_id)
        return True

    def has_history(self, position: TablePosition) -> bool:
        """Whether any version of the table's state is in the history."""
        return bool(self._storage.history(position.state_id, limit=1))

    def find_move(self, position: TablePosition) -> str | None:
        """The ID that a missing state was moved to; None if it was not moved.

        `meltano state move` writes one state and deletes the other in one process, so both have the
        same writer. A copy that a user made before clearing the state has another one.
        """
        versions = self._storage.history(position.state_id, limit=1)
        if not versions or versions[0].operation != "delete":
            return None
        gone = versions[0]
        for state in self._storage.get_all():
            is_near = abs(gone.written_at - state.updated_at) <= _MOVE_TAKES
            if state.writer != gone.writer or not is_near:
                continue
            row = self._row(state)
            ours = (row.state or {}).get(OURS)
            if isinstance(ours, dict) and ours.get("state_id") == position.state_id:
                return state.state_id
        return None

    def close(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self._storage.close()

    def _row(self, state: StoredState) -> StateRow:
        try:
            merged = state.merged()
        except StateCorrupt:
            merged = None
        return StateRow(state.version, merged, is_ours=state.writer == self._writer)


def state_location(config: PipelineConfig) -> StateLocation | None:
    """The database and schema of the mirrored states; None where nothing is mirrored.

    Raises:
        StateUriError: URI or DSN can't be read.
    """
    if not config.meltano.enabled:
        return None
    location = states_location(config)
    if location is None:
        return None
    name = {"application_name": "etl-dagster meltano mirror"}
    return replace(location, parameters={**location.parameters, **name})


def states_location(config: PipelineConfig) -> StateLocation | None:
    """Where Meltano states of this configuration are, mirrored or not; None if it names no place.

    Raises:
        StateUriError: URI or DSN can't be read.
    """
    if config.meltano.state_backend is not None:
        return locate(config.meltano.state_backend.get_secret_value())
    if isinstance(store := config.state_store, PostgresStoreConfig):
        return locate_dsn(store.conninfo(config.source), store.schema_name)
    return None

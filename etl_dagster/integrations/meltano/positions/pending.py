"""What the mirror would do about users' changes to its states; for a pipeline that is stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from etl_dagster.config import PipelineConfig
from etl_dagster.integrations.meltano.positions.bookmarks import TablePosition
from etl_dagster.integrations.meltano.positions.memory import MirrorMemory
from etl_dagster.integrations.meltano.positions.mirrored import MirroredStates
from etl_dagster.integrations.meltano.positions.tables import Positions, request_copy, state_key
from etl_dagster.integrations.meltano.positions.verdicts import (
    Cleared,
    New,
    Unchanged,
    Verdict,
    judge,
)
from etl_dagster.model.states import Init, state_name
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore


@dataclass(frozen=True)
class Pending:
    """A change that has not been answered yet."""

    position: TablePosition
    verdict: Verdict

    @property
    def is_copy(self) -> bool:
        """Whether the table is going to be copied again because of it."""
        return isinstance(self.verdict, Cleared) and self.position.phase != "init"


class PendingChanges:
    """The changes since the mirror last looked. Looking creates and changes nothing."""

    def __init__(
        self, config: PipelineConfig, store: CoordinatingStore, states: MirroredStates
    ) -> None:
        self._store = store
        self._states = states
        self._positions = Positions(config, store)
        self._memory = MirrorMemory.load(store, states.place())

    @classmethod
    @contextlib.contextmanager
    def of(
        cls, config: PipelineConfig, store: CoordinatingStore
    ) -> Iterator[PendingChanges | None]:
        """None where nothing is mirrored.

        Raises:
            StateStorageError: the place of the states can't be reached.
        """
        states = MirroredStates.of(config)
        if states is None:
            yield None
            return
        try:
            yield cls(config, store, states)
        finally:
            states.close()

    def find(self) -> list[Pending]:
        """All of them, by state ID."""
        entries = self._memory.entries
        if not entries:
            return []
        rows = self._states.read(entries)
        confirmed = self._store.get_replication_progress(ApplyWorker())
        found = []
        for state_id, entry in sorted(entries.items()):
            state = self._store.get_table_replication_state(entry.table_id)
            position = self._positions.position(entry.table, entry.table_id, state, confirmed)
            # After a change of environment the old IDs have no table; the next start removes them.
            if state is None or position.state_id != state_id or entry.requested_at is not None:
                continue
            verdict = judge(
                position,
                rows.get(state_id),
                was_mirrored=True,
                known_lsns=(),
                has_history=functools.partial(self._states.has_history, position),
                find_move=functools.partial(self._states.find_move, position),
            )
            if not isinstance(verdict, Unchanged | New):
                found.append(Pending(position, verdict))
        return found

    def request(self, pending: Pending) -> None:
        """Have the table copied again; the next start does not repeat that."""
        position = pending.position
        state = self._store.get_table_replication_state(position.table_id)
        if state is None or isinstance(state, Init):
            return
        entry = self._memory.entries[position.state_id]
        seen = state_key(self._store, position.table_id, state)
        note = f"requested by `etl-dagster reset` after its state was cleared ({state_name(state)})"
        self._memory.entries[position.state_id] = dataclasses.replace(
            entry, requested_at=seen, note=note
        )
        self._memory.keep(self._store)
        request_copy(self._store, position.table_id)

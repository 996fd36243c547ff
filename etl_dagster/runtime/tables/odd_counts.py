"""Counts what columns' types can't hold, where the destination doesn't.

A copy may be another process's work. So what it brought is in the store, a note for each table:
the worker that holds the table's lease writes it, and the process that runs the pipeline reads it
once the table was handed over.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyPlan
from etl_dagster.model.destination import CountsOddValues, CountsRows, Destination, offered
from etl_dagster.model.events import DELETE, EventBatch, TableChanges
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Ready, TableState
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.many import many

#: Tables looked up at a time; each is a question.
_PER_LOOK = 100
_STREAM = "stream"


def counts_by_itself(destination: Destination) -> bool:
    """Whether the destination counts such values; the pipeline asks when it counts rows."""
    return all(offered(destination, each) is not None for each in (CountsRows, CountsOddValues))


def brought(changes: TableChanges) -> dict[str, int]:
    """How many such values came with inserts and updates, by column."""
    counts = {
        name: int((changes.ops[odd.places] != DELETE).sum()) for name, odd in changes.odd.items()
    }
    return {name: count for name, count in counts.items() if count}


class CopyOddCounts:
    """Writes what one worker's copies brought; safe for several threads."""

    def __init__(self, store: CoordinatingStore, destination: Destination) -> None:
        self._store = store
        self._is_counted = counts_by_itself(destination)
        self._lock = threading.Lock()

    def add_chunk(
        self, table_id: TableId, replay_from: Lsn, index: int, counts: Mapping[str, int]
    ) -> None:
        """A chunk is durable; one that is copied again counts once.

        Args:
            replay_from: `CopyPlan.slot_lsn`, by which a table's copies differ.
        """
        if counts and not self._is_counted:
            self._add(table_id, replay_from, f"chunk {index}", counts, {})

    def add_stream(self, events: EventBatch, replay_from: Lsn) -> None:
        """A batch is durable that a table sync worker streamed; if it comes twice, it counts so."""
        if self._is_counted:
            return
        for table_id, steps in events.tables.items():
            counts: Counter[str] = Counter()
            for step in steps:
                if isinstance(step, TableChanges):
                    counts.update(brought(step))
            if counts:
                self._add(table_id, replay_from, _STREAM, {}, counts)

    def _add(
        self,
        table_id: TableId,
        replay_from: Lsn,
        part: str,
        instead: Mapping[str, int],
        more: Mapping[str, int],
    ) -> None:
        with self._lock:
            parts = dict(_parts(self._store, table_id, replay_from))
            counts = Counter(instead or parts.get(part, {}))
            counts.update(more)
            parts[part] = dict(counts)
            payload = {"replay_from": str(replay_from), "parts": parts}
            self._store.put_note(_key(table_id), payload)


def copied_odd(store: CoordinatingStore, table_id: TableId, plan: CopyPlan) -> dict[str, int]:
    """What a table's copy brought up to its hand-over, by column."""
    total: Counter[str] = Counter()
    for counts in _parts(store, table_id, plan.slot_lsn).values():
        total.update(counts)
    return dict(total)


def hand_on_counts(of: CoordinatingStore, to: CoordinatingStore, table_id: TableId) -> None:
    """Keep in another pipeline's store what a table's copy brought."""
    to.put_note(_key(table_id), of.get_note(_key(table_id)) or {})


def _parts(
    store: CoordinatingStore, table_id: TableId, replay_from: Lsn
) -> Mapping[str, Mapping[str, int]]:
    found = store.get_note(_key(table_id)) or {}
    if found.get("replay_from") != str(replay_from):
        return {}
    parts: Mapping[str, Mapping[str, int]] = found["parts"]
    return parts


def _key(table_id: TableId) -> str:
    return f"odd:{table_id}"


class HandedOver:
    """What the copies of tables brought that were handed over, each looked up once."""

    def __init__(self, store: CoordinatingStore) -> None:
        self._store = store
        #: By table, the state in which it was looked up.
        self._seen: dict[TableId, Ready] = {}

    def look(self, states: Mapping[TableId, TableState]) -> dict[TableId, dict[str, int]]:
        """The counts of tables that became `Ready` since the last look; of many, some at a time."""
        due = [
            table_id
            for table_id, state in states.items()
            if isinstance(state, Ready) and self._seen.get(table_id) != state
        ][:_PER_LOOK]
        plans = many(self._store).get_copy_plans(due) if due else {}
        found: dict[TableId, dict[str, int]] = {}
        for table_id in due:
            plan = plans.get(table_id)
            found[table_id] = {} if plan is None else copied_odd(self._store, table_id, plan)
            state = states[table_id]
            assert isinstance(state, Ready)
            self._seen[table_id] = state
        return found

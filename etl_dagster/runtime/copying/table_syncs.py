"""Runs table sync workers as threads of this process, a few at a time."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest

from etl_dagster.errors import EtlError
from etl_dagster.log_fields import log_fields
from etl_dagster.lsn import LSN_MAX
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Errored, TableState, TimedRetry
from etl_dagster.runtime.checking.belonging import MISMATCHES
from etl_dagster.runtime.copying.group_sync import GroupSync
from etl_dagster.runtime.copying.pausing import paused_tables
from etl_dagster.runtime.copying.table_sync import TableSync
from etl_dagster.runtime.failures import log_failure
from etl_dagster.runtime.many import many
from etl_dagster.runtime.repair_requests import (
    RepairOutcome,
    keep_outcome,
    wanted_repairs,
)
from etl_dagster.runtime.retry import is_sync_due
from etl_dagster.runtime.sharding import held_by_others
from etl_dagster.runtime.showing.metrics import CopyMeter
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.catalog import Leaf, fetch_leaves_of
from etl_dagster.source.slots import fetch_table_sync_slots
from etl_dagster.threads import Background

_log = logging.getLogger(__name__)

#: A group has no more tables than this, and they no more bytes. Each of them is in memory as a
#: whole, and is copied again when the group is interrupted.
_MOST_TABLES = 200
_MOST_BYTES = 64 * 1024**2
#: A larger table has a worker of its own, which copies it in chunks and resumes.
_SMALL_BYTES = 4 * 1024**2
#: A table that failed this often in a row is copied by itself: it may be why its group failed.
_FAILED_TOO_OFTEN = 2


@dataclass(frozen=True)
class _Running:
    thread: threading.Thread
    table_ids: Collection[TableId]


class TableSyncs:
    """Starts a worker for every table that needs one; each table's failure is its own.

    Where more tables are due than there are workers, the small ones share a worker in groups.
    """

    def __init__(self, parts: WorkerParts, meter: CopyMeter) -> None:
        self._parts = parts
        self._config = parts.config
        self._store = parts.store
        self._control = parts.control
        self._meter = meter
        self._running: list[_Running] = []
        #: Tables that a group could not copy.
        self._singly: set[TableId] = set()
        self._failure: EtlError | None = None

    def start_due(self, table_ids: Collection[TableId]) -> None:
        """Start what is due, as far as `copy.max_table_sync_workers` allows.

        Raises:
            EtlError: source or destination were exchanged (`MISMATCHES`), as a worker found.
        """
        if self._failure is not None:
            raise self._failure
        self._running = [running for running in self._running if running.thread.is_alive()]
        most = self._config.copy_tables.max_table_sync_workers
        free = most - len(self._running)
        if free <= 0:
            return
        states = self._store.get_table_replication_states()
        due = self._due(table_ids, states)
        if len(due) <= most:
            jobs = [[table_id] for table_id in due]
        else:
            jobs = self._grouped(due, states, free)
        for job in jobs[:free]:
            self._start(job)

    def join(self, join: Callable[[threading.Thread], None] = threading.Thread.join) -> None:
        """Wait for the workers to end, after stop was set."""
        for running in self._running:
            join(running.thread)

    def _due(
        self, table_ids: Collection[TableId], states: Mapping[TableId, TableState]
    ) -> list[TableId]:
        ours = {table_id for running in self._running for table_id in running.table_ids}
        due = [t for t in table_ids if t not in ours and is_sync_due(states.get(t))]
        if not due:
            return []
        paused = paused_tables(self._store)
        due = [table_id for table_id in due if table_id not in paused]
        # A worker of another process, or one that is just ending.
        leased = many(self._store).leased([f"table:{table_id}" for table_id in due])
        return [table_id for table_id in due if f"table:{table_id}" not in leased]

    def _grouped(
        self, due: Sequence[TableId], states: Mapping[TableId, TableState], free: int
    ) -> list[list[TableId]]:
        # One that another session has locked counts as a table that wants a worker of its own.
        leaves = self._control.ask("measuring tables", fetch_leaves_of, due, without_locked=True)
        # A worker of the table's own has begun, and can be followed.
        begun = self._control.ask("listing slots", fetch_table_sync_slots, self._config.pipeline)
        sizes = {table_id: _size(leaves.get(table_id, ())) for table_id in due}
        repairs = wanted_repairs(self._store, due)
        held = held_by_others(self._config, self._store, due)
        alone = [
            t
            for t in due
            if t in begun
            or t in self._singly
            or t in held
            or (t in repairs and repairs[t].why == "asked")
            or sizes[t] > _SMALL_BYTES
            or not is_plain(t, leaves.get(t, ()))
            or _has_failed_too_often(states[t])
        ]
        small = {t: sizes[t] for t in due if t not in set(alone)}
        groups = plan_groups(small, free)
        # None of the two kinds has to wait for all of the other.
        jobs = zip_longest(groups, [[table_id] for table_id in alone])
        return [job for job in chain.from_iterable(jobs) if job is not None]

    def _start(self, table_ids: Sequence[TableId]) -> None:
        work: Callable[[], None]
        if len(table_ids) == 1:
            [table_id] = table_ids
            name, work = f"table sync {table_id}", lambda: self._sync(table_id)
        else:
            name, work = f"group sync {table_ids[0]}", lambda: self._sync_group(table_ids)
        thread = Background(work, name=name)
        self._running.append(_Running(thread, frozenset(table_ids)))
        thread.start()

    def _sync(self, table_id: TableId) -> None:
        parts = self._parts
        worker = TableSync(
            parts.config,
            parts.store,
            parts.destination,
            table_id,
            stop=parts.stop,
            meter=self._meter,
            clock=parts.clock,
            timing=parts.timing,
            memory=parts.memory,
            make_control=parts.make_control,
        )
        fields = log_fields(pipeline=parts.config.pipeline, table=partial(self._name, table_id))
        try:
            with fields:
                worker.run()
        except MISMATCHES as error:
            self._failure = error
        except EtlError:
            pass  # it is in the table's state, and in the log
        except Exception as error:
            log_failure(_log, f"the worker of table {table_id} failed", error)

    def _name(self, table_id: TableId) -> str:
        schema = self._parts.store.get_table_schema(table_id, LSN_MAX)
        return f"table {table_id}" if schema is None else schema.name

    def _sync_group(self, table_ids: Sequence[TableId]) -> None:
        # A small table is copied in less time than a slot of its own takes.
        for table_id, request in wanted_repairs(self._parts.store, table_ids).items():
            reason = "it is small, and copied together with others"
            outcome = RepairOutcome(request.request_id, "copy", reason=reason)
            keep_outcome(self._parts.store, table_id, outcome)
        group = GroupSync(self._parts, table_ids)
        try:
            with log_fields(pipeline=self._parts.config.pipeline):
                group.run()
        except MISMATCHES as error:
            self._failure = error
        except EtlError as error:
            _log.warning("a group of tables could not be copied: %s", error.reason)
        except Exception as error:
            log_failure(_log, "the worker of a group of tables failed", error)
        finally:
            self._singly |= group.singly


def plan_groups(sizes: Mapping[TableId, int], workers: int) -> list[list[TableId]]:
    """Cut tables into groups: enough for all workers, none too large.

    Args:
        sizes: bytes on the source's disk.
    """
    most = min(_MOST_TABLES, math.ceil(len(sizes) / workers))
    groups: list[list[TableId]] = []
    room = 0
    for table_id, size in sizes.items():
        if not groups or len(groups[-1]) >= most or size > room:
            groups.append([])
            room = _MOST_BYTES
        groups[-1].append(table_id)
        room -= size
    return groups


def is_plain(table_id: TableId, leaves: Collection[Leaf]) -> bool:
    """Whether the table holds its rows itself; partitions want a worker's whole care."""
    return [leaf.relation_id for leaf in leaves] == [table_id]


def _size(leaves: Collection[Leaf]) -> int:
    return sum(leaf.bytes for leaf in leaves)


def _has_failed_too_often(state: TableState) -> bool:
    return (
        isinstance(state, Errored)
        and isinstance(state.retry, TimedRetry)
        and state.retry.attempt >= _FAILED_TOO_OFTEN
    )

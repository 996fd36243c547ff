"""Measures what the workers don't know themselves, and shows the status to other processes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError
from etl_dagster.lsn import LSN_MAX, LSN_ZERO, Lsn
from etl_dagster.model.coordination import CopyPlan
from etl_dagster.model.destination import (
    CountsOddValues,
    CountsQuarantinedRows,
    CountsRows,
    Destination,
    offered,
)
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import DataSync, Errored, Init, Ready, TableState, state_name
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.many import many
from etl_dagster.runtime.membership.members import Members
from etl_dagster.runtime.showing.history import HISTORY, History
from etl_dagster.runtime.showing.metrics import CopyMeter, Metrics, TableCounts
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus
from etl_dagster.runtime.showing.stopped import retry_at, what_to_do
from etl_dagster.runtime.slot import retained_wal
from etl_dagster.runtime.tables.odd_counts import HandedOver, counts_by_itself
from etl_dagster.source.catalog import PublishedTable, fetch_insert_lsn
from etl_dagster.source.control import SourceControl
from etl_dagster.source.retained_wal import RetainedWal

_log = logging.getLogger(__name__)

#: Asking costs the source a query, or the destination an opened file.
_WAL_EVERY_S = 5.0
_COUNT_EVERY_S = 5.0
#: An unchanged status is written again this often, so that readers see that its writer is alive.
_PUBLISH_EVERY_S = 5.0
#: ... but what takes long is done less often: after so many times of the time that it took, with
#: news and without.
_REST, _IDLE_REST = 20.0, 200.0


class Reporter:
    """Belongs to the pipeline's reporting thread, but for `tables`."""

    def __init__(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        destination: Destination,
        members: Members,
        metrics: Metrics,
        control: SourceControl,
        meter: CopyMeter,
        *,
        slot_name: Callable[[], str],
        wal_kept: Callable[[], Mapping[TableId, int]] = dict,
    ) -> None:
        """Args:
        slot_name: of the slot that keeps WAL for the pipeline now.
        wal_kept: bytes of WAL that the source keeps for each table that stopped.
        """
        self._wal_kept = wal_kept
        self._slot_name = slot_name
        self._config = config
        self._store = store
        self._destination = destination
        self._members = members
        self._metrics = metrics
        self._control = control
        self._meter = meter
        self._counts_odd = counts_by_itself(destination)
        self._handed_over = HandedOver(store)
        #: As last read.
        self._states: Mapping[TableId, TableState] = {}
        self._is_store_away = False
        self._plans: Mapping[TableId, CopyPlan] = {}
        self._wal_due = self._count_due = self._publish_due = self._news_due = 0.0
        self._published: PipelineStatus | None = None
        self._history = History(partial(store.publish_status, HISTORY))
        #: The last answer of `tables`, with what it was made of; and each table's part of it.
        self._shown: tuple[_Basis, Mapping[str, TableStatus]] | None = None
        self._parts: Mapping[TableId, tuple[object, TableStatus]] = {}
        #: By table, what the process before had counted when it ended.
        self._recalled_odd: dict[TableId, Mapping[str, int]] = {}
        #: None until first measured, and without a slot.
        self.retained_wal: RetainedWal | None = None
        self._is_wal_reported = False
        self._is_count_reported = False
        self.server_lsn = LSN_ZERO

    def recall(self) -> None:
        """Take over when each table last changed from the status of the process before."""
        self._history.recall(self._store.get_status(HISTORY))
        published = self._store.get_status("apply")
        if not published:
            return
        states = self._read_states()
        for table in PipelineStatus.from_json(published).tables.values():
            state = states.get(table.table_id)
            if table.last_commit_lsn is None or not isinstance(state, Ready):
                continue
            commit = Lsn.parse(table.last_commit_lsn)
            if commit >= state.lsn:  # else it was before the table's present copy
                self._metrics.recall(table.table_id, commit, table.last_commit_time)
                self._recalled_odd[table.table_id] = table.odd_values or {}

    def measure(self, *, at_once: bool = False) -> None:
        """Ask source, store and destination for what is due, or for all of it at once."""
        states = self._read_states()
        now = time.monotonic()
        if at_once:
            self._wal_due = self._count_due = now
        if now >= self._wal_due:
            self._wal_due = now + _WAL_EVERY_S
            self._look_at_wal()
            self.server_lsn = self._control.ask("reading the WAL's end", fetch_insert_lsn)
        self._plans = many(self._store).get_copy_plans(
            [t for t in self._members.ids if isinstance(states.get(t), DataSync)]
        )
        self._look_at_copied_odd(states)
        self._meter.keep(self._plans.keys())
        for table_id, plan in self._plans.items():
            self._meter.sample(table_id, self._rows_done(table_id, plan))
        counting = offered(self._destination, CountsRows)
        if now >= self._count_due and counting is not None:
            self._count_rows(
                counting, [t for t, state in states.items() if isinstance(state, Ready)]
            )
            took_s = time.monotonic() - now
            self._count_due = now + max(_COUNT_EVERY_S, _REST * took_s)

    def _look_at_wal(self) -> None:
        """Measure what the slot keeps, and report too much of it once."""
        slot_name, source = self._slot_name(), self._config.source
        self.retained_wal = found = retained_wal(self._control, source, slot_name)
        is_too_much = found is not None and found.is_too_much
        if found is not None and is_too_much and not self._is_wal_reported:
            _log.warning("%s. What to do: %s", found.reason, found.solution)
        elif self._is_wal_reported and not is_too_much:
            _log.info("slot %r keeps less WAL than the warning threshold again", slot_name)
        self._is_wal_reported = is_too_much

    def _look_at_copied_odd(self, states: Mapping[TableId, TableState]) -> None:
        """What came with copies, where the destination doesn't count it."""
        if self._counts_odd:
            return
        for table_id, state in states.items():
            if isinstance(state, Init | DataSync):
                self._metrics.copied_again(table_id)
                self._recalled_odd.pop(table_id, None)
        for table_id, copied in self._handed_over.look(states).items():
            state = states[table_id]
            assert isinstance(state, Ready)
            self._metrics.copied(table_id, copied, state.lsn)
            # What the process before counted of the stream.
            before = Counter(self._recalled_odd.pop(table_id, {}))
            before.subtract(copied)
            self._metrics.streamed_before(table_id, +before)

    def _read_states(self) -> Mapping[TableId, TableState]:
        try:
            self._states = dict(self._store.get_table_replication_states())
        except EtlError:
            self._is_store_away = True
            raise
        self._is_store_away = False
        return self._states

    def _count_rows(self, destination: CountsRows, table_ids: Iterable[TableId]) -> None:
        counts = {table_id: self._metrics.table(table_id) for table_id in table_ids}
        stale = {table_id: count for table_id, count in counts.items() if count.is_row_count_stale}
        if not stale:
            return
        for count in stale.values():
            # Before counting: what changes meanwhile makes it stale again.
            count.is_row_count_stale = False
        try:
            rows = destination.count_rows()
            counting = offered(destination, CountsOddValues)
            odd = None if counting is None else counting.count_odd_values()
            holding = offered(destination, CountsQuarantinedRows) if odd else None
            held = {} if holding is None else holding.count_quarantined_rows()
        except Exception as error:
            # The rest of the status is worth showing: a table that is missing stops itself.
            for count in stale.values():
                count.is_row_count_stale = True
            if not self._is_count_reported:
                # The message of an error that isn't ours may hold values.
                why = error.reason if isinstance(error, EtlError) else type(error).__name__
                _log.warning("cannot count the rows at the destination: %s", why)
            self._is_count_reported = True
            return
        self._is_count_reported = False
        for table_id in stale:
            table = self._members.tables.get(table_id)
            if table is not None:
                known = self._store.get_table_schema(table_id, LSN_MAX)
                name = str((known or table.schema).target)
                of_table = None if odd is None else odd.get(name, {})
                self._metrics.counted(table_id, rows.get(name), of_table, held.get(name, 0))

    def publish(self, status: PipelineStatus, *, at_once: bool = False) -> None:
        """Write the status to the store, unless it says what the last one said.

        That of thousands of tables is large; it is written less often.
        """
        self._history.add(status)
        began = time.thread_time()
        now = time.monotonic()
        is_news = self._published is None or _is_news(status, self._published)
        if now < (self._news_due if is_news else self._publish_due) and not at_once:
            return
        self._store.publish_status("apply", status.to_json())
        self._published = status
        took_s = time.thread_time() - began
        self._news_due = now + _REST * took_s
        self._publish_due = now + max(_PUBLISH_EVERY_S, _IDLE_REST * took_s)

    def tables(self) -> Mapping[str, TableStatus]:
        """Every table of the publication, by name; the same object until something changes.

        Of thousands of tables few change from one moment to the next.
        """
        # Who asks how things are can't wait for a store that is away: it is a part of the answer.
        if not self._is_store_away:
            with contextlib.suppress(EtlError):
                self._read_states()
        basis = _Basis(
            self._members.tables,
            self._states,
            self._metrics.revision,
            self._plans,
            self._members.partitions_kept,
            self._wal_kept(),
        )
        shown = self._shown
        # How far a copy has come is measured all the time.
        if shown is not None and not basis.plans and shown[0].is_same_as(basis):
            return shown[1]
        before = self._parts
        parts = {
            table_id: self._part(before.get(table_id), table_id, table.schema.name, basis)
            for table_id, table in basis.members.items()
        }
        tables = {status.name: status for _, status in parts.values()}
        self._parts, self._shown = parts, (basis, tables)
        return tables

    def _rows_done(self, table_id: TableId, plan: CopyPlan) -> int:
        durable = sum(chunk.row_count for chunk in plan.finished.values())
        return durable + self._meter.unfinished(table_id, plan.finished.keys())

    def _part(
        self,
        before: tuple[object, TableStatus] | None,
        table_id: TableId,
        name: str,
        basis: _Basis,
    ) -> tuple[object, TableStatus]:
        counts, state = self._metrics.table(table_id), basis.states.get(table_id)
        plan, kept = basis.plans.get(table_id), basis.kept.get(table_id, ())
        wal = basis.wal.get(table_id)
        made_of = (name, counts.revision, state, plan, kept, wal)
        if before is not None and plan is None and before[0] == made_of:
            return before
        shown = self._table(table_id, name, state, counts, plan, kept)
        if isinstance(state, Errored):
            shown = replace(
                shown,
                error=state.reason,
                solution=what_to_do(state, name, self._config),
                stopped_since=None if state.since is None else state.since.isoformat(),
                stopped_lsn=None if state.lsn is None else str(state.lsn),
                wal_kept_bytes=wal,
                retry_at=retry_at(state),
            )
        return made_of, shown

    def _table(
        self,
        table_id: TableId,
        name: str,
        state: TableState | None,
        counts: TableCounts,
        plan: CopyPlan | None,
        kept: Sequence[str],
    ) -> TableStatus:
        last_lsn = counts.last_commit_lsn
        return TableStatus(
            table_id=table_id,
            name=name,
            state=state_name(state) if state is not None else "init",
            state_id=self._config.state_id(name),
            rows_inserted=counts.inserted,
            rows_updated=counts.updated,
            rows_deleted=counts.deleted,
            truncates=counts.truncates,
            row_count=counts.row_count,
            row_count_estimated=counts.is_row_count_estimated,
            last_commit_lsn=None if last_lsn is None else str(last_lsn),
            last_commit_time=counts.last_commit_time,
            copy_chunks_done=len(plan.finished) if plan else 0,
            copy_chunks_total=len(plan.chunks) if plan else 0,
            copy_rows_done=self._rows_done(table_id, plan) if plan else 0,
            copy_rows_estimated=sum(c.estimated_rows for c in plan.chunks) if plan else 0,
            copy_rows_per_second=self._meter.rows_per_second(table_id) if plan else None,
            values_replaced=counts.replaced.total(),
            odd_values=self._odd_values(counts),
            rows_quarantined=counts.quarantined,
            partitions_kept=len(kept),
            last_partition_kept=kept[-1] if kept else None,
        )

    def _odd_values(self, counts: TableCounts) -> Mapping[str, int] | None:
        if self._counts_odd:
            return None if counts.odd_values is None else dict(counts.odd_values)
        if counts.odd_copied is None:
            return None
        return dict(Counter(counts.odd_copied) + counts.odd_streamed)


@dataclass(frozen=True)
class _Basis:
    """What the tables' statuses are made of."""

    members: Mapping[TableId, PublishedTable]
    states: Mapping[TableId, TableState]
    revision: int
    plans: Mapping[TableId, CopyPlan]
    kept: Mapping[TableId, Sequence[str]]
    wal: Mapping[TableId, int]

    def is_same_as(self, other: _Basis) -> bool:
        return (
            self.members is other.members
            and self.revision == other.revision
            and self.states == other.states
            and self.plans == other.plans
            and self.kept == other.kept
            and self.wal == other.wal
        )


def _is_news(status: PipelineStatus, before: PipelineStatus) -> bool:
    """Whether a reader would notice; an idle server's WAL grows a little all the time."""
    if _headline(status) != _headline(before):
        return True
    return status.tables is not before.tables and _gist(status) != _gist(before)


def _headline(status: PipelineStatus) -> object:
    spooling = status.transactions_in_progress, status.spooled_bytes
    return status.phase, status.error, status.note, status.rows_total, spooling


def _gist(status: PipelineStatus) -> object:
    return [
        (t.name, t.state, t.rows_changed, t.copy_chunks_done, t.partitions_kept, t.odd_values)
        for t in status.tables.values()
    ]

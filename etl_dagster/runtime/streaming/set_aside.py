"""Sets a table aside that can't be written: a slot of its own keeps what it misses meanwhile."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from etl_dagster.errors import EtlError, LeaseLost, SlotNotCreated, SourceUnreachable
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Errored, ManualRetry, Ready
from etl_dagster.model.stores import ApplyWorker, TableSyncWorker
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.moved import forget_move
from etl_dagster.runtime.retry import errored_state
from etl_dagster.runtime.table_names import name_of
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.own_slots import copy_apply_slot, keep_on_standbys
from etl_dagster.source.slots import drop_slot, table_sync_slot_name

_log = logging.getLogger(__name__)

#: The worker that handed the table over may still drop its slot, which has the same name.
_LEASE_WAIT_S = 30.0
_LOOK_S = 0.05


class SettingAside:
    """Makes a table `Errored` so that it can be resumed where it stopped, without a copy.

    Everything that was committed before `Errored.lsn` is at the destination. The table's own slot
    begins there or before: it is copied from the pipeline's before that is confirmed any further.
    It has the name of the slot of a copy, and with it all that is done with such a slot: a table
    sync worker resumes the table as one whose copy is finished, and hands it over.

    In this order: the slot, the progress of the worker to come, the state. After a crash between
    them the table is still `Ready`, the batch comes again, and the slot is made again.
    """

    def __init__(self, parts: WorkerParts) -> None:
        self._parts = parts
        self._config = parts.config
        self._store = parts.store
        self._control = parts.control

    def stop(self, table_id: TableId, state: Ready, error: EtlError) -> None:
        """Stop a table whose changes can't be written. Nothing of it is under way, and no progress
        is stored or confirmed meanwhile.

        Args:
            state: as the table has it.

        Raises:
            Stopped: told to stop.
            SourceUnreachable: whether its changes are kept is not known; the batch comes again.
        """
        progress = self._store.get_replication_progress(ApplyWorker()) or LSN_ZERO
        lsn = max(progress, state.lsn)
        stopped = Errored(
            error.reason, error.solution, ManualRetry(), since=datetime.now(UTC), lsn=lsn
        )
        name = name_of(self._store, table_id)
        slot_name = table_sync_slot_name(self._config.pipeline, table_id)
        try:
            with self._claimed(table_id):
                self._keep(table_id, slot_name, lsn)
                retry = errored_state(error, self._config.retry, 1).retry
                kept = replace(stopped, retry=retry, is_kept=True)
                if self._store.transition_table_state(table_id, state, kept):
                    _log.error(
                        "%s stopped at %s: %s. Slot %r keeps its changes from there on; once the "
                        "cause is gone: `etl-dagster retry %s`",
                        name,
                        lsn,
                        error.reason,
                        slot_name,
                        name,
                    )
                else:  # another copy was asked for meanwhile
                    self._control.ask("dropping a slot", drop_slot, slot_name)
        except (Stopped, SourceUnreachable):
            raise
        except EtlError as failure:
            if self._parts.stop.is_set():
                raise Stopped from None
            _log.error(
                "%s stopped at %s: %s. Its changes from there on are not kept (%s), so it needs a "
                "copy: `etl-dagster resync %s`",
                name,
                lsn,
                error.reason,
                failure.reason,
                name,
            )
            self._store.transition_table_state(table_id, state, stopped)

    @contextlib.contextmanager
    def _claimed(self, table_id: TableId) -> Iterator[None]:
        """While no other process creates or drops the table's slot."""
        deadline = self._parts.clock.now_s() + _LEASE_WAIT_S
        while (lease := self._store.acquire_lease(f"table:{table_id}")) is None:
            if self._parts.clock.now_s() > deadline:
                raise LeaseLost("another worker has the table")
            if self._parts.clock.wait(self._parts.stop, _LOOK_S):
                raise Stopped
        try:
            yield
        finally:
            lease.release()

    def _keep(self, table_id: TableId, slot_name: str, lsn: Lsn) -> None:
        if not self._config.retry.max_retained_wal:
            raise SlotNotCreated("retry.max_retained_wal is 0")
        if self._store.get_copy_plan(table_id) is None:
            raise SlotNotCreated("the state store has no record of its copy")
        self._control.ask(
            "keeping the changes of a table",
            copy_apply_slot,
            self._config,
            slot_name,
            needed_from=lsn,
        )
        try:
            keep_on_standbys(self._config, slot_name)
        except EtlError as error:
            _log.warning("standbys don't keep slot %r: %s", slot_name, error.reason)
        forget_move(self._store, table_id)
        worker = TableSyncWorker(table_id)
        self._store.delete_replication_progress(worker)
        self._store.upsert_replication_progress(worker, lsn)

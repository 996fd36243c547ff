"""Runs table sync workers as threads of this process, a few at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from datetime import UTC, datetime

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import DestinationReplaced, DestinationRestored, EtlError
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Errored, TableState, TimedRetry, needs_sync
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.failures import log_failure
from etl_dagster.runtime.table_sync import TableSync

_log = logging.getLogger(__name__)


class TableSyncs:
    """Starts a worker for every table that needs one; each table's failure is its own."""

    def __init__(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        destination: Destination,
        stop: threading.Event,
    ) -> None:
        self._config = config
        self._store = store
        self._destination = destination
        self._stop = stop
        self._threads: dict[TableId, threading.Thread] = {}
        self._failure: EtlError | None = None

    def start_due(self, table_ids: Collection[TableId]) -> None:
        """Start what is due, as far as `copy.max_table_sync_workers` allows.

        Raises:
            DestinationReplaced, DestinationRestored: a worker found that; no table is at fault.
        """
        if self._failure is not None:
            raise self._failure
        self._threads = {t: thread for t, thread in self._threads.items() if thread.is_alive()}
        states = self._store.get_table_replication_states()
        for table_id in table_ids:
            if len(self._threads) >= self._config.copy_tables.max_table_sync_workers:
                return
            if table_id in self._threads or not is_sync_due(states.get(table_id)):
                continue
            if self._store.is_leased(f"table:{table_id}"):
                continue  # a worker of another process, or one that is just ending
            thread = threading.Thread(
                target=self._sync, args=[table_id], name=f"table sync {table_id}", daemon=True
            )
            self._threads[table_id] = thread
            thread.start()

    def join(self) -> None:
        """Wait for the workers to end, after stop was set."""
        for thread in self._threads.values():
            thread.join()

    def _sync(self, table_id: TableId) -> None:
        worker = TableSync(self._config, self._store, self._destination, table_id, stop=self._stop)
        try:
            worker.run()
        except (DestinationReplaced, DestinationRestored) as error:
            self._failure = error
        except EtlError:
            pass  # it is in the table's state, and in the log
        except Exception as error:
            log_failure(_log, f"the worker of table {table_id} failed", error)


def is_sync_due(state: TableState | None) -> bool:
    """Whether a table sync worker should work on a table now."""
    if isinstance(state, Errored):
        return isinstance(state.retry, TimedRetry) and state.retry.next_retry <= datetime.now(UTC)
    return state is not None and needs_sync(state)

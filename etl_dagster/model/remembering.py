"""What a store in memory remembers of source and destination."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyPlan
from etl_dagster.model.identity import KnownDestination, KnownSource
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import WorkerType


class RemembersInMemory:
    """`RemembersDestination` and `RemembersSource`, for as long as the process lives."""

    #: Of the store, which may hold it: it must be reentrant.
    _lock: threading.RLock
    _plans: dict[TableId, CopyPlan]
    _known: KnownDestination | None
    _known_source: KnownSource | None

    def upsert_replication_progress(self, worker: WorkerType, flush_lsn: Lsn) -> Lsn:
        raise NotImplementedError

    def get_known_destination(self) -> KnownDestination | None:
        return self._known

    def store_known_destination(self, known: KnownDestination | None) -> None:
        with self._lock:
            self._known = known

    def get_known_source(self) -> KnownSource | None:
        return self._known_source

    def store_known_source(self, known: KnownSource) -> None:
        self._known_source = known

    def store_delivery(self, worker: WorkerType, flush_lsn: Lsn, revision: int) -> Lsn:
        with self._lock:
            if self._known is not None:
                newest = max(self._known.revision, revision)
                self._known = replace(self._known, revision=newest)
            return self.upsert_replication_progress(worker, flush_lsn)

    def get_copy_ids(self) -> Mapping[TableId, str]:
        with self._lock:
            return {table_id: plan.copy_id for table_id, plan in self._plans.items()}

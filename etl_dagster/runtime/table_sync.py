"""The table sync worker: copies one table, then catches up with the stream."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from etl_dagster.config import PipelineConfig
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import CoordinatingStore


@dataclass(frozen=True)
class CopyProgress:
    """How far a copy is, after each chunk and each change of state."""

    state: str
    chunks_done: int
    chunks_total: int
    rows_done: int
    bytes_done: int
    rows_estimated: int


@dataclass(frozen=True)
class TableSyncResult:
    """What a table sync worker did, from its start to the hand-over."""

    schema: TableSchema
    copy_id: str
    #: All of the copy, also what an earlier worker had done of it.
    row_count: int
    byte_count: int
    chunk_count: int
    #: Chunks that an earlier worker had done.
    resumed_chunks: int
    copy_seconds: float
    catchup_seconds: float
    #: Consistent point of the table sync slot: the changes from here on were replayed.
    snapshot_lsn: Lsn
    #: `SyncDone.lsn`: from here on the apply worker streams the table.
    handover_lsn: Lsn


class TableSync:
    """One table's worker; it may run in a thread of the pipeline or in a process of its own."""

    def __init__(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        destination: Destination,
        table_id: TableId,
        *,
        stop: threading.Event | None = None,
        on_progress: Callable[[CopyProgress], None] = lambda progress: None,
    ) -> None:
        raise NotImplementedError

    def run(self) -> TableSyncResult | None:
        """Work until the hand-over; None when it was told to stop before.

        Needs the pipeline's apply worker to run somewhere: without it the copy is made, and the
        hand-over waits.

        Raises:
            EtlError: the table can't be copied; its state is `Errored` by then.
            LeaseLost: another worker has the table.
        """
        raise NotImplementedError

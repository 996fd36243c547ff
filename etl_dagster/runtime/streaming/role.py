"""What a worker decides about the stream that it applies, and is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from etl_dagster.errors import EtlError
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import EventBatch
from etl_dagster.model.schema import TableId


class Role(Protocol):
    """A worker, as its `Feed` sees it: the apply worker, or one that catches up.

    Two threads call it. The first two belong to the one that reads the stream, the rest to the one
    that writes to the destination.
    """

    # -- reading ---------------------------------------------------------------------------------

    def between_reads(self) -> bool:
        """Do what is due; whether to continue reading."""
        ...

    @property
    def apply_from(self) -> Mapping[TableId, Lsn]:
        """The tables whose changes are applied, each from its LSN on. Never changed afterwards."""
        ...

    # -- writing ---------------------------------------------------------------------------------

    def prepare(self, events: EventBatch) -> EventBatch:
        """A last word on a decoded batch, for example to complete values in it.

        Raises:
            RowsOutdated, TableWriteFailed: the batch continues without that table.
        """
        ...

    def on_written(self, events: EventBatch) -> None:
        """The batch is durable at the destination, and the store doesn't say so yet: who finds its
        LSN there knows what the batch did."""
        ...

    def on_durable(self, lsn: Lsn | None, events: EventBatch | None) -> None:
        """What was committed before `lsn` is durable at the destination and in the store.

        LSNs ascend.

        Args:
            lsn: None where the batch ends inside of a transaction.
            events: the batch; None where nothing was to be written.
        """
        ...

    def on_table_error(self, table_id: TableId, error: EtlError) -> None:
        """One table's changes can't be written. The batch continues without the table; raising ends
        the stream."""
        ...

    def on_outdated(self, table_id: TableId, reason: str) -> None:
        """Only a new copy brings the table up to date. Nothing that follows is durable yet; the
        batch continues without the table."""
        ...

"""What a running pipeline tells about itself; plain data that also crosses processes as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Phase = Literal["starting", "streaming", "retrying", "stopping", "stopped", "failed"]


@dataclass(frozen=True)
class TableStatus:
    """One table. Counts are of this process since it started, unless they say otherwise."""

    table_id: int
    #: ``schema.table``.
    name: str
    #: `model.states.state_name`, such as ``ready``.
    state: str
    state_id: str
    rows_inserted: int = 0
    rows_updated: int = 0
    rows_deleted: int = 0
    truncates: int = 0
    #: Rows of the table at the destination; None where it can't tell.
    row_count: int | None = None
    #: Whether the destination estimated that number, because counting would have taken long.
    row_count_estimated: bool = False
    #: Commit record of the last change that is durable, with its commit time (ISO 8601, UTC).
    last_commit_lsn: str | None = None
    last_commit_time: str | None = None
    #: Chunks of the copy under way that are durable, and all of them.
    copy_chunks_done: int = 0
    copy_chunks_total: int = 0
    #: Rows of the durable chunks, and those read so far of chunks that this process copies; and
    #: the planner's estimate of all rows.
    copy_rows_done: int = 0
    copy_rows_estimated: int = 0
    #: Speed of the copy in the last half minute; None until it is known.
    copy_rows_per_second: float | None = None
    #: Values that their column's type could not hold and that became null.
    values_replaced: int = 0
    #: Values that their column's type can't hold, by column: those that the destination has now.
    #: Where it doesn't count them, those that came with the table's last copy and since. None:
    #: they are not counted yet.
    odd_values: Mapping[str, int] | None = field(default_factory=dict)
    #: Rows that the destination keeps apart from the table for such values; not in `row_count`.
    rows_quarantined: int = 0
    #: Partitions that were detached, dropped or truncated at the source while their rows stayed at
    #: the destination (``partitions_removed: keep``), since the last copy; and the latest one.
    partitions_kept: int = 0
    last_partition_kept: str | None = None
    error: str | None = None
    solution: str | None = None
    #: Of a table that stopped while it was streamed: when (ISO 8601), and the LSN before which
    #: everything is at the destination.
    stopped_since: str | None = None
    stopped_lsn: str | None = None
    #: WAL that the source keeps so that the table can be resumed without a copy, bytes; None where
    #: none is kept, or it is not measured yet.
    wal_kept_bytes: int | None = None
    #: When a table that failed is tried again by itself (ISO 8601); None where a person decides.
    retry_at: str | None = None

    @property
    def rows_changed(self) -> int:
        return self.rows_inserted + self.rows_updated + self.rows_deleted

    @property
    def copy_seconds_left(self) -> float | None:
        """How long the copy will take at its present speed; None while that is not known."""
        if not self.copy_rows_per_second:
            return None
        return max(self.copy_rows_estimated - self.copy_rows_done, 0) / self.copy_rows_per_second


@dataclass(frozen=True)
class PipelineStatus:
    """A pipeline at one moment. LSNs are in Postgres' notation."""

    pipeline: str
    destination: str
    phase: Phase
    epoch: int = 0
    #: Confirmed to Postgres: durable at the destination and in the store.
    confirmed_lsn: str = "0/0"
    received_lsn: str = "0/0"
    #: The end of the server's WAL, as the stream last said.
    server_lsn: str = "0/0"
    #: `server_lsn` minus `confirmed_lsn`, bytes.
    lag_bytes: int = 0
    #: Age of the oldest commit that is received and not yet durable, seconds; 0 when none is.
    lag_seconds: float = 0.0
    #: From the commit of the last heartbeat at the source until it was durable, or the age of one
    #: that takes longer; None before the first, and without heartbeats.
    latency_seconds: float | None = None
    #: WAL that the slot makes the server keep, bytes; None until first measured.
    retained_wal_bytes: int | None = None
    #: From where on that is too much: `source.max_retained_wal`, or less where the server's own
    #: limit is lower.
    wal_warned_above_bytes: int | None = None
    #: Transactions that the source has sent before they committed, and what of them is on disk.
    transactions_in_progress: int = 0
    spooled_bytes: int = 0
    rows_total: int = 0
    rows_per_second: float = 0.0
    batches: int = 0
    #: By name. From one process the same object, as long as nothing in it changes.
    tables: Mapping[str, TableStatus] = field(default_factory=dict)
    error: str | None = None
    solution: str | None = None
    #: What to know besides: that a destination among several was set aside, and why; why large
    #: transactions are read once they have committed; what a write to the destination waits for.
    note: str | None = None
    #: When it was taken, seconds since 1970-01-01 UTC.
    at: float = 0.0

    def to_json(self) -> dict[str, Any]:
        # Tables hold plain values only, so nothing of them needs to be copied.
        payload = vars(self) | {"tables": {name: dict(vars(t)) for name, t in self.tables.items()}}
        if self.note is None:
            del payload["note"]
        return payload

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> PipelineStatus:
        """Read what `to_json` gave; keys of a newer version are ignored."""
        known = {name: payload[name] for name in cls.__dataclass_fields__ if name in payload}
        fields = TableStatus.__dataclass_fields__
        known["tables"] = {
            name: TableStatus(**{k: v for k, v in table.items() if k in fields})
            for name, table in payload.get("tables", {}).items()
        }
        return cls(**known)

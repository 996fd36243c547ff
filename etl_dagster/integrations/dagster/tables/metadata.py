"""What the events of a table show in the UI: names, units, and what plots over time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dagster import AssetKey, AssetMaterialization, MetadataValue

from etl_dagster.integrations.dagster.tables.translator import STATE, STATE_ID, column_schema
from etl_dagster.integrations.dagster.worst_lag import Lag
from etl_dagster.integrations.meltano.positions.bookmarks import TablePosition
from etl_dagster.integrations.meltano.positions.tables import published_position
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import EstimatedCount
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus

if TYPE_CHECKING:
    from etl_dagster.runtime.copying.table_sync import TableSyncResult

#: Tells the sensor's materializations from those of copies.
REPORTED_BY = "reported_by"
#: Characters; a tag is for a glance, the metadata has all of it.
_LONGEST_TAG = 2000


def table_metadata(name: str, state_id: str, row_count: int | None) -> dict[str, Any]:
    """What every copy of a table holds; the UI's row count is the latest event's."""
    metadata: dict[str, Any] = {STATE_ID: state_id, "dagster/table_name": name}
    is_estimated = isinstance(row_count, EstimatedCount)
    return metadata | _row_count(row_count, is_estimated=is_estimated)


def _row_count(row_count: int | None, *, is_estimated: bool) -> dict[str, Any]:
    """The number that the UI shows, and a word where it was not counted."""
    if row_count is None:
        return {}
    said = {"row_count_estimated": True} if is_estimated else {}
    return {"dagster/row_count": int(row_count)} | said


def state_tags(state: Mapping[str, Any] | None) -> dict[str, str]:
    """The state as JSON in a run's tags; none where it is longer than a list of runs can show."""
    text = json.dumps(state, separators=(",", ":"))
    return {STATE: text} if state and len(text) <= _LONGEST_TAG else {}


def state_metadata(position: TablePosition) -> dict[str, Any]:
    """The position as `meltano state get` prints it."""
    return {STATE: MetadataValue.json(position.to_state())}


def odd_metadata(counts: Mapping[str, int], quarantined: int) -> dict[str, Any]:
    """Values that their column's type can't hold, by column; nothing where all are held.

    Args:
        quarantined: rows that are kept apart from the table for such values.
    """
    metadata: dict[str, Any] = {}
    if counts:
        metadata["odd_values"] = MetadataValue.json(dict(counts))
    if quarantined:
        metadata["rows_quarantined"] = quarantined
    return metadata


def copy_metadata(result: TableSyncResult) -> dict[str, Any]:
    """What a copy did. One prefix keeps the plots of its numbers together, after the stream's."""
    return {
        "dagster/column_schema": MetadataValue.table_schema(column_schema(result.schema)),
        "table_copy_rows": result.row_count,
        "table_copy_bytes": result.byte_count,
        "table_copy_seconds": round(result.copy_seconds, 2),
        "table_copy_rows_per_second": round(result.row_count / max(result.copy_seconds, 0.001)),
        "table_copy_catchup_seconds": round(result.catchup_seconds, 2),
        "table_copy_chunks": result.chunk_count,
        "table_copy_resumed_chunks": result.resumed_chunks,
        "snapshot_lsn": str(result.snapshot_lsn),
        "handover_lsn": str(result.handover_lsn),
        "copy_id": result.copy_id,
    }


@dataclass(frozen=True)
class Activity:
    """Changes of one table that became durable since the report before."""

    inserted: int
    updated: int
    deleted: int
    truncates: int

    @classmethod
    def between(cls, before: TableStatus | None, now: TableStatus) -> Activity:
        """The difference of two statuses of one process; without the first, all of it.

        Under one name there may be two tables, one after the other: the second counts from zero.
        """
        if before is None or before.table_id != now.table_id:
            return cls(now.rows_inserted, now.rows_updated, now.rows_deleted, now.truncates)
        return cls(
            now.rows_inserted - before.rows_inserted,
            now.rows_updated - before.rows_updated,
            now.rows_deleted - before.rows_deleted,
            now.truncates - before.truncates,
        )

    @property
    def rows(self) -> int:
        return self.inserted + self.updated + self.deleted

    def __bool__(self) -> bool:
        return self != Activity(0, 0, 0, 0)


def stream_materialization(
    key: AssetKey,
    status: PipelineStatus,
    table: TableStatus,
    activity: Activity,
    lag: Lag,
    seconds: float | None,
) -> AssetMaterialization:
    """The event that the stream changed the table.

    Dagster keeps every event for good, so nothing is repeated that the asset's definition or the
    state already says.

    Args:
        lag: of the pipeline, the largest since the last report.
        seconds: since the last report; None where the activity's length is not known.
    """
    metadata: dict[str, Any] = {
        "rows_inserted": activity.inserted,
        "rows_updated": activity.updated,
        "rows_deleted": activity.deleted,
        "lag_bytes": lag.bytes,
        "lag_seconds": lag.seconds,
        "confirmed_lsn": status.confirmed_lsn,
        "confirmed_lsn_offset": Lsn.parse(status.confirmed_lsn).offset,
        REPORTED_BY: f"{status.pipeline}_replication",
    }
    metadata |= state_metadata(published_position(status, table))
    metadata |= _row_count(table.row_count, is_estimated=table.row_count_estimated)
    if seconds:
        metadata["rows_per_second"] = round(activity.rows / seconds, 2)
    if activity.truncates:
        metadata["truncates"] = activity.truncates
    if table.last_commit_time is not None:
        metadata["last_commit_at"] = MetadataValue.timestamp(
            datetime.fromisoformat(table.last_commit_time)
        )
    if table.values_replaced:
        metadata["values_replaced"] = table.values_replaced
    metadata |= odd_metadata(table.odd_values or {}, table.rows_quarantined)
    if table.partitions_kept:
        metadata["partitions_kept"] = table.partitions_kept
        metadata["last_partition_kept"] = table.last_partition_kept or ""
    return AssetMaterialization(asset_key=key, description=_describe(activity), metadata=metadata)


def _describe(activity: Activity) -> str:
    parts = [
        f"{count:,} {word}"
        for count, word in (
            (activity.inserted, "inserted"),
            (activity.updated, "updated"),
            (activity.deleted, "deleted"),
        )
        if count
    ]
    if activity.truncates:
        parts.append("truncated")
    return ", ".join(parts) or "Streamed; nothing has changed since the last report."

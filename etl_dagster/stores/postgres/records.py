"""How schemas, copy plans and destination metadata are kept in rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyChunk, CopyPlan, FinishedChunk
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.shape import table_shape_from_json, table_shape_to_json
from etl_dagster.model.stores import ApplyWorker, DestinationTableMetadata, WorkerType
from etl_dagster.values.columns import column_from_json, column_to_json

SCHEMA_COLUMNS = (
    "table_id, snapshot_id::text, schema_name, table_name, replica_identity, columns, mode, shape"
)
METADATA_COLUMNS = (
    "destination_table_id, snapshot_id::text, status, replication_mask, previous_snapshot_id::text"
)
CHUNK_COLUMNS = (
    "chunk_index, relation_id, first_block, end_block, estimated_rows, file_node, "
    "row_count, byte_count, read_lsn::text, duration_s"
)


def worker_key(worker: WorkerType) -> str:
    return "apply" if isinstance(worker, ApplyWorker) else sync_worker_key(worker.table_id)


def sync_worker_key(table_id: TableId) -> str:
    return f"table_sync:{table_id}"


def columns_to_json(schema: TableSchema) -> list[dict[str, Any]]:
    return [column_to_json(column) for column in schema.columns]


def schema_from_row(row: tuple[Any, ...]) -> TableSchema:
    """Read a row of `SCHEMA_COLUMNS`; what a newer version added to columns is ignored."""
    table_id, snapshot_id, schema_name, table_name, replica_identity, columns, mode, shape = row
    return TableSchema(
        id=table_id,
        schema_name=schema_name,
        table_name=table_name,
        columns=tuple(map(column_from_json, columns)),
        snapshot_id=Lsn.parse(snapshot_id),
        replica_identity=replica_identity,
        mode=mode,
        shape=None if shape is None else table_shape_from_json(shape),
    )


def shape_to_json(schema: TableSchema) -> dict[str, Any] | None:
    """What `schema_from_row` reads in the column ``shape``."""
    return None if schema.shape is None else table_shape_to_json(schema.shape)


def metadata_from_row(row: tuple[Any, ...]) -> DestinationTableMetadata:
    """Read a row of `METADATA_COLUMNS`."""
    destination_table_id, snapshot_id, status, mask, previous = row
    return DestinationTableMetadata(
        destination_table_id=destination_table_id,
        snapshot_id=Lsn.parse(snapshot_id),
        status=status,
        replication_mask=tuple(mask),
        previous_snapshot_id=None if previous is None else Lsn.parse(previous),
    )


def plan_from_rows(plan: tuple[Any, ...], chunks: Iterable[tuple[Any, ...]]) -> CopyPlan:
    """Read a plan (copy_id, slot_lsn, started_at) and its rows of `CHUNK_COLUMNS`."""
    copy_id, slot_lsn, started_at = plan
    planned = []
    finished = {}
    for *described, rows, size, read_lsn, duration_s in chunks:
        chunk = CopyChunk(*described)
        planned.append(chunk)
        if read_lsn is not None:
            finished[chunk.index] = FinishedChunk(
                chunk.index, rows, size, Lsn.parse(read_lsn), duration_s
            )
    return CopyPlan(copy_id, tuple(planned), finished, Lsn.parse(slot_lsn), started_at)

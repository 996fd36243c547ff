"""How much at a time, and what is done again when it fails: batches, copies, retries."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from etl_dagster.config.section import ByteCount, Section


class BatchConfig(Section):
    """When a stretch of the stream is closed and written."""

    max_fill_ms: int = Field(1000, ge=1, description="Age of the oldest change, at most.")
    max_bytes: ByteCount = Field(
        8 * 1024**2, ge=1024, description="Size as Postgres sends it, at most."
    )
    max_rows: int = Field(200_000, ge=1, description="Rows, at most.")
    max_queued: int = Field(2, ge=1, description="Closed batches waiting for the destination.")
    max_in_flight: int = Field(
        1,
        ge=1,
        description="Writes at a time of one stream, of different tables, where the destination "
        "returns futures; one that returns when the batch is durable has one.",
    )
    max_in_flight_bytes: ByteCount = Field(
        32 * 1024**2, ge=1024, description="Memory of the rows of all these writes, at most."
    )
    spool_max_bytes: ByteCount = Field(
        20 * 1024**3,
        ge=1024,
        description="Disk for transactions that are read while they are in progress, at most.",
    )
    spool_dir: Path | None = Field(
        None, description="Where that is: a folder; one for temporary files unless given."
    )


class CopyConfig(Section):
    """How tables are copied."""

    max_table_sync_workers: int = Field(
        4, ge=1, description="Tables, or groups of small tables, at a time."
    )
    max_connections_per_table: int = Field(4, ge=1, description="Chunks of one table at a time.")
    chunk_rows: int = Field(250_000, ge=1, description="Rows in a chunk, by statistics.")


class RepairConfig(Section):
    """How tables are compared with the source, and repaired."""

    max_connections: int = Field(
        2, ge=1, description="Connections that read one table's rows from the source at a time."
    )


class RetryConfig(Section):
    """How failures that waiting may cure are retried; the delay doubles, with jitter."""

    initial_delay_ms: int = Field(500, ge=1, description="The first pause.")
    max_delay_ms: int = Field(30_000, ge=1, description="The longest pause.")
    max_attempts: int = Field(8, ge=1, description="In a row; progress resets the count.")
    max_retained_wal: ByteCount = Field(
        5 * 1024**3,
        ge=0,
        description="WAL that the source keeps for one table that stopped, at most. Beyond that "
        "its slot is dropped, and the table needs a copy. 0: keep none.",
    )

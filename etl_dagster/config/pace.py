"""How much is done at a time, and how failures are retried: batches, copies, retries."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from etl_dagster.config.section import ByteCount, Section


class BatchConfig(Section):
    """When a batch of the stream is closed and written."""

    max_fill_ms: int = Field(1000, ge=1, description="Maximum age of the oldest change in a batch.")
    max_bytes: ByteCount = Field(
        8 * 1024**2, ge=1024, description="Maximum size of a batch, as Postgres sends it."
    )
    max_rows: int = Field(200_000, ge=1, description="Maximum number of rows in a batch.")
    max_queued: int = Field(2, ge=1, description="Closed batches waiting for the destination.")
    max_in_flight: int = Field(
        1,
        ge=1,
        description="How many writes of one stream, to different tables, may be under way, if the "
        "destination returns futures.",
    )
    max_in_flight_bytes: ByteCount = Field(
        32 * 1024**2, ge=1024, description="Maximum memory of the rows of all these writes."
    )
    spool_max_bytes: ByteCount = Field(
        20 * 1024**3,
        ge=1024,
        description="Maximum disk space for transactions in progress.",
    )
    spool_dir: Path | None = Field(
        None, description="Folder for these; by default the one for temporary files."
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
    """How failures are retried if waiting may help; the delay doubles, with jitter."""

    initial_delay_ms: int = Field(500, ge=1, description="The first pause.")
    max_delay_ms: int = Field(30_000, ge=1, description="The longest pause.")
    max_attempts: int = Field(8, ge=1, description="In a row; progress resets the count.")
    max_retained_wal: ByteCount = Field(
        5 * 1024**3,
        ge=0,
        description="Maximum WAL that the source keeps for one table that stopped. Beyond that "
        "its slot is dropped, and the table needs a copy. 0: keep none.",
    )

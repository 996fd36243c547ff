"""What tables look like at the destination, in rows."""

# Queries are put together of constants only; identifiers go through psycopg.sql.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping

from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import DestinationTableMetadata
from etl_dagster.stores.postgres import records
from etl_dagster.stores.postgres.cache import Cache
from etl_dagster.stores.postgres.rows import PipelineRows, StorePart


class KeptMetadata(StorePart):
    """One row for each table; all are read at once."""

    def __init__(self, rows: PipelineRows) -> None:
        super().__init__(rows)
        self._metadata: Cache[Mapping[TableId, DestinationTableMetadata]] = Cache()
        rows.news.forget_after("metadata", self._metadata.invalidate)

    def get_destination_table_metadata(self, table_id: TableId) -> DestinationTableMetadata | None:
        return self._all_metadata().get(table_id)

    def get_applied_destination_table_metadata(
        self, table_id: TableId
    ) -> DestinationTableMetadata | None:
        metadata = self.get_destination_table_metadata(table_id)
        return None if metadata is None else metadata.require_applied()

    def load_destination_tables_metadata(self) -> int:
        self._metadata.invalidate()
        return len(self._all_metadata())

    def store_destination_table_metadata(
        self, table_id: TableId, metadata: DestinationTableMetadata
    ) -> None:
        self.store_destination_tables_metadata({table_id: metadata})

    def store_destination_tables_metadata(
        self, metadata: Mapping[TableId, DestinationTableMetadata]
    ) -> None:
        self._rows.write_many(
            "metadata",
            """
            INSERT INTO {schema}.destination_tables
                (pipeline, table_id, destination_table_id, snapshot_id, previous_snapshot_id,
                 status, replication_mask)
            VALUES (%s, %s, %s, %s::pg_lsn, %s::pg_lsn, %s, %s)
            ON CONFLICT (pipeline, table_id) DO UPDATE SET
                destination_table_id = excluded.destination_table_id,
                snapshot_id = excluded.snapshot_id,
                previous_snapshot_id = excluded.previous_snapshot_id,
                status = excluded.status,
                replication_mask = excluded.replication_mask,
                updated_at = now()
            """,
            [
                (
                    self._rows.pipeline,
                    table_id,
                    described.destination_table_id,
                    str(described.snapshot_id),
                    None
                    if described.previous_snapshot_id is None
                    else str(described.previous_snapshot_id),
                    described.status,
                    list(described.replication_mask),
                )
                for table_id, described in metadata.items()
            ],
        )

    def _all_metadata(self) -> Mapping[TableId, DestinationTableMetadata]:
        query = (
            f"SELECT table_id, {records.METADATA_COLUMNS} FROM {{schema}}.destination_tables "
            "WHERE pipeline = %s"
        )

        def load() -> Mapping[TableId, DestinationTableMetadata]:
            rows = self._rows.fetch(query, self._rows.pipeline)
            return {table_id: records.metadata_from_row(tuple(row)) for table_id, *row in rows}

        return self._metadata.get(load, keep=self._rows.news.is_heard)

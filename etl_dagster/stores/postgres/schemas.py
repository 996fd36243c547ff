"""The versions of tables' schemas, in rows."""

# Queries are put together of constants only; identifiers go through psycopg.sql.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg.types.json import Jsonb

from etl_dagster.model.schema import SnapshotId, TableId, TableSchema, TableSchemaRetention
from etl_dagster.stores.postgres import records
from etl_dagster.stores.postgres.cache import Cache
from etl_dagster.stores.postgres.rows import PipelineRows, StorePart


class KeptSchemas(StorePart):
    """Every version in a row; all are read at once."""

    def __init__(self, rows: PipelineRows) -> None:
        super().__init__(rows)
        self._schemas: Cache[Mapping[TableId, Sequence[TableSchema]]] = Cache()
        rows.news.forget_after("schemas", self._schemas.invalidate)

    def get_table_schema(self, table_id: TableId, snapshot_id: SnapshotId) -> TableSchema | None:
        found = None
        for schema in self._schema_versions().get(table_id, ()):
            if schema.snapshot_id <= snapshot_id:
                found = schema
        return found

    def get_table_schemas(self) -> Sequence[TableSchema]:
        return [schema for versions in self._schema_versions().values() for schema in versions]

    def _schema_versions(self) -> Mapping[TableId, Sequence[TableSchema]]:
        """The versions of each table, the oldest first."""
        query = (
            f"SELECT {records.SCHEMA_COLUMNS} FROM {{schema}}.table_schemas "
            # Unqualified, it would be the text that is selected.
            "WHERE pipeline = %s ORDER BY table_id, table_schemas.snapshot_id"
        )

        def load() -> Mapping[TableId, Sequence[TableSchema]]:
            versions: dict[TableId, list[TableSchema]] = {}
            for row in self._rows.fetch(query, self._rows.pipeline):
                schema = records.schema_from_row(row)
                versions.setdefault(schema.id, []).append(schema)
            return versions

        return self._schemas.get(load, keep=self._rows.news.is_heard)

    def load_table_schemas(self) -> int:
        self._schemas.invalidate()
        return len(self.get_table_schemas())

    def store_table_schema(self, schema: TableSchema) -> TableSchema:
        self.store_table_schemas([schema])
        return schema

    def store_table_schemas(self, schemas: Sequence[TableSchema]) -> None:
        self._rows.write_many(
            "schemas",
            """
            INSERT INTO {schema}.table_schemas
                (pipeline, table_id, snapshot_id, schema_name, table_name, replica_identity,
                 columns, mode, shape)
            VALUES (%s, %s, %s::pg_lsn, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (pipeline, table_id, snapshot_id) DO UPDATE SET
                schema_name = excluded.schema_name, table_name = excluded.table_name,
                replica_identity = excluded.replica_identity, columns = excluded.columns,
                mode = excluded.mode, shape = excluded.shape
            """,
            [
                (
                    self._rows.pipeline,
                    schema.id,
                    str(schema.snapshot_id),
                    schema.schema_name,
                    schema.table_name,
                    schema.replica_identity,
                    Jsonb(records.columns_to_json(schema)),
                    schema.mode,
                    Jsonb(shape) if (shape := records.shape_to_json(schema)) else None,
                )
                for schema in schemas
            ],
        )

    def prune_table_schemas(self, retentions: Mapping[TableId, TableSchemaRetention]) -> int:
        return self._rows.write(
            "schemas",
            """
            WITH retention AS (
                SELECT * FROM unnest(%s::bigint[], %s::text[]::pg_lsn[]) AS r (table_id, lsn)
            )
            DELETE FROM {schema}.table_schemas AS old
            USING retention
            WHERE old.pipeline = %s AND old.table_id = retention.table_id AND EXISTS (
                SELECT FROM {schema}.table_schemas AS later
                WHERE later.pipeline = old.pipeline AND later.table_id = old.table_id
                    AND later.snapshot_id > old.snapshot_id
                    AND later.snapshot_id <= retention.lsn
            )
            """,
            list(retentions),
            [str(retention.lsn) for retention in retentions.values()],
            self._rows.pipeline,
        )

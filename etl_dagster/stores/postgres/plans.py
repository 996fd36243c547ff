"""Copies under way and their chunks, in rows."""

# Queries are put together of constants only; identifiers go through psycopg.sql.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyPlan, FinishedChunk
from etl_dagster.model.schema import TableId
from etl_dagster.pg.connection import Connection
from etl_dagster.stores.postgres import records
from etl_dagster.stores.postgres.rows import StorePart


class KeptPlans(StorePart):
    """A plan and its chunks are read in one snapshot, and written in one transaction."""

    def get_copy_plan(self, table_id: TableId) -> CopyPlan | None:
        return self.get_copy_plans([table_id]).get(table_id)

    def get_copy_plans(self, table_ids: Collection[TableId]) -> Mapping[TableId, CopyPlan]:
        if not table_ids:
            return {}

        def work(connection: Connection) -> Mapping[TableId, CopyPlan]:
            # One snapshot for both queries: a plan is never seen with the chunks of another.
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            of_tables = (self._rows.pipeline, list(table_ids))
            plans = connection.execute(
                self._rows.sql(
                    "SELECT table_id, copy_id, slot_lsn::text, started_at FROM {schema}.copy_plans "
                    "WHERE pipeline = %s AND table_id = ANY(%s)"
                ),
                of_tables,
            ).fetchall()
            if not plans:
                return {}
            chunks: dict[TableId, list[tuple[Any, ...]]] = {}
            for table_id, *chunk in connection.execute(
                self._rows.sql(
                    f"SELECT table_id, {records.CHUNK_COLUMNS} FROM {{schema}}.copy_chunks "
                    "WHERE pipeline = %s AND table_id = ANY(%s) ORDER BY chunk_index"
                ),
                of_tables,
            ):
                chunks.setdefault(table_id, []).append(tuple(chunk))
            return {
                table_id: records.plan_from_rows((copy_id, slot_lsn, at), chunks.get(table_id, ()))
                for table_id, copy_id, slot_lsn, at in plans
            }

        return self._rows.run(work)

    def store_copy_plan(self, table_id: TableId, plan: CopyPlan) -> None:
        self.store_copy_plans({table_id: plan})

    def store_copy_plans(self, plans: Mapping[TableId, CopyPlan]) -> None:
        chunks = [(table_id, chunk) for table_id, plan in plans.items() for chunk in plan.chunks]

        def work(connection: Connection) -> None:
            self._rows.lock_pipeline(connection)
            self._rows.delete(connection, "copy_plans", plans)
            connection.execute(
                self._rows.sql(
                    """
                    INSERT INTO {schema}.copy_plans
                        (pipeline, table_id, copy_id, slot_lsn, started_at)
                    SELECT %s, * FROM unnest(
                        %s::bigint[], %s::text[], %s::text[]::pg_lsn[], %s::timestamptz[]
                    )
                    """
                ),
                (
                    self._rows.pipeline,
                    list(plans),
                    [plan.copy_id for plan in plans.values()],
                    [str(plan.slot_lsn) for plan in plans.values()],
                    [plan.started_at for plan in plans.values()],
                ),
            )
            connection.execute(
                self._rows.sql(
                    """
                    INSERT INTO {schema}.copy_chunks
                        (pipeline, table_id, chunk_index, relation_id, first_block, end_block,
                         estimated_rows, file_node)
                    SELECT %s, * FROM unnest(
                        %s::bigint[], %s::integer[], %s::bigint[], %s::bigint[], %s::bigint[],
                        %s::bigint[], %s::bigint[]
                    )
                    """
                ),
                (
                    self._rows.pipeline,
                    [table_id for table_id, _ in chunks],
                    [chunk.index for _, chunk in chunks],
                    [chunk.relation_id for _, chunk in chunks],
                    [chunk.first_block for _, chunk in chunks],
                    [chunk.end_block for _, chunk in chunks],
                    [chunk.estimated_rows for _, chunk in chunks],
                    [chunk.file_node for _, chunk in chunks],
                ),
            )

        self._rows.change(work, "plans")

    def finish_chunk(self, table_id: TableId, copy_id: str, chunk: FinishedChunk) -> None:
        self.finish_chunks([(table_id, copy_id, chunk)])

    def finish_chunks(self, chunks: Sequence[tuple[TableId, str, FinishedChunk]]) -> None:
        self._rows.write_many(
            "plans",
            """
            UPDATE {schema}.copy_chunks AS chunk
            SET row_count = %s, byte_count = %s, read_lsn = %s::pg_lsn, duration_s = %s
            FROM {schema}.copy_plans AS plan
            WHERE plan.pipeline = %s AND plan.table_id = %s AND plan.copy_id = %s
                AND chunk.pipeline = plan.pipeline AND chunk.table_id = plan.table_id
                AND chunk.chunk_index = %s AND chunk.read_lsn IS NULL
            """,
            [
                (
                    chunk.row_count,
                    chunk.byte_count,
                    str(chunk.read_lsn),
                    chunk.duration_s,
                    self._rows.pipeline,
                    table_id,
                    copy_id,
                    chunk.index,
                )
                for table_id, copy_id, chunk in chunks
            ],
        )

    def finished_chunks(
        self, table_id: TableId, copy_id: str, indexes: Collection[int]
    ) -> Mapping[int, FinishedChunk] | None:
        # One row without a chunk tells that the copy is still the table's.
        rows = self._rows.fetch(
            """
            SELECT chunk.chunk_index, row_count, byte_count, read_lsn::text, duration_s
            FROM {schema}.copy_plans AS plan
            LEFT JOIN {schema}.copy_chunks AS chunk
                ON chunk.pipeline = plan.pipeline AND chunk.table_id = plan.table_id
                AND chunk.chunk_index = ANY(%s) AND chunk.read_lsn IS NOT NULL
            WHERE plan.pipeline = %s AND plan.table_id = %s AND plan.copy_id = %s
            """,
            list(indexes),
            self._rows.pipeline,
            table_id,
            copy_id,
        )
        if not rows:
            return None
        return {
            index: FinishedChunk(index, row_count, byte_count, Lsn.parse(read_lsn), duration_s)
            for index, row_count, byte_count, read_lsn, duration_s in rows
            if index is not None
        }

"""What concerns everything that is kept of a table, each in one transaction."""

from __future__ import annotations

from collections.abc import Collection

from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Init
from etl_dagster.pg.connection import Connection
from etl_dagster.stores.postgres import records
from etl_dagster.stores.postgres.rows import PipelineRows, StorePart
from etl_dagster.stores.postgres.states import set_states


class Lifecycle(StorePart):
    """Everything that is kept of a table, as one."""

    def clear_table_copy_state(self, table_id: TableId) -> None:
        self.clear_table_copy_states([table_id])

    def clear_table_copy_states(self, table_ids: Collection[TableId]) -> None:
        self._rows.change(
            lambda connection: clear_copies(self._rows, connection, table_ids),
            "schemas",
            "metadata",
            "plans",
        )

    def delete_table_pipeline_state(self, table_id: TableId) -> None:
        def work(connection: Connection) -> None:
            self._rows.lock_pipeline(connection)
            clear_copies(self._rows, connection, [table_id])
            self._rows.delete(connection, "table_states", [table_id])

        self._rows.change(work, "states", "schemas", "metadata", "plans")

    def request_copy(self, table_id: TableId) -> None:
        def work(connection: Connection) -> None:
            self._rows.lock_pipeline(connection)
            self._rows.delete(connection, "copy_plans", [table_id])
            set_states(self._rows, connection, {table_id: Init()})

        self._rows.change(work, "states", "plans")

    def reset_for_resync(self) -> int:
        def work(connection: Connection) -> int:
            self._rows.lock_pipeline(connection)
            table_ids = connection.execute(
                self._rows.sql(
                    "SELECT table_id FROM {schema}.table_states WHERE pipeline = %s AND is_current"
                ),
                (self._rows.pipeline,),
            ).fetchall()
            set_states(self._rows, connection, {table_id: Init() for (table_id,) in table_ids})
            for statement in (
                "DELETE FROM {schema}.replication_progress "
                "WHERE pipeline = %s AND worker = 'apply'",
                "DELETE FROM {schema}.copy_plans WHERE pipeline = %s",
                "DELETE FROM {schema}.known_destinations WHERE pipeline = %s",
            ):
                connection.execute(self._rows.sql(statement), (self._rows.pipeline,))
            return len(table_ids)

        return self._rows.change(work, "states", "plans")

    def remove_pipeline(self) -> None:
        def work(connection: Connection) -> None:
            self._rows.lock_pipeline(connection)
            connection.execute(
                self._rows.sql("DELETE FROM {schema}.pipelines WHERE name = %s"),
                (self._rows.pipeline,),
            )

        self._rows.change(work, "states", "schemas", "metadata", "plans")


def clear_copies(
    rows: PipelineRows, connection: Connection, table_ids: Collection[TableId]
) -> None:
    """Remove schemas, metadata, plans and sync progress of these tables; states stay."""
    for name in ("table_schemas", "destination_tables", "copy_plans"):
        rows.delete(connection, name, table_ids)
    connection.execute(
        rows.sql(
            "DELETE FROM {schema}.replication_progress WHERE pipeline = %s AND worker = ANY(%s)"
        ),
        (rows.pipeline, [records.sync_worker_key(table_id) for table_id in table_ids]),
    )

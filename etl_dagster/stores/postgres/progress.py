"""How far each worker has got, and which source and destination that is about."""

from __future__ import annotations

from collections.abc import Mapping

from etl_dagster.lsn import Lsn
from etl_dagster.model.identity import KnownDestination, KnownSource
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import WorkerType
from etl_dagster.stores.postgres import records
from etl_dagster.stores.postgres.rows import StorePart


class KeptProgress(StorePart):
    """LSNs and revisions that only move forward."""

    def get_replication_progress(self, worker: WorkerType) -> Lsn | None:
        rows = self._rows.fetch(
            "SELECT flush_lsn::text FROM {schema}.replication_progress "
            "WHERE pipeline = %s AND worker = %s",
            self._rows.pipeline,
            records.worker_key(worker),
        )
        return Lsn.parse(rows[0][0]) if rows else None

    def upsert_replication_progress(self, worker: WorkerType, flush_lsn: Lsn) -> Lsn:
        [(stored,)] = self._rows.fetch(
            """
            INSERT INTO {schema}.replication_progress AS progress (pipeline, worker, flush_lsn)
            VALUES (%s, %s, %s::pg_lsn)
            ON CONFLICT (pipeline, worker) DO UPDATE SET
                flush_lsn = greatest(progress.flush_lsn, excluded.flush_lsn), updated_at = now()
            RETURNING flush_lsn::text
            """,
            self._rows.pipeline,
            records.worker_key(worker),
            str(flush_lsn),
        )
        return Lsn.parse(stored)

    def delete_replication_progress(self, worker: WorkerType) -> None:
        self._rows.write(
            None,
            "DELETE FROM {schema}.replication_progress WHERE pipeline = %s AND worker = %s",
            self._rows.pipeline,
            records.worker_key(worker),
        )

    def get_known_destination(self) -> KnownDestination | None:
        rows = self._rows.fetch(
            "SELECT type, place, identity, revision, epoch FROM {schema}.known_destinations "
            "WHERE pipeline = %s",
            self._rows.pipeline,
        )
        return KnownDestination(*rows[0]) if rows else None

    def store_known_destination(self, known: KnownDestination | None) -> None:
        if known is None:
            self._rows.write(
                None,
                "DELETE FROM {schema}.known_destinations WHERE pipeline = %s",
                self._rows.pipeline,
            )
            return
        self._rows.write(
            None,
            """
            INSERT INTO {schema}.known_destinations
                (pipeline, type, place, identity, revision, epoch)
            VALUES (%s, %s, %s, %s, %s, %s)
            ON CONFLICT (pipeline) DO UPDATE SET
                type = excluded.type, place = excluded.place, identity = excluded.identity,
                revision = excluded.revision, epoch = excluded.epoch, updated_at = now()
            """,
            self._rows.pipeline,
            known.type,
            known.place,
            known.identity,
            known.revision,
            known.epoch,
        )

    def get_known_source(self) -> KnownSource | None:
        rows = self._rows.fetch(
            "SELECT system_id, timeline, database_id, database FROM {schema}.known_sources "
            "WHERE pipeline = %s",
            self._rows.pipeline,
        )
        return KnownSource(*rows[0]) if rows else None

    def store_known_source(self, known: KnownSource) -> None:
        self._rows.write(
            None,
            """
            INSERT INTO {schema}.known_sources
                (pipeline, system_id, timeline, database_id, database)
            VALUES (%s, %s, %s, %s, %s)
            ON CONFLICT (pipeline) DO UPDATE SET
                system_id = excluded.system_id, timeline = excluded.timeline,
                database_id = excluded.database_id, database = excluded.database,
                updated_at = now()
            """,
            self._rows.pipeline,
            known.system_id,
            known.timeline,
            known.database_id,
            known.database,
        )

    def store_delivery(self, worker: WorkerType, flush_lsn: Lsn, revision: int) -> Lsn:
        [(stored,)] = self._rows.fetch(
            """
            WITH known AS (
                UPDATE {schema}.known_destinations
                SET revision = greatest(revision, %s), updated_at = now()
                WHERE pipeline = %s
            )
            INSERT INTO {schema}.replication_progress AS progress (pipeline, worker, flush_lsn)
            VALUES (%s, %s, %s::pg_lsn)
            ON CONFLICT (pipeline, worker) DO UPDATE SET
                flush_lsn = greatest(progress.flush_lsn, excluded.flush_lsn), updated_at = now()
            RETURNING flush_lsn::text
            """,
            revision,
            self._rows.pipeline,
            self._rows.pipeline,
            records.worker_key(worker),
            str(flush_lsn),
        )
        return Lsn.parse(stored)

    def get_copy_ids(self) -> Mapping[TableId, str]:
        return dict(
            self._rows.fetch(
                "SELECT table_id, copy_id FROM {schema}.copy_plans WHERE pipeline = %s",
                self._rows.pipeline,
            )
        )

"""Who does what now: leases, and the epoch of the replicator."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from etl_dagster.model.coordination import epoch_by_clock
from etl_dagster.pg.advisory import (
    PostgresLease,
    is_locked,
    lock_key,
    locked_keys,
    try_acquire,
    try_acquire_all,
)
from etl_dagster.stores.postgres.rows import StorePart


class SessionLeases(StorePart):
    """Leases as locks of sessions, which the server frees when the process dies."""

    def acquire_lease(self, name: str) -> PostgresLease | None:
        self._rows.open()
        key = lock_key(self._rows.schema, self._rows.pipeline, f"lease:{name}")
        return self._rows.begin_session(lambda connection: try_acquire(connection, key))

    def acquire_leases(self, names: Collection[str]) -> Mapping[str, PostgresLease]:
        self._rows.open()
        keys = {
            lock_key(self._rows.schema, self._rows.pipeline, f"lease:{name}"): name
            for name in names
        }
        leases = self._rows.begin_session(
            lambda connection: try_acquire_all(connection, list(keys))
        )
        return {keys[key]: lease for key, lease in leases.items()}

    def leased(self, names: Collection[str]) -> Collection[str]:
        locked = self._rows.run(locked_keys)
        return {
            name
            for name in names
            if lock_key(self._rows.schema, self._rows.pipeline, f"lease:{name}") in locked
        }

    def is_leased(self, name: str) -> bool:
        key = lock_key(self._rows.schema, self._rows.pipeline, f"lease:{name}")
        return self._rows.run(lambda connection: is_locked(connection, key))

    def take_epoch(self) -> int:
        [(epoch,)] = self._rows.fetch(
            "UPDATE {schema}.pipelines SET epoch = greatest(epoch + 1, %s) "
            "WHERE name = %s RETURNING epoch",
            epoch_by_clock(),
            self._rows.pipeline,
        )
        return int(epoch)

    def current_epoch(self) -> int:
        [(epoch,)] = self._rows.fetch(
            "SELECT epoch FROM {schema}.pipelines WHERE name = %s", self._rows.pipeline
        )
        return int(epoch)

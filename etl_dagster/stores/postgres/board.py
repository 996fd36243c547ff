"""What processes show each other, in rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb

from etl_dagster.stores.postgres.rows import StorePart


class KeptBoard(StorePart):
    """The last payload of each key."""

    def publish_status(self, key: str, payload: Mapping[str, Any]) -> None:
        self._rows.write(
            None,
            "INSERT INTO {schema}.status (pipeline, key, payload) VALUES (%s, %s, %s) "
            "ON CONFLICT (pipeline, key) DO UPDATE "
            "SET payload = excluded.payload, updated_at = now()",
            self._rows.pipeline,
            key,
            Jsonb(dict(payload)),
        )

    def get_status(self, key: str) -> Mapping[str, Any] | None:
        rows = self._rows.fetch(
            "SELECT payload FROM {schema}.status WHERE pipeline = %s AND key = %s",
            self._rows.pipeline,
            key,
        )
        return rows[0][0] if rows else None

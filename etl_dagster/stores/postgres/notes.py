"""What correctness rests on besides states and plans, in rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb

from etl_dagster.stores.postgres.rows import StorePart


class KeptNotes(StorePart):
    """Notes by key. What an earlier version kept as a status goes with the first new note."""

    def get_note(self, key: str) -> Mapping[str, Any] | None:
        # A status under the key was written by an earlier version, perhaps after the migration:
        # every note of this one removes it.
        [(note,)] = self._rows.fetch(
            """
            SELECT coalesce(
                (SELECT payload FROM {schema}.status WHERE pipeline = %s AND key = %s),
                (SELECT payload FROM {schema}.notes WHERE pipeline = %s AND key = %s)
            )
            """,
            *(self._rows.pipeline, key) * 2,
        )
        found: Mapping[str, Any] | None = note
        return found

    def put_note(self, key: str, note: Mapping[str, Any]) -> None:
        self._rows.write(
            None,
            """
            WITH earlier AS (
                DELETE FROM {schema}.status WHERE pipeline = %s AND key = %s
            )
            INSERT INTO {schema}.notes (pipeline, key, payload) VALUES (%s, %s, %s)
            ON CONFLICT (pipeline, key) DO UPDATE
            SET payload = excluded.payload, updated_at = now()
            """,
            *(self._rows.pipeline, key) * 2,
            Jsonb(dict(note)),
        )

"""Tables whose copies wait until a person resumes them; kept in a note of the state store."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime

from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import CoordinatingStore

_KEY = "paused"


def paused_tables(store: CoordinatingStore) -> Mapping[TableId, str]:
    """Since when each paused table is paused (ISO 8601, UTC)."""
    payload = store.get_note(_KEY) or {}
    return {int(table_id): str(since) for table_id, since in payload.items()}


def pause_copies(store: CoordinatingStore, table_ids: Collection[TableId]) -> None:
    """Begin no copy of these tables any more. One that is under way goes on."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _keep(store, dict.fromkeys(table_ids, now) | dict(paused_tables(store)))


def resume_copies(store: CoordinatingStore, table_ids: Collection[TableId]) -> Collection[TableId]:
    """Let copies of these tables begin again; those of them that were paused."""
    paused = paused_tables(store)
    _keep(store, {t: since for t, since in paused.items() if t not in table_ids})
    # Workers and sensor look again at once.
    store.wake()
    return paused.keys() & set(table_ids)


def _keep(store: CoordinatingStore, paused: Mapping[TableId, str]) -> None:
    store.put_note(_KEY, {str(table_id): since for table_id, since in paused.items()})

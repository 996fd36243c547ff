"""Tables whose copies wait for a person, and what persons have asked for.

Both are notes of the state store.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime

from etl_dagster.model.coordination import Notes
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.exclusive import changing_alone

_KEY, _ASKED = "paused", "asked for"
#: Held while one of the notes is read and written.
_LEASE = "pausing"


def paused_tables(store: Notes) -> Mapping[TableId, str]:
    """Since when each paused table is paused (ISO 8601, UTC)."""
    payload = store.get_note(_KEY) or {}
    return {int(table_id): str(since) for table_id, since in payload.items()}


def pause_copies(store: CoordinatingStore, table_ids: Collection[TableId]) -> None:
    """Begin no copy of these tables any more. One that is under way continues."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with _alone(store):
        _keep(store, dict.fromkeys(table_ids, now) | dict(paused_tables(store)))


def resume_copies(store: CoordinatingStore, table_ids: Collection[TableId]) -> Collection[TableId]:
    """Let copies of these tables begin again; those of them that were paused."""
    with _alone(store):
        paused = paused_tables(store)
        _keep(store, {t: since for t, since in paused.items() if t not in table_ids})
    ask_for_copies(store, table_ids)
    # Workers and sensor look again at once.
    store.wake()
    return paused.keys() & set(table_ids)


def _keep(store: Notes, paused: Mapping[TableId, str]) -> None:
    store.put_note(_KEY, {str(table_id): since for table_id, since in paused.items()})


def ask_for_copies(store: CoordinatingStore, table_ids: Collection[TableId]) -> None:
    """Remember that a person wants copies of these tables, so a cancellation before counts no more.

    It starts nothing: a process that copies a table learns from its state.
    """
    now = time.time()
    with _alone(store):
        asked = dict(asked_at(store)) | dict.fromkeys(table_ids, now)
        store.put_note(_ASKED, {str(table_id): at for table_id, at in asked.items()})


def asked_at(store: Notes) -> Mapping[TableId, float]:
    """When a person asked for a copy of each table last, in seconds since 1970-01-01 UTC."""
    return {int(key): float(at) for key, at in (store.get_note(_ASKED) or {}).items()}


def _alone(store: CoordinatingStore) -> AbstractContextManager[None]:
    return changing_alone(store, _LEASE, "which tables are paused")

"""A store in memory forgets what a store in Postgres forgets."""

from __future__ import annotations

from etl_dagster.model.identity import KnownDestination, KnownSource
from etl_dagster.stores.memory import MemoryStore


def test_a_pipeline_that_is_removed_leaves_nothing() -> None:
    store = MemoryStore()
    store.put_note("paused", {"16384": "2026-01-01T00:00:00+00:00"})
    store.publish_status("apply", {"lag_bytes": 5})
    store.store_known_source(KnownSource("1", 1, 5, "shop"))
    store.store_known_destination(KnownDestination("memory", "memory"))

    store.remove_pipeline()

    assert store.get_note("paused") is None
    assert store.get_status("apply") is None
    assert store.get_known_source() is None
    assert store.get_known_destination() is None

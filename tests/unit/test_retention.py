"""Which versions of schemas are forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etl_dagster.lsn import Lsn
from etl_dagster.model.states import FinishedCopy, Ready
from etl_dagster.model.stores import ApplyWorker, DestinationTableMetadata
from etl_dagster.runtime.retention import prune_schemas
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import ORDERS

APPLIED = DestinationTableMetadata("public.orders", Lsn(300), "applied", (True,) * 4)


@pytest.fixture
def store() -> MemoryStore:
    """A table with versions from 0, 100, 200, 300 and 400 on."""
    store = MemoryStore()
    for offset in range(0, 500, 100):
        store.store_table_schema(ORDERS.at(Lsn(offset)))
    store.update_table_replication_states([(ORDERS.id, Ready(Lsn(1)))])
    store.store_destination_table_metadata(ORDERS.id, APPLIED)
    store.upsert_replication_progress(ApplyWorker(), Lsn(1000))
    return store


def versions(store: MemoryStore) -> list[int]:
    return sorted(schema.snapshot_id.offset for schema in store.get_table_schemas())


def test_versions_older_than_the_destinations_are_forgotten(store: MemoryStore) -> None:
    assert prune_schemas(store) == 3
    assert versions(store) == [300, 400]
    assert prune_schemas(store) == 0


def test_a_change_under_way_keeps_the_version_before(store: MemoryStore) -> None:
    """After a crash it is begun again, from there."""
    applying = replace(APPLIED, status="applying", previous_snapshot_id=Lsn(200))
    store.store_destination_table_metadata(ORDERS.id, applying)

    prune_schemas(store)
    assert versions(store) == [200, 300, 400]


def test_changes_that_may_be_streamed_again_keep_their_version(store: MemoryStore) -> None:
    store.delete_replication_progress(ApplyWorker())
    store.upsert_replication_progress(ApplyWorker(), Lsn(150))

    prune_schemas(store)
    assert versions(store) == [100, 200, 300, 400]


def test_a_table_that_is_being_copied_keeps_everything(store: MemoryStore) -> None:
    store.update_table_replication_states([(ORDERS.id, FinishedCopy())])

    assert prune_schemas(store) == 0
    store.update_table_replication_states([(ORDERS.id, Ready(Lsn(1)))])
    store.delete_replication_progress(ApplyWorker())
    assert prune_schemas(store) == 0

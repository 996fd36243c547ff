"""What the engine adds to a store with the three small contracts hides nothing that it has."""

from __future__ import annotations

from etl_dagster.model.states import Init
from etl_dagster.model.stores import KnowsPipeline
from etl_dagster.runtime.local_store import LocalStore
from etl_dagster.stores.memory import MemoryStore


class _Shelf(MemoryStore):
    """A store that can look before it is opened."""

    closed = False

    def check(self) -> str:
        return "a dry shelf"

    def knows_pipeline(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def test_a_store_that_can_look_is_asked() -> None:
    shelf = _Shelf()
    store = LocalStore(shelf)

    assert store.check() == "a dry shelf"
    assert store.knows_pipeline()
    store.close()
    assert shelf.closed


def test_a_store_that_cannot_look_knows_a_pipeline_by_its_tables() -> None:
    kept = MemoryStore()
    store = LocalStore(kept)

    assert not isinstance(kept, KnowsPipeline)
    assert not store.knows_pipeline()
    assert store.check() == "MemoryStore; it can't tell before the start"
    kept.update_table_replication_states([(1, Init())])
    assert store.knows_pipeline()

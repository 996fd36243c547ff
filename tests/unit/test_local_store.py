"""What the engine adds to a store with the three small contracts hides nothing that it has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etl_dagster.errors import StoreUnreachable
from etl_dagster.model.coordination import Notes
from etl_dagster.model.identity import RemembersDestination
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Init
from etl_dagster.model.stores import (
    CoordinatingStore,
    DestinationTableMetadata,
    KnowsPipeline,
    ManyTables,
)
from etl_dagster.runtime.local_store import LocalStore, coordinating
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


def test_a_store_that_knows_its_pipelines_is_asked() -> None:
    shelf = _Shelf()
    store = LocalStore(shelf)

    assert store.check() == "a dry shelf"
    assert store.knows_pipeline()
    store.close()
    assert shelf.closed


def test_a_store_that_does_not_know_its_pipelines_goes_by_their_tables() -> None:
    kept = MemoryStore()
    store = LocalStore(kept)

    assert not isinstance(kept, KnowsPipeline)
    assert not store.knows_pipeline()
    assert store.check() == "MemoryStore; it can't be checked before the start"
    kept.update_table_replication_states([(1, Init())])
    assert store.knows_pipeline()


def test_notes_that_must_outlive_the_process_are_kept_in_the_store() -> None:
    kept = MemoryStore()
    LocalStore(kept).put_note("members", {"leaving": {"16384": "0/10"}})
    LocalStore(kept).publish_status("apply", {"lag_bytes": 5})

    later = LocalStore(kept)

    assert later.get_note("members") == {"leaving": {"16384": "0/10"}}
    assert later.get_status("apply") is None
    assert kept.get_table_replication_states() == {}


class _ShortColumn(MemoryStore):
    """A store that cuts long texts without an error."""

    def store_destination_table_metadata(
        self, table_id: TableId, metadata: DestinationTableMetadata
    ) -> None:
        short = replace(metadata, destination_table_id=metadata.destination_table_id[:20])
        super().store_destination_table_metadata(table_id, short)


def test_a_store_that_cannot_keep_notes_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    kept = _ShortColumn()
    LocalStore(kept).put_note("members", {"leaving": {"16384": "0/10"}})

    later = LocalStore(kept)

    assert later.get_note("members") is None
    later.put_note("members", {})
    assert caplog.text.count("the store can't keep what was read from the catalog") == 1


def test_a_note_is_not_taken_for_kept_while_the_store_is_away() -> None:
    """It may say what correctness rests on: the writer tries again, as with everything else."""

    class Away(MemoryStore):
        is_away = True

        def store_destination_table_metadata(
            self, table_id: TableId, metadata: DestinationTableMetadata
        ) -> None:
            if self.is_away:
                raise StoreUnreachable("away")
            super().store_destination_table_metadata(table_id, metadata)

    kept = Away()
    store = LocalStore(kept)
    with pytest.raises(StoreUnreachable):
        store.put_note("members", {"leaving": {}})
    kept.is_away = False
    store.put_note("members", {"leaving": {}})

    assert LocalStore(kept).get_note("members") == {"leaving": {}}


def without_notes(store: MemoryStore) -> CoordinatingStore:
    """A store of an earlier version, for several processes."""
    names = [name for name in dir(store) if name[0] != "_" and name not in vars(Notes)]
    return type("OldStore", (), {name: staticmethod(getattr(store, name)) for name in names})()


def test_a_store_of_several_processes_without_notes_keeps_them_as_statuses() -> None:
    kept = MemoryStore()
    old = without_notes(kept)

    with pytest.warns(DeprecationWarning, match="OldStore has no get_note"):
        store = coordinating(old)

    assert isinstance(store, CoordinatingStore)
    assert isinstance(store, RemembersDestination)
    assert not isinstance(store, ManyTables)
    store.put_note("members", {"leaving": {}})
    store.update_table_replication_states([(1, Init())])
    assert kept.get_status("members") == store.get_note("members") == {"leaving": {}}
    assert kept.get_table_replication_states() == {1: Init()}

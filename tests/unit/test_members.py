"""Which tables a pipeline has, from look to look; the catalog is a script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from etl_dagster.errors import SourceError
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import (
    Catchup,
    DataSync,
    Errored,
    FinishedCopy,
    Init,
    Ready,
    SyncDone,
    SyncWait,
    TableState,
)
from etl_dagster.model.stores import ApplyWorker
from etl_dagster.runtime.membership.members import Members
from etl_dagster.runtime.tables.identities import find_unidentified
from etl_dagster.runtime.tables.schemas import destination_metadata
from etl_dagster.source.catalog import (
    PublishedTable,
    emit_marker,
    fetch_publication,
    fetch_published_tables,
)
from etl_dagster.source.membership import Look, Membership, PublicationTrace, Storage, look
from etl_dagster.source.slots import drop_slot, fetch_group_slots, fetch_table_sync_slots
from etl_dagster.stores.memory import MemoryStore
from tests.support.deliveries import ORDERS, VISITS, schema
from tests.support.scripted import ScriptedSource, config

_TRACE = PublicationTrace(5000, "700", "iudt", False)


class Catalog:
    """A publication as the test has it."""

    def __init__(self) -> None:
        self.trace = _TRACE
        self.tables: dict[TableId, Membership] = {}
        self.names: dict[TableId, PublishedTable] = {}
        self.end = Lsn(1000)
        self.slots: dict[TableId, str] = {}
        self.group_slots: dict[TableId, str] = {}
        self.unidentified: dict[TableId, SourceError] = {}
        self.control = ScriptedSource(
            {
                fetch_publication: lambda name: None,
                fetch_published_tables: lambda *_, **__: [self.names[t] for t in self.tables],
                look: lambda name: Look(self.trace, dict(self.tables), {}),
                emit_marker: lambda: self.end,
                find_unidentified: lambda tables: {
                    t.schema.id: self.unidentified[t.schema.id]
                    for t in tables
                    if t.schema.id in self.unidentified
                },
                fetch_table_sync_slots: lambda pipeline: dict(self.slots),
                fetch_group_slots: lambda pipeline: dict(self.group_slots),
                drop_slot: self._drop,
            }
        )

    def _drop(self, name: str) -> bool:
        for slots in (self.slots, self.group_slots):
            for table_id in [t for t, slot in slots.items() if slot == name]:
                del slots[table_id]
        return True

    def publish(self, table_id: TableId, path: str = "all 700", storage: int = 1) -> None:
        # With a TOAST table, so that a rewrite shows what it was.
        self.tables[table_id] = Membership(frozenset({path}), Storage(storage, 90, "801"))
        self.names[table_id] = PublishedTable(schema(table_id), None, 0)


class Fixture:
    """A pipeline's tables, kept in a store."""

    def __init__(self) -> None:
        self.catalog, self.store = Catalog(), MemoryStore()
        self.catalog.publish(ORDERS)
        self.restart()

    def restart(self) -> None:
        """Another process, with the same store."""
        self.members = Members(config(), self.store, self.catalog.control)

    def look(self) -> None:
        self.members.refresh()

    def is_in(self, state: TableState, table_id: TableId = ORDERS) -> None:
        """Whatever worker it took brought the table into this state."""
        self.store.store_table_schema(schema(table_id))
        self.store.store_destination_table_metadata(
            table_id, destination_metadata(schema(table_id), "applied")
        )
        self.store.update_table_replication_states([(table_id, state)])

    def is_durable_up_to(self, lsn: int) -> None:
        self.store.upsert_replication_progress(ApplyWorker(), Lsn(lsn))

    @property
    def states(self) -> Mapping[TableId, TableState]:
        return self.store.get_table_replication_states()


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


# -- tables that come and go -----------------------------------------------------------------------


def test_a_new_table_begins_at_init(fixture: Fixture) -> None:
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    fixture.catalog.publish(VISITS)
    fixture.look()

    assert fixture.states == {ORDERS: Ready(Lsn(1)), VISITS: Init()}
    assert fixture.members.ids == [ORDERS, VISITS]


@pytest.mark.parametrize("state", [Init(), DataSync()])
def test_a_table_that_leaves_before_it_is_copied_is_forgotten_at_once(
    fixture: Fixture, state: TableState
) -> None:
    fixture.look()
    fixture.is_in(state)
    del fixture.catalog.tables[ORDERS]
    fixture.look()

    assert fixture.states == {}


def test_a_table_that_leaves_is_kept_until_its_last_changes_are_durable(fixture: Fixture) -> None:
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    fixture.is_durable_up_to(1000)
    del fixture.catalog.tables[ORDERS]
    fixture.look()
    assert fixture.states == {ORDERS: Ready(Lsn(1))}
    assert fixture.members.waits_for == Lsn(1000)

    fixture.is_durable_up_to(1001)
    assert fixture.members.settle()
    assert fixture.states == {}
    assert fixture.members.waits_for is None


@pytest.mark.parametrize(
    "state", [FinishedCopy(), SyncWait(Lsn(1)), Catchup(Lsn(1)), SyncDone(Lsn(1))]
)
def test_a_table_that_leaves_during_its_hand_over_is_kept_until_the_hand_over_ends(
    fixture: Fixture, state: TableState
) -> None:
    fixture.look()
    fixture.is_in(state)
    lease = fixture.store.acquire_lease(f"table:{ORDERS}")
    assert lease is not None
    del fixture.catalog.tables[ORDERS]
    fixture.look()
    fixture.is_durable_up_to(5000)
    assert not fixture.members.settle()

    fixture.is_in(Ready(Lsn(1)))
    assert fixture.members.settle()
    assert fixture.states == {}


def test_a_table_that_leaves_and_returns_is_copied_again(fixture: Fixture) -> None:
    """What changed meanwhile was not published."""
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    del fixture.catalog.tables[ORDERS]
    fixture.look()
    fixture.catalog.publish(ORDERS)
    fixture.look()

    assert fixture.states == {ORDERS: Init()}


def test_a_table_that_left_and_returned_between_two_looks_is_copied_again(
    fixture: Fixture,
) -> None:
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    fixture.catalog.publish(ORDERS, path="named 900")
    fixture.look()

    assert fixture.states == {ORDERS: Init()}


def test_a_table_that_left_and_returned_while_no_process_looked_is_copied_again(
    fixture: Fixture,
) -> None:
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    fixture.restart()
    fixture.catalog.publish(ORDERS, path="named 900")
    fixture.look()

    assert fixture.states == {ORDERS: Init()}


def test_a_table_that_is_there_all_the_time_is_copied_once(fixture: Fixture) -> None:
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    for _ in range(2):
        fixture.look()
        fixture.restart()
    fixture.look()

    assert fixture.states == {ORDERS: Ready(Lsn(1))}


def test_a_table_waits_for_the_last_changes_of_another_table_of_its_name(fixture: Fixture) -> None:
    """The old one was dropped; its changes go where those of the new one would go."""
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    del fixture.catalog.tables[ORDERS]
    fixture.catalog.publish(VISITS)
    renamed = replace(schema(VISITS), table_name=schema(ORDERS).table_name)
    fixture.catalog.names[VISITS] = PublishedTable(renamed, None, 0)
    fixture.look()
    assert VISITS not in fixture.states

    fixture.is_durable_up_to(1001)
    fixture.members.settle()
    fixture.look()
    assert fixture.states == {VISITS: Init()}


# -- what the stream may lack ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "trace",
    [
        replace(_TRACE, oid=5001),
        replace(_TRACE, xmin="701"),
        replace(_TRACE, xmin="701", via_partition_root=True),
    ],
    ids=["another publication", "altered", "published through the root"],
)
def test_every_table_is_copied_again_if_the_publication_was_a_different_one(
    fixture: Fixture, trace: PublicationTrace
) -> None:
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    fixture.catalog.trace = trace
    fixture.look()

    assert fixture.states == {ORDERS: Init()}


def test_a_publication_that_publishes_less_copies_nothing_again(fixture: Fixture) -> None:
    """A copy would take rows away that are kept on purpose."""
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    fixture.catalog.trace = replace(_TRACE, xmin="701", operations="iu")
    fixture.look()

    assert fixture.states == {ORDERS: Ready(Lsn(1))}


def test_a_table_that_may_have_been_unlogged_is_copied_again(fixture: Fixture) -> None:
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    member = fixture.catalog.tables[ORDERS]
    fixture.catalog.tables[ORDERS] = replace(member, storage=Storage(2, 91, "802"))
    fixture.look()

    assert fixture.states == {ORDERS: Init()}


@pytest.mark.parametrize("is_truncated", [True, False])
def test_new_files_are_explained_by_a_truncate_of_the_stream_or_copied_again(
    fixture: Fixture, is_truncated: bool
) -> None:
    """Without a TOAST table, only this tells a TRUNCATE from what the stream doesn't show."""
    member = Membership(frozenset({"all 700"}), Storage(1, 0, "801"))
    fixture.catalog.tables[ORDERS] = member
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    fixture.catalog.tables[ORDERS] = replace(member, storage=Storage(2, 0, "802"))
    fixture.look()
    assert (fixture.members.waits_for, fixture.members.is_settled) == (Lsn(1000), False)
    if is_truncated:
        fixture.members.truncated(ORDERS, 802)

    fixture.members.settle()
    assert fixture.states == {ORDERS: Ready(Lsn(1))}  # the stream is not there yet
    fixture.is_durable_up_to(1001)
    fixture.members.settle()

    assert fixture.states == {ORDERS: Ready(Lsn(1)) if is_truncated else Init()}
    assert fixture.members.is_settled


def test_a_decision_open_at_a_restart_is_made_after_it(fixture: Fixture) -> None:
    member = Membership(frozenset({"all 700"}), Storage(1, 0, "801"))
    fixture.catalog.tables[ORDERS] = member
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    fixture.catalog.tables[ORDERS] = replace(member, storage=Storage(2, 0, "802"))
    fixture.look()

    fixture.restart()
    fixture.look()
    fixture.is_durable_up_to(1001)
    fixture.members.settle()

    assert fixture.states == {ORDERS: Init()}


# -- the rest --------------------------------------------------------------------------------------


def test_a_table_whose_rows_cannot_be_told_apart_any_more_stops(fixture: Fixture) -> None:
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    fixture.catalog.unidentified = {ORDERS: SourceError("its partitions have other keys")}
    fixture.look()

    state = fixture.states[ORDERS]
    assert isinstance(state, Errored)
    assert state.reason == "its partitions have other keys"


def test_slots_that_no_table_needs_any_more_are_dropped(fixture: Fixture) -> None:
    """They would retain WAL forever. A worker that is busy drops its own."""
    fixture.catalog.publish(VISITS)
    fixture.look()
    fixture.is_in(Ready(Lsn(1)))
    busy = 4711
    assert fixture.store.acquire_lease(f"table:{busy}") is not None
    assert fixture.store.acquire_lease(f"group:{busy}") is not None
    fixture.catalog.slots = {ORDERS: "done", VISITS: "to come", 99: "left", busy: "busy"}
    fixture.catalog.group_slots = {ORDERS: "dead", busy: "busy group"}
    fixture.look()

    assert set(fixture.catalog.slots.values()) == {"to come", "busy"}
    assert set(fixture.catalog.group_slots.values()) == {"busy group"}

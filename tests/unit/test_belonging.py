"""What is compared of a destination that keeps no mark, and by a store that forgets."""

from __future__ import annotations

from typing import Any

import pytest

from etl_dagster.config import parse_config
from etl_dagster.destinations.http import HttpDestination
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import (
    DestinationReplaced,
    EtlError,
    SourceReplaced,
    SourceRestored,
    StandbyBehind,
)
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import TransactionMark
from etl_dagster.model.identity import DestinationMark, KnownDestination, KnownSource
from etl_dagster.model.states import Init, Ready, TableState
from etl_dagster.model.stores import ApplyWorker
from etl_dagster.runtime.checking.belonging import Belonging
from etl_dagster.runtime.checking.origin import OriginCheck
from etl_dagster.source.identity import FoundSource
from etl_dagster.stores.memory import MemoryStore


def http(url: str) -> tuple[Any, HttpDestination]:
    config = parse_config(
        {
            "pipeline": "shop",
            "source": {"dsn": "postgresql://here/shop", "publication": "etl_pub"},
            "destination": {"type": "http", "url": url},
        },
        {},
    )
    return config, HttpDestination(url)


def store_with(state: TableState) -> MemoryStore:
    store = MemoryStore()
    store.update_table_replication_states([(1, state)])
    return store


def test_a_destination_without_a_mark_is_known_by_type_and_place() -> None:
    store = store_with(Ready(Lsn(5)))
    config, here = http("https://here.example/etl")
    Belonging(config, store, here).remember()
    assert store.get_known_destination() == KnownDestination("http", "https://here.example/etl")
    Belonging(config, store, here).require()

    config, there = http("https://there.example/etl")
    with pytest.raises(
        DestinationReplaced, match=r"to https://here\.example.* names https://there"
    ):
        Belonging(config, store, there).require()


def test_a_destination_without_a_record_may_be_replaced() -> None:
    """Unless it is a copy that asks, which has no say in where the pipeline writes."""
    store = store_with(Init())
    config, here = http("https://here.example/etl")
    Belonging(config, store, here).remember()
    config, there = http("https://there.example/etl")

    Belonging(config, store, there).require()
    with pytest.raises(DestinationReplaced):
        Belonging(config, store, there).require_known()


def test_an_empty_destination_is_refused_by_a_store_that_has_no_record() -> None:
    """A store of the three small contracts has none after a restart."""
    config, _ = http("https://here.example/etl")
    with pytest.raises(EtlError, match="complete copy of table 1"):
        Belonging(config, store_with(Ready(Lsn(5))), MemoryDestination()).require()


BEGUN = TransactionMark(Lsn(900), 700, 1)
KNOWN = KnownSource("7301112233445566778", 1, 16384, "shop")


def origin() -> OriginCheck:
    store = store_with(Ready(Lsn(5)))
    store.upsert_replication_progress(ApplyWorker(), Lsn(1000))
    config, _ = http("https://here.example/etl")
    found = OriginCheck(config, store)
    found.recall(DestinationMark("id", 3, 1, Lsn(1100), Lsn(1000), BEGUN))
    return found


@pytest.mark.parametrize(
    ("known", "found", "kind", "match"),
    [
        (KNOWN, FoundSource(KNOWN, Lsn(1100), 701), None, ""),
        # Some services don't report it.
        (KNOWN, FoundSource(KnownSource("", 1, 16384, "shop"), Lsn(1100), 701), None, ""),
        (None, FoundSource(KNOWN, Lsn(1100), 701), None, ""),
        # Numbers of transactions wrap around.
        (KNOWN, FoundSource(KNOWN, Lsn(1100), 2**32 + 701), None, ""),
        (
            KNOWN,
            FoundSource(KnownSource("42", 1, 16384, "shop"), Lsn(1100), 701),
            SourceReplaced,
            "another cluster",
        ),
        (
            KNOWN,
            FoundSource(KnownSource(KNOWN.system_id, 1, 5, "shop"), Lsn(1100), 701),
            SourceReplaced,
            "another database",
        ),
        # The destination is ahead of the store: that counts, too.
        (KNOWN, FoundSource(KNOWN, Lsn(1099), 701), SourceRestored, "WAL ends at"),
        (None, FoundSource(KNOWN, Lsn(1099), 701), SourceRestored, "WAL ends at"),
        (KNOWN, FoundSource(KNOWN, Lsn(1100), 700), SourceRestored, "transaction 700 is applied"),
        (
            KnownSource(KNOWN.system_id, 2, 16384, "shop"),
            FoundSource(KNOWN, Lsn(1100), 701),
            SourceRestored,
            "doesn't descend",
        ),
    ],
)
def test_a_source_is_compared_with_what_is_known_and_applied(
    known: KnownSource | None, found: FoundSource, kind: type[EtlError] | None, match: str
) -> None:
    if kind is None:
        origin().compare(known, found, Lsn(1100), BEGUN)
        return
    with pytest.raises(kind, match=match) as refused:
        origin().compare(known, found, Lsn(1100), BEGUN)
    assert "etl-dagster reset --all" in refused.value.solution


def standby_at(lsn: int, timeline: int = 1, next_xid: int = 701) -> FoundSource:
    known = KnownSource(KNOWN.system_id, timeline, 16384, "shop")
    return FoundSource(known, Lsn(lsn), next_xid, is_standby=True)


@pytest.mark.parametrize(
    "found", [standby_at(1099), standby_at(1099, next_xid=600)], ids=["by position", "by xid"]
)
def test_a_standby_that_is_behind_is_waited_for(found: FoundSource) -> None:
    """It has the same WAL as its primary, and gets there."""
    with pytest.raises(StandbyBehind, match="replayed WAL up to"):
        origin().compare(KNOWN, found, Lsn(1100), BEGUN)
    origin().compare(KNOWN, standby_at(1100), Lsn(1100), BEGUN)


def test_a_standby_that_has_not_replayed_a_switch_of_timelines_is_waited_for() -> None:
    later = KnownSource(KNOWN.system_id, 2, 16384, "shop")
    with pytest.raises(StandbyBehind, match="timeline 1, and timeline 2 was streamed"):
        origin().compare(later, standby_at(1100), Lsn(1100), BEGUN)


@pytest.mark.parametrize(("confirmed", "is_accepted"), [(1051, True), (1050, False), (None, False)])
def test_changes_past_the_end_of_a_timeline_are_accepted_from_a_slot_that_went_along(
    monkeypatch: pytest.MonkeyPatch, confirmed: int | None, is_accepted: bool
) -> None:
    """The promotion of a standby doesn't end its streams."""
    monkeypatch.setattr(
        "etl_dagster.runtime.checking.origin.fetch_timeline_ends",
        lambda config, current: {1: Lsn(1050)},
    )
    slot = None if confirmed is None else Lsn(confirmed)
    found = FoundSource(KnownSource(KNOWN.system_id, 2, 16384, "shop"), Lsn(1200), 701)
    if is_accepted:
        origin().compare(KNOWN, found, Lsn(1100), BEGUN, confirmed=slot)
        return
    with pytest.raises(SourceRestored, match="left timeline 1 at"):
        origin().compare(KNOWN, found, Lsn(1100), BEGUN, confirmed=slot)

"""Errors of the runbook that can be provoked without a server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from etl_dagster.assembly import build_destination
from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.errors import (
    DestinationMetadataApplying,
    InvalidState,
    MoveNotFinished,
    NotOffered,
    SlotError,
    TableOfAnotherShard,
)
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyPlan
from etl_dagster.model.schema import SnapshotId, TableId
from etl_dagster.model.states import Ready
from etl_dagster.model.stores import DestinationTableMetadata
from etl_dagster.runtime.comparing.eligible import require_reader
from etl_dagster.runtime.moved import Moved, held_error, note_move
from etl_dagster.runtime.removing import require_removable
from etl_dagster.runtime.retrying import require_retryable
from etl_dagster.runtime.slot import require_continuable
from etl_dagster.source.control import SourceControl
from etl_dagster.stores.memory import MemoryStore
from tests.support.copied_table import slot_at

ORDERS = TableId(16384)


def configured(**sections: Any) -> PipelineConfig:
    return parse_config(
        {
            "pipeline": "shop",
            "source": {"dsn": "postgresql://etl@localhost/shop", "publication": "etl_pub"},
            "destination": {"type": "duckdb", "path": "shop.duckdb"},
            **sections,
        }
    )


def test_the_tables_of_a_service_can_be_neither_removed_nor_compared() -> None:
    config = configured(destination={"type": "http", "url": "http://localhost:1/in"})
    destination = build_destination(config)

    with pytest.raises(NotOffered, match="of type http can't drop its tables"):
        require_removable(config, destination)
    with pytest.raises(NotOffered, match="of type http can't be read back"):
        require_reader(config, destination)


def test_a_table_that_has_not_stopped_is_not_retried() -> None:
    store = MemoryStore()
    store.update_table_replication_states([(ORDERS, Ready(Lsn(1)))])
    unused = cast(SourceControl, None)

    with pytest.raises(InvalidState, match=r"public\.orders has not stopped: it is ready"):
        require_retryable(configured(), store, unused, ORDERS, "public.orders")


def test_a_slot_that_another_program_made_is_refused_by_name() -> None:
    slot = replace(slot_at(Lsn(1)), plugin="test_decoding")

    with pytest.raises(SlotError, match="'the_slot' is not a logical slot of pgoutput") as caught:
        require_continuable(slot, "the_slot", MemoryStore())
    assert "pg_drop_replication_slot('the_slot')" in caught.value.solution


def test_an_interrupted_move_is_told_from_a_table_of_another_shard() -> None:
    config = configured(shards={"events": {"publication": "events_pub"}}).members()["events"]
    store = MemoryStore()
    store.store_copy_plan(ORDERS, CopyPlan("copy", (), {}, Lsn(1), datetime.now(UTC)))

    def error() -> Exception:
        return held_error(config, store, ORDERS, "public.orders", "shop")

    assert isinstance(error(), TableOfAnotherShard)
    note_move(store, ORDERS, Moved("copy", "shop", "etl_pub"))
    assert isinstance(found := error(), MoveNotFinished)
    assert "`etl-dagster move public.orders --to events` finishes it" in found.solution


def test_a_change_only_begun_at_the_destination_is_not_taken_for_done() -> None:
    begun = DestinationTableMetadata("public.orders", SnapshotId(2), "applying", (True,))

    with pytest.raises(DestinationMetadataApplying, match="was begun and not finished"):
        begun.require_applied()
    assert begun.to_applied().require_applied().status == "applied"

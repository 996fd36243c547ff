"""The status of a table is rebuilt only when something about it changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from etl_dagster.config import parse_config
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Errored, ManualRetry, Ready, SyncDone
from etl_dagster.runtime.showing.metrics import CopyMeter, Metrics
from etl_dagster.runtime.showing.reporter import Reporter
from etl_dagster.source.catalog import PublishedTable
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import ORDERS

CONFIG = {
    "pipeline": "shop",
    "source": {"dsn": "postgresql://nowhere/shop", "publication": "p"},
    "destination": {"type": "memory"},
}


@dataclass
class FewMembers:
    tables: Mapping[TableId, PublishedTable]
    partitions_kept: dict[TableId, tuple[str, ...]] = field(default_factory=dict)


def table(table_id: TableId) -> PublishedTable:
    return PublishedTable(replace(ORDERS, id=table_id, table_name=f"t{table_id}"), None, 0)


@pytest.fixture
def parts() -> tuple[Reporter, MemoryStore, Metrics, FewMembers]:
    store, metrics = MemoryStore(), Metrics()
    members = FewMembers({t: table(t) for t in (1, 2)})
    store.update_table_replication_states([(t, Ready(Lsn(t))) for t in (1, 2)])
    reporter = Reporter(
        parse_config(CONFIG, {}),
        store,
        MemoryDestination(),
        cast(Any, members),
        metrics,
        cast(Any, None),
        CopyMeter(),
        slot_name=lambda: "unread",
    )
    return reporter, store, metrics, members


def test_nothing_is_rebuilt_while_nothing_changes(parts: Any) -> None:
    reporter, *_ = parts
    assert reporter.tables() is reporter.tables()
    assert set(reporter.tables()) == {"public.t1", "public.t2"}


def test_each_change_is_shown_and_leaves_the_other_tables_alone(parts: Any) -> None:
    reporter, store, metrics, members = parts
    other = reporter.tables()["public.t2"]

    metrics.counted(1, 7)
    assert reporter.tables()["public.t1"].row_count == 7

    store.update_table_replication_states([(1, SyncDone(Lsn(9)))])
    assert reporter.tables()["public.t1"].state == "sync_done"

    store.update_table_replication_states([(1, Errored("too long", "cut it", ManualRetry()))])
    assert reporter.tables()["public.t1"].error == "too long"

    members.partitions_kept = {1: ("public.t1_old",)}
    assert reporter.tables()["public.t1"].last_partition_kept == "public.t1_old"

    assert reporter.tables()["public.t2"] is other

    members.tables = {1: table(1)}
    assert set(reporter.tables()) == {"public.t1"}

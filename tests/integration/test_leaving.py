"""What changed before a table left the publication is applied; what changed later is not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.model.events import EventBatch
from tests.support.database import Database
from tests.support.replica import Replica
from tests.support.waiting import wait_until

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]

#: By table: the statement with which it leaves, and its name afterwards, None when it is gone.
LEAVES: dict[str, tuple[str, str | None]] = {
    "public.named": ("alter publication etl_pub drop table named", "named"),
    "public.dropped": ("drop table dropped", None),
    "public.ev_1": ("alter table ev detach partition ev_1", "ev_1"),
    "s1.o": ("alter publication etl_pub drop tables in schema s1", "s1.o"),
    "s2.moved": ("alter table s2.moved set schema elsewhere", "elsewhere.moved"),
}


@pytest.fixture
def replica(database: Database, make_config: MakeConfig) -> Replica:
    database.execute(
        "create schema s1; create schema s2; create schema elsewhere",
        "create table ev (id int primary key) partition by range (id)",
        "create table ev_1 partition of ev for values from (0) to (100)",
        "create table ev_2 partition of ev for values from (100) to (200)",
        *(f"create table {table} (id int primary key)" for table in LEAVES if "ev" not in table),
        *(f"insert into {table} values (1)" for table in LEAVES),
        "create publication etl_pub for table named, dropped, ev, tables in schema s1, s2",
    )
    replica = Replica(database, make_config(database, destination={"type": "memory"}))
    replica.catch_up()
    return replica


def leave(database: Database) -> None:
    for table, (statement, later) in LEAVES.items():
        database.execute(
            f"insert into {table} values (2)", f"delete from {table} where id = 1", statement
        )
        if later is not None:
            database.execute(f"insert into {later} values (3)")


def test_the_last_changes_before_a_table_leaves_a_pipeline_that_is_stopped(
    replica: Replica,
) -> None:
    leave(replica.database)
    # A new table of the same name has to wait for the last changes of the old one.
    replica.database.execute(
        "create table dropped (id int primary key)",
        "insert into dropped values (7)",
        "alter publication etl_pub add table dropped",
    )
    replica.catch_up()
    old, new = (
        [row["id"] for row in table.rows]
        for table in replica.destination.tables.values()
        if table.schema.name == "public.dropped"
    )
    assert (old, new) == ([2], [7])
    for table in LEAVES.keys() - {"public.dropped"}:
        assert replica.rows(table) == [(2,)], table
    # Once they are applied, nothing is kept of the tables.
    replica.catch_up()
    assert len(replica.store.get_table_replication_states()) == 2


def test_the_last_changes_before_a_table_leaves_a_pipeline_that_lags(replica: Replica) -> None:
    write, may_write = replica.destination.write_events, threading.Event()

    def write_late(events: EventBatch) -> None:
        if not events.is_empty:
            assert may_write.wait(60)
        write(events)

    replica.destination.write_events = write_late  # type: ignore[method-assign]
    with replica.running() as pipeline:
        leave(replica.database)
        waiting = threading.Thread(target=pipeline.wait_until_caught_up, args=[60])
        waiting.start()
        wait_until(lambda: len(_leaving(replica.store)) == len(LEAVES))
        assert replica.rows("s1.o") == [(1,)]
        may_write.set()
        waiting.join()
        wait_until(lambda: not _leaving(replica.store))
        for table in LEAVES:
            assert replica.rows(table) == [(2,)], table
        assert len(replica.store.get_table_replication_states()) == 1


def test_a_table_that_returns_before_its_last_changes_are_applied_is_copied_again(
    replica: Replica,
) -> None:
    write, may_write = replica.destination.write_events, threading.Event()

    def write_late(events: EventBatch) -> None:
        if not events.is_empty:
            assert may_write.wait(60)
        write(events)

    replica.destination.write_events = write_late  # type: ignore[method-assign]
    with replica.running() as pipeline:
        leave(replica.database)
        waiting = threading.Thread(target=pipeline.wait_until_caught_up, args=[60])
        waiting.start()
        wait_until(lambda: len(_leaving(replica.store)) == len(LEAVES))
        replica.database.execute(
            "alter publication etl_pub add table named, tables in schema s1",
            "alter table elsewhere.moved set schema s2",
            "alter table ev attach partition ev_1 for values from (0) to (100)",
            "insert into named values (4)",
        )
        may_write.set()
        waiting.join()
        assert pipeline.wait_until_caught_up(60)
        replica.assert_in_step("public.named", "s1.o", "s2.moved", "public.ev_1")
        assert replica.rows("public.dropped") == [(2,)]


def _leaving(store: Any) -> dict[str, str]:
    status = store.get_note("members") or {}
    return dict(status.get("leaving", {}))

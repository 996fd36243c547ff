"""One slot, several destinations: each is a copy of the source, and none loses anything."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import (
    ConfigError,
    DestinationsFailed,
    DestinationUnreachable,
    PipelineInUse,
)
from etl_dagster.model.states import Init
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.source.slots import apply_slot_name
from tests.support.database import Database
from tests.support.fan_outs import QUICK, Gated, Several, several
from tests.support.waiting import wait_until

pytestmark = pytest.mark.servers("newest")

SHOP = """
    create table orders (id int primary key, total numeric(12, 2), note text);
    create table visits (page text, at timestamp);
    alter table visits replica identity full;
    insert into orders select i, i * 1.5, 'note ' || i from generate_series(1, 1000) i;
    insert into visits select 'page ' || i, '2024-05-01' from generate_series(1, 50) i;
    create publication etl_pub for table orders, visits;
"""
CHANGES = (
    "insert into orders select i, 1, null from generate_series(1001, 1500) i",
    "update orders set total = total + 1 where id % 7 = 0",
    "delete from orders where id % 5 = 0",
    "insert into visits values ('new', null)",
    "alter table orders add column paid boolean default false",
    "update orders set paid = true where id % 3 = 0",
    "truncate visits",
    "insert into visits values ('after', null)",
)
SHARED, OWN = apply_slot_name("test"), apply_slot_name("test__right")
OWN_OF_LEFT = apply_slot_name("test__left")


def test_every_destination_is_a_copy_and_the_slot_is_read_once(
    database: Database, tmp_path: Path
) -> None:
    database.execute(SHOP)
    both = Several(database, several(database, tmp_path))
    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        both.assert_in_step("public.orders", "public.visits")
        database.execute(*CHANGES)
        assert fan_out.wait_until_caught_up(60)
        both.assert_in_step("public.orders", "public.visits")
        wait_until(lambda: database.slots() == [SHARED])
        assert readers(database) == [SHARED]
        with pytest.raises(PipelineInUse):
            both.make().start()
    assert database.slots() == [SHARED]


def test_a_destination_that_hangs_is_set_aside_past_the_budget_and_returns(
    database: Database, tmp_path: Path
) -> None:
    database.execute(SHOP)
    slow = Gated()
    both = Several(database, small(database, tmp_path), {"right": slow})
    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        slow.gate.clear()
        # More than fits in the buffer and in the budget, in one transaction: until it ends, no
        # position shows what a destination has made durable of it.
        database.execute(
            "insert into orders select i, 1, repeat('x', 900) from generate_series(2000, 8000) i",
            "create table unpublished as select repeat('x', 900) from generate_series(1, 2000)",
        )
        wait_until(lambda: both.is_in_step("left", "public.orders"))
        assert OWN in database.slots()
        assert OWN_OF_LEFT not in database.slots()
        database.execute("update orders set total = 0 where id > 7000")
        wait_until(lambda: both.is_in_step("left", "public.orders"))
        note = fan_out.statuses()["right"].note
        assert note is not None
        assert "it held the others back" in note
        assert not both.is_in_step("right", "public.orders")
        slow.gate.set()
        wait_until(lambda: both.is_in_step("right", "public.orders"))
        wait_until(lambda: OWN not in database.slots())
        database.execute(*CHANGES)
        assert fan_out.wait_until_caught_up(60)
        both.assert_in_step("public.orders", "public.visits")
        assert fan_out.statuses()["right"].note is None
        assert readers(database) == [SHARED]


def test_a_destination_that_fails_does_not_hold_up_the_others_and_loses_nothing(
    database: Database, tmp_path: Path
) -> None:
    database.execute(SHOP)
    failing = Gated()
    both = Several(database, small(database, tmp_path), {"right": failing})
    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        failing.failure = DestinationUnreachable("no answer")
        database.execute("insert into orders values (2001, 1, 'while it fails')")
        wait_until(lambda: both.is_in_step("left", "public.orders"))
        wait_until(lambda: OWN in database.slots())
        wait_until(lambda: "set aside" in str(fan_out.statuses()["right"].note))
        database.execute("insert into orders values (2002, 1, 'still')")
        with pytest.raises(DestinationsFailed, match="right failed: "):
            fan_out.wait_until_caught_up(60)
        assert both.is_in_step("left", "public.orders")
        failing.failure = None
        wait_until(lambda: OWN not in database.slots())
        assert fan_out.wait_until_caught_up(60)
        both.assert_in_step("public.orders", "public.visits")


def test_a_destination_that_hangs_at_its_start_holds_up_neither_the_others_nor_the_slot(
    database: Database, tmp_path: Path
) -> None:
    database.execute(SHOP)
    both = Several(database, small(database, tmp_path))
    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
    gate, right = threading.Event(), both.destinations["right"]
    start = right.startup

    def hang(store: Any) -> None:
        gate.wait()
        start(store)

    right.startup = hang  # type: ignore[method-assign]
    try:
        with both.running() as fan_out:
            database.execute(
                "insert into orders select i, 1, repeat('x', 900) from"
                " generate_series(2000, 4000) i"
            )
            wait_until(lambda: both.is_in_step("left", "public.orders"))
            wait_until(lambda: OWN in database.slots())
            gate.set()
            assert fan_out.wait_until_caught_up(60)
            both.assert_in_step("public.orders", "public.visits")
            wait_until(lambda: database.slots() == [SHARED])
    finally:
        gate.set()


@pytest.mark.servers("all")
def test_a_destination_set_aside_stays_so_across_a_restart_and_loses_nothing(
    database: Database, tmp_path: Path
) -> None:
    database.execute(SHOP)
    failing = Gated()
    both = Several(database, small(database, tmp_path), {"right": failing})
    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        failing.failure = DestinationUnreachable("no answer")
        database.execute("insert into orders values (2001, 1, 'while it fails')")
        wait_until(lambda: OWN in database.slots())
    database.execute("insert into orders values (2002, 1, 'while nothing runs')")
    failing.failure = None
    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        both.assert_in_step("public.orders", "public.visits")
        wait_until(lambda: database.slots() == [SHARED])


def test_a_destination_whose_own_slot_retains_too_much_is_copied_again(
    database: Database, tmp_path: Path
) -> None:
    database.execute(SHOP)
    slow = Gated()
    config = small(database, tmp_path, **{"fan_out.max_wal_kept": "4MB"})
    both = Several(database, config, {"right": slow})
    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        slow.failure = DestinationUnreachable("no answer")
        database.execute("insert into orders values (2001, 1, 'while it fails')")
        wait_until(lambda: OWN in database.slots())
        database.execute(
            "insert into orders select i, 1, repeat('x', 900) from generate_series(3000, 9000) i"
        )
        wait_until(lambda: OWN not in database.slots())
        wait_until(lambda: both.is_in_step("left", "public.orders"))
        slow.failure = None
        wait_until(lambda: both.is_in_step("right", "public.orders"))
        assert fan_out.wait_until_caught_up(60)
        both.assert_in_step("public.orders", "public.visits")
        wait_until(lambda: database.slots() == [SHARED])


def test_the_lack_of_a_free_slot_is_reported_until_one_is_free(
    newest_database: Database, tmp_path: Path
) -> None:
    database = newest_database
    database.execute(SHOP)
    failing = Gated()
    both = Several(database, small(database, tmp_path), {"right": failing})

    def told() -> str:
        return str((both.stores["right"].get_status("apply") or {}).get("note"))

    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        with no_free_slot(database):
            failing.failure = DestinationUnreachable("no answer")
            database.execute("insert into orders values (2001, 1, 'while it fails')")
            # With the advice, in one note: it is replaced whenever its pipeline is started again.
            advised = re.compile("all replication slots .* Raise max_replication_slots")
            wait_until(lambda: advised.search(told()) is not None)
            assert OWN not in database.slots()
        wait_until(lambda: OWN in database.slots())
        failing.failure = None
        assert fan_out.wait_until_caught_up(60)
        both.assert_in_step("public.orders")
        wait_until(lambda: told() == "None")


def test_the_last_destination_at_the_shared_slot_gives_way_once_another_is_ahead(
    newest_database: Database, tmp_path: Path
) -> None:
    database = newest_database
    database.execute(SHOP)
    hung, failing = Gated(), Gated()
    pace = replace(QUICK, standstill_s=0.5, tolerated_s=0.2)
    config = small(database, tmp_path)
    both = Several(database, config, {"left": hung, "right": failing}, pace=pace)
    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        failing.failure = DestinationUnreachable("no answer")
        database.execute("insert into orders values (2001, 1, 'while it fails')")
        wait_until(lambda: OWN in database.slots())
        # Like a pipeline with one destination, it keeps what it has, and the source its WAL.
        hung.gate.clear()
        database.execute(
            "insert into orders select i, 1, repeat('x', 900) from generate_series(3000, 4500) i"
        )
        wait_until(lambda: "max_slot_wal_keep_size" in (fan_out.statuses()["left"].note or ""))
        assert OWN_OF_LEFT not in database.slots()
        # The other one works again, gets further, and returns.
        failing.failure = None
        wait_until(lambda: both.is_in_step("right", "public.orders"))
        wait_until(lambda: database.slots() == [SHARED, OWN_OF_LEFT])
        assert "set aside" in (fan_out.statuses()["left"].note or "")
        hung.gate.set()
        wait_until(lambda: database.slots() == [SHARED])
        assert fan_out.wait_until_caught_up(60)
        both.assert_in_step("public.orders", "public.visits")


def test_standbys_keep_the_slot_of_a_destination_set_aside_like_the_shared_slot(
    newest_database: Database, tmp_path: Path
) -> None:
    database = newest_database
    database.execute(SHOP)
    database.query(
        "select pg_create_logical_replication_slot(%s, 'pgoutput', false, false, true)", [SHARED]
    )
    failing = Gated()
    both = Several(database, small(database, tmp_path), {"right": failing})

    def kept_by_standbys() -> list[str]:
        rows = database.query(
            "select slot_name from pg_replication_slots where failover and database = %s"
            " order by slot_name",
            [database.name],
        )
        return [name for (name,) in rows]

    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        failing.failure = DestinationUnreachable("no answer")
        database.execute("insert into orders values (2001, 1, 'while it fails')")
        wait_until(lambda: kept_by_standbys() == [SHARED, OWN])
    # As if the process had ended between the copy of the slot and this.
    with psycopg.connect(
        make_conninfo(database.dsn, replication="database"), autocommit=True
    ) as connection:
        connection.execute(f"ALTER_REPLICATION_SLOT {OWN} (FAILOVER false)")
    with both.running():
        wait_until(lambda: kept_by_standbys() == [SHARED, OWN])


def test_a_destination_that_returns_is_copied_again_and_a_new_one_is_copied(
    database: Database, tmp_path: Path
) -> None:
    database.execute(SHOP)
    config = small(database, tmp_path)
    both = Several(database, config)
    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
    alone = Several(database, small(database, tmp_path, "left"))
    alone.stores, alone.destinations = both.stores, {"left": both.destinations["left"]}
    with alone.running() as fan_out:
        database.execute("delete from orders where id < 100")
        assert fan_out.wait_until_caught_up(60)
        alone.assert_in_step("public.orders")
    three = Several(
        database, small(database, tmp_path, "left", "right", "third"), both.destinations
    )
    three.stores |= both.stores
    with three.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        three.assert_in_step("public.orders", "public.visits")


def test_after_the_connection_broke_all_read_the_shared_slot_again(
    database: Database, tmp_path: Path
) -> None:
    database.execute(SHOP)
    both = Several(database, small(database, tmp_path))
    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        database.query(
            "select pg_terminate_backend(active_pid) from pg_replication_slots"
            " where slot_name = %s",
            [SHARED],
        )
        database.execute(*CHANGES)
        assert fan_out.wait_until_caught_up(60)
        both.assert_in_step("public.orders", "public.visits")
        wait_until(lambda: database.slots() == [SHARED])


def test_adding_a_second_destination_does_not_copy_the_first_one_again(
    database: Database, tmp_path: Path
) -> None:
    database.execute(SHOP)
    config = several(database, tmp_path, **{"fan_out.former": "left"})
    both = Several(database, config)
    one = config.model_copy(update={"destinations": {}, "destination": config.destinations["left"]})
    pipeline = Pipeline(one, both.stores["left"], both.destinations["left"])
    pipeline.start()
    try:
        assert pipeline.wait_until_caught_up(60)
    finally:
        pipeline.shutdown()
        assert pipeline.wait(60)
    copies = both.stores["left"].get_copy_ids()
    assert copies
    database.execute(*CHANGES)
    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        both.assert_in_step("public.orders", "public.visits")
    assert both.stores["left"].get_copy_ids() == copies


def test_a_single_destination_that_becomes_one_of_several_has_to_be_named(
    database: Database, tmp_path: Path
) -> None:
    database.execute(SHOP)
    both = Several(database, several(database, tmp_path))
    both.store.update_table_replication_states([(1, Init())])
    with pytest.raises(ConfigError, match=r"fan_out\.former"):
        both.make().start()
    assert database.slots() == []


def test_when_every_destination_fails_the_pipeline_ends(database: Database, tmp_path: Path) -> None:
    database.execute(SHOP)
    both = Several(database, several(database, tmp_path), {"left": Gated(), "right": Gated()})
    for destination in both.destinations.values():
        destination.startup = _refuse  # type: ignore[method-assign]
    fan_out = both.make()
    with pytest.raises(DestinationUnreachable, match="closed"):
        fan_out.start()
    assert not [thread.name for thread in threading.enumerate() if "right" in thread.name]


def _refuse(store: object) -> None:
    raise DestinationUnreachable("closed on Sundays")


def small(database: Database, tmp_path: Path, *names: str, **overrides: Any) -> PipelineConfig:
    """A budget and a buffer that a few rows exceed."""
    limits = {
        "fan_out.buffer": "64kB",
        "fan_out.max_wal_behind": "1MB",
        "batch.max_bytes": "32kB",
        "retry": {"initial_delay_ms": 20, "max_delay_ms": 100, "max_attempts": 3},
    }
    return several(database, tmp_path, *names, **(limits | overrides))


@contextmanager
def no_free_slot(database: Database) -> Iterator[None]:
    """Every slot of the server is taken meanwhile, and none of them is given up by itself.

    The slot of a copy is dropped a moment after its tables are ready: its place is taken then.
    """

    def are_all_taken() -> bool:
        with contextlib.suppress(psycopg.errors.ConfigurationLimitExceeded):
            while True:
                name = f"filler_{uuid4().hex}"
                database.query("select pg_create_physical_replication_slot(%s)", [name])
        return database.slots() == [SHARED] and database.query(
            "select count(*) = current_setting('max_replication_slots')::int"
            " from pg_replication_slots where not temporary"
        ) == [(True,)]

    try:
        wait_until(are_all_taken)
        yield
    finally:
        database.query(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
            " where slot_name like 'filler%'"
        )


def readers(database: Database) -> list[str]:
    """The slots of this database that are read now."""
    rows = database.query(
        "select slot_name from pg_replication_slots where database = %s and active order by 1",
        [database.name],
    )
    return [name for (name,) in rows]

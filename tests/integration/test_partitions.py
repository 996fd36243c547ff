"""Tables that are published through their partition root keep up with their partitions."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import DestinationError
from etl_dagster.model.events import EventBatch, TableChanges
from etl_dagster.runtime.checking.preflight import run_checks
from tests.support.database import Database
from tests.support.leaks import PASSWORD
from tests.support.pipelines import assert_table_in_step, running
from tests.support.replica import Replica
from tests.support.waiting import wait_until

MakeConfig = Callable[..., PipelineConfig]

EVENTS = """
    create table ev (id int, at date, v text, secret text, primary key (id, at))
      partition by range (at);
    alter table ev alter v set storage external;
    create table ev_1 partition of ev for values from ('2024-01-01') to ('2024-02-01');
    create table ev_2 partition of ev for values from ('2024-02-01') to ('2024-03-01');
    insert into ev values (1, '2024-01-05', 'a'), (2, '2024-01-06', 'b'), (3, '2024-02-05', 'c');
"""
PUBLISH = "create publication etl_pub for table ev with (publish_via_partition_root)"


@pytest.fixture
def replica(
    database: Database, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> Replica:
    caplog.set_level(logging.INFO)
    return Replica(database, make_config(database, destination={"type": "memory"}))


def attach_third(database: Database) -> None:
    """A table with rows becomes a partition; afterwards its rows change."""
    database.execute(
        "create table ev_3 (like ev including all)",
        "insert into ev_3 select i, '2024-03-05', repeat('x', 5000) from generate_series(30, 39) i",
        "insert into ev_3 values (5000, '2024-03-05', 'filtered')",
        "alter table ev attach partition ev_3 for values from ('2024-03-01') to ('2024-04-01')",
        # Of the second row, Postgres sends all but the large value that stays.
        "delete from ev where id = 30",
        "update ev set secret = 's' where id = 31",
        "update ev set at = '2024-03-06', v = 'y' where id = 32",
        "update ev set at = '2024-01-07' where id = 33",
        "insert into ev values (40, '2024-03-07', 'z')",
    )


def attach_subpartitioned(database: Database) -> None:
    database.execute(
        "create table ev_4 (like ev including all) partition by range (id)",
        "create table ev_4_low partition of ev_4 for values from (0) to (50)",
        "create table ev_4_high partition of ev_4 for values from (50) to (5000)",
        "insert into ev_4 values (41, '2024-04-01', 'l'), (51, '2024-04-01', 'h')",
        "alter table ev attach partition ev_4 for values from ('2024-04-01') to ('2024-05-01')",
        "create table ev_5 partition of ev for values from ('2024-05-01') to ('2024-06-01')",
        "insert into ev values (52, '2024-05-01', 'born here')",
    )


def test_attached_partitions_arrive(replica: Replica, caplog: pytest.LogCaptureFixture) -> None:
    database = replica.database
    database.execute(
        EVENTS,
        "create publication etl_pub for table ev (id, at, v) where (id < 1000)"
        " with (publish_via_partition_root)",
    )

    def expected() -> list[tuple[Any, ...]]:
        rows = database.query("select id, at, v from ev where id < 1000")
        return sorted(rows, key=repr)

    replica.catch_up()
    attach_third(database)
    replica.catch_up()
    assert replica.rows("public.ev") == expected()
    with replica.running() as pipeline:
        attach_subpartitioned(database)
        assert pipeline.wait_until_caught_up(60)
        assert replica.rows("public.ev") == expected()
        database.execute("update ev set v = v || '!'", "delete from ev where id in (41, 35)")
        assert pipeline.wait_until_caught_up(60)
        assert replica.rows("public.ev") == expected()
    # Nothing but the partitions with rows of their own is read again.
    assert not re.search("cop(ying it|ied) again", caplog.text)
    added = [r.args[1] for r in caplog.records if r.msg == "added %d rows of partition %s"]  # type: ignore[index]
    assert added == ["public.ev_3", "public.ev_4_low", "public.ev_4_high"]


def test_attached_partitions_arrive_in_duckdb(
    newest_database: Database, make_config: MakeConfig
) -> None:
    config = make_config(newest_database, **{"destination.changelog": True})
    newest_database.execute(EVENTS, PUBLISH)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        attach_third(newest_database)
        newest_database.execute("alter table ev rename v to w", "alter table ev add extra int")
        attach_subpartitioned(newest_database)
        assert pipeline.wait_until_caught_up(60)
    newest_database.execute("update ev set secret = 't' where id > 33")
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    assert_table_in_step(newest_database, config, "ev")


def test_a_keyless_table_is_copied_again_only_if_a_partition_brought_rows(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    database = replica.database
    database.execute(
        "create table ev (id int, v text default 'x') partition by list (id)",
        "alter table ev replica identity full",
        "create table ev_1 partition of ev for values in (1)",
        "insert into ev values (1), (1)",
        PUBLISH,
    )
    replica.catch_up()
    database.execute(
        "create table ev_2 (like ev including all)",
        "alter table ev attach partition ev_2 for values in (2)",
        "create table ev_3 partition of ev for values in (3)",
        "insert into ev values (3), (3)",
    )
    replica.catch_up()
    replica.assert_in_step("public.ev")
    assert not re.search("cop(ying it|ied) again", caplog.text)
    database.execute(
        "create table ev_4 (like ev including all)",
        "insert into ev_4 values (4), (4)",
        "alter table ev attach partition ev_4 for values in (4)",
        "insert into ev values (4), (2)",
    )
    replica.catch_up()
    replica.assert_in_step("public.ev")
    assert "has a new partition public.ev_4" in caplog.text


def test_a_partition_that_was_detached_or_unlogged_for_a_while_loses_no_change(
    replica: Replica,
) -> None:
    database = replica.database
    database.execute(EVENTS, PUBLISH)
    replica.catch_up()
    attach = "alter table ev attach partition ev_1 for values from ('2024-01-01') to ('2024-02-01')"
    away = (
        "alter table ev detach partition ev_1",
        "insert into ev_1 select max(id) + 1, '2024-01-09', 'while away' from ev_1",
        "delete from ev_1 where id = (select min(id) from ev_1)",
    )
    database.execute(*away, attach)
    replica.catch_up()
    replica.assert_in_step("public.ev")
    with replica.running() as pipeline:
        # This time the pipeline sees the table without it in between.
        database.execute(*away)
        assert pipeline.wait_until_caught_up(60)
        database.execute(attach)
        assert pipeline.wait_until_caught_up(60)
        replica.assert_in_step("public.ev")
        database.execute(
            "alter table ev_2 set unlogged", "delete from ev_2", "alter table ev_2 set logged"
        )
        assert pipeline.wait_until_caught_up(60)
        replica.assert_in_step("public.ev")


@pytest.mark.parametrize("removed", ["keep", "delete"])
def test_rows_of_removed_partitions_are_kept_or_deleted_as_configured(
    newest_database: Database,
    make_config: MakeConfig,
    caplog: pytest.LogCaptureFixture,
    removed: str,
) -> None:
    config = make_config(
        newest_database, destination={"type": "memory"}, partitions_removed=removed
    )
    replica = Replica(newest_database, config)
    newest_database.execute(
        EVENTS,
        "create table ev_3 partition of ev for values from ('2024-03-01') to ('2024-04-01')",
        "create table ev_4 partition of ev for values from ('2024-04-01') to ('2024-05-01')",
        "create table ev_5 partition of ev for values from ('2024-05-01') to ('2024-06-01')",
        "insert into ev select m, make_date(2024, m, 1), 'x' from generate_series(3, 5) m",
        PUBLISH,
    )
    replica.catch_up()
    with replica.running() as pipeline:
        newest_database.execute("truncate ev_1", "insert into ev values (7, '2024-05-02', 'later')")
        assert pipeline.wait_until_caught_up(60)
        newest_database.execute(
            "delete from ev where id = 4",
            "alter table ev detach partition ev_2",
            "drop table ev_3",
            "vacuum full ev_5",
        )
        assert pipeline.wait_until_caught_up(60)
        status = pipeline.status().tables["public.ev"]
    if removed == "keep":
        assert (status.partitions_kept, status.last_partition_kept) == (3, "public.ev_3")
        assert [row[0] for row in replica.rows("public.ev")] == [1, 2, 3, 3, 5, 7]
        for partition, what in (
            ("ev_1", "was truncated"),
            ("ev_2", "was detached or dropped"),
            ("ev_3", "was detached or dropped"),
        ):
            message = f"partition public.{partition} of public.ev {what} at the source"
            assert caplog.text.count(message) == 1
    else:
        replica.assert_in_step("public.ev")
    caplog.clear()
    # The stream brings a truncate of the whole table.
    newest_database.execute("truncate ev", "insert into ev values (8, '2024-05-02', 'last')")
    replica.catch_up()
    replica.assert_in_step("public.ev")
    assert not re.search("cop(ying it|ied) again", caplog.text)


def test_a_partition_attached_while_its_table_is_copied_arrives(replica: Replica) -> None:
    database = replica.database
    database.execute(EVENTS, PUBLISH)
    write, once = replica.destination.write_table_rows, []

    def attach_meanwhile(schema: Any, rows: Any) -> None:
        if not once:
            once.append(True)
            attach_third(database)
            database.execute(
                "alter table ev detach partition ev_2",
                "delete from ev_2 where id = 3",
                "alter table ev attach partition ev_2"
                " for values from ('2024-02-01') to ('2024-03-01')",
            )
        write(schema, rows)

    replica.destination.write_table_rows = attach_meanwhile  # type: ignore[method-assign]
    replica.catch_up()
    # What happened during the copy shows once it is done.
    with replica.running() as pipeline:
        assert pipeline.wait_until_caught_up(60)
        replica.assert_in_step("public.ev")


def test_a_partition_that_is_detached_during_the_copy_is_not_read(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """Nothing would ever tell what of its rows the table never had."""
    config = make_config(
        newest_database,
        destination={"type": "memory"},
        **{"copy.max_connections_per_table": 1, "partitions_removed": "keep"},
    )
    replica = Replica(newest_database, config)
    newest_database.execute(EVENTS, PUBLISH)
    write, once = replica.destination.write_table_rows, []

    def detach_after_the_first(schema: Any, rows: Any) -> None:
        write(schema, rows)
        if not once:
            once.append(True)
            newest_database.execute(
                "alter table ev detach partition ev_2",
                "insert into ev_2 values (4, '2024-02-06', 'of another table')",
            )

    replica.destination.write_table_rows = detach_after_the_first  # type: ignore[method-assign]
    with replica.running() as pipeline:
        replica.assert_in_step("public.ev")
        assert pipeline.status().tables["public.ev"].partitions_kept == 0


def test_a_partition_whose_rows_were_added_in_part_is_added_again(
    newest_database: Database, make_config: MakeConfig
) -> None:
    config = make_config(newest_database, destination={"type": "memory"})
    replica = Replica(newest_database, config)
    newest_database.execute(EVENTS, PUBLISH)
    replica.catch_up()
    newest_database.execute(
        "create table ev_3 (like ev including all)",
        "insert into ev_3 select i, '2024-03-05', repeat('x', 1000)"
        " from generate_series(1, 12000) i",
        "alter table ev attach partition ev_3 for values from ('2024-03-01') to ('2024-04-01')",
    )
    write, sizes = replica.destination.write_events, []

    def fail_at_the_second(events: EventBatch) -> None:
        for steps in events.tables.values():
            sizes.extend(len(step) for step in steps if isinstance(step, TableChanges))
        if len(sizes) == 2:
            raise DestinationError("the disk is full")
        write(events)

    replica.destination.write_events = fail_at_the_second  # type: ignore[method-assign]
    with pytest.raises(DestinationError):
        replica.catch_up()
    assert 3 < len(replica.rows("public.ev")) < 12000
    replica.destination.write_events = write  # type: ignore[method-assign]
    newest_database.execute(
        "delete from ev where id % 2 = 0 and id > 100", "update ev set v = 'y' where id < 50"
    )
    replica.catch_up()
    replica.assert_in_step("public.ev")


def test_rights_on_the_root_are_enough(database: Database, make_config: MakeConfig) -> None:
    """Postgres asks for no more when it is read through the root."""
    user = f"reader_{database.name}"
    database.execute(
        EVENTS,
        "create schema hidden",
        "create table hidden.ev_3 partition of ev for values from ('2024-03-01') to ('2024-04-01')",
        "insert into ev select i, '2024-03-02', 'x' from generate_series(10, 2000) i",
        PUBLISH,
        f"create role {user} login replication password '{PASSWORD}'",
        f"grant create on database {database.name} to {user}; grant select on ev to {user}",
    )
    try:
        config = make_config(
            database,
            source={"user": user, "password": PASSWORD},
            destination={"type": "memory"},
            copy={"chunk_rows": 500},
        )
        replica = Replica(database, config)
        replica.catch_up()
        replica.assert_in_step("public.ev")
        database.execute(
            "create table hidden.ev_4 (like ev including all)",
            "insert into hidden.ev_4 values (3000, '2024-04-05', 'y')",
            "alter table ev attach partition hidden.ev_4"
            " for values from ('2024-04-01') to ('2024-05-01')",
        )
        replica.catch_up()
        replica.assert_in_step("public.ev")
    finally:
        database.execute(f"drop owned by {user}; drop role {user}")


@pytest.mark.parametrize("identity", ["primary key", "index"])
def test_partitions_with_another_replica_identity_than_their_root_stop_the_table(
    database: Database, make_config: MakeConfig, identity: str
) -> None:
    """Postgres would send too little of an old row to find it: updates would double rows."""
    setup, identify = {
        "primary key": (
            ["alter table ev_0 add primary key (id)"],
            "alter table ev_0 replica identity default",
        ),
        "index": (
            [
                "alter table ev add primary key (id)",
                "alter table ev_0 alter v set not null; create unique index ev_0_v on ev_0 (v)",
            ],
            "alter table ev_0 replica identity using index ev_0_v",
        ),
    }[identity]
    database.execute(
        "create table ev (id int not null, v text) partition by range (id)",
        "create table ev_0 partition of ev for values from (0) to (100)",
        *setup,
        identify,
        "insert into ev select i, 'v' || i from generate_series(1, 5) i",
        "create table plain (id int primary key)",
        "create publication etl_pub for table ev, plain with (publish_via_partition_root)",
    )
    config = make_config(database)
    with (
        closing(build_store(config)) as store,  # type: ignore[type-var]
        running(config, store=store) as pipeline,
    ):
        assert pipeline.wait_until_caught_up(60)
        stopped = pipeline.status().tables["public.ev"]
        assert (stopped.state, "ev_0 Postgres sends" in (stopped.error or "")) == (
            "errored",
            True,
        )
        assert "ALTER TABLE public.ev_0 REPLICA IDENTITY FULL" in (stopped.solution or "")
        [check] = [c for c in run_checks(config) if c.name == "replica identity"]
        assert (check.level, check.message) == ("warning", stopped.error)

        database.execute("alter table ev_0 replica identity full")
        store.request_copy(stopped.table_id)
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "update ev set v = 'u' where id = 1",
            "delete from ev where id = 2",
            "update ev set id = 30 where id = 3",
        )
        assert pipeline.wait_until_caught_up(60)
        assert_table_in_step(database, config, "ev")
        # Altered while it is streamed.
        database.execute(identify)
        assert pipeline.wait_until_caught_up(60)
        assert pipeline.status().tables["public.ev"].state == "errored"
        assert pipeline.status().tables["public.plain"].state == "ready"


def test_foreign_partitions_are_left_out(
    database: Database, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(database, destination={"type": "memory"})
    replica = Replica(database, config)
    database.execute(
        "create table ev (id int, at date, v text) partition by range (at)",
        "create table ev_1 partition of ev for values from ('2024-01-01') to ('2024-02-01')",
        "insert into ev values (1, '2024-01-05', 'a')",
        "create foreign data wrapper nowhere; create server far foreign data wrapper nowhere",
        "create foreign table ev_far partition of ev"
        " for values from ('2025-01-01') to ('2026-01-01') server far",
        PUBLISH,
    )
    replica.catch_up()
    assert replica.rows("public.ev") == database.query("select * from ev_1")
    assert "foreign tables, whose rows Postgres can't publish, are left out: public.ev_far" in (
        caplog.text
    )
    database.execute("insert into ev values (2, '2024-01-06', 'b')")
    replica.catch_up()
    assert len(replica.rows("public.ev")) == 2


def test_a_partition_that_is_locked_does_not_hold_up_the_stream(
    newest_database: Database, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(newest_database, destination={"type": "memory"})
    replica = Replica(newest_database, config)
    newest_database.execute(EVENTS, PUBLISH)
    with replica.running() as pipeline:
        newest_database.execute(
            "create table ev_3 (like ev including all)",
            "insert into ev_3 values (9, '2024-03-05', 'z')",
        )
        with newest_database.connect(autocommit=False) as other:
            newest_database.execute(
                "alter table ev attach partition ev_3"
                " for values from ('2024-03-01') to ('2024-04-01')"
            )
            other.execute("lock table ev_3 in access exclusive mode")
            wait_until(lambda: "partition public.ev_3 can't be added now" in caplog.text)
            newest_database.execute("insert into ev_1 values (8, '2024-01-05', 'meanwhile')")
            wait_until(lambda: len(replica.rows("public.ev")) == 4)
        assert pipeline.wait_until_caught_up(60)
        replica.assert_in_step("public.ev")

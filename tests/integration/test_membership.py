"""A table that leaves the publication and returns, by whatever statement, is copied again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.model.stores import PipelineStore, SchemaStore, StateStore, TableLifecycleStore
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.source.membership import look
from etl_dagster.stores.memory import MemoryStore
from tests.support.database import Database
from tests.support.replica import Replica

MakeConfig = Callable[..., PipelineConfig]


@pytest.fixture
def replica(database: Database, make_config: MakeConfig) -> Replica:
    return Replica(database, make_config(database, destination={"type": "memory"}))


def copied_again(caplog: pytest.LogCaptureFixture) -> set[str]:
    return {
        record.getMessage().split()[0]
        for record in caplog.records
        if "copying it again" in record.getMessage()
    }


def test_a_refresh_sees_a_table_being_unlogged_at_one_moment(database: Database) -> None:
    """Half of a rewrite would pass for a harmless one, in this look and in the next."""
    database.execute(
        "create table t (id int primary key, v text)",
        "create table ev (id int primary key, v text) partition by range (id)",
        "create table ev_0 partition of ev for values from (0) to (100)",
        "create publication etl_pub for all tables with (publish_via_partition_root)",
    )
    with database.connect(autocommit=False) as connection:
        connection.execute("set transaction isolation level repeatable read")
        before = look(connection, "etl_pub")
        database.execute("alter table t set unlogged", "alter table ev_0 set unlogged")
        assert look(connection, "etl_pub") == before


@pytest.mark.parametrize("what", ["all tables", "table ev, guest, other"])
def test_a_table_that_was_a_partition_for_a_while_loses_no_change(
    replica: Replica, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its changes were published as those of the root then."""
    database = replica.database
    database.execute(
        "create table ev (id int primary key, v text) partition by range (id)",
        "create table ev_0 partition of ev for values from (0) to (100)",
        "create table guest (id int primary key, v text)",
        "create table other (id int primary key, v text)",
        "insert into guest values (101, 'a'), (102, 'b')",
        f"create publication etl_pub for {what} with (publish_via_partition_root)",
    )
    replica.catch_up()
    database.execute(
        "alter table ev attach partition guest for values from (100) to (200)",
        "update ev set v = 'changed' where id = 101",
        "delete from ev where id = 102",
        "alter table ev detach partition guest",
        "insert into guest values (103, 'c')",
        "alter table other alter v set default 'x'",
        "alter table other add n int",
        "insert into other values (1)",
    )
    replica.catch_up()
    replica.assert_in_step("public.guest", "public.other")
    assert copied_again(caplog) == {"public.guest"}


def test_a_table_that_left_its_published_schema_for_a_while_loses_no_change(
    replica: Replica,
) -> None:
    database = replica.database
    database.execute(
        "create schema s",
        "create schema elsewhere",
        "create table s.o (id int primary key)",
        "create table s.moved (id int primary key)",
        "insert into s.o values (1)",
        "insert into s.moved values (1)",
        "create publication etl_pub for tables in schema s",
    )
    replica.catch_up()
    database.execute(
        "alter table s.moved set schema elsewhere",
        "insert into elsewhere.moved values (2)",
        "delete from elsewhere.moved where id = 1",
        "alter table elsewhere.moved set schema s",
        "insert into s.moved values (3)",
    )
    replica.catch_up()
    replica.assert_in_step("s.o", "s.moved")
    with replica.running() as pipeline:
        database.execute(
            "alter publication etl_pub drop tables in schema s",
            "insert into s.o values (2)",
            "alter publication etl_pub add tables in schema s",
            "insert into s.o values (3)",
        )
        assert pipeline.wait_until_caught_up(60)
        replica.assert_in_step("s.o", "s.moved")


def test_a_table_that_was_unlogged_for_a_while_loses_no_change(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    database = replica.database
    database.execute(
        "create table long (id int primary key, v text)",
        "create table narrow (id int primary key, n int)",
        "create table emptied (id int primary key, n int)",
        "create table vacuumed (id int primary key, v text)",
        "insert into long values (1, 'a'); insert into narrow values (1, 1)",
        "insert into emptied values (1, 1); insert into vacuumed values (1, 'a')",
        "create publication etl_pub for all tables",
    )
    replica.catch_up()
    for running in (False, True):
        caplog.clear()
        with replica.running() if running else contextmanager(lambda: iter([None]))() as pipeline:
            for table in ("long", "narrow"):
                database.execute(
                    f"alter table {table} set unlogged",
                    f"insert into {table} select max(id) + 1 from {table}",
                    f"delete from {table} where id = (select min(id) from {table})",
                    f"alter table {table} set logged",
                    f"insert into {table} select max(id) + 1 from {table}",
                )
            database.execute(
                "truncate emptied",
                "insert into emptied values (2, 2)",
                "vacuum full vacuumed",
                "insert into vacuumed select max(id) + 1 from vacuumed",
            )
            if pipeline is not None:
                assert pipeline.wait_until_caught_up(60)
        replica.catch_up()
        replica.assert_in_step("public.long", "public.narrow", "public.emptied", "public.vacuumed")
        # The stream has all changes of the others.
        assert copied_again(caplog) == {"public.long", "public.narrow"}


def test_a_publication_that_published_less_for_a_while_loses_no_change(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    database = replica.database
    database.execute(
        "create table o (id int primary key, n int)",
        "insert into o select i, 0 from generate_series(1, 4) i",
        "create publication etl_pub for table o",
    )
    replica.catch_up()
    database.execute(
        "alter publication etl_pub set (publish = 'insert')",
        "update o set n = 1 where id = 1",
        "delete from o where id = 2",
        "alter publication etl_pub set (publish = 'insert, update, delete, truncate')",
    )
    replica.catch_up()
    replica.assert_in_step("public.o")
    with replica.running() as pipeline:
        # Less from now on: rows that are deleted from here on stay on purpose.
        caplog.clear()
        database.execute(
            "alter publication etl_pub set (publish = 'insert')", "delete from o where id = 3"
        )
        assert pipeline.wait_until_caught_up(60)
        assert len(replica.rows("public.o")) == 3
        assert copied_again(caplog) == set()
        assert "publishes less than before (insert)" in caplog.text
        # And more again.
        database.execute("alter publication etl_pub set (publish = 'insert, update, delete')")
        assert pipeline.wait_until_caught_up(60)
        replica.assert_in_step("public.o")


EVENTS = """
    create table ev (id int, at date, v text, primary key (id, at)) partition by range (at);
    create table ev_1 partition of ev for values from ('2024-01-01') to ('2024-02-01');
    create table ev_2 partition of ev for values from ('2024-02-01') to ('2024-03-01');
    insert into ev values (1, '2024-01-05', 'a'), (2, '2024-01-06', 'b'), (3, '2024-02-05', 'c');
"""


def test_a_leaf_published_by_itself_that_was_detached_for_a_while_loses_no_change(
    replica: Replica,
) -> None:
    database = replica.database
    database.execute(EVENTS, "create publication etl_pub for table ev")
    replica.catch_up()
    database.execute(
        "alter table ev detach partition ev_1",
        "insert into ev_1 values (4, '2024-01-07', 'd')",
        "delete from ev_1 where id = 1",
        "alter table ev attach partition ev_1 for values from ('2024-01-01') to ('2024-02-01')",
        # Postgres refuses this for tables that a publication names, and for them only.
        "alter table ev_2 set unlogged",
        "update ev_2 set v = 'x'",
        "alter table ev_2 set logged",
    )
    replica.catch_up()
    replica.assert_in_step("public.ev_1", "public.ev_2")


def test_switching_to_publishing_through_the_root_and_back_loses_no_change(
    replica: Replica,
) -> None:
    database = replica.database
    database.execute(EVENTS, "create publication etl_pub for table ev")
    replica.catch_up()
    database.execute(
        "alter publication etl_pub set (publish_via_partition_root)",
        "insert into ev values (4, '2024-01-07', 'd')",
        "alter publication etl_pub set (publish_via_partition_root = false)",
    )
    replica.catch_up()
    replica.assert_in_step("public.ev_1", "public.ev_2")


def three_contracts_of(store: MemoryStore) -> PipelineStore:
    contracts = (SchemaStore, StateStore, TableLifecycleStore)
    names = {name for contract in contracts for name in vars(contract) if name[0] != "_"}
    own: Any = type("OwnStore", (), {name: staticmethod(getattr(store, name)) for name in names})()
    return own


def test_a_custom_store_remembers_what_was_published(
    newest_database: Database, make_config: MakeConfig
) -> None:
    newest_database.execute(
        "create table o (id int primary key)",
        "create table other (id int primary key)",
        "insert into o values (1)",
        "create publication etl_pub for table o, other",
    )
    kept = MemoryStore()
    replica = Replica(
        newest_database,
        make_config(newest_database, destination={"type": "memory"}),
        three_contracts_of(kept),
    )
    replica.catch_up()
    newest_database.execute(
        "alter publication etl_pub drop table o",
        "insert into o values (2)",
        "alter publication etl_pub add table o",
    )
    replica.store = three_contracts_of(kept)
    replica.catch_up()
    replica.assert_in_step("public.o")


def test_notes_of_an_earlier_version_cause_no_new_copy(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    database = replica.database
    database.execute(
        "create table o (id int primary key)",
        "create table p (id int primary key)",
        "create publication etl_pub for table o, p",
    )
    replica.catch_up()
    oids = database.query(
        "select r.prrelid::bigint, p.oid || '/' || r.oid from pg_publication_rel r"
        " join pg_publication p on p.oid = r.prpubid"
    )
    replica.store.publish_status("members", {"memberships": {str(t): m for t, m in oids}})
    database.execute(
        "alter publication etl_pub drop table p",
        "insert into p values (1)",
        "alter publication etl_pub add table p",
    )
    caplog.clear()
    replica.catch_up()
    replica.assert_in_step("public.o", "public.p")
    assert copied_again(caplog) == {"public.p"}


def test_a_table_that_leaves_and_returns_during_its_copy_is_copied_again(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    database = replica.database
    database.execute(
        "create table o (id int primary key, v text)",
        "insert into o select i, 'x' from generate_series(1, 1000) i",
        "create publication etl_pub for table o",
    )
    write, came_back = replica.destination.write_table_rows, threading.Event()

    def leave_and_return(schema: Any, rows: Any) -> None:
        write(schema, rows)
        if not came_back.is_set():
            database.execute("alter publication etl_pub drop table o")
            assert pipeline.wait_until_caught_up(60)  # by a look at the publication without it
            database.execute(
                "delete from o where id <= 10",
                "insert into o values (2000, 'y')",
                "alter publication etl_pub add table o",
            )
            came_back.set()

    replica.destination.write_table_rows = leave_and_return  # type: ignore[method-assign]
    pipeline = Pipeline(replica.config, replica.store, replica.destination)
    pipeline.start()
    try:
        assert came_back.wait(60)
        assert pipeline.wait_until_caught_up(60)
    finally:
        pipeline.shutdown()
        assert pipeline.wait(60)
    replica.assert_in_step("public.o")

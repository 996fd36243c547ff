"""A table that another session has locked holds up its own copy, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from functools import partial

import pytest

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import TableLocked
from etl_dagster.runtime.checking.preflight import run_checks
from etl_dagster.runtime.checking.tables import check_locks
from etl_dagster.runtime.timing import Timing
from etl_dagster.source.catalog import fetch_leaves, fetch_leaves_of, fetch_published_tables
from etl_dagster.source.control import SourceControl
from etl_dagster.source.membership import look
from etl_dagster.source.trigger import install
from tests.support.database import Database
from tests.support.pipelines import rows, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]


def test_other_tables_continue_and_the_session_is_named(
    database: Database,
    make_config: MakeConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    database.execute(
        "create table t (id int primary key, n int); insert into t values (1, 1)",
        "create table u (id int primary key)",
        "create table root (id int primary key, n int) partition by range (id)",
        "create table leaf partition of root for values from (0) to (9)",
        "insert into root values (1, 1)",
        "create publication etl_pub for all tables with (publish_via_partition_root = true)",
    )
    with database.connect() as connection:
        install(connection)
    config = make_config(database)
    with (
        caplog.at_level(logging.INFO),
        closing(build_store(config)) as store,  # type: ignore[type-var]
        database.connect(autocommit=False, application_name="long vacuum") as blocker,
        running(
            config,
            store=store,
            timing=Timing(long_lock_s=0.1),
            make_control=partial(SourceControl, lock_timeout_s=0.5),
        ) as pipeline,
    ):
        assert pipeline.wait_until_caught_up(60)
        database.execute("create table late (id int primary key); insert into late values (1)")
        blocker.execute("lock table t, leaf, late in access exclusive mode")
        database.execute(
            "insert into u values (1)",
            "create table v (id int primary key); insert into v values (1)",
            # Reports the columns of the root, whose partition is locked.
            "set lock_timeout = '5s'; alter table only root alter column n set default 7",
        )

        [[t, v]] = database.query("select 't'::regclass::oid::bigint, 'v'::regclass::oid::bigint")
        # Look at once, not in five seconds.
        pipeline._look_wanted.set()
        pipeline._changed.set()
        wait_until(lambda: store.get_table_replication_state(v) is not None)
        wait_until(lambda: "public.t is locked by another session" in caplog.text)
        assert "public.leaf is locked by another session" in caplog.text
        wait_until(lambda: rows(config, "select count(*) from public.u") == [(1,)])
        named = f"PID {blocker.info.backend_pid} (long vacuum)"
        assert all(check.failure is None for check in run_checks(config))
        with database.connect() as connection:
            published = fetch_published_tables(connection, "etl_pub", [t], with_filters=False)
            [check] = check_locks(connection, published, older_than_s=0.0)
            assert named in check.message
        with closing(SourceControl(config.source, application_name="test")) as asking:
            with pytest.raises(TableLocked) as raised:
                asking.ask("measuring", fetch_leaves, t)
            assert f"public.t by {named}" in raised.value.reason
            measured = asking.ask("measuring", fetch_leaves_of, [t, v], without_locked=True)
            assert set(measured) == {v}
        assert pipeline.status().phase == "streaming"
        assert pipeline.status().error is None

        blocker.rollback()
        database.execute("insert into t values (2, 2); insert into root values (2, 2)")
        assert pipeline.wait_until_caught_up(60)
    for table, count in {"t": 2, "u": 1, "v": 1, "late": 1, "root": 2}.items():
        assert rows(config, f"select count(*) from public.{table}") == [(count,)], table
    assert "locked tables" not in {check.name for check in run_checks(config)}


PUBLICATIONS = {
    "for table a, root": 14,
    "for table ab.in_ab, only root_2, root_2_leaf with (publish_via_partition_root = true)": 14,
    "for table root_1_leaf, root_2_leaf, a": 14,
    "for all tables": 14,
    "for all tables with (publish_via_partition_root = true)": 14,
    "for table a (id, n) where (id > 3), root where (id < 5) with (publish_via_partition_root)": 15,
    "for table a (id), root": 15,
    "for tables in schema ab, table a": 15,
    "for tables in schema public with (publish_via_partition_root = true)": 15,
    "for table a (id, g), b with (publish_generated_columns = stored)": 18,
    "for table a, b, tables in schema ab with (publish_generated_columns = none)": 18,
}


def test_the_tables_of_a_publication_are_those_that_postgres_lists(database: Database) -> None:
    """Which relations, and which columns and rows of them."""
    [[version]] = database.query("select current_setting('server_version_num')::int / 10000")
    database.execute(
        "create schema ab",
        "create table a (id int primary key, n int, dropped int,"
        " g int generated always as (id + 1) stored)",
        "alter table a drop column dropped",
        "create table b (g int generated always as (id + 1) stored, id int primary key)",
        "create table ab.in_ab (id int primary key)",
        "create unlogged table ab.unlogged (id int primary key)",
        "create table root (id int primary key) partition by range (id)",
        "create table root_1 partition of root for values from (0) to (10) partition by range (id)",
        "create table root_1_leaf partition of root_1 for values from (0) to (5)",
        "create table ab.root_3_leaf partition of root for values from (10) to (20)",
        "create table root_2 (id int primary key) partition by range (id)",
        "create table root_2_leaf partition of root_2 for values from (0) to (5)",
        "create table parent (id int primary key); create table child () inherits (parent)",
    )
    tried = 0
    for publication, since in PUBLICATIONS.items():
        if version < since:
            continue
        tried += 1
        database.execute(f"drop publication if exists p; create publication p {publication}")
        lists = "attnames::text[], rowfilter" if version >= 15 else "null, null"
        expected = {
            f"{schema}.{table}": (names, row_filter)
            for schema, table, names, row_filter in database.query(
                f"select schemaname, tablename, {lists} from pg_publication_tables"
            )
        }
        generated = {("public.a", "g"), ("public.b", "g")} if version < 18 else set()
        with database.connect() as connection:
            found = fetch_published_tables(connection, "p")
            members = look(connection, "p").members
        assert {table.schema.name for table in found} == set(expected), publication
        assert {table.schema.id for table in found} == set(members), publication
        for table in found:
            names, row_filter = expected[table.schema.name]
            columns = [c.name for c in table.schema.columns]
            assert table.row_filter == row_filter
            assert table.has_row_filter == (row_filter is not None)
            if names is not None:
                sent = [n for n in names if (table.schema.name, n) not in generated]
                assert sorted(columns) == sorted(sent), (publication, table.schema.name)
    assert tried >= 9

"""Heartbeats in a real WAL: who may write them, and what they do for slot and status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psycopg
from psycopg import sql

from etl_dagster.config import PipelineConfig
from etl_dagster.lsn import Lsn
from etl_dagster.runtime.timing import TIMING
from etl_dagster.source.heartbeat import emit_heartbeat
from etl_dagster.source.slots import apply_slot_name
from tests.support.database import Database
from tests.support.fan_outs import Several, several
from tests.support.leaks import PASSWORD
from tests.support.pipelines import running
from tests.support.waiting import wait_until

MakeConfig = Callable[..., PipelineConfig]

SHOP = ("create table orders (id int primary key)", "create publication etl_pub for table orders")


def test_an_idle_database_in_a_busy_cluster_retains_no_wal(
    database: Database, make_config: MakeConfig
) -> None:
    """Heartbeats alone do it: nothing else is confirmed in this test."""
    database.execute(*SHOP)
    config = make_config(
        database,
        destination={"type": "memory"},
        state_store={"type": "memory"},
        **{"source.heartbeat_s": 0.2},
    )
    timing = replace(TIMING, idle_confirm_s=1e6)
    with Database.create(database.server) as busy, running(config, timing=timing) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        busy.execute("create table work as select i from generate_series(1, 10000) i")
        written = Lsn.parse(busy.current_lsn())

        def is_released() -> bool:
            # The server moves a slot only past a record of the transactions that run.
            busy.execute("checkpoint")
            ((restart,),) = database.query(
                "select restart_lsn::text from pg_replication_slots where slot_name = %s",
                [apply_slot_name(config.pipeline)],
            )
            return Lsn.parse(restart) >= written

        wait_until(is_released)
        wait_until(lambda: pipeline.status().latency_seconds is not None)


def test_every_destination_measures_the_heartbeats_that_are_written_for_all(
    newest_database: Database, tmp_path: Path
) -> None:
    newest_database.execute(*SHOP)
    config = several(newest_database, tmp_path)
    source = config.source.model_copy(update={"heartbeat_s": 0.2})
    fixture = Several(newest_database, config.model_copy(update={"source": source}))
    with fixture.running() as fan_out:
        wait_until(lambda: all(s.latency_seconds is not None for s in fan_out.statuses().values()))


def test_heartbeats_need_no_right_and_a_refused_one_is_not_a_failure(
    database: Database,
) -> None:
    role = f"{database.name}_reader"
    name = sql.Identifier(role)
    revoke = (
        "do $$ declare f regprocedure; begin for f in select oid::regprocedure from pg_proc"
        " where proname = 'pg_logical_emit_message' loop"
        " execute format('revoke execute on function %s from public', f); end loop; end $$"
    )
    with database.connect() as admin:
        admin.execute(sql.SQL("create role {} login password {}").format(name, PASSWORD))
        try:
            with psycopg.connect(
                database.dsn, user=role, password=PASSWORD, autocommit=True
            ) as reader:
                before = Lsn.parse(database.current_lsn())
                emitted = emit_heartbeat(reader)
                assert emitted is not None
                assert emitted > before

                reader.execute("set default_transaction_read_only = on")
                assert emit_heartbeat(reader) is not None  # the WAL is not a table

                admin.execute(revoke)
                assert emit_heartbeat(reader) is None
        finally:
            admin.execute(sql.SQL("drop role {}").format(name))

"""Names that pass from one table to another, as in an online migration."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from etl_dagster.assembly import build_destination
from etl_dagster.cli.app import cli
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb import read_connection
from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.model.events import TableRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.source.trigger import install
from tests.support.database import Database
from tests.support.pipelines import running

MakeConfig = Callable[..., PipelineConfig]

TABLES = """
    create table orders (id int primary key, note text);
    create table orders_new (id int primary key, note text, at date default '2026-01-01');
    insert into orders values (1, 'old');
    insert into orders_new values (1, 'new');
    create publication etl_pub for all tables;
"""
SWAP = """
    begin;
    alter table orders rename to tmp;
    alter table orders_new rename to orders;
    alter table tmp rename to orders_new;
    commit;
"""


def caught_up(pipeline: Pipeline) -> None:
    assert pipeline.wait_until_caught_up(60)
    errors = {name: table.error for name, table in pipeline.status().tables.items() if table.error}
    assert not errors


def tables_of(config: PipelineConfig) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of every table at the destination, read at one time."""
    assert isinstance(config.destination, DuckDBDestinationConfig)
    with read_connection(config.destination.path) as connection:
        there = connection.execute(
            "select schema_name, table_name from duckdb_tables() where schema_name <> '_etl'"
        ).fetchall()
        return {
            f"{schema}.{name}": sorted(
                connection.execute(f'select * from "{schema}"."{name}"').fetchall()
            )
            for schema, name in there
        }


def source_of(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of every published table."""
    published = database.query("select schemaname, tablename from pg_publication_tables")
    return {
        f"{schema}.{name}": sorted(database.query(f'select * from "{schema}"."{name}"'))
        for schema, name in published
        if schema != "etl"
    }


def assert_in_step(database: Database, config: PipelineConfig) -> None:
    """Every published table, and no other, is at the destination with its rows."""
    there = tables_of(config)
    assert {n: rows for n, rows in there.items() if not n.startswith("etl.")} == source_of(database)


def test_tables_swap_their_names(database: Database, make_config: MakeConfig) -> None:
    database.execute(TABLES)
    config = make_config(database)
    with running(config) as pipeline:
        caught_up(pipeline)
        for number, changed in enumerate([["orders", "orders_new"], ["orders"], []], start=2):
            database.execute(f"insert into orders values ({number}0, 'before')", SWAP)
            database.execute(*(f"insert into {name} values ({number}, 'b')" for name in changed))
            caught_up(pipeline)
            assert_in_step(database, config)

    for number, changed in enumerate([["orders_new"], []], start=5):
        database.execute(f"insert into orders values ({number}0)", SWAP)
        database.execute(*(f"insert into {name} values ({number}, 'b')" for name in changed))
        with running(config) as pipeline:
            caught_up(pipeline)
        assert_in_step(database, config)


def test_a_partitioned_table_keeps_its_new_name(
    database: Database, make_config: MakeConfig
) -> None:
    """Postgres sends its next rows under the description that has the old name."""
    database.execute(
        "create table orders (id int primary key) partition by range (id)",
        "create table orders_0 partition of orders for values from (0) to (1000)",
        "create publication etl_pub for table orders with (publish_via_partition_root = true)",
    )
    config = make_config(database)
    with running(config) as pipeline:
        caught_up(pipeline)
        database.execute("insert into orders values (1)")
        caught_up(pipeline)
        database.execute("alter table orders rename to sales")
        caught_up(pipeline)
        assert tables_of(config) == {"public.sales": [(1,)]}
        database.execute("insert into sales values (2)")
        caught_up(pipeline)
        assert_in_step(database, config)
        # The source reports the new name before such rows.
        with database.connect() as connection:
            install(connection)
        database.execute("alter table sales rename to profits", "insert into profits values (3)")
        caught_up(pipeline)
        assert_in_step(database, config)


def test_a_table_that_gets_its_name_back_has_it_without_a_further_row(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """The last name that the stream brings is not the table's any more."""
    database = newest_database
    database.execute(TABLES)
    config = make_config(database)
    there_and_back = (
        "begin; alter table orders rename to moved; insert into moved values ({}, 'x');"
        "alter table moved rename to orders; commit"
    )
    with running(config) as pipeline:
        caught_up(pipeline)
        database.execute(there_and_back.format(101))
        caught_up(pipeline)
        assert_in_step(database, config)
    database.execute(there_and_back.format(102))
    with running(config) as pipeline:
        caught_up(pipeline)
    assert_in_step(database, config)


def test_names_move_in_chains_to_free_names_and_back(
    newest_database: Database, make_config: MakeConfig
) -> None:
    database = newest_database
    database.execute(TABLES, "create table archive (id int primary key)")
    config = make_config(database)
    with running(config) as pipeline:
        caught_up(pipeline)
        # Each takes the name of the next.
        database.execute(
            "begin; alter table orders rename to tmp; alter table orders_new rename to orders;"
            "alter table archive rename to orders_new; alter table tmp rename to archive; commit"
        )
        database.execute("insert into archive values (7, 'x')")
        caught_up(pipeline)
        assert_in_step(database, config)
        # A schema whose name changes in case alone, and a table that leaves its name to a new one.
        database.execute(
            'create schema "Sales"; alter table archive set schema "Sales";'
            'alter schema "Sales" rename to sales',
            "alter table orders rename to orders_before",
            "create table orders (id int primary key, other text)",
            "insert into orders values (1, 'another')",
        )
        caught_up(pipeline)
        assert_in_step(database, config)


def test_a_table_takes_the_name_of_one_that_was_dropped_or_left(
    newest_database: Database, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Postgres reports neither; the old rows stay, under another name that is logged."""
    database = newest_database
    database.execute(
        TABLES.replace("for all tables", "for table orders, orders_new, parts").replace(
            "create publication", "create table parts (id int primary key); create publication"
        )
    )
    ((dropped,), (left,)) = database.query(
        "select oid from pg_class where relname in ('orders', 'orders_new') order by relname"
    )
    config = make_config(database)
    with running(config) as pipeline:
        caught_up(pipeline)
        database.execute(
            "begin; drop table orders; alter table orders_new rename to orders; commit",
            "insert into orders values (2, 'after')",
        )
        caught_up(pipeline)
        there = tables_of(config)
        assert there["public.orders"] == source_of(database)["public.orders"]
        assert there[f"public.orders__old_{dropped}"] == [(1, "old")]
        assert f"are in public.orders__old_{dropped}" in caplog.text

        database.execute(
            "alter publication etl_pub drop table orders; alter table orders rename to unpublished;"
            "alter table parts rename to orders; insert into orders values (3)"
        )
        caught_up(pipeline)
        there = tables_of(config)
        assert there["public.orders"] == [(3,)]
        assert [row[0] for row in there[f"public.orders__old_{left}"]] == [1, 2]


def test_both_tables_can_be_copied_again_after_they_swapped_names(
    newest_database: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    database = newest_database
    database.execute(TABLES)
    config = make_config(database)
    with running(config) as pipeline:
        caught_up(pipeline)
    database.execute(SWAP)
    values: dict[str, Any] = {
        "pipeline": "test",
        "source": {"dsn": database.dsn, "publication": "etl_pub"},
        "destination": {"type": "duckdb", "path": str(tmp_path / "test.duckdb")},
    }
    (tmp_path / "etl.yaml").write_text(json.dumps(values))

    with contextlib.chdir(tmp_path):
        done = CliRunner().invoke(cli, ["reset", "--yes", "public.orders", "public.orders_new"])
        report = json.loads(CliRunner().invoke(cli, ["status", "--json"]).stdout)

    assert done.exit_code == 0, done.output
    assert [table["state"] for table in report["tables"]] == ["init", "init"]
    with running(config) as pipeline:
        caught_up(pipeline)
    assert_in_step(database, config)


class Slow:
    """A destination that keeps the rows of one table waiting."""

    def __init__(self, inner: Any, name: str) -> None:
        self._inner = inner
        self._name = name
        self.is_writing = threading.Event()
        self.may_write = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> Any:
        if schema.table_name == self._name and rows.is_end_of_copy:
            self.is_writing.set()
            assert self.may_write.wait(60)
        return self._inner.write_table_rows(schema, rows)


@pytest.mark.parametrize("copied", ["orders", "orders_new"])
def test_tables_may_swap_their_names_while_one_is_copied(
    newest_database: Database, make_config: MakeConfig, copied: str
) -> None:
    database = newest_database
    database.execute(TABLES)
    config = make_config(database)
    slow = Slow(build_destination(config), copied)
    with running(config, destination=slow) as pipeline:
        assert slow.is_writing.wait(60)
        other = {"orders": "orders_new", "orders_new": "orders"}[copied]
        while pipeline.status().tables[f"public.{other}"].state != "ready":
            assert not pipeline.wait(0.1)
        database.execute(SWAP, "insert into orders values (5, 'after')")
        slow.may_write.set()
        caught_up(pipeline)
    assert_in_step(database, config)


def test_the_memory_destination_follows_names_too(
    newest_database: Database, make_config: MakeConfig
) -> None:
    newest_database.execute(TABLES)
    config = make_config(newest_database, destination={"type": "memory"})
    destination = build_destination(config)
    assert isinstance(destination, MemoryDestination)

    with running(config, destination=destination) as pipeline:
        caught_up(pipeline)
        newest_database.execute(SWAP, "insert into orders values (2, 'after')")
        caught_up(pipeline)

    notes = {
        name: [row["note"] for row in destination.rows(f"public.{name}")]
        for name in ("orders", "orders_new")
    }
    assert notes == {"orders": ["new", "after"], "orders_new": ["old"]}

"""Tables whose names look like each other's, or like names of our own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from psycopg import sql

from etl_dagster.assembly import build_destination
from etl_dagster.cli.app import cli
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.table_name import TableName
from tests.support.database import Database
from tests.support.pipelines import rows, running

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]

TABLES = [
    TableName("a.b", "c"),
    TableName("a", "b.c"),
    TableName("a", 'b."c'),
    TableName('"a.b"', "c"),
    TableName("public", "orders"),
    TableName("public", "Order Details"),
    TableName("public", "orders:paid"),
    TableName("public", "two\nlines"),
    TableName("public", "größe 🍎"),
    TableName("public", "x" * 63),
]


def sql_name(table: TableName) -> str:
    return sql.Identifier(table.schema_name, table.table_name).as_string(None)


def make_tables(database: Database) -> None:
    """Every table holds a row that names it."""
    for schema in {table.schema_name for table in TABLES} - {"public"}:
        database.execute(f"create schema {sql.Identifier(schema).as_string(None)}")
    with database.connect() as connection:
        for table in TABLES:
            connection.execute(f"create table {sql_name(table)} (id int primary key, name text)")
            connection.execute(f"insert into {sql_name(table)} values (1, %s)", [str(table)])
        # Where an earlier version kept the rows of a copy of another table.
        ((oid,),) = connection.execute("select 'public.orders'::regclass::oid").fetchall()
        connection.execute(f"create table _etl_copy_{oid} (id int primary key, name text)")
        connection.execute(f"insert into _etl_copy_{oid} values (1, 'staging')")
        connection.execute("create publication etl_pub for all tables")


def command(folder: Path, *arguments: str) -> Result:
    with contextlib.chdir(folder):
        return CliRunner().invoke(cli, arguments)


def test_names_with_dots_quotes_and_the_like_are_tables_of_their_own(
    database: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    make_tables(database)
    values: dict[str, Any] = {
        "pipeline": "test",
        "source": {"dsn": database.dsn, "publication": "etl_pub"},
        "destination": {"type": "duckdb", "path": str(tmp_path / "test.duckdb")},
        "tables": {'a."b.c"': {"copy": False}},
    }
    (tmp_path / "etl.yaml").write_text(json.dumps(values))
    config = make_config(database, tables=values["tables"])

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        for table in TABLES:
            database.execute(f"insert into {sql_name(table)} values (2, 'second')")
        assert pipeline.wait_until_caught_up(60)
    for table in TABLES:
        expected = [] if table == TableName("a", "b.c") else [(1, str(table))]
        found = rows(config, f"select id, name from {sql_name(table)} order by 1")
        assert found == [*expected, (2, "second")], table
    report = json.loads(command(tmp_path, "status", "--json").stdout)
    there = {
        table["table"]: table for table in report["tables"] if "_etl_copy" not in table["table"]
    }
    assert set(there) == {str(table) for table in TABLES}
    assert len({table["state_id"] for table in there.values()}) == len(TABLES)
    assert {name: table["row_count"] for name, table in there.items()} == {
        str(table): 1 if table == TableName("a", "b.c") else 2 for table in TABLES
    }

    refused = command(tmp_path, "reset", "--yes", "a.b.c")
    assert refused.exit_code == 2
    assert '"a.b".c' in refused.stderr
    done = command(tmp_path, "reset", "--yes", '"a.b".c', '"a.b"."c"')
    assert done.exit_code == 0, done.output
    assert done.stdout.count("copied again") == 1
    report = json.loads(command(tmp_path, "status", "--json").stdout)
    assert [t["table"] for t in report["tables"] if t["state"] == "init"] == ['"a.b".c']
    # The copy of `orders` must not take the table that has the name of its old staging table.
    assert command(tmp_path, "reset", "--yes", "public.orders").exit_code == 0
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    for table in TABLES:
        count = 1 if table == TableName("a", "b.c") else 2
        assert rows(config, f"select count(*) from {sql_name(table)}") == [(count,)], table
    ((staged,),) = rows(
        config, "select table_name from duckdb_tables() where table_name like '_etl_copy%'"
    )
    assert rows(config, f"select name from public.{staged}") == [("staging",)]


def test_the_memory_destination_tells_odd_names_apart(
    newest_database: Database, make_config: MakeConfig
) -> None:
    make_tables(newest_database)
    config = make_config(newest_database, destination={"type": "memory"})
    destination = build_destination(config)
    assert isinstance(destination, MemoryDestination)

    with running(config, destination=destination) as pipeline:
        assert pipeline.wait_until_caught_up(60)

    for table in TABLES:
        assert destination.rows(str(table)) == [{"id": 1, "name": str(table)}]


@pytest.mark.parametrize("quoting", ["Orders", '"Orders"'])
def test_reset_does_not_fold_a_name_to_lower_case(
    newest_database: Database, make_config: MakeConfig, tmp_path: Path, quoting: str
) -> None:
    newest_database.execute(
        'create table orders (id int primary key); create table "Orders" (id int primary key)',
        "create publication etl_pub for all tables",
    )
    values = {
        "pipeline": "test",
        "source": {"dsn": newest_database.dsn, "publication": "etl_pub"},
        "destination": {"type": "memory"},
    }
    (tmp_path / "etl.yaml").write_text(json.dumps(values))
    with running(make_config(newest_database, destination={"type": "memory"})) as pipeline:
        assert pipeline.wait_until_caught_up(60)

    assert command(tmp_path, "reset", "--yes", f"public.{quoting}").exit_code == 0

    report = json.loads(command(tmp_path, "status", "--json").stdout)
    assert [t["table"] for t in report["tables"] if t["state"] == "init"] == ["public.Orders"]

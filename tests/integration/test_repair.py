"""Tables that differ from the source's are found while they are streamed, and repaired."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pytest
import yaml
from click.testing import CliRunner

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.cli.app import cli
from etl_dagster.config import PipelineConfig
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.comparing.comparison import Comparison, TableComparison
from etl_dagster.runtime.comparing.counts import count_tables
from etl_dagster.runtime.comparing.drift import Drift, find_drift
from etl_dagster.runtime.comparing.eligible import find_eligible, require_reader
from etl_dagster.runtime.comparing.sides import Side
from etl_dagster.runtime.table_ids import find_table_ids
from etl_dagster.source.control import SourceControl
from tests.support.database import Database
from tests.support.every_value import create_values, value_of
from tests.support.pipelines import rows, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]

TABLES = """
    create table orders (region text, id int, note text, paid numeric(12, 2), tags text[],
      at timestamptz default now(), primary key (region, id));
    insert into orders select 'r' || i % 3, i, 'note ' || i, i / 7.0, array['a', 'b' || i]
      from generate_series(1, 3000) i;
    create table visits (page text, ms int);
    alter table visits replica identity full;
    insert into visits select 'p' || i % 5, i % 20 from generate_series(1, 400) i;
    create table people (id int primary key, name text, ssn text);
    insert into people select i, 'name ' || i, 'ssn ' || i from generate_series(1, 50) i;
    create publication etl_pub for all tables
"""
SHAPES = {"public.people": {"columns": {"ssn": {"mask": "hash"}}}}


@contextmanager
def comparing(config: PipelineConfig, store: CoordinatingStore) -> Iterator[Callable[..., Any]]:
    """A function that compares a table by its name."""
    destination = build_destination(config)
    with closing(SourceControl(config.source, application_name="test")) as control:

        def compare(name: str, **options: Any) -> Comparison:
            wanted = {name: find_table_ids(config, store)[name]}
            [found] = find_eligible(config, store, control, wanted)
            assert found.table is not None, found.why_not
            return TableComparison(
                config,
                store,
                control,
                require_reader(config, destination),
                found.table,
                stop=threading.Event(),
                **options,
            ).run()

        yield compare
        destination.shutdown()


def counts(found: Comparison) -> tuple[str, int, int, int]:
    return found.result, found.missing, found.extra, found.changed


@pytest.mark.parametrize("kind", ["duckdb", "postgres"])
def test_rows_changed_by_hand_are_found_under_load_and_repaired(
    newest_database: Database, make_config: MakeConfig, kind: str, tmp_path: Path
) -> None:
    """Neither a row that the load changes is reported, nor one that was tampered with missed."""
    database = newest_database
    database.execute(TABLES)
    with Database.create(database.server) as other:
        options = {} if kind == "duckdb" else {"destination": {"type": kind, "dsn": other.dsn}}
        config = make_config(database, tables=SHAPES, salt="a salt of some length", **options)

        def tamper(*statements: str) -> None:
            if kind == "postgres":
                other.execute(*statements)
                return
            with duckdb.connect(str(tmp_path / "test.duckdb")) as file:
                for statement in statements:
                    file.execute(statement)

        with closing(build_store(config)) as store:  # type: ignore[type-var]
            with running(config, store=store) as pipeline:
                assert pipeline.wait_until_caught_up(60)
            tamper(
                "delete from public.orders where id in (5, 6, 7)",
                "update public.orders set note = 'other' where id = 8",
                "update public.orders set paid = paid + 1 where id = 9",
                "insert into public.orders (region, id) values ('none', 1)",
                "delete from public.visits where ms = 3 and page = 'p3'",
            )
            stop = threading.Event()

            def load() -> None:
                with database.connect() as connection:
                    number = 0
                    while not stop.is_set():
                        number += 1
                        connection.execute(
                            "update orders set note = %s where id = %s",
                            [f"load {number}", 100 + number % 50],
                        )
                        connection.execute(
                            "insert into orders values ('new', %s, 'n')", [10_000 + number]
                        )
                        connection.execute(
                            "delete from orders where id = %s", [10_000 + number - 20]
                        )

            with running(config, store=store) as pipeline, comparing(config, store) as compare:
                assert counts(compare("public.visits"))[0] == "different"
                assert compare("public.people").result == "equal"
                worker = threading.Thread(target=load)
                worker.start()
                try:
                    found = compare("public.orders", rows_at_once=10**9)
                finally:
                    stop.set()
                    worker.join()
                assert counts(found) == ("different", 3, 1, 2)


def test_values_of_every_type_compare_equal_from_copy_and_from_stream(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """What a destination makes of a value is not a difference."""
    database, random = newest_database, Random(1)
    kinds = create_values(database)

    def insert(first: int, last: int) -> None:
        with database.connect() as connection:
            for number in range(first, last):
                values = ", ".join(value_of(kind, number, random) for kind in kinds)
                connection.execute(f"insert into v values ({number}, {values})")

    insert(0, 12)
    with Database.create(database.server) as other, contextlib.ExitStack() as running_all:
        compares = []
        for number, options in enumerate(({}, {"destination": {"type": "postgres"}})):
            if options:
                options["destination"]["dsn"] = other.dsn
            config = make_config(database, pipeline=f"types{number}", **options)
            store: Any = running_all.enter_context(closing(build_store(config)))  # type: ignore[type-var]
            pipeline = running_all.enter_context(running(config, store=store))
            assert pipeline.wait_until_caught_up(60)
            compares.append((running_all.enter_context(comparing(config, store)), config, store))
        insert(12, 24)
        for compare, config, store in compares:
            found = compare("public.v")
            assert counts(found) == ("equal", 0, 0, 0)
            assert (found.source_rows, found.destination_rows) == (24, 24)
            wanted = {"public.v": find_table_ids(config, store)["public.v"]}
            destination = build_destination(config)
            stop = threading.Event()
            [drift] = find_drift(config, store, destination, wanted, stop=stop)
            assert drift == Drift("public.v", saw_destination=True)
            [counted] = count_tables(config, store, destination, wanted, stop=stop)
            assert counted.counts is not None, counted.why_not
            assert (counted.counts.source_rows, counted.counts.off) == (24, 0)
            destination.shutdown()


def test_the_command_reports_what_differs_and_replaces_that(
    database: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    database.execute(TABLES, "create table log (id int)", "alter table log replica identity full")
    config = make_config(database, tables={"public.log": {"mode": "append"}})
    file = tmp_path / "etl.yaml"
    written = json.loads(config.model_dump_json(include={"pipeline", "tables"}, by_alias=True))
    written["source"] = {"dsn": database.dsn, "publication": "etl_pub"}
    written["destination"] = {"type": "duckdb", "path": "test.duckdb"}
    written["tables"] = {"public.log": {"mode": "append"}}
    file.write_text(yaml.safe_dump(written), "utf-8")

    def call(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["repair", "-c", str(file), *arguments])
        said.append(result.stderr)
        return result.exit_code, result.stdout

    said: list[str] = []

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    with duckdb.connect(str(tmp_path / "test.duckdb")) as there:
        there.execute("delete from public.people where id <= 2")
        there.execute("update public.people set name = 'zq-secret' where id = 3")
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        code, output = call("--all", "--dry-run", "--json")
        found = {table["table"]: table for table in json.loads(output)["tables"]}
        assert (code, "zq-" in output) == (1, False)
        assert {name: table["result"] for name, table in found.items()} == {
            "public.orders": "equal",
            "public.visits": "equal",
            "public.people": "different",
            "public.log": "not compared",
        }
        people = found["public.people"]
        assert (people["missing"], people["extra"], people["changed"]) == (2, 0, 1)
        assert sum(each["missing"] for each in people["ranges"]) == 2
        assert (people["repair"], people["keys"]) == (None, [])

        code, output = call("public.people", "public.orders", "--dry-run")
        assert (code, "Dry run: nothing changed" in output) == (1, True)
        assert "public.people: differs, 2 missing, 1 with other values" in output
        code, output = call("public.people", "--dry-run", "--show-keys")
        assert {f"  id={number}" for number in (1, 2, 3)} <= set(output.splitlines())
        assert call("public.orders", "public.visits")[0] == 0
        # Among all tables it is left out silently; if it is named, that is reported.
        code, output = call("public.log", "public.orders", "--json", "--yes")
        assert (code, len(json.loads(output)["tables"])) == (1, 2)
        assert "not repaired: 1 of 2 tables\n  public.log: not compared: its mode" in said[-1]

        code, output = call("--all", "--yes")
        assert code == 0
        assert "public.people: repaired at" in output
        assert "2 added, 1 replaced, 0 deleted" in output
        assert "public.orders: repaired" not in output
        wait_until(lambda: rows(config, "select count(*) from public.people") == [(50,)])
        assert pipeline.wait_until_caught_up(60)
        assert call("public.people")[0] == 0


def test_a_table_that_is_never_quiet_is_unsettled_and_not_called_equal(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """A key is judged only in a look in which nothing changed it."""
    database = newest_database
    database.execute(TABLES)
    config = make_config(database)
    with (
        closing(build_store(config)) as store,  # type: ignore[type-var]
        running(config, store=store) as pipeline,
        comparing(config, store) as compare,
    ):
        assert pipeline.wait_until_caught_up(60)
        number = iter(range(1000))

        def change(side: Side, count: int) -> None:
            if side == "source":  # the file isn't open to be read now
                database.execute(f"update people set name = 'n{next(number)}' where id = 7")
                assert pipeline.wait_until_caught_up(60)

        found = compare("public.people", on_rows=change, tries=2)
        assert (found.result, found.unjudged) == ("unsettled", 1)
        assert found.reason == "1 row was changed whenever it was compared"

        def truncate(side: Side, count: int) -> None:
            if side == "destination":
                database.execute("truncate visits")
            elif count:
                database.execute("insert into visits values ('new', 1)")
                assert pipeline.wait_until_caught_up(60)

        found = compare("public.visits", on_rows=truncate, tries=1)
        assert found.result == "unsettled"
        assert "truncated" in str(found.reason)

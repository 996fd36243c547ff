"""A row that can't be held is kept apart, whole, and is in its table again as soon as it can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.cli.app import cli
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb import count_rows
from etl_dagster.errors import QuarantineNeedsKey
from etl_dagster.runtime.pipeline import Pipeline
from tests.support.database import Database
from tests.support.pipelines import rows, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]

ORDERS = """
    create table orders (id int primary key, amount numeric(12,2), doc text, note text);
    alter table orders alter doc set storage external;
    create publication etl_pub for all tables;
    insert into orders values (1, 'NaN', repeat('d', 5000), 'a'), (2, 2, repeat('e', 5000), 'b'),
      (3, 'NaN', null, 'c'), (4, 4, null, 'd'), (5, 'NaN', repeat('f', 5000), 'e'),
      (6, 'NaN', null, 'f'), (7, 'NaN', null, 'g')
"""
TWIN = '_etl_quarantine."public.orders"'
HOLDING = {"odd_values": "quarantine"}


def _assert_apart(
    database: Database, config: PipelineConfig, table: str = "orders", amount: str = "amount"
) -> None:
    """Every row of the source is where it has to be, and nowhere else."""
    [(columns,)] = database.query(
        "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute"
        " where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped",
        [table],
    )
    good = f"select {columns} from {table} where {amount} is distinct from 'NaN' order by id"
    assert rows(config, f"select {columns} from public.{table} order by id") == database.query(good)
    held = columns.replace(amount, "null")
    odd = f"select {held} from {table} where {amount} = 'NaN' order by id"
    twin = f'select {columns} from _etl_quarantine."public.{table}" order by id'
    assert rows(config, twin) == database.query(odd)
    texts = "select key[1]::int, text from _etl.odd_values where table_name = ? order by 1"
    ids = database.query(f"select id from {table} where {amount} = 'NaN' order by id")
    assert rows(config, texts.replace("?", f"'{table}'")) == [(id, "NaN") for (id,) in ids]


def _counts(pipeline: Pipeline) -> tuple[int | None, int]:
    table = pipeline.status().tables["public.orders"]
    return table.row_count, table.rows_quarantined


def test_rows_go_into_quarantine_and_come_back(database: Database, make_config: MakeConfig) -> None:
    database.execute(ORDERS)
    config = make_config(database, **HOLDING)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        _assert_apart(database, config)
        database.execute(
            "insert into orders values (8, 'NaN', repeat('g', 5000), 'h'), (9, 9, null, 'i')",
            "update orders set amount = 10 where id = 1",  # its document is not sent
            "update orders set amount = 'NaN' where id = 2",  # nor is this one's
            "update orders set note = 'z' where id = 5",
            "update orders set id = 33 where id = 3",
            "update orders set id = 66, amount = 6 where id = 6",
            "delete from orders where id = 7",
            "insert into orders values (7, 7, null, 'again')",
        )
        assert pipeline.wait_until_caught_up(60)
        _assert_apart(database, config)
        assert rows(config, f"select length(doc) from {TWIN} where id = 2") == [(5000,)]
        wait_until(lambda: _counts(pipeline) == (5, 4))
    # Another process takes over.
    with running(config) as pipeline:
        database.execute(
            "update orders set amount = 2 where id = 2",
            "update orders set amount = 'NaN', doc = 'short' where id = 9",
        )
        assert pipeline.wait_until_caught_up(60)
        _assert_apart(database, config)
        database.execute("truncate orders", "insert into orders values (1, 'NaN'), (2, 2)")
        assert pipeline.wait_until_caught_up(60)
        _assert_apart(database, config)


def test_a_new_copy_decides_again_what_is_quarantined(
    database: Database, make_config: MakeConfig
) -> None:
    """Until then a row stays where the earlier choice put it."""
    database.execute(ORDERS)
    with closing(build_store(make_config(database))) as store:  # type: ignore[type-var]
        config = make_config(database)
        with running(config, store=store) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            table_id = pipeline.status().tables["public.orders"].table_id
        assert rows(config, "select count(*) from public.orders") == [(7,)]
        config = make_config(database, **HOLDING)
        with running(config, store=store) as pipeline:
            database.execute("insert into orders values (8, 'NaN')")
            assert pipeline.wait_until_caught_up(60)
            assert rows(config, "select count(*) from public.orders") == [(8,)]
            store.request_copy(table_id)
            assert pipeline.wait_until_caught_up(60)
            _assert_apart(database, config)
            database.execute(
                "update orders set amount = 1 where id < 3", "delete from orders where id = 4"
            )
            store.request_copy(table_id)
            assert pipeline.wait_until_caught_up(60)
            _assert_apart(database, config)


def test_quarantine_follows_an_altered_table(database: Database, make_config: MakeConfig) -> None:
    database.execute(ORDERS)
    config = make_config(database, **HOLDING)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "alter table orders add column extra int default 5",
            "alter table orders rename note to remark",
            "alter table orders rename amount to total",
            "insert into orders values (8, 'NaN', null, 'h', 8)",
        )
        assert pipeline.wait_until_caught_up(60)
        _assert_apart(database, config, amount="total")
        database.execute(
            "alter table orders rename to purchases",
            "alter table purchases drop column remark",
            "alter table purchases alter total type numeric(14,2)",
            "update purchases set extra = 6 where id in (1, 2)",
            "update purchases set total = 3 where id = 3",
        )
        assert pipeline.wait_until_caught_up(60)
        _assert_apart(database, config, "purchases", "total")
        database.execute(
            "alter table purchases drop column total",
            "insert into purchases values (9, null, 9)",
        )
        assert pipeline.wait_until_caught_up(60)
    # Nothing is odd any more.
    everything = "select id, doc, extra from {} order by id"
    assert rows(config, everything.format("public.purchases")) == database.query(
        everything.format("purchases")
    )
    assert rows(config, 'select count(*) from _etl_quarantine."public.purchases"') == [(0,)]


def test_small_tables_and_attached_partitions_are_told_apart(
    database: Database, make_config: MakeConfig
) -> None:
    """What is copied in groups, and rows that come with a partition."""
    names = [f"t{number}" for number in range(6)]
    database.execute(
        *(f"create table {name} (id int primary key, amount numeric(6,1))" for name in names),
        *(f"insert into {name} values (1, 'NaN'), (2, 2)" for name in names),
        "create table ev (id int primary key, amount numeric(6,1)) partition by range (id)",
        "create table ev_1 partition of ev for values from (0) to (100)",
        "insert into ev values (1, 1), (2, 'NaN')",
        "create publication etl_pub for all tables with (publish_via_partition_root)",
    )
    config = make_config(database, **HOLDING, **{"copy.max_table_sync_workers": 1})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        for name in [*names, "ev"]:
            _assert_apart(database, config, name)
        database.execute(
            "create table ev_2 (like ev including all)",
            "insert into ev_2 values (100, 'NaN'), (101, 1)",
            "alter table ev attach partition ev_2 for values from (100) to (200)",
        )
        assert pipeline.wait_until_caught_up(60)
        _assert_apart(database, config, "ev")


def test_a_null_in_the_key_is_found_again(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """NaN is the only value that a key of numeric(p, s) can't hold."""
    database = newest_database
    database.execute(
        "create table prices (amount numeric(6,1), id int, n int, primary key (amount, id))",
        "create publication etl_pub for all tables",
        "insert into prices values ('NaN', 1, 1), ('NaN', 2, 2), (3, 3, 3)",
    )
    config = make_config(database, **HOLDING)
    answer = "select id, n from {} order by 1"
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "update prices set n = 10 where id = 1",
            "update prices set amount = 2 where id = 2",
            "update prices set amount = 'NaN' where id = 3",
        )
        assert pipeline.wait_until_caught_up(60)
    assert rows(config, answer.format("public.prices")) == [(2, 2)]
    assert rows(config, answer.format('_etl_quarantine."public.prices"')) == [(1, 10), (3, 3)]


def test_a_table_without_a_key_is_refused_before_anything_is_made(
    database: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    database.execute(
        ORDERS,
        "create table visits (page text, at timestamptz)",
    )
    config = make_config(database, **HOLDING)
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        pipeline = Pipeline(config, store, build_destination(config))
        with pytest.raises(QuarantineNeedsKey, match=r"^public\.visits has no key"):
            pipeline.start()
    assert database.slots() == []
    assert database.query("select to_regnamespace('etl')") == [(None,)]
    assert list(tmp_path.iterdir()) == []

    config = make_config(database, **HOLDING, tables={"public.visits": {"odd_values": "null"}})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        _assert_apart(database, config)


def test_a_table_that_loses_its_key_stops_alone(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(ORDERS, "create table others (id int primary key)")
    config = make_config(database, **HOLDING)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "alter table orders drop constraint orders_pkey",
            "alter table orders replica identity full",
            "insert into orders values (9, 9)",
        )
        wait_until(lambda: pipeline.status().tables["public.orders"].state == "errored")
        database.execute("insert into others values (1)")
        assert pipeline.wait_until_caught_up(60)
        failed = pipeline.status().tables["public.orders"]
    assert (failed.error or "").startswith("public.orders has no key, by which a row in quarantine")
    assert "Add a primary key" in (failed.solution or "")
    assert rows(config, "select count(*) from public.others") == [(1,)]


def test_the_commands_show_which_rows_are_in_quarantine(
    newest_database: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    database = newest_database
    database.execute(ORDERS, "update orders set amount = 'NaN', note = null where id = 2")
    config = make_config(database, **HOLDING)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        wait_until(lambda: pipeline.status().tables["public.orders"].rows_quarantined == 6)
    file = tmp_path / "etl.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "pipeline": "test",
                "source": {"dsn": database.dsn, "publication": "etl_pub"},
                "destination": {"type": "duckdb", "path": "test.duckdb"},
                "odd_values": "quarantine",
            }
        )
    )

    def call(*arguments: str) -> Any:
        result = CliRunner().invoke(cli, [arguments[0], "-c", str(file), *arguments[1:]])
        assert result.exit_code == 0, result.output
        return result.output

    listed = json.loads(call("odd", "public.orders", "--json"))
    assert listed["quarantines"] == {
        "public.orders": {"rows": 6, "in": '"_etl_quarantine"."public.orders"'}
    }
    assert {value["quarantined"] for value in listed["values"]} == {True}
    assert '6 rows are in quarantine, in "_etl_quarantine"."public.orders"' in call("odd")
    assert json.loads(call("status", "--json"))["tables"][0]["rows_quarantined"] == 6
    assert "public.orders: 6 rows with such a value are in quarantine" in call("status")
    # The source has the sum of both.
    assert count_rows(tmp_path / "test.duckdb") == {"public.orders": 1}

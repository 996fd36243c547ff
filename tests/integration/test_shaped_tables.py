"""Tables have the names, columns and rows at the destination that the settings say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ShapeRefused
from etl_dagster.model.states import Errored
from tests.support.database import Database
from tests.support.pipelines import rows, running
from tests.support.waiting import wait_until

MakeConfig = Callable[..., PipelineConfig]

SALES = """
    create schema sales;
    create table sales.orders (id int primary key, ssn text, note text, doc text);
    alter table sales.orders alter doc set storage external;
    create table sales.items (id int primary key, label text);
    create table people (id int primary key, name text);
    create publication etl_pub for all tables;
    insert into sales.orders select i, 'ssn ' || i, 'note ' || i, repeat('d', 3000)
      from generate_series(1, 4) i;
    insert into sales.items values (1, 'one');
    insert into people values (1, 'Ann')
"""
TABLES: dict[str, Any] = {
    "sales.*": {"name": "raw_{schema}.{table}_v1"},
    "sales.orders": {"exclude": ["ssn"], "columns": {"note": {"name": "remark"}}},
}


def _columns(config: PipelineConfig, schema: str, table: str) -> list[str]:
    found = rows(
        config,
        "select column_name from duckdb_columns() where schema_name = "
        f"'{schema}' and table_name = '{table}' order by column_index",
    )
    return [name for (name,) in found]


def test_names_and_columns_are_those_of_the_settings_and_follow_the_source(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(SALES)
    config = make_config(database, tables=TABLES)
    shown = "select id, remark, length(doc) from raw_sales.orders_v1 order by id"
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert _columns(config, "raw_sales", "orders_v1") == ["id", "remark", "doc"]
        assert rows(config, shown)[0] == (1, "note 1", 3000)
        assert rows(config, "from public.people") == [(1, "Ann")]
        assert pipeline.status().tables["sales.orders"].state == "ready"

        database.execute(
            "insert into sales.orders values (5, 'ssn 5', 'note 5', 'd')",
            "update sales.orders set note = 'other' where id = 2",
            "update sales.orders set id = 33 where id = 3",
            "delete from sales.orders where id = 4",
            # What is left out stays so under another name, with its values.
            "alter table sales.orders rename ssn to social",
            "alter table sales.orders rename note to comment",
            "alter table sales.orders add amount int",
            "insert into sales.orders values (6, 'ssn 6', 'note 6', 'd', 6)",
        )
        assert pipeline.wait_until_caught_up(60)
        assert _columns(config, "raw_sales", "orders_v1") == ["id", "remark", "doc", "amount"]
        assert rows(config, shown) == [
            (1, "note 1", 3000),
            (2, "other", 3000),
            (5, "note 5", 1),
            (6, "note 6", 1),
            (33, "note 3", 3000),
        ]

        database.execute(
            "alter table sales.orders drop social",
            "update sales.orders set amount = 7 where id = 6",
            "alter table sales.items rename to parts",
            "insert into sales.parts values (2, 'two')",
        )
        assert pipeline.wait_until_caught_up(60)
        assert rows(config, "select amount from raw_sales.orders_v1 where id = 6") == [(7,)]
        assert rows(config, "from raw_sales.parts_v1") == [(1, "one"), (2, "two")]
        wait_until(lambda: pipeline.status().tables["sales.parts"].row_count == 2)


def test_a_column_that_a_name_hid_stops_its_table_before_a_copy_shows_it(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(SALES)
    # No setting is for this table alone, so no name in it is missing when the column has another.
    config = make_config(database, tables={"*.*": {"exclude": ["ssn"]}})
    database.execute("alter table people add ssn text")
    with closing(build_store(config)) as store, running(config, store=store) as pipeline:  # type: ignore[type-var]
        assert pipeline.wait_until_caught_up(60)
        database.execute("alter table sales.orders rename ssn to social")
        table_id = pipeline.status().tables["sales.orders"].table_id
        store.request_copy(table_id)
        assert pipeline.wait_until_caught_up(60)
        state = store.get_table_replication_state(table_id)
        assert isinstance(state, Errored)
        assert "sales.orders.social was sales.orders.ssn" in state.reason
    assert _columns(config, "sales", "orders") == ["id", "note", "doc"]


def test_tables_are_copied_again_when_their_settings_change(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(SALES)
    with running(make_config(database, tables=TABLES)) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    tables = {"sales.orders": {"include": ["id", "no*"]}}
    config = make_config(database, tables=tables)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert _columns(config, "sales", "orders") == ["id", "note"]
        assert _columns(config, "raw_sales", "orders_v1") == []
        assert rows(config, "from sales.items") == [(1, "one")]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sales.orders": {"exclude": ["snn"]}}, "no column 'snn'; did you mean ssn?"),
    ({"sales.order": {"exclude": ["ssn"]}}, "did you mean sales.orders?"),
    ({"sales.*": {"exclude": ["snn"]}}, "none of its tables has a column 'snn'"),
    ({"sales.orders": {"exclude": ["i*"]}}, "sales.orders.id is part of the key"),
    ({"*.*": {"name": "all.rows"}}, "would both be called all.rows"),
    (
        {"sales.orders": {"columns": {"ssn": {"name": "note"}}}},
        "the columns ssn and note of sales.orders would both be called note",
    ),
    ({"sales.orders": {"columns": {"ssn": {"name": "Note"}}}}, '"Note" and "note" of sales.orders'),
    ({"public.people": {"name": "sales.Items"}}, "sales.Items and sales.items are one name"),
    ({"*.orders": {"exclude": ["ssn"]}, "sales.o*": {"exclude": ["note"]}}, "both tables."),
]


def test_settings_that_cannot_be_followed_are_refused_before_anything_starts(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(SALES)
    for tables, reason in REFUSED:
        config = make_config(database, tables=tables)
        with pytest.raises(ShapeRefused) as caught, running(config):
            pass
        assert reason in caught.value.reason
    assert database.query(
        "select count(*) from pg_replication_slots where database = current_database()"
    ) == [(0,)]

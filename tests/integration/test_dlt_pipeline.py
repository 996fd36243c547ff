"""A pipeline from Postgres through dlt to another Postgres."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.dlt import DltDestination
from etl_dagster.errors import DestinationError
from tests.support.database import Database
from tests.support.dlt_warehouse import uri, warehouse_of
from tests.support.pipelines import running

pytest.importorskip("dlt")

MakeConfig = Callable[..., PipelineConfig]

SHOP = """
    create table orders (
        id bigint primary key, amount numeric(12,2), note text, body text, made timestamptz,
        day date, at time, ok bool, ratio float8, raw bytea, doc jsonb, ref uuid, tags text[]
    );
    alter table orders alter body set storage external;
    create table visits (page text, n int);
    create table empty (id int primary key);
    insert into orders
        select n, n / 3.0, 'nöte "' || n || E'"\\n,x', repeat('x', 4000), '2024-05-01 12:00+02',
               '2024-02-29', '12:34:56.789', n % 2 = 0, n / 7.0, '\\x00ff', '{"a": [1, null]}',
               '6f9619ff-8b86-d011-b42d-00c04fc964ff', array['a', 'b,c']
        from generate_series(1, 300) n;
    insert into orders values (0, null, '', null, null, null, null, null, 'NaN');
    insert into visits select '/', n from generate_series(1, 50) n;
    create publication etl_pub for table orders, visits, empty;
"""


@pytest.fixture
def warehouse(newest_database: Database) -> Iterator[str]:
    """Another database of the server; its DSN."""
    with warehouse_of(newest_database) as dsn:
        yield dsn


def query(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(statement).fetchall()  # type: ignore[arg-type]


ORDERS = """
    select id, amount, note, body, made, day, at, ok, ratio::text, raw, doc::text, ref::text,
           tags::text from public.orders order by id
"""


PAGE = Path(__file__).parents[2] / "docs" / "destinations" / "dlt.md"


def test_a_postgres_loaded_through_dlt_has_what_the_source_has(
    newest_database: Database,
    warehouse: str,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the section and the variable of the guide."""
    page = PAGE.read_text("utf-8")
    section = re.search(r"```yaml\n(.*?)```", page, re.S)
    variable = re.search(r"export ([A-Z_]+)=postgresql", page)
    assert section
    assert variable
    monkeypatch.setenv(variable[1], uri(warehouse))
    newest_database.execute(SHOP)
    config = make_config(newest_database, **yaml.safe_load(section[1]))
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(120)
        assert query(warehouse, ORDERS) == newest_database.query(ORDERS)
        assert query(warehouse, "select count(*) from public.empty") == [(0,)]

        newest_database.execute(
            "update orders set note = 'changed' where id between 1 and 5",
            "update orders set id = id + 1000 where id between 3 and 7",
            "delete from orders where id between 10 and 20",
            "alter table orders add extra int",
            "insert into orders (id, extra) values (2000, 7)",
            "insert into visits values ('/a', 51)",
            "insert into empty values (1)",
        )
        assert pipeline.wait_until_caught_up(120)
        assert query(warehouse, ORDERS) == newest_database.query(ORDERS)
        extra = "select id, extra from public.orders order by id"
        assert query(warehouse, extra) == newest_database.query(extra)
        assert query(warehouse, "select count(*) from public.visits") == [(51,)]

        newest_database.execute(
            "truncate empty", "insert into empty values (2)", "alter table orders rename ok to fine"
        )
        newest_database.execute("insert into orders (id, fine) values (2001, true)")
        assert pipeline.wait_until_caught_up(120)
        fine = "select id, fine, body from public.orders order by id"
        assert query(warehouse, fine) == newest_database.query(fine)
        assert query(warehouse, "select id from public.empty") == [(2,)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"password": "pa55word"}, "password authentication failed"), ({"port": "1"}, "refused")],
    ids=["another password", "no server"],
)
def test_a_warehouse_that_refuses_the_login_is_reported_without_the_password(
    newest_database: Database, wrong: dict[str, str], said: str
) -> None:
    destination = DltDestination("postgres", credentials=uri(newest_database.dsn, **wrong))

    with pytest.raises(DestinationError, match=said) as raised:
        destination.check()

    shown = "".join(traceback.format_exception(raised.value))
    for secret in ("pa55word", conninfo_to_dict(newest_database.dsn)["password"]):
        assert str(secret) not in shown


def test_settings_that_dlt_lacks_are_named() -> None:
    with pytest.raises(DestinationError, match="settings have no credentials") as raised:
        DltDestination("postgres").check()

    assert "secrets.toml" in raised.value.solution

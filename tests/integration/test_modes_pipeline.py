"""Tables that keep more than the source has, through a whole pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from etl_dagster.assembly import build_store
from etl_dagster.cli.checks import all_checks
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ColumnReserved, ModeNeedsKey
from tests.support.database import Database
from tests.support.pipelines import rows, running

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]

#: Documents are stored out of line, so that an update which leaves one alone doesn't send it.
SOURCE = """
    create table orders (id int primary key, note text, doc text);
    alter table orders alter doc set storage external;
    create table full_orders (like orders including all);
    alter table full_orders replica identity full;
    create table visits (page text, at int);
    alter table visits replica identity nothing;
    create publication etl_pub for all tables;
    insert into orders values (1, 'a', repeat('d', 5000)), (2, 'b', null), (3, 'c', null);
    insert into visits values ('/', 1)
"""


def stored(config: PipelineConfig) -> closing[Any]:
    return closing(build_store(config))  # type: ignore[type-var]


def test_deleted_rows_stay_through_copies_and_another_process(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(SOURCE)
    config = make_config(database, tables={"public.orders": {"mode": "soft_delete"}})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "delete from orders where id = 2", "update orders set id = 33 where id = 3"
        )
        assert pipeline.wait_until_caught_up(60)
    gone = "select id, note from public.orders where _etl_deleted_at is not null order by 1"
    there = "select id, note, doc from public.orders where _etl_deleted_at is null order by 1"
    assert rows(config, gone) == [(2, "b"), (3, "c")]
    assert rows(config, there) == database.query("select id, note, doc from orders order by 1")

    with stored(config) as store, running(config, store=store) as pipeline:
        database.execute("insert into orders values (2, 'again', null)")
        assert pipeline.wait_until_caught_up(60)
        assert rows(config, gone) == [(3, "c")]
        table_id = pipeline.status().tables["public.orders"].table_id
        # What is deleted while the table is not streamed is marked by the copy.
        store.request_copy(table_id)
        database.execute("delete from orders where id = 1")
        assert pipeline.wait_until_caught_up(60)

    assert rows(config, gone) == [(1, "a"), (3, "c")]
    assert rows(config, there) == database.query("select id, note, doc from orders order by 1")
    [(deleted_at,)] = rows(config, "select max(_etl_deleted_at) from public.orders")
    [(now,)] = database.query("select now()")
    assert (now - deleted_at).total_seconds() < 3600


def test_every_change_is_logged_once_with_its_transaction(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(SOURCE)
    config = make_config(database, mode="append")
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    with database.connect() as connection, connection.transaction():
        [(xid,)] = connection.execute("select txid_current()").fetchall()
        connection.execute("update orders set note = 'x' where id = 1")
        connection.execute("insert into full_orders values (7, 'f', 'g')")
        connection.execute("update full_orders set note = 'h' where id = 7")
        connection.execute("delete from orders where id = 2")
        connection.execute("truncate visits")
        connection.execute("insert into visits values ('/x', 2)")
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)

    log = (
        "select _etl_op, id, note, length(doc), _etl_before, _etl_unchanged from public.{} "
        "order by _etl_commit_lsn, _etl_ordinal, id"
    )
    assert rows(config, log.format("orders")) == [
        ("copy", 1, "a", 5000, None, None),
        ("copy", 2, "b", None, None, None),
        ("copy", 3, "c", None, None, None),
        ("update", 1, "x", 5000, None, None),
        ("delete", 2, None, None, '{"id": 2}', None),
    ]
    assert [
        (op, note, None if before is None else json.loads(before))
        for op, _, note, _, before, _ in rows(config, log.format("full_orders"))
    ] == [("insert", "f", None), ("update", "h", {"id": 7, "note": "f", "doc": "g"})]
    assert rows(
        config, "select _etl_op, page from public.visits order by _etl_commit_lsn, _etl_ordinal"
    ) == [("copy", "/"), ("truncate", None), ("insert", "/x")]
    assert rows(
        config,
        "select distinct _etl_xid, "
        "_etl_commit_lsn = (select max(_etl_commit_lsn) from public.orders) "
        "from public.visits where _etl_op <> 'copy'",
    ) == [(xid, True)]


def test_versions_have_the_times_of_their_transactions(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(SOURCE)
    config = make_config(database, tables={"public.orders": {"mode": "scd2"}})
    with stored(config) as store, running(config, store=store) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "update orders set note = 'x' where id = 1", "delete from orders where id = 2"
        )
        assert pipeline.wait_until_caught_up(60)
        store.request_copy(pipeline.status().tables["public.orders"].table_id)
        database.execute("update orders set note = 'y' where id = 3")
        assert pipeline.wait_until_caught_up(60)

    assert rows(
        config,
        "select id, note, length(doc), _etl_is_current from public.orders "
        "order by id, _etl_valid_from",
    ) == [
        (1, "a", 5000, False),
        (1, "x", 5000, True),
        (2, "b", None, False),
        (3, "c", None, False),
        (3, "y", None, True),
    ]
    overlaps = (
        "select count(*) from public.orders a join public.orders b on a.id = b.id "
        "and a._etl_valid_from < b._etl_valid_from and coalesce(a._etl_valid_to, 'infinity') "
        "> b._etl_valid_from"
    )
    assert rows(config, overlaps) == [(0,)]


def test_a_changed_mode_is_announced_and_then_copied(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(SOURCE)
    before = make_config(database, mode="append")
    with running(before) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    after = make_config(database, tables={"public.orders": {"mode": "scd2"}}, mode="append")

    found = [check for check in all_checks(after) if check.name == "copied again"]
    assert [check.message for check in found] == [
        "public.orders: mode changed from append to scd2. With the next start, it is copied again; "
        "what is there stays at the destination under another name, and what is kept starts over "
        "with the copy"
    ]

    with running(after) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    assert rows(after, "select count(*) from public.orders where _etl_is_current") == [(3,)]
    [(name,)] = rows(
        after, "select table_name from duckdb_tables() where table_name like 'orders__append_%'"
    )
    assert rows(after, f"select count(*) from public.{name} where _etl_op = 'copy'") == [(3,)]
    assert [check for check in all_checks(after) if check.name == "copied again"] == []


def test_a_table_that_cannot_be_kept_is_refused_before_anything_is_created(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(SOURCE)
    for mode in ("scd2", "soft_delete"):
        refused = pytest.raises(ModeNeedsKey, match=r"public\.visits has no key")
        with refused, running(make_config(database, mode=mode)):
            pass
    database.execute("alter table orders add _etl_op text")
    refused = pytest.raises(ColumnReserved, match="mode append adds: _etl_op")
    with refused, running(make_config(database, mode="append")):
        pass
    assert database.query(
        "select count(*) from pg_replication_slots where database = current_database()"
    ) == [(0,)]

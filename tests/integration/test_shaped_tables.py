"""Tables have the names, columns and rows at the destination that the settings say."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from etl_dagster.assembly import build_store
from etl_dagster.cli.app import cli
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ShapeRefused, SourceNotPrepared
from etl_dagster.model.states import Errored
from etl_dagster.shaping.hooks import HookContext
from tests.support.database import Database
from tests.support.leaks import make_secret
from tests.support.pipelines import rows, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.servers("newest")

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


def test_a_hidden_column_that_is_renamed_stops_its_table_before_a_copy_exposes_it(
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


def test_no_right_is_needed_on_a_column_that_is_left_out(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """The copy of a table in chunks, a group's copy and the stream do without it."""
    database, role = newest_database, f"{newest_database.name}_reader"
    password = make_secret("reader")
    database.execute(
        SALES,
        "analyze",
        f"create role {role} login replication password '{password}'",
        f"grant create on database {database.name} to {role}",
        f"grant usage on schema sales to {role}",
        f"grant select on sales.items, people to {role}",
    )
    tables = {
        "sales.orders": {"exclude": ["ssn"], "where": "id > 2"},
        "sales.items": {"where": "id = 1 and label = 'none'"},
    }
    source = {"dsn": make_conninfo(database.dsn, user=role, password=password)}
    config = make_config(
        database,
        tables=tables,
        source={**source, "publication": "etl_pub"},
        copy={"chunk_rows": 1},
    )
    try:
        with pytest.raises(SourceNotPrepared, match=r"sales\.orders") as caught, running(config):
            pass
        grant = f'GRANT SELECT ("id", "note", "doc", ctid) ON "sales"."orders" TO "{role}";'
        assert caught.value.solution == grant
        database.execute(grant)
        with running(config) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            database.execute("insert into sales.orders values (5, 'ssn', 'new', 'd')")
            assert pipeline.wait_until_caught_up(60)
        assert rows(config, "select id from sales.orders order by 1") == [(3,), (4,), (5,)]
        # What was copied is what was written, not what was read.
        copied = database.query(
            "select coalesce(sum(row_count), 0)::int from etl.copy_chunks group by table_id"
            " order by 1"
        )
        assert copied == [(0,), (1,), (2,)]
    finally:
        database.execute(f"drop owned by {role} cascade", f"drop role {role}")


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


def test_a_table_renamed_to_the_name_of_another_one_stops_and_the_others_continue(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(SALES)
    database.execute("create schema other", "create table other.goods (id int primary key)")
    config = make_config(database, tables={"*.*": {"name": "all.{table}"}})
    with closing(build_store(config)) as store, running(config, store=store) as pipeline:  # type: ignore[type-var]
        assert pipeline.wait_until_caught_up(60)
        table_id = pipeline.status().tables["other.goods"].table_id
        database.execute(
            "alter table other.goods rename to items",
            "insert into other.items values (7)",
            "create table other.orders (id int primary key)",
            "insert into sales.items values (2, 'two')",
        )
        assert pipeline.wait_until_caught_up(60)
        new_id = pipeline.status().tables["other.orders"].table_id
        for stopped in (table_id, new_id):
            state = store.get_table_replication_state(stopped)
            assert isinstance(state, Errored)
            assert "would both be called all." in state.reason
        assert rows(config, 'from "all".items') == [(1, "one"), (2, "two")]
        assert rows(config, 'select count(*) from "all".orders') == [(4,)]


def test_every_mode_keeps_what_the_settings_make_of_rows(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """A row that leaves the condition is one that is deleted, and one that meets it is new."""
    database = newest_database
    database.execute(
        *(f"create table {t} (id int primary key, ssn text, country text)" for t in "asv"),
        *(f"alter table {t} replica identity full" for t in "av"),
        "create publication etl_pub for all tables",
        *(f"insert into {t} values (1, 'zq-1', 'DE'), (2, 'zq-2', 'FR')" for t in "asv"),
    )
    shape = {"where": "country = 'DE'", "columns": {"ssn": {"mask": "hash"}}}
    modes = {"a": "append", "s": "soft_delete", "v": "scd2"}
    tables = {f"public.{table}": {"mode": mode} | shape for table, mode in modes.items()}
    config = make_config(database, salt=SALT, tables=tables)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        for table in "asv":
            database.execute(
                f"update {table} set country = 'DE' where id = 2",
                f"update {table} set country = 'FR' where id = 1",
                f"update {table} set ssn = 'zq-3' where id = 1",
                f"update {table} set ssn = 'zq-4' where id = 2",
            )
        assert pipeline.wait_until_caught_up(60)
    one, two, four = (_hash(f"zq-{number}") for number in (1, 2, 4))
    assert rows(config, "select id, ssn, _etl_op from public.a order by _etl_commit_lsn") == [
        (1, one, "copy"),
        (2, two, "insert"),
        (1, one, "delete"),
        (2, four, "update"),
    ]
    marked = "select id, ssn, _etl_deleted_at is not null from public.s order by id"
    assert rows(config, marked) == [(1, one, True), (2, four, False)]
    valid = "select id, ssn, _etl_is_current from public.v order by id, _etl_valid_from"
    assert rows(config, valid) == [(1, one, False), (2, two, False), (2, four, True)]
    assert "zq-" not in repr([rows(config, f"from public.{table}") for table in "asv"])


def test_the_command_line_shows_shapes_and_announces_what_is_copied_again(
    newest_database: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    database = newest_database
    database.execute(SALES)
    file = tmp_path / "etl.yaml"

    def call(tables: dict[str, Any], *arguments: str) -> tuple[int, str]:
        written = {
            "pipeline": "test",
            "source": {"dsn": database.dsn, "publication": "etl_pub"},
            "destination": {"type": "duckdb", "path": "test.duckdb"},
            "tables": tables,
        }
        file.write_text(yaml.safe_dump(written), "utf-8")
        result = CliRunner().invoke(cli, [arguments[0], "-c", str(file), *arguments[1:]])
        return result.exit_code, result.output

    code, output = call(TABLES, "shape", "sales.orders", "--json")
    assert code == 0, output
    [table] = json.loads(output)
    assert (table["source"], table["table"]) == ("sales.orders", "raw_sales.orders_v1")
    assert [(c["column"], c["from"]) for c in table["columns"]] == [
        ("id", "the source"),
        (None, "left out"),
        ("remark", "the source"),
        ("doc", "the source"),
    ]
    code, output = call(TABLES, "shape", "sales.order")
    assert (code, "sales.items" in output) == (2, True)
    with running(make_config(database, tables=TABLES)) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    code, output = call({"public.people": {"name": "a.b"}}, "doctor")
    assert code == 0, output
    why = (
        "sales.orders: shape changed (the table itself (name), ssn (not left out), note (name)). "
        "With the next start, it is copied again"
    )
    assert why in output
    code, output = call({"public.people": {"name": "a.b"}}, "status")
    assert why in output
    code, output = call(TABLES, "status", "--json")
    assert json.loads(output)["copied_again"] == []
    code, output = call(TABLES | {"public.people": {"mode": "scd2"}}, "status", "--json")
    assert json.loads(output)["copied_again"] == [
        {
            "table": "public.people",
            "reason": "mode changed from mirror to scd2",
            "consequence": "it is copied again, and the copy replaces what is there",
            "is_copied": True,
        }
    ]
    code, output = call({"sales.order": {"exclude": ["a"]}}, "shape")
    assert (code, "did you mean sales.orders?" in output) == (2, True)


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


SALT = "a salt of some length"
CUSTOMERS = """
    create table customers (id int primary key, ssn text, country text, doc text, amount text);
    alter table customers alter doc set storage external;
    create table visits (ssn text, page text, agent text);
    alter table visits replica identity full;
    create publication etl_pub for all tables;
    insert into customers select i, 'ssn ' || i, case when i % 2 = 0 then 'DE' end,
      repeat('d' || i, 2000), case when i = 4 then 'much' else i || '.5' end
      from generate_series(1, 8) i;
    insert into visits select 'ssn ' || i % 3, '/', 'agent ' || i from generate_series(1, 6) i
"""
SHAPES: dict[str, Any] = {
    "public.customers": {
        "where": "country = 'DE' and id < 100",
        "columns": {
            "id": {"mask": "hash"},
            "ssn": {"mask": "hash"},
            "doc": {"mask": {"partial": {"show_first": 2, "hidden": "..."}}},
            "amount": {"cast": "numeric(10,2)"},
            "country": {"mask": {"constant": "somewhere"}},
        },
        "add": {"tenant": "eu"},
    },
    "public.visits": {
        "where": "page <> '/secret'",
        "columns": {"ssn": {"mask": "hash"}, "agent": {"mask": None}},
    },
}


def _hash(text: str) -> str:
    return hmac.new(SALT.encode(), text.encode(), "sha256").hexdigest()


def _assert_shaped(database: Database, config: PipelineConfig) -> None:
    """Both tables are what the settings make of the source's rows."""
    customers = database.query(
        "select id, ssn, doc, amount from customers where country = 'DE' and id < 100"
    )
    expected = [
        (
            _hash(str(id)),
            _hash(ssn),
            "somewhere",
            None if doc is None else doc[:2] + "...",
            None if amount in (None, "much") else Decimal(amount).quantize(Decimal("0.01")),
            "eu",
        )
        for id, ssn, doc, amount in customers
    ]
    assert sorted(rows(config, "from public.customers"), key=repr) == sorted(expected, key=repr)
    visits = database.query("select ssn, page from visits where page <> '/secret'")
    seen = [(_hash(ssn), page, None) for ssn, page in visits]
    assert sorted(rows(config, "from public.visits")) == sorted(seen)


def test_copies_and_streams_have_the_same_masked_rows_that_meet_the_condition(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(CUSTOMERS)
    config = make_config(database, salt=SALT, tables=SHAPES)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        _assert_shaped(database, config)
        database.execute(
            # Documents that an update leaves alone are not sent; these rows weren't there before.
            "update customers set country = 'DE' where id in (1, 3, 5)",
            "update customers set country = null where id in (2, 3)",
            "update customers set id = 66 where id = 6",
            "update customers set id = 100 where id = 8",
            "update customers set id = 11, country = 'DE' where id = 7",
            "insert into customers values (20, 'a', 'DE', null, '1'), (21, 'b', 'FR', 'x', '2')",
            "update customers set amount = 'NaN' where id = 20",
            "update customers set amount = '7' where id = 4",
            "delete from customers where id = 5",
            "update visits set page = '/secret' where agent = 'agent 1'",
            "update visits set agent = 'other' where agent = 'agent 2'",
            "update visits set page = '/a', ssn = 'x' where agent = 'agent 1'",
            "insert into visits values ('y', '/secret', 'z'), ('y', '/', 'z')",
            "delete from visits where agent = 'agent 4'",
            "update customers set amount = '3' where id = 20",
        )
        assert pipeline.wait_until_caught_up(60)
        _assert_shaped(database, config)
        counted = rows(config, "select count(*) from _etl.odd_values")
        assert counted == [(0,)]
    with running(config) as pipeline:
        database.execute("update customers set country = 'DE' where id = 2")
        assert pipeline.wait_until_caught_up(60)
        _assert_shaped(database, config)


def test_no_hidden_value_is_in_the_file_the_store_or_the_log(
    database: Database, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute(
        """
        create table people (id int primary key, at timestamp, token text, plain text);
        create publication etl_pub for all tables;
        insert into people values (1, 'infinity', 'zq-hidden-1', 'zq-shown');
        """
    )
    columns = {"token": {"mask": "hash"}, "more*": {"mask": None}}
    config = make_config(
        database, salt=SALT, tables={"public.people": {"columns": columns, "exclude": ["at"]}}
    )
    caplog.set_level("DEBUG")
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "update people set token = 'zq-hidden-2'",
            "alter table people add more text default 'zq-hidden-3'",
            "alter table people add more_token text default 'zq-hidden-4'",
            "insert into people values (2, '294276-12-31', 'zq-hidden-5', 'b', 'zq-hidden-6')",
        )
        assert pipeline.wait_until_caught_up(60)
        assert len(rows(config, "from public.people")) == 2
    assert config.destination.type == "duckdb"
    kept = config.destination.path.read_bytes()
    store = "".join(
        repr(database.query(f'select * from etl."{table}"'))
        for (table,) in database.query("select tablename from pg_tables where schemaname = 'etl'")
    )
    assert b"zq-shown" in kept
    for place in (kept.decode("latin-1"), store, caplog.text):
        assert "zq-hidden" not in place
        assert SALT not in place


def test_another_salt_copies_the_table_again_and_a_failing_hook_stops_it(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(
        "create table people (id int primary key, name text)",
        "create table others (id int primary key)",
        "create publication etl_pub for all tables",
        "insert into people values (1, 'Ann')",
    )
    tables: dict[str, Any] = {"public.people": {"columns": {"name": {"mask": "hash"}}}}
    with running(make_config(database, salt=SALT, tables=tables)) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    config = make_config(database, salt="another salt of length", tables=tables)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        [(hashed,)] = rows(config, "select name from public.people")
        assert hashed != _hash("Ann")

    hook = {"hook": "tests.integration.test_shaped_tables:refuse_bob"}
    config = make_config(database, tables={"public.people": hook})
    with closing(build_store(config)) as store, running(config, store=store) as pipeline:  # type: ignore[type-var]
        assert pipeline.wait_until_caught_up(60)
        assert rows(config, "select name from public.people") == [("ANN",)]
        database.execute("insert into people values (2, 'Bob')", "insert into others values (1)")
        assert pipeline.wait_until_caught_up(60)
        table_id = pipeline.status().tables["public.people"].table_id
        state = store.get_table_replication_state(table_id)
        assert isinstance(state, Errored)
        assert "refuse_bob failed on public.people: ValueError" in state.reason
        assert "Bob" not in state.reason
        assert rows(config, "from public.others") == [(1,)]


def refuse_bob(batch: pa.RecordBatch, context: HookContext) -> pa.RecordBatch:
    """A hook."""
    names = batch.column("name").to_pylist()
    if "Bob" in names:
        raise ValueError("Bob")
    return batch.set_column(1, "name", pa.array([name.upper() for name in names]))

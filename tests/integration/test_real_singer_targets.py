"""Singer targets from PyPI hold what they were sent."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from etl_dagster.destinations.singer import SingerDestination
from etl_dagster.errors import DestinationError
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    BOOL,
    BYTEA,
    DATE,
    FLOAT8,
    INT4,
    INT8,
    JSONB,
    NUMERIC,
    TEXT,
    TIMESTAMPTZ,
    UUID,
    Row,
    Transactions,
    batch,
    chunk,
    column,
    delete,
    end_of_copy,
    insert,
    relation,
    table,
    truncate,
    update,
)
from tests.support.database import Database
from tests.support.real_targets import real_target
from tests.support.waiting import PATIENCE_S

_COLUMNS = [
    column("id", INT8, 1, key=1),
    column("region", TEXT, 2, key=2),
    column("amount", NUMERIC, 3, type_modifier=((30 << 16) | 10) + 4),
    column("note", TEXT, 4),
    column("moment", TIMESTAMPTZ, 5),
    column("day", DATE, 6),
    column("clock", 1083, 7),
    column("flag", BOOL, 8),
    column("token", UUID, 9),
    column("document", JSONB, 10),
    column("ratio", FLOAT8, 11),
    column("raw", BYTEA, 12),
    column("small", INT4, 13),
]
SALES = table(_COLUMNS, name="sales")
WIDER = table([*_COLUMNS, column("extra", INT4, 14)], name="sales", snapshot=1100)


def sale(id: int, note: str | None = 'a "note",\nüber 世界', **more: Any) -> Row:
    row: Row = {
        "id": id,
        "region": "north",
        "amount": Decimal("12345678901234567890.0123456789"),
        "note": note,
        "moment": datetime(2026, 11, 26, 12, 0, 0, 123_456, UTC),
        "day": date(2024, 2, 29),
        "clock": time(23, 59, 59, 999_999),
        "flag": True,
        "token": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "document": '{"a": [1.10, null]}',
        "ratio": 0.1,
        "raw": b"\x00\xff",
        "small": -5,
    }
    return row | more


def as_sent(row: Row) -> Row:
    """As JSON spells it, for targets that keep that."""
    return row | {
        "amount": None if row["amount"] is None else format(row["amount"], "f"),
        "moment": row["moment"].isoformat(),
        "day": row["day"].isoformat(),
        "clock": row["clock"].isoformat(),
        "raw": None if row["raw"] is None else "AP8=",
    }


@contextmanager
def started(name: str, config: dict[str, Any]) -> Iterator[SingerDestination]:
    destination = SingerDestination(str(real_target(name)), config=config)
    destination.startup(MemoryStore())
    try:
        yield destination
    finally:
        destination.shutdown()


def wait(result: Future[None] | None) -> None:
    if result is not None:
        result.result(PATIENCE_S)


def load(destination: SingerDestination, *, times: int = 2) -> list[Row]:
    """A copy, and changes of all kinds; what is there in the end.

    Args:
        times: how often the changes are sent; more than once as after a crash.
    """
    copied = [sale(number) for number in range(1, 6)]
    wait(destination.write_table_rows(SALES, chunk("c", 0, SALES, copied)))
    wait(destination.write_table_rows(SALES, end_of_copy("c", 500)))
    stream = Transactions(first_lsn=1000)
    first = stream.commit(
        update(SALES, **sale(1, "changed")),
        delete(SALES, id=2, region="north"),
        update(SALES, old={"id": 3, "region": "north"}, **sale(30)),
        insert(SALES, **sale(6, None, amount=None, document=None, raw=None)),
    )
    second = stream.commit(
        relation(WIDER),
        insert(WIDER, **sale(2, "again", extra=7)),
        delete(WIDER, id=4, region="north"),
    )
    for changes in (first, second):
        for _ in range(times):
            wait(destination.write_events(batch(changes)))
    rows = [
        sale(1, "changed"),
        sale(2, "again", extra=7),
        sale(5),
        sale(6, None, amount=None, document=None, raw=None),
        sale(30),
    ]
    return [{"extra": None} | row for row in rows]


def test_target_jsonl_has_every_row_and_the_last_of_each_key_is_the_sources(
    tmp_path: Path,
) -> None:
    config = {"destination_path": str(tmp_path), "do_timestamp_file": False}
    with started("target-jsonl", config) as destination:
        assert "does not empty tables" in destination.check()
        rows = load(destination)

    newest: dict[int, Row] = {}
    for text in (tmp_path / "public-sales.jsonl").read_text().splitlines():
        record = json.loads(text)
        newest[record["id"]] = record
    found = [newest[id] for id in sorted(newest) if newest[id]["_sdc_deleted_at"] is None]
    assert [{"extra": None} | _columns_of(record) for record in found] == [
        as_sent(row) for row in rows
    ]


def _columns_of(record: Row) -> Row:
    return {name: value for name, value in record.items() if not name.startswith("_sdc_")}


def test_target_duckdb_holds_the_rows_and_removes_those_that_are_deleted(tmp_path: Path) -> None:
    path = tmp_path / "warehouse.duckdb"
    config = {
        "path": str(path),
        "default_target_schema": "public",
        "hard_delete": True,
        "temp_dir": str(tmp_path),
    }
    with started("target-duckdb", config) as destination:
        rows = load(destination)

    python = real_target("target-duckdb").with_name("python")
    # By its own DuckDB, whose file a newer one may read, and not the other way round.
    read = (
        "import duckdb, json, sys\n"
        "file = duckdb.connect(sys.argv[1], read_only=True)\n"
        "found = file.execute('select * from public.sales order by id')\n"
        "names = [column[0] for column in found.description]\n"
        "print(json.dumps([dict(zip(names, map(str, row))) for row in found.fetchall()]))"
    )
    done = subprocess.run(
        [python, "-c", read, path], check=True, capture_output=True, text=True, timeout=PATIENCE_S
    )
    found = json.loads(done.stdout)
    assert [int(row["id"]) for row in found] == [row["id"] for row in rows]
    for row, there in zip(rows, found, strict=True):
        assert there["amount"] == ("None" if row["amount"] is None else format(row["amount"], "f"))
        assert there["note"] == str(row["note"])
        assert there["moment"] == "2026-11-26 12:00:00.123456"
        assert (there["day"], there["clock"]) == ("2024-02-29", "23:59:59.999999")
        assert (there["ratio"], there["extra"]) == ("0.1", str(row["extra"]))
        assert there["document"] == str(row["document"])


@pytest.fixture
def replica(newest_database: Database) -> Database:
    return newest_database


def postgres_config(database: Database, **more: Any) -> dict[str, Any]:
    parts = conninfo_to_dict(database.dsn)
    return {
        "host": parts["host"],
        "port": int(str(parts["port"])),
        "user": parts["user"],
        "password": parts["password"],
        "database": parts["dbname"],
        # Otherwise all tables are in one schema, by default melty.
        "default_target_schema": "public",
        **more,
    }


def rows_in(database: Database, name: str) -> list[Row]:
    """Those that aren't marked as deleted."""
    with psycopg.connect(database.dsn, row_factory=dict_row) as connection:
        statement = f"select * from {name} where _sdc_deleted_at is null order by id"
        return connection.execute(statement.encode()).fetchall()


def test_target_postgres_holds_the_rows_in_columns_of_their_types(replica: Database) -> None:
    # What has no zone there must be in UTC all the same.
    replica.execute(f"alter database {replica.name} set timezone = 'Asia/Tokyo'")
    with started("target-postgres", postgres_config(replica)) as destination:
        assert "it empties tables" in destination.check()
        # `test_singer_killed.py` covers changes that come again.
        rows = load(destination, times=1)

    found = rows_in(replica, "public.sales")
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    for row, there in zip(rows, found, strict=True):
        expected = row | {
            "moment": row["moment"].replace(tzinfo=None),
            "token": there["token"],
            "raw": None if row["raw"] is None else "AP8=",
            # Its type for all of JSON's numbers is numeric.
            "ratio": Decimal("0.1"),
        }
        assert str(there["token"]) == row["token"]
        assert {name: there[name] for name in expected} == expected
    types = dict(
        replica.query(
            "select attname, format_type(atttypid, atttypmod) from pg_attribute"
            " where attrelid = 'public.sales'::regclass and attnum > 0"
        )
    )
    assert types["amount"] == "numeric(30,10)"
    assert (types["id"], types["small"], types["extra"]) == ("bigint", "integer", "integer")
    assert (types["day"], types["token"], types["flag"]) == ("date", "uuid", "boolean")
    assert types["moment"] == "timestamp without time zone"


def test_target_postgres_empties_a_table_that_is_truncated_or_copied_again_but_no_log(
    replica: Database,
) -> None:
    config = postgres_config(replica, hard_delete=True)
    log = replace(SALES, id=SALES.id + 1, table_name="log", mode="append")
    with started("target-postgres", config) as destination:
        for number in (1, 2):
            rows = chunk(f"copy-{number}", 0, SALES, [sale(number), sale(10 + number)])
            destination.drop_table_for_copy(SALES)
            wait(destination.write_table_rows(SALES, rows))
            wait(destination.write_table_rows(SALES, end_of_copy(f"copy-{number}")))
        assert replica.query("select id from public.sales order by 1") == [(2,), (12,)]

        stream = Transactions(first_lsn=1000)
        changes = stream.commit(insert(SALES, **sale(7)), truncate(SALES), insert(SALES, **sale(8)))
        changes += stream.commit(
            insert(log, **sale(1)),
            update(log, **sale(1)),
            delete(log, id=1, region="north"),
            truncate(log),
        )
        wait(destination.write_events(batch(changes)))
        rows = chunk("copy-3", 0, log, [sale(1)], replay_from=2000)
        wait(destination.write_table_rows(log, rows))
        wait(destination.write_table_rows(log, end_of_copy("copy-3", 2000)))

    assert replica.query("select id from public.sales") == [(8,)]
    logged = "select _etl_op, id, _etl_commit_lsn, _etl_ordinal from public.log order by 3, 4"
    assert replica.query(logged) == [
        ("insert", 1, 1100, 0),
        ("update", 1, 1100, 1),
        ("delete", 1, 1100, 2),
        ("truncate", None, 1100, 3),
        ("copy", 1, 1999, 0),
    ]


def test_a_target_that_is_told_to_drop_its_metadata_is_refused() -> None:
    target = str(real_target("target-postgres"))
    destination = SingerDestination(target, config={"add_record_metadata": False})

    with pytest.raises(DestinationError, match="add_record_metadata: false"):
        destination.startup(MemoryStore())

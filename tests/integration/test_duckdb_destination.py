"""What is specific to the DuckDB file: who may open it when, its types, and its failures."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID as Uuid

import duckdb
import pyarrow as pa
import pytest

from etl_dagster.destinations.duckdb import (
    DuckDBDestination,
    count_rows,
    query,
    read_connection,
)
from etl_dagster.errors import (
    DestinationError,
    DestinationUnreachable,
    Superseded,
    TableWriteFailed,
)
from etl_dagster.model.events import TableRows
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
    ORDERS,
    PRICES,
    TEXT,
    TIMESTAMPTZ,
    UUID,
    VISITS,
    Row,
    SourceTable,
    Transactions,
    batch,
    chunk,
    column,
    content,
    delete,
    end_of_copy,
    insert,
    relation,
    table,
    truncate,
    update,
)
from tests.support.forked import ENGINE, PIPE, Forked

#: Opens the file as the duckdb shell does, and keeps it until stdin ends.
HOLD_THE_FILE = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1], read_only=True)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ware house.duckdb"


@pytest.fixture
def destination(path: Path) -> Iterator[DuckDBDestination]:
    destination = DuckDBDestination(path, changelog=True)
    destination.startup(MemoryStore())
    yield destination
    destination.shutdown()


def read(path: Path, sql: str) -> list[Row]:
    rows: list[Row] = query(path, sql).to_pylist()
    return rows


def visits(count: int, first: int = 0) -> list[Row]:
    return [{"page": "/", "at": first + number} for number in range(count)]


# -- types -------------------------------------------------------------------------------------


def test_columns_have_the_types_that_duckdb_has_for_them(
    destination: DuckDBDestination, path: Path
) -> None:
    columns = [
        column("i", INT8, 1, key=1),
        column("n", NUMERIC, 2, type_modifier=((12 << 16) | 2) + 4),
        column("huge", NUMERIC, 3, type_modifier=((60 << 16) | 2) + 4),
        column("t", TEXT, 4),
        column("b", BOOL, 5),
        column("f", FLOAT8, 6),
        column("d", DATE, 7),
        column("ts", TIMESTAMPTZ, 8),
        column("u", UUID, 9),
        column("j", JSONB, 10),
        column("x", BYTEA, 11),
    ]
    schema = table(columns, name="all types")
    text = "123e4567-e89b-12d3-a456-426614174000"
    row = {
        "i": 2**62,
        "n": Decimal("-12.50"),
        "huge": Decimal("1" * 50 + ".25"),
        "t": "it's",
        "b": True,
        "f": float("-inf"),
        "d": date(2026, 11, 21),
        "ts": datetime(2026, 11, 21, 12, 30, tzinfo=UTC),
        "u": text if schema.arrow_schema.field("u").type == pa.string() else Uuid(text).bytes,
        "j": '{"a": [1, null]}',
        "x": b"\x00\xff",
    }
    destination.write_table_rows(schema, chunk("copy", 0, schema, [row]))
    destination.write_table_rows(schema, end_of_copy("copy"))
    destination.write_events(
        batch(Transactions().commit(insert(schema, **row | {"i": 1}), delete(schema, i=2**62)))
    )

    with read_connection(path) as connection:
        described = connection.execute('DESCRIBE public."all types"').fetchall()
        assert {name: type_ for name, type_, *_ in described} == {
            "i": "BIGINT",
            "n": "DECIMAL(12,2)",
            "huge": "VARCHAR",
            "t": "VARCHAR",
            "b": "BOOLEAN",
            "f": "DOUBLE",
            "d": "DATE",
            "ts": "TIMESTAMP WITH TIME ZONE",
            "u": "UUID",
            "j": "JSON",
            "x": "BLOB",
        }
        rows = connection.execute(
            "SELECT i, n, huge, t, b, f, d, epoch_us(ts), u::VARCHAR, j->>'$.a[0]', x "
            'FROM public."all types"'
        ).fetchall()
    assert rows == [
        (
            1,
            Decimal("-12.50"),
            "1" * 50 + ".25",
            "it's",
            True,
            float("-inf"),
            date(2026, 11, 21),
            1_795_264_200_000_000,
            text,
            "1",
            b"\x00\xff",
        )
    ]


def test_a_uuid_can_be_the_key(destination: DuckDBDestination, path: Path) -> None:
    schema = table([column("u", UUID, 1, key=1), column("big", JSONB, 2), column("n", INT4, 3)])
    if schema.arrow_schema.field("u").type != pa.string():
        pytest.skip("the key is written as text here")
    first, second = (f"123e4567-e89b-12d3-a456-42661417400{n}" for n in "12")
    stream = Transactions()
    for changes in (
        stream.commit(insert(schema, u=first, big="{}"), insert(schema, u=second, big="[]")),
        stream.commit(update(schema, u=first, n=5, unchanged=["big"]), delete(schema, u=second)),
    ):
        destination.write_events(batch(changes))

    assert read(path, "SELECT u::VARCHAR AS u, big, n FROM public.orders") == [
        {"u": first, "big": "{}", "n": 5}
    ]


def test_names_with_quotes_dots_and_keywords_just_work(
    destination: DuckDBDestination, path: Path
) -> None:
    schema = table(
        [column('i"d', INT8, 1, key=1), column("select", TEXT, 2), column("a.b'; --", TEXT, 3)],
        name='table "x".y',
        schema_name="temp",
    )
    row: dict[str, Any] = {'i"d': 1, "select": "s", "a.b'; --": "c"}
    stream = Transactions()
    for changes in (
        stream.commit(insert(schema, **row)),
        stream.commit(update(schema, **row | {"select": "t"}, unchanged=["a.b'; --"])),
        stream.commit(truncate(schema), insert(schema, **row)),
    ):
        destination.write_events(batch(changes))

    assert count_rows(path) == {schema.name: 1}


def test_a_schema_may_have_the_same_name_as_the_file(tmp_path: Path) -> None:
    """Two names alone could mean a database and a table."""
    destination = DuckDBDestination(tmp_path / "public.duckdb")
    destination.startup(MemoryStore())
    destination.write_table_rows(VISITS, chunk("copy", 0, VISITS, visits(3)))
    destination.write_table_rows(VISITS, end_of_copy("copy"))
    destination.shutdown()

    assert count_rows(destination.path) == {"public.visits": 3}


# -- failures ----------------------------------------------------------------------------------


def test_a_table_that_refuses_is_named_and_the_rest_of_the_batch_can_continue(
    destination: DuckDBDestination, path: Path
) -> None:
    schema = table([column("id", INT8, 1, key=1), column("j", JSONB, 2)])
    bad = insert(schema, id=1, j="{secret value")
    changes = Transactions().commit(insert(VISITS, page="/", at=1), bad)
    with pytest.raises(TableWriteFailed) as refused:
        destination.write_events(batch(changes))

    assert refused.value.table_id == schema.id
    assert "public.orders" in refused.value.reason
    assert "secret" not in f"{refused.value} {refused.value.__cause__} {refused.value.solution}"
    assert count_rows(path) == {}
    destination.write_events(batch([change for change in changes if change.schema is VISITS]))
    assert count_rows(path) == {"public.visits": 1}


def test_equal_rows_are_left_alone_if_a_column_hides_their_row_ids(
    destination: DuckDBDestination, path: Path
) -> None:
    """DuckDB's own rowid tells equal rows apart, unless a column has that name."""
    schema = table(
        [column("rowid", INT4, 1, is_identity=True), column("v", INT4, 2, is_identity=True)],
        identity="f",
    )
    stream = Transactions()
    destination.write_events(
        batch(stream.commit(*(insert(schema, rowid=1, v=v) for v in (1, 1, 2))))
    )
    with pytest.raises(TableWriteFailed, match="called rowid"):
        destination.write_events(batch(stream.commit(delete(schema, rowid=1, v=1))))

    assert count_rows(path) == {"public.orders": 3}


def test_two_names_that_are_the_same_to_duckdb_do_not_overwrite_each_other(
    destination: DuckDBDestination, path: Path
) -> None:
    shouting = replace(VISITS, id=VISITS.id + 1, table_name="VISITS")
    for schema, rows in ((VISITS, visits(3)), (shouting, visits(1))):
        destination.write_table_rows(schema, chunk("copy", 0, schema, rows))
    destination.write_table_rows(VISITS, end_of_copy("copy"))
    with pytest.raises(TableWriteFailed, match="one name to DuckDB"):
        destination.write_table_rows(shouting, end_of_copy("copy"))

    assert count_rows(path) == {"public.visits": 3}


def test_a_table_that_is_not_ours_is_not_overwritten(
    destination: DuckDBDestination, path: Path
) -> None:
    destination.shutdown()
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE SCHEMA public; CREATE TABLE public.visits AS SELECT 1 AS mine")
    destination.write_table_rows(VISITS, chunk("copy", 0, VISITS, visits(3)))
    with pytest.raises(TableWriteFailed, match=r"public\.visits"):
        destination.write_table_rows(VISITS, end_of_copy("copy"))
    with pytest.raises(TableWriteFailed, match=r"public\.visits"):
        destination.write_events(batch(Transactions().commit(insert(VISITS, page="/", at=1))))

    assert read(path, "FROM public.visits") == [{"mine": 1}]


def test_a_table_that_was_dropped_and_created_again_replaces_the_old(
    destination: DuckDBDestination, path: Path
) -> None:
    again = replace(VISITS, id=VISITS.id + 1)
    for schema, rows in ((VISITS, visits(3)), (again, visits(1))):
        destination.write_table_rows(schema, chunk("copy", 0, schema, rows))
        destination.write_table_rows(schema, end_of_copy("copy"))

    assert count_rows(path) == {"public.visits": 1}


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda folder: folder / "missing" / "x.duckdb", "there is no folder"),
        (lambda folder: folder, "is a folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, make: Any, what: str
) -> None:
    with pytest.raises(DestinationError, match=what) as refused:
        DuckDBDestination(make(tmp_path)).startup(MemoryStore())

    assert not refused.value.retryable
    assert "destination.path" in refused.value.solution


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DestinationError, match="not writable"):
        DuckDBDestination(tmp_path / "x.duckdb").startup(MemoryStore())


def test_a_file_of_another_kind_is_refused_at_once(path: Path) -> None:
    path.write_bytes(b"no database " * 10_000)
    with pytest.raises(DestinationError, match="is not a DuckDB file") as refused:
        DuckDBDestination(path).startup(MemoryStore())

    assert not refused.value.retryable


def test_a_query_that_duckdb_refuses_is_an_error(
    destination: DuckDBDestination, path: Path
) -> None:
    with pytest.raises(DestinationError, match="nonsense"):
        query(path, "SELECT nonsense")
    with pytest.raises(DestinationError, match="read-only"):
        query(path, "CREATE TABLE t (i INTEGER)")
    with pytest.raises(DestinationError, match="no file"):
        query(path.with_name("other.duckdb"), "SELECT 1")
    assert query(path, "SELECT 1 AS one").to_pylist() == [{"one": 1}]


# -- sharing the file --------------------------------------------------------------------------


def test_a_process_that_keeps_the_file_open_is_named(path: Path) -> None:
    destination = DuckDBDestination(path, lock_timeout_s=0.3)
    destination.startup(MemoryStore())
    destination.shutdown()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_FILE, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "open\n"
        changes = batch(Transactions().commit(insert(VISITS, page="/", at=1)))
        with pytest.raises(DestinationUnreachable, match=rf"PID {holder.pid}\b") as refused:
            destination.write_events(changes)
        assert refused.value.retryable
        holder.stdin.close()
        holder.wait()

    destination.write_events(changes)
    destination.shutdown()
    assert count_rows(path) == {"public.visits": 1}


def test_readers_and_writers_of_one_process_take_turns(
    destination: DuckDBDestination, path: Path
) -> None:
    stream = Transactions()
    batches = [batch(stream.commit(insert(VISITS, page="/", at=n))) for n in range(50)]
    destination.write_events(batches[0])
    counts: list[int] = []
    done = threading.Event()

    def keep_reading() -> None:
        while not done.is_set():
            counts.append(count_rows(path)["public.visits"])

    reader = threading.Thread(target=keep_reading)
    reader.start()
    for events in batches[1:]:
        destination.write_events(events)
    done.set()
    reader.join()

    assert counts == sorted(counts)
    assert count_rows(path) == {"public.visits": 50}


def test_copies_and_the_stream_write_at_the_same_time(
    destination: DuckDBDestination, path: Path
) -> None:
    tables = [replace(VISITS, id=100 + n, table_name=f"visits_{n}") for n in range(4)]
    for schema in tables:
        destination.drop_table_for_copy(schema)
    chunks = [(schema, index) for index in range(6) for schema in tables]
    random.Random(1).shuffle(chunks)
    stream = Transactions()

    def copy_chunk(job: tuple[Any, int]) -> None:
        schema, index = job
        rows = visits(500, first=1000 * index)
        destination.write_table_rows(schema, chunk("copy", index, schema, rows))

    with ThreadPoolExecutor(6) as pool:
        copying = [pool.submit(copy_chunk, job) for job in chunks]
        for number in range(30):
            events = batch(stream.commit(insert(ORDERS, id=number), insert(ORDERS, id=-number - 1)))
            destination.write_events(events)
        for job in copying:
            job.result()
    for schema in tables:
        destination.write_table_rows(schema, end_of_copy("copy"))

    assert count_rows(path) == {
        "public.orders": 60,
        **{f"public.visits_{n}": 3000 for n in range(4)},
    }


def test_a_slow_source_does_not_keep_readers_out(
    destination: DuckDBDestination, path: Path
) -> None:
    """A small chunk is fetched as a whole before the file is taken."""
    counted: list[dict[str, int]] = []

    def slow() -> Iterator[pa.RecordBatch]:
        for batches in (visits(10), visits(10, first=10)):
            counted.append(count_rows(path, lock_timeout_s=5))
            yield from chunk("copy", 0, VISITS, batches).batches()

    identity = chunk("copy", 0, VISITS, []).chunk
    destination.write_table_rows(VISITS, TableRows("copy", slow(), identity))
    destination.write_table_rows(VISITS, end_of_copy("copy"))

    assert counted == [{}, {}]
    assert count_rows(path) == {"public.visits": 20}


def test_an_older_epoch_is_refused_by_the_file_itself(path: Path) -> None:
    """A stalled process has an object of its own, which knows nothing of the newer one."""
    stream = Transactions()
    old, new = DuckDBDestination(path), DuckDBDestination(path)
    old.startup(MemoryStore())
    old.write_events(batch(stream.commit(insert(VISITS, page="/", at=1)), epoch=7))
    new.startup(MemoryStore())
    new.write_events(batch(stream.commit(insert(VISITS, page="/", at=2)), epoch=8))

    with pytest.raises(Superseded, match="epoch 7 was followed by epoch 8"):
        old.write_events(batch(stream.commit(insert(VISITS, page="/", at=3)), epoch=7))
    old.shutdown()
    new.shutdown()
    assert count_rows(path) == {"public.visits": 2}


def test_shutdown_releases_the_file(destination: DuckDBDestination, path: Path) -> None:
    destination.write_events(batch(Transactions().commit(insert(VISITS, page="/", at=1))))
    destination.shutdown()

    with duckdb.connect(str(path)) as connection:
        assert connection.execute("SELECT count(*) FROM public.visits").fetchall() == [(1,)]
    assert not path.with_name(path.name + ".wal").exists()


# -- killed processes --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_writer_killed_again_and_again_loses_and_doubles_nothing(
    path: Path, tmp_path: Path
) -> None:
    chance = random.Random(20261121)
    orders, stream = SourceTable(ORDERS, toasted={"document"}), Transactions()
    batches = []
    for _ in range(60):
        changes = []
        for _ in range(chance.randrange(1, 40)):
            row = {
                "id": chance.randrange(300),
                "amount": None,
                "note": str(chance.random()),
                "document": str(chance.random()),
            }
            kind = chance.random()
            place = chance.randrange(len(orders.rows)) if orders.rows else 0
            if kind < 0.5 or not orders.rows:
                change = orders.insert(row)
            elif kind < 0.7:
                change = orders.update(place, {"note": row["note"]})
            elif kind < 0.8:
                change = orders.update(place, {"id": row["id"]})
            else:
                change = orders.delete(place)
            if change is not None:
                changes.append(change)
        if changes:
            batches.append(batch(stream.commit(*changes)))
    pickled = tmp_path / "batches"
    pickled.write_bytes(pickle.dumps(batches))

    kills = 0
    while True:
        with Forked(
            "tests.support.duckdb_writer:main",
            (*ENGINE, "tests.support.duckdb_writer"),
            ["writer", str(path), str(pickled)],
            cwd=tmp_path,
            stdout=PIPE,
        ) as writer:
            assert writer.stdout is not None
            if kills == 5:
                assert writer.wait() == 0
                break
            goal = chance.randrange(kills * 10, kills * 10 + 10)
            for line in writer.stdout:
                if int(line) >= goal:
                    break
            writer.kill()
            kills += 1

    assert content(read(path, "FROM public.orders")) == content(orders.rows)
    logged = read(path, "FROM _etl.changelog ORDER BY commit_lsn, ordinal")
    assert [(entry["op"], entry["commit_lsn"], entry["ordinal"]) for entry in logged] == [
        (change.op, change.lsn, change.ordinal) for change in stream.changes
    ]


def test_a_type_that_cannot_be_converted_asks_for_a_new_copy(
    destination: DuckDBDestination,
) -> None:
    stream = Transactions()
    destination.write_events(batch(stream.commit(insert(PRICES, sku="a", region=1, price=5))))
    key, region, price = PRICES.columns
    altered = replace(PRICES, columns=(replace(key, type_oid=INT8), region, price)).at(
        ORDERS.snapshot_id.__class__(2000)
    )
    with pytest.raises(TableWriteFailed) as refused:
        destination.write_events(batch(stream.commit(relation(altered))))

    assert "copy" in refused.value.solution


@pytest.mark.parametrize("has_key", [True, False])
def test_a_table_may_lose_its_last_column_and_get_another(
    destination: DuckDBDestination, path: Path, has_key: bool
) -> None:
    stream = Transactions()
    one = table([column("a", INT4, 1, key=1 if has_key else None)], identity="f")
    none, other, third = (
        table(columns, identity="f", snapshot=snapshot)
        for columns, snapshot in (
            ([], 2000),
            ([column("b", TEXT, 2)], 3000),
            ([column("c", TEXT, 3)], 4000),
        )
    )

    destination.write_events(batch(stream.commit(insert(one, a=1), insert(one, a=2))))
    destination.write_events(batch(stream.commit(relation(none))))
    destination.write_events(batch(stream.commit(relation(other))))
    assert read(path, "select * from public.orders") == [{"b": None}, {"b": None}]

    destination.write_events(batch(stream.commit(relation(third))))
    assert read(path, "select * from public.orders") == [{"c": None}, {"c": None}]


def test_a_copy_that_an_earlier_version_began_is_resumed(
    destination: DuckDBDestination, path: Path
) -> None:
    """It kept the rows in a table with a shorter name, one that a table may also have."""
    other = table([column("id", INT4, 1, key=1)], name="_etl_copy_16384", table_id=16384)
    orders = table([column("id", INT4, 1, key=1)], table_id=16385)
    destination.write_table_rows(other, chunk("other", 0, other, [{"id": 7}]))
    destination.write_table_rows(other, end_of_copy("other"))
    destination.write_table_rows(orders, chunk("copy", 0, orders, [{"id": 1}]))
    destination.shutdown()
    with duckdb.connect(path) as connection:
        ((name,),) = connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE table_name LIKE '_etl_copy_16385%'"
        ).fetchall()
        connection.execute(f'ALTER TABLE public."{name}" RENAME TO _etl_copy_16385')

    upgraded = DuckDBDestination(path)
    upgraded.startup(MemoryStore())
    upgraded.write_table_rows(orders, chunk("copy", 1, orders, [{"id": 2}]))
    upgraded.write_table_rows(orders, end_of_copy("copy"))
    upgraded.drop_table_for_copy(replace(orders, id=16384))

    assert count_rows(path) == {"public._etl_copy_16384": 1, "public.orders": 2}

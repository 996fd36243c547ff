"""Tables that are altered while they are copied, or while the pipeline dies."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.assembly import build_destination
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import EventBatch, TableRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.source.catalog import fetch_published_tables, fetch_row_values
from etl_dagster.source.partitions import is_relation_empty
from etl_dagster.source.trigger import install
from tests.support.database import Database
from tests.support.in_step import differences
from tests.support.pipelines import running
from tests.support.waiting import wait_until

MakeConfig = Callable[..., PipelineConfig]


class Killed(BaseException):
    """The process is gone."""


class Mortal:
    """A destination whose process dies when a number of batches is durable."""

    def __init__(self, inner: Destination, batches: int) -> None:
        self._inner = inner
        self._left = batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write_events(self, events: EventBatch) -> None:
        self._inner.write_events(events)
        self._left -= 1
        if not self._left:
            raise Killed


class AfterChunk:
    """A destination that calls a function after the first chunk of a table, once."""

    def __init__(self, inner: Destination, then: Callable[[], None]) -> None:
        self._inner = inner
        self._then: Callable[[], None] | None = then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        self._inner.write_table_rows(schema, rows)
        then, self._then = self._then, None
        if then is not None:
            then()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the server's account may read, with an empty folder `extension` in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "extension").mkdir(mode=0o755)
        folder.chmod(0o755)
        yield folder


@pytest.mark.parametrize("batches", [2, 4, 6, 7])
def test_a_reported_alteration_is_finished_by_the_next_start(
    newest_database: Database, make_config: MakeConfig, batches: int
) -> None:
    """The transaction is streamed again from its beginning, when the columns were others."""
    database = newest_database
    database.execute(
        "create table items (id int primary key, a int, b int)",
        "insert into items values (1, 1, 1)",
        "create publication etl_pub for table items",
    )
    with database.connect() as connection:
        install(connection)
    config = make_config(database, **{"batch.max_rows": 100})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    database.execute(
        "begin; insert into items select i, i, i from generate_series(2, 300) i;"
        "alter table items rename a to c; alter table items add d int default 4;"
        "insert into items select i, i, i, i from generate_series(301, 600) i;"
        "alter table items drop b; alter table items add b text default 'b'; commit",
        "alter table items rename c to a",
    )
    mortal = Mortal(build_destination(config), batches)
    with pytest.raises(Killed), running(config, destination=mortal) as pipeline:
        pipeline.wait_until_caught_up(60)

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)

    assert differences(database, config, ["items"]) == []


@pytest.mark.parametrize("reported", [True, False], ids=["reported", "found"])
@pytest.mark.parametrize(
    "change",
    [
        "alter table items rename doc to text",
        "alter table items drop n, add n int default 3",
        "alter table items alter n type text using 'n' || n",
        "alter table items rename n to tmp; alter table items rename m to n;"
        "alter table items rename tmp to m",
    ],
    ids=["rename", "made again", "computed", "swap"],
)
def test_a_table_altered_during_its_copy_arrives_in_its_new_shape(
    newest_database: Database, make_config: MakeConfig, reported: bool, change: str
) -> None:
    """Rows, and values that updates left out, are read by the names that columns had."""
    database = newest_database
    database.execute(
        "create table items (id int primary key, n int, doc text, m int default -1)",
        "alter table items alter doc set storage external",
        "insert into items select i, 0, repeat(md5(i::text), 100) from generate_series(1, 300) i",
        "vacuum analyze items",
        "create publication etl_pub for table items",
    )
    if reported:
        with database.connect() as connection:
            install(connection)
    config = make_config(database, copy={"chunk_rows": 50, "max_connections_per_table": 1})

    def alter() -> None:
        database.execute("update items set n = id where id % 2 = 0", change)
        database.execute("delete from items where id = 7")

    with running(config, destination=AfterChunk(build_destination(config), alter)) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute("update items set id = 1000 where id = 8")
        assert pipeline.wait_until_caught_up(60)

    assert differences(database, config, ["items"]) == []


class Swap:
    """Two tables that swap names in a transaction, which ends once another session waits for it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._owner = database.connect(autocommit=False)
        self._pool = ThreadPoolExecutor(1)
        self.has_waited: Future[None] | None = None

    def __enter__(self) -> Swap:
        return self

    def __exit__(self, *_: object) -> None:
        self._owner.close()
        self._pool.shutdown()

    def begin(self) -> None:
        self._owner.execute("alter table items rename to tmp")
        self._owner.execute("alter table others rename to items")
        self._owner.execute("alter table tmp rename to others")
        self.has_waited = self._pool.submit(self._end)

    def _end(self) -> None:
        waiting = "select from pg_locks where relation = 'items'::regclass and not granted"
        wait_until(lambda: bool(self._database.query(waiting)))
        self._owner.commit()


def test_a_chunk_that_waits_for_a_name_swap_is_not_read_from_the_other_table(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """Postgres looks a name up again once it has the lock that it waited for."""
    database = newest_database
    database.execute(
        "create table items (id int primary key, note text)",
        "create table others (like items including all)",
        "insert into items select i, repeat('old', 300) from generate_series(1, 100) i",
        "insert into others select i, 'new' from generate_series(1001, 1100) i",
        "vacuum analyze items",
        "create publication etl_pub for table items",
    )
    config = make_config(database, copy={"chunk_rows": 20, "max_connections_per_table": 1})

    with Swap(database) as swap:
        destination = AfterChunk(build_destination(config), swap.begin)
        with running(config, destination=destination) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            database.execute("insert into others values (0, 'after')")
            assert pipeline.wait_until_caught_up(60)
        assert swap.has_waited is not None
        swap.has_waited.result()

    assert differences(database, config, ["others"]) == []


def test_a_question_about_a_table_is_not_answered_for_the_one_that_took_its_name(
    newest_database: Database,
) -> None:
    database = newest_database
    database.execute(
        "create table items (id int primary key, note text)",
        "create table others (like items including all)",
        "insert into items values (1, 'old')",
        "create publication etl_pub for table items",
    )
    with database.connect() as connection:
        [table] = fetch_published_tables(connection, "etl_pub")
        with Swap(database) as swap:
            swap.begin()
            found = fetch_row_values(connection, table.schema, ["note"], [("1",)])
        connection.execute("alter table others rename to tmp")
        connection.execute("alter table items rename to others")
        connection.execute("alter table tmp rename to items")
        with Swap(database) as swap:
            swap.begin()
            is_empty: bool | None = None
            while is_empty is None:
                with contextlib.suppress(psycopg.errors.LockNotAvailable):  # it waits a moment only
                    is_empty = is_relation_empty(connection, table.schema.id, table.schema.id)

    assert found.rows == {("1",): ("old",)}
    assert not is_empty


def test_a_table_altered_by_an_extension_script_is_followed(
    newest_database: Database, make_config: MakeConfig, open_folder: Path
) -> None:
    """Their statements come in one command, which is not an ALTER TABLE."""
    database = newest_database
    if database.server.binaries.major < 18:
        pytest.skip("extensions can't be put elsewhere before 18")
    scripts = {
        "etl_test.control": "default_version = '1'\n",
        "etl_test--1.sql": (
            "alter table public.items add n int default 3;"
            "update public.items set n = 4 where id = 1;"
            "alter table public.items rename a to b;"
            "insert into public.items values (3, 3, 3);"
        ),
        "etl_test--1--2.sql": (
            "select pg_logical_emit_message(true, 'x', 'y'); alter table public.items drop b;"
            "alter table public.items alter n type text using 'n' || n;"
            "insert into public.items values (4, 'four');"
        ),
    }
    for name, text in scripts.items():
        (open_folder / "extension" / name).write_text(text)
    database.execute(
        "create table items (id int primary key, a int)",
        "insert into items values (1, 1), (2, 2)",
        "create publication etl_pub for table items",
    )
    path = f"set extension_control_path = '{open_folder}:$system';"
    with database.connect() as connection:
        install(connection)
    config = make_config(database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        for command in ("create extension etl_test", "alter extension etl_test update to '2'"):
            database.execute(path + command)
            assert pipeline.wait_until_caught_up(60)
            assert differences(database, config, ["items"]) == []


def test_the_memory_destination_fills_an_added_column(
    newest_database: Database, make_config: MakeConfig
) -> None:
    database = newest_database
    database.execute(
        "create table items (id int primary key)",
        "insert into items values (1)",
        "create publication etl_pub for table items",
    )
    with database.connect() as connection:
        install(connection)
    config = make_config(database, destination={"type": "memory"}, state_store={"type": "memory"})
    destination = MemoryDestination()
    with running(config, destination=destination) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute("alter table items add day date default '2020-01-02', add n int")
        assert pipeline.wait_until_caught_up(60)
        [row] = destination.rows("public.items")

    assert (row["id"], str(row["day"]), row["n"]) == (1, "2020-01-02", None)

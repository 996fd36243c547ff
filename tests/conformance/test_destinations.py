"""The destinations of this package keep what every destination promises, and a little more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import duckdb
import httpx
import pytest
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader

from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.destinations.duckdb import DuckDBDestination, read_connection
from etl_dagster.destinations.http import HttpDestination
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.destinations.postgres import PostgresDestination
from etl_dagster.model.destination import Capabilities, Destination
from etl_dagster.model.json_values import row_from_json
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing import DestinationSuite, Recorded
from etl_dagster.testing.changes import ORDERS, VISITS, Row, Transactions, insert, order, update
from etl_dagster.testing.subject import DestinationChecks, Subject
from tests.support import small_receiver
from tests.support.database import Database
from tests.support.forty_lines import MyHttpDestination
from tests.support.receiver import shared_receiver


class ChecksOfOurOwn(DestinationChecks):
    """What the suite can't ask of every destination."""

    def test_rows_without_a_key_stay_in_order(self, subject: Subject) -> None:
        changes = Transactions().commit(*(insert(VISITS, page="/", at=n) for n in range(10)))
        for stretch in (changes[:4], changes[2:7], changes):
            subject.deliver(stretch)

        assert [row["at"] for row in subject.rows(VISITS)] == list(range(10))

    def test_the_first_change_creates_its_table(self, subject: Subject) -> None:
        """The engine copies every table first; this is for callers that write without it."""
        assert not subject.exists(ORDERS)
        subject.write(insert(ORDERS, **order(1)), update(ORDERS, **order(1, "x")))

        subject.holds(ORDERS, [order(1, "x")])

    def test_the_log_of_all_tables_is_in_order(self, subject: Subject) -> None:
        stream = Transactions()
        first = stream.commit(insert(VISITS, page="/", at=1), insert(ORDERS, **order(1)))
        second = stream.commit(insert(VISITS, page="/", at=2), update(ORDERS, **order(1, "x")))
        for changes in (first, first, first + second, second, first):
            subject.deliver(changes)

        subject.has_recorded(first + second)


class TestMemoryDestination(ChecksOfOurOwn, DestinationSuite):
    durable = False

    def make_destination(self, folder: Path) -> MemoryDestination:
        return MemoryDestination()

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        assert isinstance(destination, MemoryDestination)
        return destination.rows(schema.name)

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        assert isinstance(destination, MemoryDestination)
        return any(table.schema.name == schema.name for table in destination.tables.values())

    def read_odd_values(
        self, destination: Destination, schema: TableSchema
    ) -> list[tuple[Row, str, str]]:
        assert isinstance(destination, MemoryDestination)
        return [
            ({name: row[name] for name in schema.key_columns}, column, text)
            for row, texts in destination.odd_values(schema.name)
            for column, text in texts.items()
        ]

    def read_quarantined(self, destination: Destination, schema: TableSchema) -> list[Row]:
        assert isinstance(destination, MemoryDestination)
        return destination.quarantined_rows(schema.name)

    def read_changes(self, destination: Destination, schema: TableSchema) -> list[Recorded]:
        assert isinstance(destination, MemoryDestination)
        return [
            Recorded(
                type(event).__name__[0],
                event.position.commit_lsn.offset,
                event.position.ordinal,
                getattr(event, "row", None),
            )
            for event in destination.changelog
            if event.schema.id == schema.id
        ]


class TestDuckDBDestination(ChecksOfOurOwn, DestinationSuite):
    """Read as any other client would, from the file."""

    def make_destination(self, folder: Path) -> DuckDBDestination:
        self.path = folder / "warehouse.duckdb"
        return DuckDBDestination(self.path, changelog=True)

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        with read_connection(self.path) as connection:
            name = f'"{schema.schema_name}"."{schema.table_name}"'
            found: list[Row] = connection.table(name).to_arrow_table().to_pylist()
        return found

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        with read_connection(self.path) as connection:
            found = connection.execute(
                "FROM duckdb_tables() SELECT 1 WHERE schema_name = ? AND table_name = ?",
                [schema.schema_name, schema.table_name],
            ).fetchall()
        return bool(found)

    def read_odd_values(
        self, destination: Destination, schema: TableSchema
    ) -> list[tuple[Row, str, str]]:
        with read_connection(self.path) as connection:
            found = connection.execute(
                "FROM _etl.odd_values SELECT key, column_name, text WHERE table_id = ?", [schema.id]
            ).fetchall()
        return [
            (dict(zip(schema.key_columns, key or (), strict=True)), column, text)
            for key, column, text in found
        ]

    def read_quarantined(self, destination: Destination, schema: TableSchema) -> list[Row]:
        twin = f'_etl_quarantine."{schema.schema_name}.{schema.table_name}"'
        found: list[Row] = []
        with read_connection(self.path) as connection, suppress(duckdb.CatalogException):
            found = connection.sql(f"FROM {twin}").to_arrow_table().to_pylist()
        return found

    def read_changes(self, destination: Destination, schema: TableSchema) -> list[Recorded]:
        with read_connection(self.path) as connection:
            found = connection.execute(
                "FROM _etl.changelog SELECT op, commit_lsn, ordinal WHERE table_id = ? "
                "ORDER BY commit_lsn, ordinal",
                [schema.id],
            ).fetchall()
        return [Recorded(*entry) for entry in found]


class Idle:
    """Empty databases that no test uses."""

    def __init__(self, made: ExitStack) -> None:
        self._made = made
        self._databases: list[Database] = []

    def take(self, server: EmbeddedPostgres) -> Database:
        for database in self._databases:
            if database.server is server:
                self._databases.remove(database)
                return database
        return self._made.enter_context(Database.create(server))

    def give_back(self, database: Database) -> None:
        database.empty()
        self._databases.append(database)


@pytest.fixture(scope="module")
def idle() -> Iterator[Idle]:
    with ExitStack() as made:
        yield Idle(made)


@pytest.mark.servers("oldest")
class TestPostgresDestination(ChecksOfOurOwn, DestinationSuite):
    """Read as any other client would, from the database.

    The oldest server may lack something; pipelines that are killed write to the newest.
    """

    @pytest.fixture(autouse=True)
    def serve(self, server: EmbeddedPostgres, idle: Idle) -> Iterator[None]:
        self.server, self.idle = server, idle
        self.databases: dict[Path, Database] = {}
        yield
        for database in self.databases.values():
            idle.give_back(database)

    def make_destination(self, folder: Path) -> PostgresDestination:
        """The database of the folder."""
        if folder not in self.databases:
            self.databases[folder] = self.idle.take(self.server)
        self.database = self.databases[folder]
        return PostgresDestination(self.database.dsn, changelog=True)

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        return self._rows(f'"{schema.schema_name}"."{schema.table_name}"')

    def _rows(self, table: str) -> list[Row]:
        with self.database.connect() as connection:
            connection.execute("SET timezone = 'UTC'")
            for name in ("json", "jsonb"):  # a null in it is none
                connection.adapters.register_loader(name, TextLoader)
            cursor = connection.cursor(row_factory=dict_row)
            found: list[Row] = cursor.execute(f"SELECT * FROM {table}").fetchall()
        return found

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        name = f'"{schema.schema_name}"."{schema.table_name}"'
        return self.database.query("SELECT to_regclass(%s)", [name]) != [(None,)]

    def read_odd_values(
        self, destination: Destination, schema: TableSchema
    ) -> list[tuple[Row, str, str]]:
        found = self.database.query(
            "SELECT key, column_name, text FROM _etl.odd_values WHERE table_id = %s", [schema.id]
        )
        return [
            (dict(zip(schema.key_columns, key or (), strict=True)), column, text)
            for key, column, text in found
        ]

    def read_quarantined(self, destination: Destination, schema: TableSchema) -> list[Row]:
        twin = f'_etl_quarantine."{schema.schema_name}.{schema.table_name}"'
        if self.database.query("SELECT to_regclass(%s)", [twin]) == [(None,)]:
            return []
        return self._rows(twin)

    def read_changes(self, destination: Destination, schema: TableSchema) -> list[Recorded]:
        found = self.database.query(
            "SELECT op, commit_lsn::bigint, ordinal FROM _etl.changelog WHERE table_id = %s "
            "ORDER BY commit_lsn, ordinal",
            [schema.id],
        )
        return [Recorded(*entry) for entry in found]


class TestHttpDestination(ChecksOfOurOwn, DestinationSuite):
    """With a receiver that keeps positions, copies and epochs."""

    # An epoch reaches a receiver together with changes, never alone.
    test_a_stalled_process_is_refused_once_another_took_over = None
    test_an_epoch_alone_is_enough_to_refuse_older_ones = None

    def make_destination(self, folder: Path) -> HttpDestination:
        self.receiver = shared_receiver(folder)
        return HttpDestination(self.receiver.url)

    def capabilities(self, destination: Destination) -> Capabilities:
        return replace(destination.capabilities, transactional=True)

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        found = self.receiver.rows(schema.name) or []
        return [row_from_json(schema.columns, row) for row in found]

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        return self.receiver.rows(schema.name) is not None

    def read_changes(self, destination: Destination, schema: TableSchema) -> list[Recorded]:
        found = self.receiver.changelog()
        return [Recorded(*change) for table_id, *change in found if table_id == schema.id]


class TestFortyLines(DestinationSuite):
    """The destination of a tutorial, and the least that a receiver must do."""

    @pytest.fixture(autouse=True)
    def serve(self, tmp_path: Path) -> Iterator[None]:
        with small_receiver.serving(tmp_path / "receiver.sqlite") as self.url:
            yield

    def make_destination(self, folder: Path) -> MyHttpDestination:
        return MyHttpDestination(self.url)

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        found = httpx.get(f"{self.url}/rows", params={"table": schema.name}).json()
        return [row_from_json(schema.columns, row) for row in found]

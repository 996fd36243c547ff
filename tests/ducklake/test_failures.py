"""Failures of a lake are reported in our own words, without passwords or values."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from etl_dagster.destinations.ducklake import DuckLakeDestination
from etl_dagster.destinations.ducklake.attaching import LakePlace
from etl_dagster.errors import (
    DestinationError,
    DestinationReplaced,
    DestinationRestored,
    DestinationUnreachable,
    EtlError,
    TableWriteFailed,
)
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import ORDERS, Transactions, batch, insert, order
from tests.ducklake.lakes import lake_at_server, lake_in_file, rows_of
from tests.support.database import Database

WRONG = "wr0ng-pass'word"


class Writer:
    """Writes one order after the other."""

    def __init__(self, place: LakePlace) -> None:
        self.destination = DuckLakeDestination(place, timeout_s=20)
        self.destination.startup(MemoryStore())
        self._stream = Transactions()
        self._number = 0

    def write(self, number: int | None = None) -> None:
        self._number = self._number + 1 if number is None else number
        committed = self._stream.commit(insert(ORDERS, **order(self._number, "s3cret note")))
        self.destination.write_events(batch(committed))


def chain(error: BaseException | None) -> str:
    """All that a log would show of a failure."""
    told = []
    while error is not None:
        told.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(told)


def at(database: Database, folder: Path, **changed: str | int) -> LakePlace:
    """The lake of a folder, reached in another way."""
    parameters = {**conninfo_to_dict(database.dsn), **changed}
    return lake_at_server(
        Database(_Server(make_conninfo("", **parameters)), database.name),
        folder,  # type: ignore[arg-type]
    )


class _Server:
    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def dsn(self, name: str) -> str:
        return self._dsn


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"port": 1}, "can't be reached"),
        ({"dbname": "no_such_lake"}, "refuses the connection"),
        ({"user": "no_such_user"}, "refuses the connection"),
    ],
)
def test_an_unreachable_server_is_reported_without_its_password(
    lake_database: Database, tmp_path: Path, changed: dict[str, str | int], told: str
) -> None:
    place = at(lake_database, tmp_path, **changed, password=WRONG)
    destination = DuckLakeDestination(place, timeout_s=5)

    with pytest.raises(DestinationError, match=told) as caught:
        destination.check()

    assert "destination.catalog" in caught.value.solution
    for shown in (chain(caught.value), repr(place), repr(destination)):
        assert "wr0ng" not in shown


def test_a_server_that_ends_our_sessions_is_found_again(
    lake_database: Database, tmp_path: Path
) -> None:
    writer = Writer(lake_at_server(lake_database, tmp_path))
    writer.write()
    lake_database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()"
    )
    failures = [failure for _ in range(3) if (failure := tried(writer.write)) is not None]

    assert len(failures) < 3, "it never came back"
    for failure in failures:
        assert isinstance(failure, DestinationUnreachable)
        assert "s3cret" not in chain(failure)
    writer.destination.shutdown()


def tried(write: Callable[[], None]) -> EtlError | None:
    try:
        write()
    except EtlError as failure:
        return failure
    return None


def test_a_read_only_server_is_waited_for(lake_database: Database, tmp_path: Path) -> None:
    writer = Writer(lake_at_server(lake_database, tmp_path))
    with lake_database.connect() as admin:
        admin.execute(f"alter database {lake_database.name} set default_transaction_read_only = on")
        try:
            place = lake_at_server(lake_database, tmp_path)
            with pytest.raises(DestinationUnreachable, match="takes no writes now") as caught:
                Writer(place).write()
            assert caught.value.retryable
            assert "s3cret" not in chain(caught.value)
        finally:
            admin.execute("set default_transaction_read_only = off")
            admin.execute(
                f"alter database {lake_database.name} reset default_transaction_read_only"
            )
    writer.destination.shutdown()


def test_a_file_that_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    place = lake_in_file("duckdb", tmp_path, inline_rows=0)
    writer = Writer(place)
    writer.write()
    shutil.rmtree(Path(place.data_path) / "public")

    with pytest.raises(DestinationError, match=r"a file of DuckLake .* is missing") as caught:
        writer.write(1)  # of which the file has the row before

    assert "etl-dagster reset" in caught.value.solution
    assert not isinstance(caught.value, TableWriteFailed)
    writer.destination.shutdown()


@pytest.mark.parametrize("kind", ["duckdb", "sqlite"])
def test_a_catalog_restored_from_a_backup_is_refused(kind: str, tmp_path: Path) -> None:
    place = lake_in_file(kind, tmp_path)
    writer = Writer(place)
    path, backup = tmp_path / f"catalog.{kind}", tmp_path / "backup"
    writer.write()
    shutil.copy(path, backup)
    writer.write()
    shutil.copy(backup, path)

    with pytest.raises(DestinationRestored, match="writes were committed"):
        writer.write()
    writer.destination.shutdown()


def test_a_different_lake_in_its_place_is_refused(tmp_path: Path) -> None:
    writer = Writer(lake_in_file("duckdb", tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    place = lake_in_file("duckdb", other)
    Writer(LakePlace(place.catalog, str(tmp_path / "data"), 10, "256MB")).destination.shutdown()
    shutil.copy(other / "catalog.duckdb", tmp_path / "catalog.duckdb")

    with pytest.raises(DestinationReplaced):
        writer.write()
    writer.destination.shutdown()


def test_a_value_of_a_row_is_in_no_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The table's column at the destination is no longer what the pipeline made of it."""
    place = lake_in_file("duckdb", tmp_path)
    writer = Writer(place)
    writer.write()
    with writer.destination._lake.turn() as connection:
        connection.execute("ALTER TABLE public.orders DROP COLUMN note")
        connection.execute("ALTER TABLE public.orders ADD COLUMN note INTEGER")

    with caplog.at_level(logging.DEBUG), pytest.raises(TableWriteFailed) as caught:
        writer.write()

    assert "public.orders" in caught.value.reason
    assert "s3cret" not in chain(caught.value) + caplog.text
    assert len(rows_of(place, "FROM public.orders")) == 1
    writer.destination.shutdown()


def test_files_that_are_not_where_the_catalog_says_are_refused(tmp_path: Path) -> None:
    place = lake_in_file("duckdb", tmp_path)
    Writer(place).destination.shutdown()
    moved = LakePlace(place.catalog, str(tmp_path / "elsewhere"), 10, "256MB")

    with pytest.raises(DestinationError, match="has its files elsewhere") as caught:
        DuckLakeDestination(moved).check()
    assert "destination.data_path" in caught.value.solution


def test_a_lake_without_rights_at_the_server_says_what_to_grant(
    lake_database: Database, tmp_path: Path
) -> None:
    with lake_database.connect() as admin:
        admin.execute("drop role if exists lake_reader")
        admin.execute("create role lake_reader login password 'r3ader'")
        try:
            place = at(lake_database, tmp_path, user="lake_reader", password="r3ader")
            with pytest.raises(DestinationError, match="refuses us") as caught:
                Writer(place)
            assert "CREATE" in caught.value.solution
            assert "r3ader" not in chain(caught.value).replace("lake_reader", "")
        finally:
            admin.execute("drop role lake_reader")


def test_the_smallest_grant_is_enough(lake_database: Database, tmp_path: Path) -> None:
    with lake_database.connect() as admin:
        place = at(lake_database, tmp_path, user="lake_owner", password="0wner")
        schema = place.catalog.schema  # type: ignore[attr-defined]
        admin.execute("drop role if exists lake_owner")
        admin.execute("create role lake_owner login password '0wner'")
        admin.execute(f"create schema {schema} authorization lake_owner")
        try:
            writer = Writer(place)
            writer.write()
            writer.destination.shutdown()
        finally:
            admin.execute(f"drop schema {schema} cascade")
            admin.execute("drop role lake_owner")

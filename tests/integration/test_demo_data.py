"""The demo's data, roles and workload."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from etl_dagster.demo import databases
from etl_dagster.demo.databases import Databases
from etl_dagster.demo.flights import PUBLICATION, TABLES, is_loaded, load_flights
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.demo.workload import Workload
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    folder = tmp_path_factory.mktemp("demo")
    with EmbeddedPostgres(folder / "postgres", durable=False) as server:
        yield databases.prepare(server)


@pytest.fixture
def source(access: Databases) -> Iterator[psycopg.Connection]:
    """A superuser's connection; what a test changes is rolled back."""
    with (
        psycopg.connect(access.server.dsn(databases.SOURCE)) as connection,
        connection.transaction(force_rollback=True),
    ):
        yield connection


def number(connection: psycopg.Connection, query: bytes) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def test_every_row_of_the_data_is_loaded_and_published(source: psycopg.Connection) -> None:
    for table, rows in TABLES.items():
        assert number(source, f"SELECT count(*) FROM {table}".encode()) == rows
    published = source.execute(
        "SELECT tablename FROM pg_publication_tables WHERE pubname = %s", [PUBLICATION]
    ).fetchall()
    assert {name for (name,) in published} == set(TABLES)


def test_values_missing_from_the_data_are_null(source: psycopg.Connection) -> None:
    """The numbers are those of the published data."""
    assert number(source, b"SELECT count(*) FROM flights WHERE dep_time IS NULL") == 8_255
    assert number(source, b"SELECT count(*) FROM flights WHERE tailnum = 'NA'") == 0
    assert number(source, b"SELECT count(*) FROM weather WHERE wind_gust IS NULL") == 20_778
    assert number(source, b"SELECT count(*) FROM flights WHERE status = 'cancelled'") == 8_255


def test_preparing_again_keeps_everything(access: Databases) -> None:
    loaded: list[str] = []

    again = databases.prepare(access.server, lambda table, _: loaded.append(table))

    assert loaded == []
    assert again.passwords == access.passwords


def test_an_interrupted_load_leaves_nothing(access: Databases) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(table: str, rows: int) -> None:
        raise Interrupted

    with psycopg.connect(access.server.dsn(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE interrupted")
    with psycopg.connect(access.server.dsn("interrupted"), autocommit=True) as connection:
        with pytest.raises(Interrupted):
            load_flights(connection, interrupt)
        assert not is_loaded(connection)
        assert (
            number(connection, b"SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
        )


def test_the_pipeline_may_read_the_source_but_not_write_to_it(access: Databases) -> None:
    dsn = access.dsn(databases.SOURCE, databases.PIPELINE)
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert number(connection, b"SELECT count(*) FROM airlines") == 16
        for statement in (b"DELETE FROM airlines", b"CREATE TABLE public.mine (a int)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
    with psycopg.connect(access.dsn(databases.STATE, databases.PIPELINE)) as connection:
        connection.execute("CREATE SCHEMA etl_is_welcome")
        connection.rollback()


def test_passwords_are_private(access: Databases) -> None:
    file = access.server.folder / "roles.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert all(password not in repr(access) for password in access.passwords.values())


def test_the_workload_changes_flights_and_weather_in_transactions_of_many_sizes(
    access: Databases, source: psycopg.Connection
) -> None:
    workload = Workload("unused: the test connects", rate=1e9, seed=13)

    sizes = [workload.transaction(source) for _ in range(150)]

    assert workload.changes == sum(sizes)
    assert min(sizes) <= 3
    assert max(sizes) >= 100
    live = number(source, b"SELECT count(*) FROM flights WHERE updated_at = now()")
    assert live > 0
    cancelled = number(source, b"SELECT count(*) FROM flights WHERE status = 'cancelled'")
    assert cancelled > 8_255
    assert number(source, b"SELECT count(*) FROM weather") > TABLES["weather"]
    gone = number(source, b"SELECT max(flight_id) - count(*) FROM flights")
    assert gone > 0


def test_the_workload_reconnects_and_continues(access: Databases) -> None:
    dsn = access.dsn(databases.SOURCE, databases.AIRLINE)
    workload = Workload(dsn, rate=2_000)
    stop = threading.Event()
    thread = threading.Thread(target=workload.run, args=(stop,))
    thread.start()
    with psycopg.connect(access.server.dsn(), autocommit=True) as admin:
        ended = 0
        while ended < 3:
            seen = workload.changes
            wait_until(lambda seen=seen: workload.changes != seen)  # type: ignore[misc]
            row = admin.execute(
                "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
                "WHERE application_name = 'flights_workload'"
            ).fetchone()
            ended += row[0] if row else 0
    stop.set()
    thread.join()
    assert ended >= 3


@pytest.mark.parametrize("how", ["standard input is closed", "SIGTERM"])
def test_the_workload_process_ends_when(access: Databases, how: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "etl_dagster.demo.workload"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    order = {"dsn": access.dsn(databases.SOURCE, databases.AIRLINE), "rate": 10}
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    with psycopg.connect(access.server.dsn(), autocommit=True) as admin:
        running = (
            b"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flights_workload'"
        )
        wait_until(lambda: number(admin, running) > 0)
    if how == "SIGTERM":
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        process.stdin.close()
    else:
        process.stdin.close()
        assert process.wait() == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()

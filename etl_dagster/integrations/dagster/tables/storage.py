"""Where tables are, as data catalogs name it: the name of a database, and a URI."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl_dagster.config import SourceConfig

if TYPE_CHECKING:
    # Of the types that the pipeline doesn't have, none is loaded.
    from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
    from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
    from etl_dagster.destinations.http.config import HttpDestinationConfig
    from etl_dagster.destinations.postgres.config import PostgresDestinationConfig


@dataclass(frozen=True, slots=True)
class DestinationStorage:
    """Where a destination is, without secrets; None for what it doesn't have."""

    database: str | None = None
    uri: str | None = None

    def table_name(self, name: str) -> str:
        """``database.schema.table``; `name` alone if there is no database."""
        return name if self.database is None else f"{self.database}.{name}"


def storage_of(destination: Any) -> DestinationStorage:
    """The storage of a section ``destination``; one of another package's type has neither."""
    find = _STORAGES.get(destination.type)
    return DestinationStorage() if find is None else find(destination)


def _of_duckdb(config: DuckDBDestinationConfig) -> DestinationStorage:
    path = Path(config.path)
    # As DuckDB names the database of a file.
    return DestinationStorage(path.name.split(".")[0], f"duckdb://{path.absolute()}")


def _of_ducklake(config: DuckLakeDestinationConfig) -> DestinationStorage:
    return DestinationStorage("lake", _lake_uri(config.data_path))


def _of_postgres(config: PostgresDestinationConfig) -> DestinationStorage:
    from etl_dagster.pg.dsn import Dsn

    dsn = Dsn.parse(config.dsn.get_secret_value())
    return DestinationStorage(dsn.get("dbname") or dsn.get("user") or None, dsn.uri)


def _of_http(config: HttpDestinationConfig) -> DestinationStorage:
    return DestinationStorage(None, config.place)


_STORAGES: Mapping[str, Callable[[Any], DestinationStorage]] = {
    "duckdb": _of_duckdb,
    "ducklake": _of_ducklake,
    "postgres": _of_postgres,
    "http": _of_http,
}


def source_database(config: SourceConfig) -> str:
    """The name of the database that is replicated."""
    from etl_dagster.pg.dsn import Dsn

    dsn = Dsn.parse(config.conninfo())
    return dsn.get("dbname") or dsn.get("user") or "postgres"


def _lake_uri(data_path: str) -> str:
    return data_path if "://" in data_path else Path(data_path).absolute().as_uri()

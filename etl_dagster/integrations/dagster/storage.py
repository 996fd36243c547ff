"""What catalogs call the places where tables are: a database's name, and a URI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl_dagster.config import SourceConfig
from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
from etl_dagster.destinations.http.config import HttpDestinationConfig
from etl_dagster.destinations.postgres.config import PostgresDestinationConfig


@dataclass(frozen=True, slots=True)
class DestinationStorage:
    """A destination; each is None where it has no such thing. Without any secret."""

    database: str | None = None
    uri: str | None = None

    def table_name(self, name: str) -> str:
        """``database.schema.table``; what `name` says alone where there is no database."""
        return name if self.database is None else f"{self.database}.{name}"


def storage_of(destination: Any) -> DestinationStorage:
    """Of a destination's section; one that the project doesn't know has neither."""
    match destination:
        case DuckDBDestinationConfig():
            path = Path(destination.path)
            # As DuckDB names the database of a file.
            return DestinationStorage(path.name.split(".")[0], f"duckdb://{path.absolute()}")
        case DuckLakeDestinationConfig():
            return DestinationStorage("lake", _lake_uri(destination.data_path))
        case PostgresDestinationConfig():
            from etl_dagster.pg.dsn import Dsn

            dsn = Dsn.parse(destination.dsn.get_secret_value())
            return DestinationStorage(dsn.get("dbname") or dsn.get("user") or None, dsn.uri)
        case HttpDestinationConfig():
            return DestinationStorage(None, destination.place)
    return DestinationStorage()


def source_database(config: SourceConfig) -> str:
    """The name of the database that is replicated."""
    from etl_dagster.pg.dsn import Dsn

    dsn = Dsn.parse(config.conninfo())
    return dsn.get("dbname") or dsn.get("user") or "postgres"


def _lake_uri(data_path: str) -> str:
    return data_path if "://" in data_path else Path(data_path).absolute().as_uri()

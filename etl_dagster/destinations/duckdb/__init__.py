"""DuckDB as a destination: one file, exactly once."""

from etl_dagster.destinations.duckdb.destination import DuckDBDestination
from etl_dagster.destinations.duckdb.reading import count_rows, query, read_connection

__all__ = ["DuckDBDestination", "count_rows", "query", "read_connection"]

"""DuckDB as a destination: one file, exactly once."""

from typing import TYPE_CHECKING

from etl_dagster.lazy import gathered

if TYPE_CHECKING:
    from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
    from etl_dagster.destinations.duckdb.destination import DuckDBDestination
    from etl_dagster.destinations.duckdb.reading import count_rows, query, read_connection
else:
    __getattr__ = gathered(
        __name__,
        {
            "DuckDBDestination": "destination",
            "DuckDBDestinationConfig": "config",
            "count_rows": "reading",
            "query": "reading",
            "read_connection": "reading",
        },
    )

__all__ = ["DuckDBDestination", "DuckDBDestinationConfig", "count_rows", "query", "read_connection"]

"""DuckLake as a destination: a catalog in Postgres or a file, and Parquet files, exactly once."""

from typing import TYPE_CHECKING

from etl_dagster.lazy import gathered

if TYPE_CHECKING:
    from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
    from etl_dagster.destinations.ducklake.destination import DuckLakeDestination
else:
    __getattr__ = gathered(
        __name__,
        {"DuckLakeDestination": "destination", "DuckLakeDestinationConfig": "config"},
    )

__all__ = ["DuckLakeDestination", "DuckLakeDestinationConfig"]

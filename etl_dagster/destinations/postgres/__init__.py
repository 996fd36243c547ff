"""Postgres as a destination: another server or database, exactly once."""

from typing import TYPE_CHECKING

from etl_dagster.lazy import gathered

if TYPE_CHECKING:
    from etl_dagster.destinations.postgres.config import PostgresDestinationConfig
    from etl_dagster.destinations.postgres.destination import PostgresDestination
else:
    __getattr__ = gathered(
        __name__,
        {"PostgresDestination": "destination", "PostgresDestinationConfig": "config"},
    )

__all__ = ["PostgresDestination", "PostgresDestinationConfig"]

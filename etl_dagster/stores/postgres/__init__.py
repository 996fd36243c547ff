"""A state store in Postgres, shared by all processes of a pipeline."""

from typing import TYPE_CHECKING

from etl_dagster.lazy import gathered

if TYPE_CHECKING:
    from etl_dagster.stores.postgres.config import PostgresStoreConfig
    from etl_dagster.stores.postgres.store import PostgresStore
else:
    __getattr__ = gathered(
        __name__,
        {
            "PostgresStore": "store",
            "PostgresStoreConfig": "config",
        },
    )

__all__ = ["PostgresStore", "PostgresStoreConfig"]

"""Builds the store and the destination that a configuration names."""

from __future__ import annotations

from etl_dagster.config import (
    DuckDBDestinationConfig,
    MemoryDestinationConfig,
    PipelineConfig,
)
from etl_dagster.model.destination import Destination
from etl_dagster.model.stores import CoordinatingStore


def build_store(config: PipelineConfig) -> CoordinatingStore:
    """The store, not yet connected: the first call connects and migrates.

    Raises:
        ConfigError: the DSN can't be read.
    """
    if config.state_store.type == "memory":
        from etl_dagster.stores.memory import MemoryStore

        return MemoryStore()
    from etl_dagster.stores.postgres import PostgresStore

    return PostgresStore(
        config.state_store_conninfo(), config.pipeline, schema=config.state_store.schema_name
    )


def build_destination(config: PipelineConfig) -> Destination:
    """The destination, not yet opened: `startup` does."""
    match config.destination:
        case DuckDBDestinationConfig() as duckdb:
            from etl_dagster.destinations.duckdb import DuckDBDestination

            return DuckDBDestination(
                duckdb.path,
                memory_limit=duckdb.memory_limit,
                lock_timeout_s=duckdb.lock_timeout_s,
                changelog=duckdb.changelog,
            )
        case MemoryDestinationConfig():
            from etl_dagster.destinations.memory import MemoryDestination

            return MemoryDestination()

"""The state store of a pipeline that ran before; looking must not create it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from psycopg import sql

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError, StoreError
from etl_dagster.source.connection import check_dsn
from etl_dagster.stores.postgres import PostgresStore
from etl_dagster.stores.postgres.connections import Connections

if TYPE_CHECKING:
    from etl_dagster.model.stores import CoordinatingStore


@contextlib.contextmanager
def existing_store(config: PipelineConfig) -> Iterator[CoordinatingStore]:
    """The store, open.

    Raises:
        ConfigError: the store is in memory, where no other process can look.
        StoreError: it can't be reached, or the pipeline has never run.
    """
    if config.state_store.type != "postgres":
        raise ConfigError(
            ["state_store.type: memory is only seen by the process that runs the pipeline"],
            origin="the configuration",
        )
    dsn = config.state_store_conninfo()
    if config.state_store.dsn is not None:
        check_dsn(dsn, "state_store.dsn")
    schema = config.state_store.schema_name
    if not _has_pipeline(dsn, schema, config.pipeline):
        raise StoreError(
            f"the state store knows no pipeline {config.pipeline!r}",
            solution="Start it: `etl-dagster run`. If it runs elsewhere, compare `pipeline` and "
            "`state_store` with the configuration there.",
        )
    store = PostgresStore(dsn, config.pipeline, schema=schema)
    try:
        yield store
    finally:
        store.close()


def _has_pipeline(dsn: str, schema: str, pipeline: str) -> bool:
    connections = Connections(dsn, application_name="etl-dagster status", max_size=1)
    table = sql.Identifier(schema, "pipelines")
    with connections.connect() as connection:
        found = connection.execute("select to_regclass(%s)", [table.as_string()]).fetchone()
        if found == (None,):
            return False
        query = sql.SQL("select 1 from {} where name = %s").format(table)
        return connection.execute(query, [pipeline]).fetchone() is not None

"""Reads the lake of a `DuckLakeDestination` while others write it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from etl_dagster.destinations.duckdb import reading
from etl_dagster.destinations.ducklake.attaching import LakePlace
from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
from etl_dagster.destinations.ducklake.lake import Lake
from etl_dagster.errors import DestinationError


@contextmanager
def read_connection(config: DuckLakeDestinationConfig) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that only reads. Where the catalog is a file, writers wait until it is closed.

    Raises:
        DestinationError: there is no lake, or it can't be reached.
    """
    with Lake(LakePlace.of(config), timeout_s=config.lock_timeout_s).reader() as connection:
        yield connection


def query(config: DuckLakeDestinationConfig, sql: str) -> pa.Table:
    """The result of a query, as an Arrow table; the lake is called ``lake`` in it.

    Settings (`SET ...;`) may stand before it. Intervals, times with a zone and bits are text in it.

    Raises:
        DestinationError: DuckDB refuses the query, it is more than one, or the lake can't be read.
    """
    place = LakePlace.of(config)
    failure: DestinationError | None = None
    with read_connection(config) as connection:
        try:
            return reading.ask(connection, sql)
        except DestinationError as error:
            failure = DestinationError(place.redact(error.reason), solution=error.solution)
    # Neither as a cause nor as a context: DuckDB's text may hold a secret, or values.
    raise failure from None

"""What workers import while they run, imported before they are forked."""

import adbc_driver_postgresql.dbapi  # noqa: F401
import duckdb  # noqa: F401
import psycopg  # noqa: F401
import pyarrow.compute  # noqa: F401

import etl_dagster.destinations.duckdb.destination
import etl_dagster.destinations.postgres.destination
import etl_dagster.stores.postgres.store  # noqa: F401

"""A state store in Postgres, shared by all processes of a pipeline."""

from etl_dagster.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]

"""The settings of a state store in Postgres."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from etl_dagster.config import SourceConfig, StoreConfig


class PostgresStoreConfig(StoreConfig):
    """Where table states, progress and schemas are kept; without a DSN in the source itself."""

    type: Literal["postgres"] = "postgres"
    dsn: SecretStr | None = Field(
        None, description="A libpq URI or key/value string; by default the source."
    )
    session_dsn: SecretStr | None = Field(
        None, description="The server itself, where `dsn` is a pooler in transaction mode."
    )
    schema_name: str = Field(
        "etl", alias="schema", min_length=1, description="Of the tables; the first start makes it."
    )

    @field_validator("schema_name")
    @classmethod
    def _nameable(cls, name: str) -> str:
        # Postgres would cut it off, and psycopg take it for a parameter.
        if len(name.encode()) > 63 or "%" in name or "\0" in name:
            raise ValueError("must have at most 63 bytes, and no % or zero byte")
        return name

    @property
    def is_in_source(self) -> bool:
        return self.dsn is None

    def conninfo(self, source: SourceConfig) -> str:
        """A libpq connection string, password included."""
        return self.dsn.get_secret_value() if self.dsn is not None else source.conninfo()

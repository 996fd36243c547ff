"""State stores as resources."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from etl_dagster.errors import ConfigError
from etl_dagster.integrations.dagster.resources.env import resolved, with_marked
from etl_dagster.integrations.dagster.resources.sections import (
    EtlStateStoreResource,
    SectionResource,
    state_store_resource,
)

if TYPE_CHECKING:
    from etl_dagster.model.stores import CoordinatingStore


if TYPE_CHECKING:
    # What type checkers and editors see of the fields that are made from the model; a test
    # compares both.

    class _PostgresStoreFields(SectionResource, EtlStateStoreResource):
        dsn: str | None = None
        session_dsn: str | None = None
        schema_name: str = "etl"

else:
    _PostgresStoreFields = state_store_resource("postgres")


class PostgresStateStoreResource(_PostgresStoreFields):
    """A state store in Postgres: in the source itself, unless a DSN is given."""

    @contextlib.contextmanager
    def get_store(self, pipeline: str) -> "Iterator[CoordinatingStore]":
        """The store of one pipeline; needs the resource's own DSN.

        Raises:
            ConfigError: there is no DSN.
        """
        from etl_dagster.stores.postgres import PostgresStore

        given = self.settings()
        if "dsn" not in given:
            raise ConfigError(["dsn: needed to open the store by itself"], origin="state store")
        store = PostgresStore(
            given["dsn"],
            pipeline,
            schema=given["schema_name"],
            session_dsn=given.get("session_dsn"),
        )
        try:
            yield store
        finally:
            store.close()


class StateStoreResource(EtlStateStoreResource):
    """A state store of any type that is installed; see `etl_dagster.kinds`.

    `state_store_resource` makes one with the type's own fields.
    """

    type: str = Field(description="As in etl.yaml.")
    config: dict[str, Any] = Field(
        {}, description="The rest of the section; secrets as EnvVar, at any depth."
    )

    def __init__(self, **values: Any) -> None:
        super().__init__(**with_marked(values, "config"))

    def settings(self) -> dict[str, Any]:
        config: dict[str, Any] = resolved(self.config, "state_store")
        return config | {"type": resolved(self.type, "state_store.type")}

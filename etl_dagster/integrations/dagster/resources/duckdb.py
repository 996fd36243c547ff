"""A DuckDB file as a resource."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
from typing import TYPE_CHECKING

from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
from etl_dagster.integrations.dagster.resources.sections import (
    EtlDestinationResource,
    SectionResource,
    destination_resource,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from etl_dagster.model.destination import Destination


if TYPE_CHECKING:
    # What type checkers and editors see of the fields that are made from the model; a test
    # compares both.

    class _DuckDBFields(SectionResource, EtlDestinationResource):
        path: str
        memory_limit: str = "256MB"
        lock_timeout_s: float = 60.0
        changelog: bool = False

else:
    _DuckDBFields = destination_resource("duckdb")


class DuckDBDestinationResource(_DuckDBFields):
    """One DuckDB file, shared by the replicator, the copies and readers."""

    def get_destination(self) -> "Destination":
        """The destination as the engine writes to it; not started."""
        from etl_dagster.destinations.duckdb import DuckDBDestination

        section = self._section()
        return DuckDBDestination(section.path, **section.model_dump(exclude={"type", "path"}))

    def query(self, sql: str) -> "pa.Table":
        """Read from the file, between two writes of the pipeline."""
        from etl_dagster.destinations.duckdb import query

        section = self._section()
        return query(section.path, sql, lock_timeout_s=section.lock_timeout_s)

    def _section(self) -> DuckDBDestinationConfig:
        return DuckDBDestinationConfig.model_validate(self.settings())

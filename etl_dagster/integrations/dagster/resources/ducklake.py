"""A DuckLake as a resource."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
from typing import TYPE_CHECKING

from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
from etl_dagster.integrations.dagster.resources.sections import (
    EtlDestinationResource,
    SectionResource,
    destination_resource,
)

if TYPE_CHECKING:
    import pyarrow as pa


if TYPE_CHECKING:
    # What type checkers and editors see of the fields that are made from the model; a test
    # compares both.

    class _DuckLakeFields(SectionResource, EtlDestinationResource):
        catalog: str
        data_path: str
        metadata_schema: str | None = None
        inline_rows: int = 1000
        memory_limit: str = "512MB"
        lock_timeout_s: float = 60.0
        changelog: bool = False
        s3_key_id: str | None = None
        s3_secret: str | None = None
        s3_session_token: str | None = None
        s3_region: str | None = None
        s3_endpoint: str | None = None
        s3_url_style: str = "vhost"
        s3_use_ssl: bool = True

else:
    _DuckLakeFields = destination_resource("ducklake")


class DuckLakeDestinationResource(_DuckLakeFields):
    """A DuckLake: its catalog in Postgres, or in a file, and Parquet files in a folder or in S3."""

    def query(self, sql: str) -> "pa.Table":
        """Read from the lake, which is called ``lake`` in the query."""
        from etl_dagster.destinations.ducklake.reading import query

        return query(DuckLakeDestinationConfig.model_validate(self.settings()), sql)

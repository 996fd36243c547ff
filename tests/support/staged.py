"""A destination of dlt that takes its files from a staging destination, as warehouses do.

dlt's own DuckDB and Postgres take none. This is its DuckDB, which reads the files where they were
staged; that it did is in `loaded`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlparse

from dlt.common.destination.client import SupportsStagingDestination
from dlt.destinations import duckdb as duckdb_of_dlt
from dlt.destinations.impl.duckdb.duck import DuckDbClient, DuckDbCopyJob
from dlt.destinations.job_impl import ReferenceFollowupJobRequest

#: The files that were read.
loaded: list[str] = []


class _StagedJob(DuckDbCopyJob):  # type: ignore[misc]
    def run(self) -> None:
        url = ReferenceFollowupJobRequest.resolve_reference(self._file_path)
        place = unquote(urlparse(url).path)
        # dlt's own tables come as it prefers.
        read = "read_parquet" if place.endswith(".parquet") else "read_json"
        client = self._job_client.sql_client
        table = client.make_qualified_table_name(self.load_table_name)
        client.execute_sql(
            f"INSERT INTO {table} BY NAME SELECT * FROM {read}('{place}', union_by_name=true)"
        )
        loaded.append(place)


class _StagedClient(DuckDbClient, SupportsStagingDestination):  # type: ignore[misc]
    def create_load_job(
        self, table: Any, file_path: str, load_id: str, restore: bool = False
    ) -> Any:
        if ReferenceFollowupJobRequest.is_reference_job(file_path):
            return _StagedJob(file_path)
        return super().create_load_job(table, file_path, load_id, restore)

    def should_truncate_table_before_load_on_staging_destination(self, table_name: str) -> bool:
        return bool(self.config.truncate_tables_on_staging_destination_before_load)


class duckdb(duckdb_of_dlt):  # type: ignore[misc]
    def _raw_capabilities(self) -> Any:
        found = super()._raw_capabilities()
        found.supported_staging_file_formats = ["parquet", "jsonl"]
        found.preferred_staging_file_format = "jsonl"
        return found

    @property
    def client_class(self) -> Any:
        return _StagedClient

"""Where SQL assets are kept: a folder of Parquet files."""

from pathlib import Path

import dagster as dg
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq


class Marts(dg.ConfigurableResource):
    """A file for each asset. A reader sees the old one until the new one is complete."""

    folder: str

    def write(self, name: str, rows: pa.Table) -> None:
        path = Path(self.folder) / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".fresh")
        pq.write_table(rows, fresh)
        fresh.replace(path)

    def query(self, sql: str) -> pa.Table:
        """Each file is a table in the query."""
        with duckdb.connect() as connection:
            for path in Path(self.folder).glob("*.parquet"):
                connection.register(path.stem, pq.read_table(path))
            return connection.sql(sql).to_arrow_table()

"""Which Arrow type a Postgres type becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl_dagster.model.schema import ColumnSchema

if TYPE_CHECKING:
    import pyarrow as pa


def arrow_type(column: ColumnSchema) -> pa.DataType:
    """The Arrow type of the column's values."""
    raise NotImplementedError

"""Deprecated: `ColumnSchema` is in `etl_dagster.values.columns`."""

import warnings

from etl_dagster.values.columns import ColumnSchema as ColumnSchema

warnings.warn(
    "etl_dagster.model.columns is deprecated: import from etl_dagster.values.columns",
    DeprecationWarning,
    stacklevel=2,
)

"""Deprecated: OIDs are in `etl_dagster.values.oids`."""

import warnings

from etl_dagster.values.oids import *  # noqa: F403  (its names, under the old path)

warnings.warn(
    "etl_dagster.model.oids is deprecated: import from etl_dagster.values.oids",
    DeprecationWarning,
    stacklevel=2,
)

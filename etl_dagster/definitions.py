"""The code location of one pipeline, configured by the file that ``ETL_DAGSTER_CONFIG`` names."""

from __future__ import annotations

import os

from etl_dagster.integrations.dagster import build_etl_definitions

defs = build_etl_definitions(
    os.environ.get("ETL_DAGSTER_CONFIG", "etl.yaml"), clicks_in_process=True
)

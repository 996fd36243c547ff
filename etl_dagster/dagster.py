"""The integration with Dagster, under a short name.

from etl_dagster.dagster import build_etl_definitions

defs = build_etl_definitions("etl.yaml")
"""

from etl_dagster.integrations.dagster import *  # noqa: F403
from etl_dagster.integrations.dagster import __all__ as __all__

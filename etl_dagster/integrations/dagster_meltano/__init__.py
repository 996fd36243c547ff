"""Meltano's pipelines and state in Dagster.

    from etl_dagster.integrations.dagster_meltano import MeltanoResource, meltano_assets

    project = MeltanoResource(project_dir="/srv/meltano", environment="prod")
    defs = Definitions(assets=[meltano_assets(project, "tap-postgres", "target-duckdb")])

Only what `dagster` itself exports is used, and Meltano itself only by its console script.
"""

from etl_dagster.integrations.dagster_meltano.assets import MeltanoRunConfig, meltano_assets
from etl_dagster.integrations.dagster_meltano.catalog import CatalogUnknown, Stream
from etl_dagster.integrations.dagster_meltano.project import MeltanoError, MeltanoNotFound
from etl_dagster.integrations.dagster_meltano.resources import MeltanoResource
from etl_dagster.integrations.dagster_meltano.runs import (
    MeltanoRun,
    MeltanoRunFailed,
    StateNotWritten,
)
from etl_dagster.integrations.dagster_meltano.state import MeltanoStateResource
from etl_dagster.integrations.dagster_meltano.translator import (
    MeltanoDagsterTranslator,
    MeltanoStreamProps,
)

__all__ = [
    "CatalogUnknown",
    "MeltanoDagsterTranslator",
    "MeltanoError",
    "MeltanoNotFound",
    "MeltanoResource",
    "MeltanoRun",
    "MeltanoRunConfig",
    "MeltanoRunFailed",
    "MeltanoStateResource",
    "MeltanoStreamProps",
    "StateNotWritten",
    "Stream",
    "meltano_assets",
]

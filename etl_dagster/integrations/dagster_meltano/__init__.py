"""Meltano's pipelines and state in Dagster.

    from etl_dagster.integrations.dagster_meltano import MeltanoResource, meltano_assets

    project = MeltanoResource(project_dir="/srv/meltano", environment="prod")
    defs = Definitions(assets=[meltano_assets(project, "tap-postgres", "target-duckdb")])

Only what `dagster` itself exports is used, and Meltano itself only by its console script. Each name
is imported when it is first used.
"""

from typing import TYPE_CHECKING

from etl_dagster.lazy import gathered

if TYPE_CHECKING:
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

#: By module, the names that it defines.
_DEFINED_IN = {
    "assets": (
        "MeltanoRunConfig",
        "meltano_assets",
    ),
    "catalog": (
        "CatalogUnknown",
        "Stream",
    ),
    "project": (
        "MeltanoError",
        "MeltanoNotFound",
    ),
    "resources": ("MeltanoResource",),
    "runs": (
        "MeltanoRun",
        "MeltanoRunFailed",
        "StateNotWritten",
    ),
    "state": ("MeltanoStateResource",),
    "translator": (
        "MeltanoDagsterTranslator",
        "MeltanoStreamProps",
    ),
}
_MODULE_OF = {name: module for module, names in _DEFINED_IN.items() for name in names}

if not TYPE_CHECKING:
    __getattr__ = gathered(__name__, _MODULE_OF)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

"""The asset of a pipeline as a whole; its checks are about all tables at once."""

from __future__ import annotations

from dataclasses import dataclass

from dagster import AssetKey, AssetSpec

from etl_dagster.config import PipelineConfig
from etl_dagster.integrations.dagster.tables.translator import PIPELINE_TAG
from etl_dagster.integrations.dagster.thresholds import CheckThresholds


@dataclass(frozen=True)
class PipelineChecks:
    """The checks of a pipeline as a whole, if the code location has them."""

    key: AssetKey
    thresholds: CheckThresholds


def pipeline_key(pipeline: str) -> AssetKey:
    """The key of the asset of a pipeline as a whole."""
    return AssetKey(["etl_dagster", pipeline])


def pipeline_spec(config: PipelineConfig) -> AssetSpec:
    """The asset of a pipeline as a whole: external, for its checks."""
    # These import database drivers, which only code that asks a source should load.
    from etl_dagster.source.connection import source_uri
    from etl_dagster.source.slots import apply_slot_names

    return AssetSpec(
        key=pipeline_key(config.pipeline),
        group_name=config.pipeline,
        description=f"The stream of the pipeline {config.pipeline}: its slot in PostgreSQL, and "
        "how far it is. Its checks are about all tables at once.",
        kinds={"postgres", config.destination.type},
        tags={PIPELINE_TAG: config.pipeline},
        metadata={
            "source": source_uri(config.source),
            "publication": config.source.publication,
            "slot": " or ".join(apply_slot_names(config)),
            "destination": config.destination.place,
            "sensor": f"{config.pipeline}_replication",
        },
    )

"""What a tick that fails leaves in Dagster."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest
from dagster import AssetCheckEvaluation, AssetKey, SensorEvaluationContext

from etl_dagster.errors import ConfigError
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.sensor.tick import tick

KEYS = {"public.orders": AssetKey(["shop", "public", "orders"])}


class Resource:
    """A resource whose configuration is wrong."""

    def load_config(self) -> Any:
        raise ConfigError(["source.dsn: it is missing"], origin="etl.yaml")


class Instance:
    """Stores an evaluation, or can't."""

    def __init__(self) -> None:
        self.is_away = False
        self.stored: list[AssetCheckEvaluation] = []

    def report_runless_asset_event(self, event: AssetCheckEvaluation) -> None:
        if self.is_away:
            raise OSError("the database of Dagster is away")
        self.stored.append(event)


class Context:
    cursor = None
    last_sensor_start_time = 1.0
    log = logging.getLogger(__name__)

    def __init__(self, instance: Instance) -> None:
        self.instance = instance


def fails(instance: Instance, pipeline: str) -> None:
    context = cast(SensorEvaluationContext, Context(instance))
    with pytest.raises(ConfigError):
        tick(context, cast(EtlResource, Resource()), pipeline, KEYS)


def test_checks_that_could_not_be_stored_are_stored_by_the_next_tick() -> None:
    instance = Instance()
    instance.is_away = True
    fails(instance, "stored later")
    instance.is_away = False
    fails(instance, "stored later")
    stored = len(instance.stored)
    fails(instance, "stored later")

    assert stored
    assert not any(event.passed for event in instance.stored)
    assert len(instance.stored) == stored  # once for each reason

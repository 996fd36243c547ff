"""The configuration of a pipeline: one YAML file, or the same objects made in Python."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etl_dagster.config.ends import DestinationConfig, StoreConfig
from etl_dagster.config.environment import ENV_PREFIX
from etl_dagster.config.fan_out import FanOutConfig, FanOutMember
from etl_dagster.config.meltano import MeltanoConfig
from etl_dagster.config.memory import MemoryConfig
from etl_dagster.config.pace import BatchConfig, CopyConfig, RepairConfig, RetryConfig
from etl_dagster.config.pipeline import PipelineConfig
from etl_dagster.config.reading import load_config, parse_config
from etl_dagster.config.section import ByteCount
from etl_dagster.config.shards import ShardConfig, Sharding
from etl_dagster.config.source import SourceConfig
from etl_dagster.config.tables import (
    ColumnConfig,
    Nested,
    Numeric,
    OddPolicy,
    TableConfig,
    TableMode,
)
from etl_dagster.kinds import DESTINATIONS, STORES, find_config_model

__all__ = [
    "ENV_PREFIX",
    "BatchConfig",
    "ByteCount",
    "ColumnConfig",
    "CopyConfig",
    "DestinationConfig",
    "FanOutConfig",
    "FanOutMember",
    "MeltanoConfig",
    "MemoryConfig",
    "Nested",
    "Numeric",
    "OddPolicy",
    "PipelineConfig",
    "RepairConfig",
    "RetryConfig",
    "ShardConfig",
    "Sharding",
    "SourceConfig",
    "StoreConfig",
    "TableConfig",
    "TableMode",
    "load_config",
    "parse_config",
]

_MOVED: Mapping[str, tuple[str, str]] = {
    "DuckDBDestinationConfig": (DESTINATIONS, "duckdb"),
    "MemoryDestinationConfig": (DESTINATIONS, "memory"),
    "MemoryStoreConfig": (STORES, "memory"),
    "PostgresStoreConfig": (STORES, "postgres"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The models that were here before each was next to its class; deprecated."""
        if name not in _MOVED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        group, kind = _MOVED[name]
        model = find_config_model(group, kind)
        warnings.warn(
            f"etl_dagster.config.{name} is deprecated: import from {model.__module__}",
            DeprecationWarning,
            stacklevel=2,
        )
        return model

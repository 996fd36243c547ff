"""What pydantic found wrong, as a sentence and its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from etl_dagster.config.ends import DEFAULT_STORE, ByType
from etl_dagster.config.fan_out import FanOutConfig
from etl_dagster.config.meltano import MeltanoConfig
from etl_dagster.config.memory import MemoryConfig
from etl_dagster.config.metrics import MetricsConfig
from etl_dagster.config.pace import BatchConfig, CopyConfig, RepairConfig, RetryConfig
from etl_dagster.config.pipeline import PipelineConfig
from etl_dagster.config.shards import ShardConfig
from etl_dagster.config.source import SourceConfig
from etl_dagster.config.tables import ColumnConfig, TableConfig
from etl_dagster.config.text import Place, describe, suggest
from etl_dagster.kinds import DESTINATIONS, STORES, UnknownKind

_SECTIONS: Mapping[str, type[BaseModel]] = {
    "source": SourceConfig,
    "batch": BatchConfig,
    "copy": CopyConfig,
    "fan_out": FanOutConfig,
    "memory": MemoryConfig,
    "meltano": MeltanoConfig,
    "metrics": MetricsConfig,
    "repair": RepairConfig,
    "retry": RetryConfig,
}


def mistake_of(detail: Any, values: Mapping[str, Any]) -> tuple[Place, str]:
    """One mistake and its place; never with the value, which may be a secret."""
    place = tuple(map(str, detail["loc"]))
    kind = detail["type"]
    message = describe(kind, detail["msg"], detail.get("ctx") or {})
    if kind == "extra_forbidden":
        model = _section_model(place[:-1], values)
        known = [] if model is None else _keys(model)
        message += suggest(place[-1], known, list(_all_keys()))
    elif kind in ("type_missing", "type_unknown"):
        place = (*place, "type")
    return place, message


def _section_model(place: Place, values: Mapping[str, Any]) -> type[BaseModel] | None:
    """The model of a section; None if there is none."""
    match place:
        case ():
            return PipelineConfig
        case ("shards", _):
            return ShardConfig
        case ("tables", _):
            return TableConfig
        case ("tables", _, "columns", _):
            return ColumnConfig
        case ("destination" | "state_store" as section,):
            group = DESTINATIONS if section == "destination" else STORES
            default = None if section == "destination" else DEFAULT_STORE
            given = values.get(section)
            name = given.get("type", default) if isinstance(given, Mapping) else default
            try:
                return ByType(group).model(name)
            except UnknownKind:
                return None
        case ("destinations", name):
            several = values.get("destinations")
            given = several.get(name) if isinstance(several, Mapping) else None
            return _section_model(("destination",), {"destination": given})
        case (section,):
            return _SECTIONS.get(section)
    return None


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _all_keys() -> Iterator[Place]:
    for section, model in _SECTIONS.items():
        for key in _keys(model):
            yield section, key

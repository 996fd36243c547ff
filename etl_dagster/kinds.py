"""Which kinds of stores and destinations there are, by the ``type`` that a configuration names.

Besides the built-in ones, every installed package may bring some, as entry points whose name is
the type and whose object is the class:

    [project.entry-points."etl_dagster.destinations"]
    jsonl = "etl_jsonl:JsonLinesDestination"

The class has the model of its section in ``etl.yaml``, and is made from it:

    class JsonLinesConfig(DestinationConfig):
        type: Literal["jsonl"]
        folder: Path

    class JsonLinesDestination(Destination):
        config_model = JsonLinesConfig

        @classmethod
        def from_config(cls, config: JsonLinesConfig, pipeline: PipelineConfig) -> Self: ...

Stores are the same with `StoreConfig` and the group ``etl_dagster.stores``. Making an object must
not touch anything: the first call (of a store) or `startup` (of a destination) does.

Source: Python Packaging User Guide, "Entry points specification".
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from etl_dagster.errors import EtlError

DESTINATIONS = "etl_dagster.destinations"
STORES = "etl_dagster.stores"


class _BuiltIn(NamedTuple):
    """Where a built-in kind is, each as ``module:name``; imported when it is used."""

    #: The class, whose module may bring its drivers.
    made_by: str
    #: The model of its section, whose module brings none: a configuration is read without them.
    config_model: str


def _package(kind: str, class_name: str, model_name: str) -> _BuiltIn:
    return _BuiltIn(f"{kind}:{class_name}", f"{kind}.config:{model_name}")


_BUILT_IN: Mapping[str, Mapping[str, _BuiltIn]] = {
    DESTINATIONS: {
        "duckdb": _package(
            "etl_dagster.destinations.duckdb", "DuckDBDestination", "DuckDBDestinationConfig"
        ),
        "ducklake": _package(
            "etl_dagster.destinations.ducklake",
            "DuckLakeDestination",
            "DuckLakeDestinationConfig",
        ),
        "http": _package(
            "etl_dagster.destinations.http", "HttpDestination", "HttpDestinationConfig"
        ),
        "memory": _package(
            "etl_dagster.destinations.memory", "MemoryDestination", "MemoryDestinationConfig"
        ),
        "dlt": _package("etl_dagster.destinations.dlt", "DltDestination", "DltDestinationConfig"),
        "postgres": _package(
            "etl_dagster.destinations.postgres",
            "PostgresDestination",
            "PostgresDestinationConfig",
        ),
        "singer": _package(
            "etl_dagster.destinations.singer", "SingerDestination", "SingerDestinationConfig"
        ),
    },
    STORES: {
        "postgres": _package("etl_dagster.stores.postgres", "PostgresStore", "PostgresStoreConfig"),
        "memory": _BuiltIn(
            "etl_dagster.stores.memory:MemoryStore", "etl_dagster.stores.memory:MemoryStoreConfig"
        ),
    },
}


class UnknownKind(EtlError):
    """Nothing that is installed provides the type, or what does can't be used."""

    solution = "Correct `type`, or install the package that provides it in this environment."


def built_in_kinds(group: str) -> list[str]:
    """The types that come with this package."""
    return list(_BUILT_IN[group])


def known_kinds(group: str) -> list[str]:
    """The types that a configuration may name, the built-in ones first."""
    built_in = built_in_kinds(group)
    return built_in + sorted({point.name for point in _points(group)} - set(built_in))


def find_kind(group: str, name: str) -> Any:
    """The class that provides a type; built-in ones can't be replaced.

    Args:
        group: `DESTINATIONS` or `STORES`.

    Raises:
        UnknownKind: there is none, several packages want to be it, or it can't be imported.
    """
    if built_in := _BUILT_IN[group].get(name):
        return _imported(built_in.made_by)
    points = [point for point in _points(group) if point.name == name]
    if not points:
        what = "destination" if group == DESTINATIONS else "state store"
        raise UnknownKind(f"unknown {what}; known are: {', '.join(known_kinds(group))}")
    if len({point.value for point in points}) > 1:
        packages = sorted(_provider(point) for point in points)
        raise UnknownKind(
            f"several packages provide this type: {', '.join(packages)}",
            solution="Uninstall all but one of them.",
        )
    return _load(points[0])


def find_config_model(group: str, name: str) -> Any:
    """The model of a type's section; of a built-in type without importing its drivers.

    Args:
        group: `DESTINATIONS` or `STORES`.

    Raises:
        UnknownKind: as `find_kind`.
    """
    if built_in := _BUILT_IN[group].get(name):
        return _imported(built_in.config_model)
    return find_kind(group, name).config_model


def _imported(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _load(point: EntryPoint) -> Any:
    try:
        found = point.load()
    except Exception as error:
        raise UnknownKind(
            f"{_provider(point)}, which provides this type, can't be imported: "
            f"{type(error).__name__}: {error}",
            solution=f"Fix or upgrade {_provider(point)}.",
        ) from error
    for name in ("config_model", "from_config"):
        if not hasattr(found, name):
            raise UnknownKind(
                f"{point.value} of {_provider(point)}, which provides this type, has no {name!r}",
                solution=f"Upgrade {_provider(point)}; its author finds in "
                "etl_dagster/kinds.py what such a class needs.",
            )
    return found


def _points(group: str) -> Iterator[EntryPoint]:
    yield from entry_points(group=group)


def _provider(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value

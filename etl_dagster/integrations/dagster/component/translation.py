"""The ``translation`` of a component: attributes of assets, with templates about the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from dagster import AssetKey, AssetSpec, ResolutionContext
from pydantic import BaseModel

from etl_dagster.errors import ConfigError
from etl_dagster.integrations.dagster.tables.translator import PublishedTableProps

#: Changes the specification that the translator made for a table.
Translation: TypeAlias = Callable[[AssetSpec, PublishedTableProps], AssetSpec]


def resolve_translation(context: ResolutionContext, attributes: Any) -> Translation:
    """The function that ``translation`` describes.

    Templates know ``table``, a `PublishedTableProps`, and ``spec``, the asset without this
    translation. Metadata and tags are added; every other attribute is replaced.

    Args:
        attributes: an `AssetAttributesModel`, or the text of a template that gives one, a
            dictionary, or a whole `AssetSpec`.

    Raises:
        ConfigError: the attributes have partitions.
    """
    if isinstance(attributes, BaseModel):
        _as_mapping(attributes)

    def translate(spec: AssetSpec, table: PublishedTableProps) -> AssetSpec:
        scope = context.with_scope(table=table, spec=spec)
        given = scope.resolve_value(attributes) if isinstance(attributes, str) else attributes
        if isinstance(given, AssetSpec):
            return given
        return _changed(
            spec,
            {
                name: scope.at_path(name).resolve_value(value)
                for name, value in _as_mapping(given).items()
            },
        )

    return translate


def _as_mapping(given: Any) -> Mapping[str, Any]:
    if isinstance(given, BaseModel):
        given = {name: getattr(given, name) for name in given.model_fields_set}
    if not isinstance(given, Mapping):
        raise ConfigError(
            [
                f"translation: a template gave {type(given).__name__}; it must give attributes "
                "of an asset, or an AssetSpec"
            ]
        )
    if given.get("partitions_def") is not None:
        raise ConfigError(["translation.partitions_def: a streamed table has no partitions"])
    return given


def _changed(spec: AssetSpec, values: dict[str, Any]) -> AssetSpec:
    key = _key(values.pop("key", None) or spec.key)
    if prefix := values.pop("key_prefix", None):
        key = key.with_prefix(prefix)
    added = {name: values.pop(name) for name in ("metadata", "tags") if values.get(name)}
    if "tags" in added:
        added["tags"] = {name: str(value) for name, value in added["tags"].items()}
    if values.get("deps") is not None:
        values["deps"] = [_key(each) for each in values["deps"]]
    if values.get("kinds") is not None:
        values["kinds"] = set(values["kinds"])
    if values.get("code_version") is not None:
        # A template whose text looks like a number gives a number.
        values["code_version"] = str(values["code_version"])
    return spec.replace_attributes(key=key, **values).merge_attributes(**added)


def _key(given: Any) -> AssetKey:
    return given if isinstance(given, AssetKey) else AssetKey.from_user_string(str(given))

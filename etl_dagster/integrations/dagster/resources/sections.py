"""Resources whose fields are the settings of a section of ``etl.yaml``, made from its model."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
import functools
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from dagster import ConfigurableResource
from pydantic import BaseModel, Field, SecretBytes, SecretStr, create_model
from pydantic.fields import FieldInfo

from etl_dagster.integrations.dagster.resources.env import marked, resolved
from etl_dagster.kinds import DESTINATIONS, STORES, find_config_model

_SECRETS = (SecretStr, SecretBytes)
_AS_THEY_ARE = (str, int, float, bool)
#: By this key of a field's extras, Dagster's UI shows dots in place of the value.
_IS_SECRET = "dagster__is_secret"


class SectionResource(ConfigurableResource[Any]):
    """A section of the configuration, with one field for each of its settings.

    Values are checked where the whole configuration is read, so that all mistakes are reported at
    once, and an `EnvVar` may stand for any text or whole number.
    """

    #: Its name in ``etl.yaml``.
    place: ClassVar[str] = ""
    #: ``type`` in the section; None where it has none.
    kind: ClassVar[str | None] = None

    def __init__(self, **values: Any) -> None:
        super().__init__(**self._as_fields(values))

    @classmethod
    def _as_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """What was given, without None where that stands for the default."""
        given = {}
        for name, value in values.items():
            field = cls.model_fields.get(name)
            if field is None or field.annotation in _AS_THEY_ARE:
                if value is None and field is not None and not field.is_required():
                    continue
                given[name] = value
            elif _optional_of(field.annotation) in _AS_THEY_ARE:
                given[name] = value
            else:
                # Dagster resolves no `EnvVar` inside of this one.
                given[name] = marked(value)
        return given

    def settings(self) -> dict[str, Any]:
        """The section of a configuration.

        Raises:
            ConfigError: an environment variable is not set.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        # In a notebook nothing has resolved them before.
        given = {name: value for name, value in values.items() if value is not None}
        section: dict[str, Any] = resolved(given, self.place)
        return section if self.kind is None else {"type": self.kind} | section


class EtlStateStoreResource(ConfigurableResource[Any], ABC):
    """Where a pipeline's states, progress and schemas are kept."""

    def __init__(self, **values: Any) -> None:
        # For type checkers: the fields of a type are known only once its resource is made.
        super().__init__(**values)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The section ``state_store`` of a configuration."""


class EtlDestinationResource(ConfigurableResource[Any], ABC):
    """Where the rows of a pipeline go."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The section ``destination`` of a configuration."""


@functools.cache
def destination_resource(kind: str) -> type[EtlDestinationResource]:
    """The resource class for a type of destination, also for one from another package.

    >>> JsonLinesResource = destination_resource("jsonl")
    >>> destination = JsonLinesResource(folder="/var/lib/shop/tables")

    Its fields are those of the type's model, with the same defaults and descriptions. Text stands
    for paths and secrets, a dictionary for a model inside of the model.

    Raises:
        UnknownKind: no installed package provides the type.
    """
    model = find_config_model(DESTINATIONS, kind)
    made: type[EtlDestinationResource] = of_model(
        model, EtlDestinationResource, "destination", kind
    )
    return made


@functools.cache
def state_store_resource(kind: str) -> type[EtlStateStoreResource]:
    """The resource class for a type of state store; as `destination_resource`."""
    model = find_config_model(STORES, kind)
    made: type[EtlStateStoreResource] = of_model(model, EtlStateStoreResource, "state_store", kind)
    return made


def of_model(
    model: type[BaseModel],
    base: type[ConfigurableResource[Any]] | None,
    place: str,
    kind: str | None = None,
) -> Any:
    """A resource class with the settings of a model.

    Args:
        base: a further base class, which says what the resource is used for.
        place: name of the section.
        kind: the section's ``type``, where it has one.
    """
    fields: dict[str, Any] = {
        name: _field(field)
        for name, field in model.model_fields.items()
        if kind is None or name != "type"
    }
    made = create_model(
        f"{model.__name__.removesuffix('Config')}Resource",
        __base__=(SectionResource,) if base is None else (SectionResource, base),
        __module__=__name__,
        __doc__=model.__doc__,
        **fields,
    )
    return _placed(made, place, kind)


def _placed(made: Any, place: str, kind: str | None) -> Any:
    made.place, made.kind = place, kind
    return made


def _field(field: FieldInfo) -> tuple[Any, Any]:
    """The type that Dagster's configuration has for a setting, and its default and description."""
    kind = _config_type(field.annotation)
    extra: dict[str, Any] | None = {_IS_SECRET: True} if _is_secret(field.annotation) else None
    default: Any = ...
    if field.default_factory is not None:
        # Left to the model, which calls it each time.
        kind, default = kind | None, None
    elif not field.is_required():
        default = _plain(field.default)
    return kind, Field(default, description=field.description, json_schema_extra=extra)


def _config_type(annotation: Any) -> Any:
    match get_origin(annotation), get_args(annotation):
        case origin, (wrapped, *_) if origin is Annotated:
            return _config_type(wrapped)
        case origin, parts if origin in (Union, UnionType):
            inner = _optional_of(annotation)
            return Any if inner is None or len(parts) > 2 else _config_type(inner) | None
        case origin, values if origin is Literal:
            kinds = {type(value) for value in values}
            return kinds.pop() if len(kinds) == 1 and kinds < {*_AS_THEY_ARE} else Any
        case origin, _ if isinstance(origin, type) and issubclass(origin, Mapping):
            return dict[str, Any]
        case origin, _ if isinstance(origin, type) and issubclass(origin, Collection):
            return list[Any]
    if annotation in _AS_THEY_ARE:
        return annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return dict[str, Any]
    return str if annotation in (Path, SecretStr) else Any


def _optional_of(annotation: Any) -> Any:
    """``X`` for the type ``X | None``; None for any other type."""
    if get_origin(annotation) not in (Union, UnionType):
        return None
    parts = [part for part in get_args(annotation) if part is not NoneType]
    return parts[0] if len(parts) == 1 else None


def _is_secret(annotation: Any) -> bool:
    return annotation in _SECRETS or any(map(_is_secret, get_args(annotation)))


def _plain(default: Any) -> Any:
    """The value as it would stand in ``etl.yaml``."""
    match default:
        case Path():
            return str(default)
        case SecretStr():
            return default.get_secret_value()
        case Enum():
            return default.value
        case BaseModel():
            return default.model_dump(mode="json")
        case Mapping():
            return {key: _plain(value) for key, value in default.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(value) for value in default]
        case _:
            return default

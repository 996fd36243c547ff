"""`EnvVar` where Dagster does not resolve it: inside of a dict, and outside of Dagster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dagster import EnvVar

from etl_dagster.errors import ConfigError

_IntEnvVar = type(EnvVar.int("unused"))
#: Dagster turns an `EnvVar` in a dict into ``{"env": NAME}``, which could as well be a header of
#: that name. It does not change a dict with these keys.
_NAME, _IS_INT = "etl_dagster/env", "etl_dagster/int"


def marked(value: Any) -> Any:
    """The value with a dict in place of each `EnvVar`: Dagster sees the name, and no secret."""
    if isinstance(value, EnvVar):
        return {_NAME: value.env_var_name}
    if isinstance(value, _IntEnvVar):
        return {_NAME: value.name, _IS_INT: True}
    if isinstance(value, Mapping):
        return {key: marked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [marked(item) for item in value]
    return value


def with_marked(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields of a resource, where Dagster resolves no `EnvVar` inside of the one named."""
    return dict(values) | ({name: marked(values[name])} if name in values else {})


def resolved(value: Any, place: str) -> Any:
    """The value with the text of the environment in place of each `EnvVar`, marked or not.

    Raises:
        ConfigError: a variable is not set, or is not a number where one is needed; all of them.
    """
    mistakes: list[str] = []
    result = _resolve(marked(value), place, mistakes)
    if mistakes:
        raise ConfigError(mistakes, origin="the resource")
    return result


def _resolve(value: Any, place: str, mistakes: list[str]) -> Any:
    if isinstance(value, Mapping):
        if _NAME in value:
            return _read(value[_NAME], bool(value.get(_IS_INT)), place, mistakes)
        return {key: _resolve(item, f"{place}.{key}", mistakes) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, f"{place}.{index}", mistakes) for index, item in enumerate(value)]
    return value


def _read(name: str, is_int: bool, place: str, mistakes: list[str]) -> str | int | None:
    text = os.environ.get(name)
    if text is None:
        mistakes.append(f"{place}: the environment variable {name} is not set")
        return None
    if not is_int:
        return text
    try:
        return int(text)
    except ValueError:
        mistakes.append(f"{place}: the environment variable {name} is not a whole number")
        return None

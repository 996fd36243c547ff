"""What a configuration takes from the environment: variables in its values, and overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from etl_dagster.config.text import Place

#: Overrides such as ``ETL_DAGSTER__SOURCE__PASSWORD`` begin with this; ``__`` goes one level down.
ENV_PREFIX = "ETL_DAGSTER__"
_EXPANSION = re.compile(
    r"\$(?:\$|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|(?P<open>\{))"
)


def expand(
    value: Any, environ: Mapping[str, str], mistakes: list[tuple[Place, str]], place: Place
) -> Any:
    """The value with the variables in its texts replaced, at any depth.

    Args:
        mistakes: gets those that are found, each with its place.
        place: of the value.
    """
    if isinstance(value, Mapping):
        return {k: expand(v, environ, mistakes, (*place, str(k))) for k, v in value.items()}
    if isinstance(value, list):
        return [expand(v, environ, mistakes, (*place, str(index))) for index, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if match["open"]:
            mistakes.append((place, "${ is not closed, or names no variable; $$ is a plain $"))
            return "0"
        if name is None:
            return "$"
        if name in environ:
            return environ[name]
        if default is not None:
            return default
        mistakes.append((place, f"the environment variable {name} is not set"))
        return "0"  # in place of the value, so that the rest can still be checked

    return _EXPANSION.sub(replacement, value)


def override(
    values: dict[str, Any], environ: Mapping[str, str], mistakes: list[str]
) -> dict[Place, str]:
    """Apply the overrides; returns the name of the variable by the place that it sets."""
    variables: dict[Place, str] = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX):
            continue
        *sections, key = name.removeprefix(ENV_PREFIX).lower().split("__")
        target: Any = values
        for section in sections:
            if not isinstance(target, dict):
                break
            if target.get(section) is None:  # in YAML, a section without keys is null
                target[section] = {}
            target = target[section]
        if not isinstance(target, dict) or not key:
            mistakes.append(f"{name}: there is no such setting to override")
            continue
        target[key] = environ[name]
        variables[(*sections, key)] = name
    return variables

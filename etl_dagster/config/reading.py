"""Reads a configuration: a YAML file, or the same as plain values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from etl_dagster.config.environment import expand, override
from etl_dagster.config.mistakes import mistake_of
from etl_dagster.config.pipeline import PipelineConfig
from etl_dagster.config.text import Place, with_line
from etl_dagster.errors import ConfigError, ConfigFileMissing


def load_config(path: str | Path, environ: Mapping[str, str] | None = None) -> PipelineConfig:
    """Read a YAML file, expand ``${NAME}`` and ``${NAME:-default}``, apply the overrides.

    ``$$`` is a plain dollar sign. Relative paths of destination and state store are relative to
    the file.

    Raises:
        ConfigFileMissing: there is no such file.
        ConfigError: the file can't be read, or holds mistakes: all of them, each with its place.
    """
    import yaml

    from etl_dagster.config.document import read_yaml

    environ = os.environ if environ is None else environ
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigFileMissing(path.name, folder=str(path.absolute().parent)) from None
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError([f"can't be read: {what}"], origin=str(path)) from error
    try:
        raw, lines, twice = read_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        # The cause quotes the line, which may hold a password.
        raise ConfigError([f"{place}{error.problem}"], origin=str(path)) from None
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise ConfigError(["must hold a mapping, such as `pipeline: shop`"], origin=str(path))
    return _parse(raw, environ, origin=path, lines=lines, mistakes=twice)


def parse_config(
    raw: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    *,
    origin: str | Path = "configuration",
) -> PipelineConfig:
    """Make a configuration from plain values; as `load_config`, without the file.

    Without a `destination` it is for a pipeline that is given its destination as an object.
    """
    environ = os.environ if environ is None else environ
    return _parse(raw, environ, origin=origin, lines={}, mistakes=[])


def _parse(
    raw: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    origin: str | Path,
    lines: Mapping[Place, int],
    mistakes: list[str],
) -> PipelineConfig:
    """As `parse_config`; `lines` are those of the keys, `mistakes` what was found before."""
    found: list[tuple[Place, str]] = []
    values = expand(raw, environ, found, ())
    # What a variable would have brought is not judged without it.
    unset = {place for place, _ in found}
    variables = override(values, environ, mistakes)
    if isinstance(origin, Path) and "destination" not in values and not values.get("destinations"):
        found.append((("destination",), "is required; or `destinations`, each under a name"))
    config = None
    try:
        config = PipelineConfig.model_validate(values)
    except ValidationError as error:
        more = [mistake_of(detail, values) for detail in error.errors(include_input=False)]
        found += [mistake for mistake in more if mistake[0] not in unset]
    for place, message in found:
        mistake = f"{'.'.join(place)}: {message}" if place else message
        if (variable := _variable_of(place, variables, lines)) is not None:
            mistakes.append(f"{variable}: {mistake}")
        else:
            mistakes.append(with_line(place, mistake, lines))
    if mistakes or config is None:
        raise ConfigError(mistakes, origin=str(origin))
    if isinstance(origin, Path):
        folder = origin.absolute().parent
        sections = ("destination", "state_store", "batch")
        placed = {name: getattr(config, name).relative_to(folder) for name in sections}
        several = {name: each.relative_to(folder) for name, each in config.destinations.items()}
        config = config.model_copy(update=placed | {"destinations": several})
    return config


def _variable_of(
    place: Place, variables: Mapping[Place, str], lines: Mapping[Place, int]
) -> str | None:
    """The variable that brought what is at a place, or a section that only variables have."""
    if place in variables or place in lines:
        return variables.get(place)
    within = (name for brought, name in variables.items() if brought[: len(place)] == place)
    return next(within, None) if place else None

"""Writes the pages of the site that are made from the code: all settings, and all commands.

A script and not a plugin, so that any builder of the site can be run after it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import etl_dagster.destinations
import etl_dagster.stores
from etl_dagster.cli.app import cli
from etl_dagster.config import ENV_PREFIX, PipelineConfig


def main() -> None:
    folder = Path(__file__).parent / "reference"
    (folder / "configuration.md").write_text(configuration_page(), "utf-8")
    (folder / "command-line.md").write_text(command_line_page(), "utf-8")


# -- settings ----------------------------------------------------------------------------------


def configuration_page() -> str:
    """Every setting of ``etl.yaml``, from the models that read it."""
    parts = [
        f"""# Configuration

A pipeline is one YAML file, by default `etl.yaml`; `etl-dagster init` writes a commented one. From
Python, [`load_config`][etl_dagster.config.load_config] reads it and
[`parse_config`][etl_dagster.config.parse_config] takes the same as a dictionary.

`${{NAME}}` in a value is an environment variable, `${{NAME:-other}}` has a default, `$$` is a
dollar sign. Any setting can be overridden from the environment: `{ENV_PREFIX}SOURCE__PASSWORD` is
`source.password`. Unknown settings are refused, all mistakes are told at once, and secrets never
show in logs and errors.

## Pipeline
""",
        *_table(PipelineConfig),
    ]
    for name, setting in _settings(PipelineConfig):
        models = list(_models(setting.annotation))
        if not models:
            continue
        title = f"{name}.<schema.table>" if get_origin(setting.annotation) is dict else name
        parts.append(f"\n## `{title}` {{ #{name} }}\n")
        several = len(models) > 1
        for model in models:
            if several:
                parts.append(f"\n### `{name}.type: {_kind(model)}` {{ #{name}-{_kind(model)} }}\n")
            parts += [model.__doc__ or "", "", *_table(model)]
            for inner, section in _settings(model):
                for each in _models(section.annotation):
                    parts.append(f"\n### `{title}.{inner}.<name>` {{ #{inner} }}\n")
                    parts += [each.__doc__ or "", "", *_table(each)]
    return "\n".join(parts) + "\n"


def _table(model: type[BaseModel]) -> Iterator[str]:
    yield "| setting | type | default | |"
    yield "|---|---|---|---|"
    for name, setting in _settings(model):
        models = list(_models(setting.annotation))
        kind = f"[section](#{name})" if models else _type(setting)
        about = setting.description or ""
        if len(models) == 1:
            about = about or models[0].__doc__ or ""
        elif models:
            about = about or f"By `type`: {', '.join(map(_kind, models))}."
        yield f"| `{name}` | {kind} | {_default(setting, bool(models))} | {about} |"
    yield ""


def _settings(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for name, setting in model.model_fields.items():
        yield setting.alias or name, setting


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models of a section: one, or one for each ``type`` that it may have."""
    for part in get_args(annotation) or (annotation,):
        if not (isinstance(part, type) and issubclass(part, BaseModel)):
            continue
        kind = part.model_fields.get("type")
        if kind is not None and get_origin(kind.annotation) is not Literal:
            yield from _subclasses(part)
        else:
            yield part


def _subclasses(base: type[BaseModel]) -> list[type[BaseModel]]:
    """Those of the package itself; importing its modules makes them known."""
    for package in (etl_dagster.destinations, etl_dagster.stores):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    return [m for m in base.__subclasses__() if m.__module__.startswith("etl_dagster.")]


def _kind(model: type[BaseModel]) -> str:
    return str(get_args(model.model_fields["type"].annotation)[0])


def _type(setting: FieldInfo) -> str:
    limits = [limit for item in setting.metadata if (limit := _limit(item))]
    return ", ".join([_name(setting.annotation), *limits])


def _name(annotation: Any) -> str:
    arguments = [part for part in get_args(annotation) if part is not NoneType]
    match get_origin(annotation):
        case None:
            names = {str: "text", SecretStr: "secret", Path: "path", bool: "true or false"}
            names |= {int: "integer", float: "number"}
            return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
        case origin if origin is Literal:
            return ", ".join(f"`{value}`" for value in arguments)
        case origin if origin in (Union, UnionType):
            return " or ".join(map(_name, arguments))
        case origin if origin is Annotated:
            return _name(arguments[0])
        case origin if origin is dict:
            return f"{_name(arguments[1])} by name"
        case _:
            return f"list of {_name(arguments[0])}"


def _limit(constraint: Any) -> str | None:
    for name, words in (
        ("ge", "at least"),
        ("gt", "more than"),
        ("le", "at most"),
        ("lt", "less than"),
        ("max_length", "at most"),
        ("pattern", "matches"),
    ):
        value = getattr(constraint, name, None)
        if value is None:
            continue
        if name == "max_length":
            return f"{words} {value} characters"
        return f"{words} `{value}`".replace("|", "\\|") if name == "pattern" else f"{words} {value}"
    return None


def _default(setting: FieldInfo, section: bool) -> str:
    if setting.is_required():
        return "**required**"
    value = setting.get_default(call_default_factory=True)
    if section or value in (None, PydanticUndefined, {}, ()):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


# -- commands ----------------------------------------------------------------------------------


def command_line_page() -> str:
    """What ``--help`` says of each command."""
    parts = ["# Command line\n"]
    for path, command in _commands("etl-dagster", cli):
        context = click.Context(command, info_name=path, max_content_width=88, terminal_width=88)
        context.help_option_names = ["-h", "--help"]
        parts.append(f"## `{path}`\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from _commands(f"{path} {name}", found)


if __name__ == "__main__":
    main()

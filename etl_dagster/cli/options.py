"""Options that commands share: the configuration, JSON, logging."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from etl_dagster.log_fields import JsonLines, TextLines

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig

Command = TypeVar("Command", bound=Callable[..., Any])


#: Where the chosen destination and the chosen shard are kept for `load`.
_CHOSEN, _SHARD = "etl_dagster.destination", "etl_dagster.shard"


def config_option(command: Command) -> Command:
    """Adds ``-c``, ``--destination`` and ``--shard``; the command receives the path as
    `config_path`."""
    shard = click.option(
        "--shard",
        metavar="NAME",
        expose_value=False,
        callback=_choose_shard,
        help="With several shards: the one to use. The first has the pipeline's name.",
    )
    chosen = click.option(
        "--destination",
        metavar="NAME",
        expose_value=False,
        callback=_choose,
        help="With several destinations: the one to use.",
    )
    with_path = click.option(
        "-c",
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        envvar="ETL_DAGSTER_CONFIG",
        default=Path("etl.yaml"),
        show_default=True,
        show_envvar=True,
        help="The configuration.",
    )
    return with_path(chosen(shard(command)))


def _choose(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    context.meta[_CHOSEN] = name


def _choose_shard(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    context.meta[_SHARD] = name


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        command
    )


def load(path: Path) -> PipelineConfig:
    """Read the configuration of one pipeline; of several destinations or shards, the named one.

    Raises:
        ConfigError: the file is missing, or has mistakes.
        UsageError: there are several and none is named, or none has that name.
    """
    config = load_whole(path)
    if config.destinations:
        raise click.UsageError(
            f"{config.pipeline} has several destinations: choose one with --destination "
            f"({', '.join(config.destinations)})"
        )
    if config.shards:
        raise click.UsageError(
            f"{config.pipeline} has several shards: choose one with --shard "
            f"({', '.join(config.members())})"
        )
    return config


def load_shared(path: Path) -> PipelineConfig:
    """As `load`, for what all shards share, such as the destination: no shard must be named."""
    config = load_whole(path)
    return next(iter(config.members().values())) if config.shards else load(path)


def load_each(path: Path) -> dict[str, PipelineConfig]:
    """Read the configuration: a pipeline for each destination or shard, or for the named one.

    Raises:
        ConfigError, UsageError: as `load`.
    """
    config = load_whole(path)
    return config.members() or {"": config}


def load_whole(path: Path) -> PipelineConfig:
    """Read the configuration, with all destinations or shards if none is named.

    Raises:
        ConfigError, UsageError: as `load`.
    """
    from etl_dagster.config import load_config

    config = load_config(path)
    context = click.get_current_context(silent=True)
    meta = {} if context is None else context.meta
    if (shard := meta.get(_SHARD)) is not None:
        return _shard(config, shard)
    name = meta.get(_CHOSEN)
    if name is None:
        return config
    if name not in config.destinations:
        known = ", ".join(config.destinations) or "it has one, which has no name"
        raise click.UsageError(
            f"{config.pipeline} has no destination {name!r} under `destinations`: {known}"
        )
    return config.member(name)


def _shard(config: PipelineConfig, name: str) -> PipelineConfig:
    shards = config.members() if config.shards else {}
    if name not in shards:
        known = ", ".join(shards) or "it has one stream, which has no name"
        raise click.UsageError(f"{config.pipeline} has no shard {name!r}: {known}")
    return shards[name]


def log_format_option(command: Command) -> Command:
    """Adds ``--log-format``; the command receives `log_format`, ``text`` or ``json``."""
    return click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        envvar="ETL_DAGSTER_LOG_FORMAT",
        show_envvar=True,
        help="The log, on stderr, for people or as an object on each line.",
    )(command)


def set_up_logging(
    context: click.Context,
    level: int,
    handler: logging.Handler | None = None,
    *,
    as_json: bool = False,
    names_pipelines: bool = False,
) -> None:
    """Log to stderr: stdout is for results only.

    Args:
        as_json: log an object on each line, in place of text.
        names_pipelines: begin lines with the pipeline's name, for a process that runs several.
    """
    if context.find_root().params.get("debug"):
        level = logging.DEBUG
    if handler is None or as_json:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines() if as_json else TextLines(names_pipelines=names_pipelines))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("etl_dagster").setLevel(level)
    # Stamina's default prints retries on stdout if structlog is installed.
    from stamina.instrumentation import LoggingOnRetryHook, set_on_retry_hooks

    set_on_retry_hooks((LoggingOnRetryHook,))

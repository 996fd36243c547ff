"""What the commands have in common: the configuration, and logging."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig

Command = TypeVar("Command", bound=Callable[..., Any])


def config_option(command: Command) -> Command:
    """Adds ``-c``; the command receives the path as `config_path`."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        envvar="ETL_DAGSTER_CONFIG",
        default=Path("etl.yaml"),
        show_default=True,
        show_envvar=True,
        help="The configuration.",
    )(command)


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        command
    )


def load(path: Path) -> PipelineConfig:
    """Read the configuration.

    Raises:
        ConfigError: it is not there, or holds mistakes.
    """
    from etl_dagster.config import load_config
    from etl_dagster.errors import ConfigError

    if not path.exists():
        missing = ConfigError(["there is no such file"], origin=str(path))
        missing.solution = (
            "`etl-dagster init` writes one; or name yours with -c or ETL_DAGSTER_CONFIG."
        )
        raise missing
    return load_config(path)


def set_up_logging(
    context: click.Context, level: int, handler: logging.Handler | None = None
) -> None:
    """Log to stderr, so that stdout has nothing but results."""
    if context.find_root().params.get("debug"):
        level = logging.DEBUG
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("etl_dagster").setLevel(level)
    # By default retries are printed on stdout wherever structlog happens to be installed.
    from stamina.instrumentation import LoggingOnRetryHook, set_on_retry_hooks

    set_on_retry_hooks((LoggingOnRetryHook,))

"""`etl-dagster run`: the pipeline in this process."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.failures import FAILED, NotCaughtUp, RunFailed
from etl_dagster.cli.following import (
    LOOK_AGAIN_S,
    STARTING_S,
    follow,
    start,
)
from etl_dagster.cli.options import (
    config_option,
    json_option,
    load_whole,
    log_format_option,
    set_up_logging,
)
from etl_dagster.cli.stopping import stopped_by_signals

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig


@click.command(short_help="Copy the published tables and stream their changes.")
@config_option
@click.option(
    "--until-caught-up",
    is_flag=True,
    help="End when every table is copied, and all that is committed now is durable.",
)
@click.option("--plain", is_flag=True, help="Lines instead of a live display.")
@log_format_option
@json_option
@click.pass_context
def run(
    context: click.Context,
    config_path: Path,
    until_caught_up: bool,
    plain: bool,
    log_format: str,
    as_json: bool,
) -> None:
    """Copy every published table and stream its changes until Ctrl-C.

    The first Ctrl-C stops when what is being written is durable; the second stops at once, and
    the next start continues from the last durable position. --json writes the status as one object
    on each line. With --until-caught-up, a run that was stopped before ends with exit code 130, or
    with 143 where SIGTERM or SIGHUP stopped it.
    With --shard, this process runs one shard alone; without, all of them.

    \b
    etl-dagster run --until-caught-up --plain
    """
    try:
        config = load_whole(config_path)
        are_several = config.destinations or config.shards
        if not are_several and config.membership is not None:
            raise click.UsageError("all destinations run together: leave --destination out")
        if are_several:
            from etl_dagster.cli.run_several import run_several as run_it
        else:
            run_it = _run_one
        has_errors = run_it(
            context,
            config,
            until_caught_up=until_caught_up,
            plain=plain,
            log_format=log_format,
            as_json=as_json,
        )
    except Exception as error:
        if as_json:
            _tell(error)
        raise
    if until_caught_up and has_errors:
        context.exit(FAILED)


def _run_one(
    context: click.Context,
    config: PipelineConfig,
    *,
    until_caught_up: bool,
    plain: bool,
    log_format: str,
    as_json: bool,
) -> bool:
    """As `run_several`, of a pipeline with one stream and one destination."""
    from etl_dagster.cli.views import make_view
    from etl_dagster.in_process import opened_one
    from etl_dagster.integrations.meltano.positions.mirror import mirrored_positions

    is_json_log = log_format == "json"
    view = make_view(plain=plain, as_json=as_json, is_log_json=is_json_log)
    _wait_for_servers(config)
    level = logging.INFO if plain or is_json_log else logging.WARNING
    set_up_logging(context, level, view.log_handler(), as_json=is_json_log)
    with (
        opened_one(config) as (pipeline, store),
        stopped_by_signals(pipeline.shutdown, view) as asked,
    ):
        if not start(pipeline, asked):
            asked.end_soon(has_goal=until_caught_up)
            if until_caught_up:
                raise NotCaughtUp(0, 0, exit_code=asked.exit_code)
            return False
        with (
            mirrored_positions(config, store, pipeline.status),
            asked.ends_soon_after(has_goal=until_caught_up),
        ):
            follow(pipeline, view, asked, until_caught_up=until_caught_up)
    return any(table.error for table in pipeline.status().tables.values())


def _wait_for_servers(config: PipelineConfig) -> None:
    """Check everything; a server that is just starting up is waited for.

    Raises:
        EtlError: something stands in the way.
    """
    from etl_dagster.cli.checks import failed_checks, refuse

    deadline = time.monotonic() + STARTING_S
    said = False
    while failures := failed_checks(config):
        if time.monotonic() > deadline or not all(error.is_starting for error in failures):
            refuse(failures)
        if not said:
            click.echo(f"{failures[0].reason}; waiting for it", err=True)
        said = True
        time.sleep(LOOK_AGAIN_S)


def _tell(error: BaseException) -> None:
    """The last line for programs; people read stderr."""
    from etl_dagster.errors import EtlError

    cause = error.error if isinstance(error, RunFailed) else error
    line: dict[str, str | None] = {"error": type(cause).__name__, "solution": None}
    if isinstance(cause, EtlError):
        line = {"error": cause.reason, "solution": cause.solution}
    elif isinstance(cause, click.ClickException):
        line = {"error": cause.format_message(), "solution": None}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()

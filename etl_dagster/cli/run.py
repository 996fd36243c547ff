"""`etl-dagster run`: the pipeline in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.failures import FAILED, RunFailed
from etl_dagster.cli.following import RunArguments, run_to_its_end, wait_for_servers
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
    on each line. With --until-caught-up, a run that is stopped before it has caught up ends with
    exit code 130, or with 143 if SIGTERM or SIGHUP stopped it.
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
        options = RunArguments(
            until_caught_up=until_caught_up,
            plain=plain,
            is_log_json=log_format == "json",
            as_json=as_json,
        )
        has_errors = run_it(context, config, options)
    except Exception as error:
        if as_json:
            _print_error(error)
        raise
    if until_caught_up and has_errors:
        context.exit(FAILED)


def _run_one(context: click.Context, config: PipelineConfig, options: RunArguments) -> bool:
    """As `run_several`, for a pipeline with one stream and one destination."""
    from etl_dagster.cli.checks import failed_checks
    from etl_dagster.cli.views import make_view
    from etl_dagster.in_process import opened_one
    from etl_dagster.integrations.meltano.positions.mirror import mirrored_positions

    is_log_json = options.is_log_json
    view = make_view(plain=options.plain, as_json=options.as_json, is_log_json=is_log_json)
    wait_for_servers(lambda: failed_checks(config))
    set_up_logging(context, options.log_level, view.log_handler(), as_json=is_log_json)
    with (
        opened_one(config) as (pipeline, store),
        stopped_by_signals(pipeline.shutdown, view) as asked,
    ):
        has_begun = run_to_its_end(
            pipeline,
            view,
            asked,
            lambda: mirrored_positions(config, store, pipeline.status),
            until_caught_up=options.until_caught_up,
        )
    return has_begun and any(table.error for table in pipeline.status().tables.values())


def _print_error(error: BaseException) -> None:
    """Print the last line for programs; people read stderr."""
    from etl_dagster.errors import EtlError

    cause = error.error if isinstance(error, RunFailed) else error
    line: dict[str, str | None] = {"error": type(cause).__name__, "solution": None}
    if isinstance(cause, EtlError):
        line = {"error": cause.reason, "solution": cause.solution}
    elif isinstance(cause, click.ClickException):
        line = {"error": cause.format_message(), "solution": None}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()

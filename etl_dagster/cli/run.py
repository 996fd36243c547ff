"""`etl-dagster run`: the pipeline in this process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.failures import FAILED, INTERRUPTED, NotCaughtUp, RunFailed
from etl_dagster.cli.options import config_option, json_option, load, set_up_logging

if TYPE_CHECKING:
    from etl_dagster.cli.views import View
    from etl_dagster.config import PipelineConfig
    from etl_dagster.runtime.pipeline import Pipeline

#: So long a server may take to start up, and so often it is looked at.
_STARTING_S, _LOOK_AGAIN_S = 120.0, 1.0


@click.command(short_help="Copy the published tables and stream their changes.")
@config_option
@click.option(
    "--until-caught-up",
    is_flag=True,
    help="End when every table is copied, and all that is committed now is durable.",
)
@click.option("--plain", is_flag=True, help="Lines instead of a live display.")
@json_option
@click.pass_context
def run(
    context: click.Context, config_path: Path, until_caught_up: bool, plain: bool, as_json: bool
) -> None:
    """Copy every published table and stream its changes until Ctrl-C.

    The first Ctrl-C stops when what is being written is durable; the second stops at once, and
    the next start goes on from the last durable position. --json writes the status as one object
    on each line. With --until-caught-up, a run that was stopped before ends with exit code 130.
    """
    try:
        config = load(config_path)
        from etl_dagster.cli.views import make_view

        view = make_view(plain=plain, as_json=as_json)
        from etl_dagster.assembly import build_destination, opened_store
        from etl_dagster.integrations.meltano.positions.mirror import mirrored_positions
        from etl_dagster.runtime.pipeline import Pipeline

        _wait_for_servers(config)
        set_up_logging(context, logging.INFO if plain else logging.WARNING, view.log_handler())
        with opened_store(config) as store:
            pipeline = Pipeline(config, store, build_destination(config))
            with _stopped_by_signals(pipeline.shutdown, view) as asked:
                if not _start(pipeline, asked):
                    if until_caught_up:
                        raise NotCaughtUp(0, 0)
                    return
                with mirrored_positions(config, store, pipeline.status):
                    _follow(pipeline, view, until_caught_up=until_caught_up)
    except Exception as error:
        if as_json:
            _tell(error)
        raise
    if until_caught_up and any(table.error for table in pipeline.status().tables.values()):
        context.exit(FAILED)


def _wait_for_servers(config: PipelineConfig) -> None:
    """Check everything; a server that is just starting up is waited for.

    Raises:
        EtlError: something stands in the way.
    """
    from etl_dagster.cli.checks import failed_checks, refuse

    deadline = time.monotonic() + _STARTING_S
    said = False
    while failures := failed_checks(config):
        if time.monotonic() > deadline or not all(error.is_starting for error in failures):
            refuse(failures)
        if not said:
            click.echo(f"{failures[0].reason}; waiting for it", err=True)
        said = True
        time.sleep(_LOOK_AGAIN_S)


def _start(pipeline: Pipeline, asked: threading.Event) -> bool:
    """Start it; False where it was asked to stop before it had begun.

    Raises:
        RunFailed: what is configured is right, and failed all the same: a full disk, a server that
            went away.
        EtlError: it can't run as it is configured.
    """
    from etl_dagster.errors import EtlError, InvalidState

    try:
        pipeline.start()
    except EtlError as error:
        if asked.is_set() and isinstance(error, InvalidState):
            return False
        if error.retryable:
            raise RunFailed(error) from error
        raise
    return True


def _follow(pipeline: Pipeline, view: View, *, until_caught_up: bool) -> None:
    """Show the pipeline until it ends.

    Raises:
        RunFailed: it failed.
        NotCaughtUp: it was stopped before.
    """
    failures: list[BaseException] = []
    is_caught_up = not until_caught_up
    if until_caught_up:

        def wait() -> None:
            nonlocal is_caught_up
            try:
                is_caught_up = pipeline.wait_until_caught_up()
            except BaseException as failure:
                failures.append(failure)
            pipeline.shutdown()

        waiter = threading.Thread(target=wait, name="until caught up", daemon=True)
        waiter.start()
    try:
        with view:
            while not pipeline.wait(view.interval_s):
                view.show(pipeline.status())
            view.show(pipeline.status())
    except Exception as error:
        raise RunFailed(error) from error
    if until_caught_up:
        waiter.join()
    if failures:
        raise RunFailed(failures[0]) from failures[0]
    if not is_caught_up:
        tables = pipeline.status().tables.values()
        raise NotCaughtUp(sum(table.state == "ready" for table in tables), len(tables))


@contextlib.contextmanager
def _stopped_by_signals(shutdown: Callable[[], None], view: View) -> Iterator[threading.Event]:
    """The first signal asks, the second doesn't. Gives what is set by the first."""
    asked = threading.Event()
    terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def stop(number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            # The terminal is gone; what is still shown must not fail.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in terminals:
                os.dup2(nowhere, terminal)
        if asked.is_set():
            view.restore_terminal()
            os._exit(INTERRUPTED)
        asked.set()
        view.stopping()
        shutdown()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(error: BaseException) -> None:
    """The last line for programs; people read stderr."""
    from etl_dagster.errors import EtlError

    cause = error.error if isinstance(error, RunFailed) else error
    line: dict[str, str | None] = {"error": type(cause).__name__, "solution": None}
    if isinstance(cause, EtlError):
        line = {"error": cause.reason, "solution": cause.solution}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()

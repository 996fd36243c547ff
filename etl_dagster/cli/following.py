"""Runs a pipeline: waits for its servers, starts it, and shows it until it ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import click

from etl_dagster.cli.failures import NotCaughtUp, RunFailed

if TYPE_CHECKING:
    from etl_dagster.cli.stopping import Asked
    from etl_dagster.cli.views import View
    from etl_dagster.errors import EtlError
    from etl_dagster.runtime.showing.status import PipelineStatus

#: How long a server may take to start up, and the pause between two checks, seconds.
_STARTING_S, _LOOK_AGAIN_S = 120.0, 1.0
#: How long the thread that waits for the pipeline may take to notice its end, seconds.
_LAST_S = 1.0


class Runnable(Protocol):
    """What is run: a pipeline."""

    def start(self) -> None: ...

    def shutdown(self) -> None: ...

    def wait(self, timeout_s: float | None = None) -> bool: ...

    def wait_until_caught_up(self, timeout_s: float | None = None) -> bool: ...

    def status(self) -> PipelineStatus: ...


@dataclass(frozen=True)
class RunArguments:
    """What `etl-dagster run` was called with."""

    until_caught_up: bool
    plain: bool
    is_log_json: bool
    as_json: bool

    @property
    def log_level(self) -> int:
        """A live display leaves room only for warnings."""
        return logging.INFO if self.plain or self.is_log_json else logging.WARNING


def wait_for_servers(find_failures: Callable[[], Sequence[EtlError]]) -> None:
    """Wait while a server is just starting up.

    Args:
        find_failures: what stands in the way of a start now.

    Raises:
        EtlError: something else stands in the way, or a server takes too long.
    """
    from etl_dagster.cli.checks import refuse

    deadline = time.monotonic() + _STARTING_S
    is_announced = False
    while failures := find_failures():
        if time.monotonic() > deadline or not all(error.is_starting for error in failures):
            refuse(failures)
        if not is_announced:
            click.echo(f"{failures[0].reason}; waiting for it", err=True)
        is_announced = True
        time.sleep(_LOOK_AGAIN_S)


def run_to_its_end(
    pipeline: Runnable,
    view: View,
    asked: Asked,
    mirrored: Callable[[], AbstractContextManager[object]],
    *,
    until_caught_up: bool,
) -> bool:
    """Start the pipeline and show it until it ends; False if it was stopped before it had begun.

    Args:
        mirrored: a context in which its positions are copied to Meltano's states.

    Raises:
        RunFailed, EtlError: as `_start` and `_follow`.
        NotCaughtUp: it was stopped before it had caught up.
    """
    if not _start(pipeline, asked):
        asked.end_soon(has_goal=until_caught_up)
        if until_caught_up:
            raise NotCaughtUp(0, 0, exit_code=asked.exit_code)
        return False
    with mirrored(), asked.ends_soon_after(has_goal=until_caught_up):
        _follow(pipeline, view, asked, until_caught_up=until_caught_up)
    return True


def _start(pipeline: Runnable, asked: threading.Event) -> bool:
    """Start the pipeline; False if it was asked to stop before it had begun.

    Raises:
        RunFailed: the configuration is right, and the start failed: a full disk, a server that
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


def _follow(pipeline: Runnable, view: View, asked: Asked, *, until_caught_up: bool) -> None:
    """Show the pipeline until it ends.

    Raises:
        RunFailed: it failed.
        NotCaughtUp: it was stopped before it had caught up.
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
        # If it still waits for a server that doesn't answer, it has not caught up either.
        waiter.join(_LAST_S)
    if failures:
        raise RunFailed(failures[0]) from failures[0]
    if not is_caught_up:
        tables = pipeline.status().tables.values()
        ready = sum(table.state == "ready" for table in tables)
        raise NotCaughtUp(ready, len(tables), exit_code=asked.exit_code)

"""`etl-dagster status --watch`: a pipeline that another process runs, live on this terminal."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.stopping import Terminated
from etl_dagster.runtime.showing.history import HISTORY, read_history
from etl_dagster.runtime.showing.status import PipelineStatus
from etl_dagster.words import human_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from etl_dagster.config import PipelineConfig
    from etl_dagster.model.stores import CoordinatingStore

_EVERY_S = 1.0
#: How many values a sparkline has, and its bars from the lowest to the highest.
_COLUMNS, _BARS = 60, "▁▂▃▄▅▆▇█"
#: Lines that each pipeline needs besides its tables.
_OTHER_LINES = 17


def watch(members: Mapping[str, PipelineConfig]) -> None:
    """Show the pipelines until Ctrl-C, SIGTERM or SIGHUP: like `run`, it has no other goal.

    Raises:
        UsageError: stdout is not a terminal.
        EtlError: a store can't be reached, or knows no such pipeline.
    """
    from rich.console import Console, Group
    from rich.live import Live

    from etl_dagster.cli.existing import existing_store

    if not sys.stdout.isatty():
        raise click.UsageError("--watch needs a terminal; programs read `status --json`")
    console = Console()
    with ExitStack() as stack:
        watched = [
            WatchedPipeline(stack.enter_context(existing_store(config)), config)
            for config in members.values()
        ]
        live = stack.enter_context(Live(console=console, auto_refresh=False, screen=True))
        try:
            while True:
                width, height = console.size
                limit = max(height // len(watched) - _OTHER_LINES, 2)
                live.update(
                    Group(*(each.look(limit=limit, width=width) for each in watched)), refresh=True
                )
                time.sleep(_EVERY_S)
        except (KeyboardInterrupt, Terminated):
            return


class WatchedPipeline:
    """One pipeline, with its lag and its rate so far."""

    def __init__(self, store: CoordinatingStore, config: PipelineConfig) -> None:
        self._store = store
        self._config = config
        self._seen_at = 0.0
        past = read_history(store.get_status(HISTORY))[-_COLUMNS:]
        self._lags = deque((moment.lag_seconds for moment in past), maxlen=_COLUMNS)
        self._rates = deque((moment.rows_per_second for moment in past), maxlen=_COLUMNS)

    def look(self, *, limit: int, width: int) -> RenderableType:
        """Draw the pipeline as it last reported."""
        from rich.text import Text

        from etl_dagster.cli.views import render

        published = self._store.get_status("apply")
        if not published:
            return Text(f"{self._config.pipeline}: nothing was reported yet")
        status = PipelineStatus.from_json(published)
        if status.at > self._seen_at:
            self._seen_at = status.at
            self._lags.append(status.lag_seconds)
            self._rates.append(status.rows_per_second)
        is_running = self._store.is_leased("apply")
        kept = status.retained_wal_bytes
        lines = [
            f"lag     {sparkline(self._lags)}  {status.lag_seconds:.1f} s",
            f"rows/s  {sparkline(self._rates)}  {status.rows_per_second:,.0f}",
            f"slot    keeps {'-' if kept is None else human_bytes(kept)} of WAL",
        ]
        if not is_running:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.at))
            lines.append(f"It is not running; this is its state as of {since}.")
        return render(
            status,
            limit=limit,
            width=width,
            hint="Ctrl-C ends this view, not the pipeline",
            below=[Text(line, no_wrap=True, overflow="crop") for line in ("", *lines)],
        )


def sparkline(values: Iterable[float]) -> str:
    """A bar for each value, from zero to the highest of them."""
    seen = list(values)
    highest = max(seen, default=0.0)
    if highest <= 0:
        return _BARS[0] * len(seen)
    return "".join(_BARS[min(int(value / highest * len(_BARS)), len(_BARS) - 1)] for value in seen)

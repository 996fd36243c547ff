"""`etl-dagster run` for several destinations or shards: one process, and one view of all."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.following import RunArguments, run_to_its_end, wait_for_servers
from etl_dagster.cli.options import set_up_logging
from etl_dagster.cli.stopping import stopped_by_signals
from etl_dagster.cli.views import JsonView, LinesView

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.errors import EtlError
    from etl_dagster.in_process import OpenedPipeline
    from etl_dagster.runtime.showing.status import PipelineStatus


def run_several(context: click.Context, config: PipelineConfig, options: RunArguments) -> bool:
    """Run until the end; returns whether any table has stopped.

    Raises:
        RunFailed: the pipeline failed after it had started.
        NotCaughtUp: it was stopped before it had caught up.
        EtlError: it can't run as it is configured.
    """
    from etl_dagster.in_process import opened
    from etl_dagster.integrations.meltano.positions.mirror import mirrored_positions

    wait_for_servers(lambda: _first_failures(config))
    is_log_json = options.is_log_json
    view = _Together(config, as_json=options.as_json, is_log_json=is_log_json)
    set_up_logging(
        context, options.log_level, view.log_handler(), as_json=is_log_json, names_pipelines=True
    )

    @contextlib.contextmanager
    def mirrored() -> Iterator[None]:
        with contextlib.ExitStack() as mirrors:
            for parts in find_parts():
                mirrors.enter_context(mirrored_positions(*parts))
            yield

    with (
        opened(config) as (several, find_parts),
        stopped_by_signals(several.shutdown, view) as asked,
    ):
        has_begun = run_to_its_end(
            _Running(several, view),
            view,
            asked,
            mirrored,
            until_caught_up=options.until_caught_up,
        )
    statuses = several.statuses().values()
    return has_begun and any(table.error for each in statuses for table in each.tables.values())


def _first_failures(config: PipelineConfig) -> Sequence[EtlError]:
    """What stands in the way of a start: the failures of the first destination or shard with any.

    One destination that fails does not hold up the others, and is only printed. One shard does.
    """
    from etl_dagster.cli.checks import failed_checks

    failures = {name: failed_checks(each) for name, each in config.members().items()}
    if not config.shards and not all(failures.values()):
        for name, found in failures.items():
            for failure in found:
                click.echo(f"{name}: {failure.reason}", err=True)
        return []
    return next(filter(None, failures.values()), [])


class _Together:
    """A view of each destination or shard: lines that begin with its name, or JSON."""

    def __init__(self, config: PipelineConfig, *, as_json: bool, is_log_json: bool) -> None:
        self._views: Mapping[str, JsonView | LinesView] = {
            name: JsonView() if as_json else LinesView(prefix=f"{name}: ", is_log_json=is_log_json)
            for name in config.members()
        }
        first = next(iter(self._views.values()))
        self._first = first
        self.interval_s = first.interval_s

    def __enter__(self) -> _Together:
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def show(self, status: PipelineStatus) -> None:
        """Does nothing, since there is no status of all of them; see `show_each`."""

    def show_each(self, statuses: Mapping[str, PipelineStatus]) -> None:
        for name, status in statuses.items():
            self._views[name].show(status)

    def stopping(self) -> None:
        self._first.stopping()

    def restore_terminal(self) -> None:
        pass

    def log_handler(self) -> logging.Handler | None:
        return None


class _Running:
    """Several pipelines as the one that `run_to_its_end` runs."""

    def __init__(self, several: OpenedPipeline, view: _Together) -> None:
        self._several = several
        self._view = view
        self.start = several.start
        self.shutdown = several.shutdown
        self.wait = several.wait
        self.wait_until_caught_up = several.wait_until_caught_up

    def status(self) -> PipelineStatus:
        """Show the status of each; returns one with the tables of all, to count them."""
        statuses = self._several.statuses()
        self._view.show_each(statuses)
        tables = {
            f"{name} {table}": each
            for name, status in statuses.items()
            for table, each in status.tables.items()
        }
        return replace(next(iter(statuses.values())), tables=tables)

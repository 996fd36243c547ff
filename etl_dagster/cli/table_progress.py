"""Progress of the tables that a running pipeline copies or repairs for a command."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import click

from etl_dagster.cli.listing import few, one_by_one
from etl_dagster.cli.stopping import Terminated
from etl_dagster.model.states import Errored, Ready, SyncDone, TimedRetry, state_name
from etl_dagster.runtime.clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    import threading

    from rich.console import Console
    from rich.live import Live

    from etl_dagster.model.schema import TableId
    from etl_dagster.model.stores import CoordinatingStore
    from etl_dagster.runtime.showing.status import TableStatus

_SETTLED = ("ready", "sync_done")
#: Each look asks the state store.
_EVERY_S, _POLL_S = 0.5, 0.2
#: What the states mean to a person who waits for a copy or a repair.
_MEANINGS = {
    "init": "waits for a worker",
    "finished_copy": "rows are there; applying what changed meanwhile",
    "sync_wait": "caught up; waiting for the stream to take over",
    "catchup": "applying the last changes",
    "sync_done": "in step",
    "ready": "in step",
    "errored": "stopped",
}


class TableProgress:
    """A context in which `look` shows the tables: on a terminal as `run` does, with bars of their
    copies; elsewhere with a line on stderr whenever a table's state changes.

    Args:
        names: ``schema.table`` of each.
        working: what the pipeline does to a table while it has the state ``data_sync``.
    """

    def __init__(
        self,
        store: CoordinatingStore,
        names: Mapping[TableId, str],
        *,
        working: str,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.console import Console

        self._store = store
        self._names = names
        self._meanings = _MEANINGS | {"data_sync": working}
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._due_s = float("-inf")
        self._live: Live | None = None
        self._told: dict[TableId, str] = {}

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._console.is_terminal

    def __enter__(self) -> Self:
        from rich.live import Live

        if self.is_live:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._live is not None:
            self._live.stop()

    def look(self) -> None:
        """Show the tables as they are; may be called at any pace."""
        now = self._clock()
        if now < self._due_s:
            return
        self._due_s = now + _EVERY_S
        tables = self._tables()
        if self._live is not None:
            from etl_dagster.cli.views import table_grid

            width, height = self._console.size
            most = max(height - 2, 1)  # the screen's last line is the cursor's
            first = sorted(tables, key=lambda table: table.state in _SETTLED)[:most]
            self._live.update(table_grid(first, width), refresh=True)
            return
        news: dict[str, list[str]] = {}
        for table in tables:
            if self._told.get(table.table_id) != table.state:
                self._told[table.table_id] = table.state
                news.setdefault(table.state, []).append(table.name)
        for state, names in news.items():
            for shown in one_by_one(names):
                click.echo(f"{shown}: {self._meanings.get(state, state)}", err=True)

    def _tables(self) -> list[TableStatus]:
        """The tables as the pipeline last published them, with their current states."""
        from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus

        published = self._store.get_status("apply")
        known = PipelineStatus.from_json(published).tables if published else {}
        states = self._store.get_table_replication_states()
        shown = []
        for table_id, name in self._names.items():
            table = known.get(name) or TableStatus(table_id, name, "init", "")
            state = states.get(table_id)
            shown.append(table if state is None else replace(table, state=state_name(state)))
        return shown


def follow_copies(
    store: CoordinatingStore,
    names: Mapping[TableId, str],
    stop: threading.Event,
    *,
    console: Console | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """On a terminal, show copies until each table is streamed, or has stopped.

    Returns at once if there is no terminal. Ctrl-C, or `stop`, ends the view, but no copy.
    """
    progress = TableProgress(
        store, names, working="being copied", console=console, clock=clock.now_s
    )
    if not progress.is_live:
        return
    try:
        with progress:
            while not clock.wait(stop, _POLL_S):
                store.load_table_replication_states()
                progress.look()
                if not store.is_leased("apply"):
                    click.echo("The pipeline ended; its next start resumes the copies.")
                    return
                if all(_is_settled(store, table_id) for table_id in names):
                    break
            else:
                return
    except (KeyboardInterrupt, Terminated):
        click.echo("The copies continue; `etl-dagster status` shows them.")
        return
    for table_id, name in few(list(names.items())):
        state = store.get_table_replication_state(table_id)
        if isinstance(state, Errored):
            click.echo(f"{name} stopped: {state.reason}. {state.solution}")
        else:
            click.echo(f"{name} is copied, and streamed from now on.")


def _is_settled(store: CoordinatingStore, table_id: TableId) -> bool:
    state = store.get_table_replication_state(table_id)
    if isinstance(state, Errored):
        return not isinstance(state.retry, TimedRetry)
    return isinstance(state, Ready | SyncDone)

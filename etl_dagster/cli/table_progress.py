"""How far tables are that a running pipeline copies or repairs for a command."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import click

from etl_dagster.model.states import Errored, Ready, SyncDone, TimedRetry, state_name
from etl_dagster.runtime.clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    import threading

    from rich.console import Console
    from rich.live import Live

    from etl_dagster.model.schema import TableId
    from etl_dagster.model.stores import CoordinatingStore
    from etl_dagster.runtime.showing.status import TableStatus

#: Each look asks the state store.
_EVERY_S, _POLL_S = 0.5, 0.2
#: What the states mean to someone who waits for a copy or a repair.
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

            self._live.update(table_grid(tables, self._console.width), refresh=True)
            return
        for table in tables:
            if self._told.get(table.table_id) != table.state:
                self._told[table.table_id] = table.state
                click.echo(
                    f"{table.name}: {self._meanings.get(table.state, table.state)}", err=True
                )

    def _tables(self) -> list[TableStatus]:
        """As the pipeline published them last, with the states of now."""
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
    """On a terminal, show copies that were asked for until each table is streamed, or has stopped.

    Returns at once where there is no terminal. Ctrl-C, or `stop`, ends the view and no copy.
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
    except KeyboardInterrupt:
        click.echo("The copies continue; `etl-dagster status` shows them.")
        return
    for table_id, name in names.items():
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

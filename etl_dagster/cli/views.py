"""How a running pipeline is shown: live on a terminal, in lines, or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import click

from etl_dagster.model.states import TRANSITIONS
from etl_dagster.runtime.status import PipelineStatus, TableStatus
from etl_dagster.words import human_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: In lines, a summary comes at most this often, and only when something changed.
_SUMMARY_S = 10.0
#: What the live display needs besides its tables: border, header, footer.
_OTHER_LINES = 12
_STATE_COLORS = {"ready": "green", "errored": "red bold", "init": "dim"}
assert len(TRANSITIONS) == 8, "a new state wants a look at what is shown of it"


class View(Protocol):
    """Shows one status after another; a context manager."""

    #: How often a status is wanted, seconds.
    interval_s: float

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, status: PipelineStatus) -> None: ...

    def stopping(self) -> None:
        """Somebody asked for the end."""
        ...

    def restore_terminal(self) -> None:
        """The process ends now, without `__exit__`."""
        ...

    def log_handler(self) -> logging.Handler | None:
        """Where log lines go so that they don't tear the display; None for the usual place."""
        ...


def make_view(*, plain: bool, as_json: bool) -> View:
    """The live display on a terminal, lines elsewhere; unless told."""
    if as_json:
        return JsonView()
    if plain or not sys.stdout.isatty():
        return LinesView()
    return LiveView()


class _Quiet:
    """What a view without a terminal of its own needs not do."""

    interval_s = 0.5

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def stopping(self) -> None:
        pass

    def restore_terminal(self) -> None:
        pass

    def log_handler(self) -> logging.Handler | None:
        return None


# -- for programs ------------------------------------------------------------------------------


class JsonView(_Quiet):
    """A `PipelineStatus` on each line, when it says something new, and every few seconds."""

    _EVERY_S = 5.0

    def __init__(self) -> None:
        self._last: dict[str, object] = {}
        self._due = 0.0

    def show(self, status: PipelineStatus) -> None:
        payload = status.to_json()
        news = {key: value for key, value in payload.items() if key != "at"}
        if news == self._last and time.monotonic() < self._due:
            return
        self._last, self._due = news, time.monotonic() + self._EVERY_S
        sys.stdout.write(json.dumps(payload) + "\n")
        sys.stdout.flush()


# -- in lines ----------------------------------------------------------------------------------


class LinesView(_Quiet):
    """A line for each change of state, and a summary now and then."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._phase = ""
        self._summary = ""
        self._due = 0.0

    def show(self, status: PipelineStatus) -> None:
        for name, table in status.tables.items():
            if self._states.get(name) != table.state:
                self._states[name] = table.state
                self._say(f"{name}: {table.state}{_why(table)}")
        if status.phase != self._phase:
            self._phase = status.phase
            self._due = 0.0
        if time.monotonic() >= self._due:
            summary = _summary(status)
            if summary != self._summary:
                self._summary = summary
                self._due = time.monotonic() + _SUMMARY_S
                self._say(summary)

    def stopping(self) -> None:
        # In a signal handler; click.echo's buffers may be in use.
        sys.stderr.write("stopping; once more stops at once\n")

    @staticmethod
    def _say(line: str) -> None:
        click.echo(f"{time.strftime('%H:%M:%S')} {line}")
        sys.stdout.flush()


def _why(table: TableStatus) -> str:
    if table.error is None:
        return ""
    return f": {table.error}. What to do: {table.solution}"


def _summary(status: PipelineStatus) -> str:
    ready = sum(table.state == "ready" for table in status.tables.values())
    parts = [
        f"{status.phase}: {ready} of {len(status.tables)} tables ready",
        f"{status.rows_total:,} changes",
        f"{status.rows_per_second:,.0f}/s",
        f"lag {human_bytes(status.lag_bytes)}, {status.lag_seconds:.1f} s",
        f"confirmed {status.confirmed_lsn}",
    ]
    if status.error:
        parts.append(f"{status.error}. What to do: {status.solution}")
    return ", ".join(parts)


# -- on a terminal -----------------------------------------------------------------------------


class LiveView:
    """The whole pipeline on one screen, redrawn in place."""

    interval_s = 0.25

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._is_stopping = False

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, status: PipelineStatus) -> None:
        limit = max(self._console.size.height - _OTHER_LINES, 3)
        screen = render(status, limit=limit, is_stopping=self._is_stopping)
        self._live.update(screen, refresh=True)

    def stopping(self) -> None:
        self._is_stopping = True

    def restore_terminal(self) -> None:
        sys.stdout.write("\x1b[?25h\n")
        sys.stdout.flush()

    def log_handler(self) -> logging.Handler | None:
        from rich.logging import RichHandler

        return RichHandler(console=self._console, show_path=False, markup=False)


def render(status: PipelineStatus, *, limit: int, is_stopping: bool = False) -> RenderableType:
    """The pipeline on one screen, with at most `limit` tables, the ones that matter first."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    tables = sorted(status.tables.values(), key=_urgency)
    parts: list[RenderableType] = [_header(status), Text(), _tables(tables[:limit])]
    if len(tables) > limit:
        parts.append(Text(f"... and {len(tables) - limit} more tables", style="dim"))
    for table in tables[:limit]:
        if table.error:
            parts.append(Text(f"\n{table.name}: {table.error}", style="red"))
            parts.append(Text(f"What to do: {table.solution}"))
    if status.error:
        parts.append(Text(f"\n{status.error}", style="red"))
        parts.append(Text(f"What to do: {status.solution}"))
    hint = "stopping; Ctrl-C stops at once" if is_stopping else "Ctrl-C stops"
    return Panel(
        Group(*parts),
        title=f"[bold]{status.pipeline}[/bold] to {status.destination}",
        subtitle=hint,
        title_align="left",
        subtitle_align="right",
        border_style="red" if status.error else "dim",
    )


def _header(status: PipelineStatus) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    retained = status.retained_wal_bytes
    facts = {
        "phase": status.phase,
        "changes": f"{status.rows_total:,}",
        "rate": f"{status.rows_per_second:,.0f} rows/s",
        "lag": f"{human_bytes(status.lag_bytes)}, {status.lag_seconds:.1f} s",
        "confirmed": status.confirmed_lsn,
        "WAL kept": "-" if retained is None else human_bytes(retained),
    }
    grid = Table.grid(padding=(0, 3))
    for _ in facts:
        grid.add_column(no_wrap=True)
    grid.add_row(*(Text(name, style="dim") for name in facts))
    grid.add_row(*(Text(value, style="bold") for value in facts.values()))
    return grid


def _tables(tables: list[TableStatus]) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    grid.add_column("table", no_wrap=True)
    grid.add_column("state", no_wrap=True)
    # Only while there is a copy: in a narrow terminal its width would be taken from the numbers.
    is_copying = any(_is_copying(table) for table in tables)
    if is_copying:
        grid.add_column("copy", width=16)
    for name in ("rows", "inserted", "updated", "deleted"):
        grid.add_column(name, justify="right", no_wrap=True)
    for table in tables:
        copy: RenderableType = Text()
        rows = "" if table.row_count is None else f"{table.row_count:,}"
        if _is_copying(table):
            copy = ProgressBar(table.copy_chunks_total, table.copy_chunks_done, width=16)
            rows = f"{table.copy_rows_done:,} of ~{table.copy_rows_estimated:,}"
        grid.add_row(
            Text(table.name),
            Text(table.state, style=_STATE_COLORS.get(table.state, "yellow")),
            *([copy] if is_copying else []),
            rows,
            f"{table.rows_inserted:,}",
            f"{table.rows_updated:,}",
            f"{table.rows_deleted:,}",
        )
    return grid


def _is_copying(table: TableStatus) -> bool:
    return bool(table.copy_chunks_total) and table.state != "ready"


def _urgency(table: TableStatus) -> tuple[int, str]:
    """Errors first, then what is under way, then the rest; by name."""
    return {"errored": 0, "ready": 2, "init": 3}.get(table.state, 1), table.name

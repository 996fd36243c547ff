"""How a running pipeline is shown: live on a terminal, in lines, or as JSON."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import click

from etl_dagster.cli.listing import one_by_one
from etl_dagster.model.states import TRANSITIONS
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus
from etl_dagster.words import human_bytes, row_count

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: The shortest time between two summaries in lines, seconds; there is none if nothing changed.
_SUMMARY_S = 10.0
#: Lines that the live display needs besides its tables: border, header, footer.
_OTHER_LINES = 12
#: The border of the live display and the space next to it, on both sides.
_BORDER_COLUMNS = 4
#: Width of a copy's progress bar.
_BAR_COLUMNS = 16
#: The index at which termios.tcgetattr() has the flags that include ECHO.
_LOCAL_MODES = 3
_STATE_COLORS = {"ready": "green", "errored": "red bold", "init": "dim"}
assert len(TRANSITIONS) == 8, "a new state: check how the views show it"


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
        """The user asked to stop."""
        ...

    def restore_terminal(self) -> None:
        """The process ends now, without `__exit__`."""
        ...

    def log_handler(self) -> logging.Handler | None:
        """A handler for log lines that doesn't tear the display; None for the usual one."""
        ...


def make_view(*, plain: bool, as_json: bool, is_log_json: bool = False) -> View:
    """The view that the options ask for; by default the live display on a terminal, else lines."""
    if as_json:
        return JsonView()
    # Lines of the log would tear a live display.
    if plain or is_log_json or not sys.stdout.isatty():
        return LinesView(is_log_json=is_log_json)
    return LiveView()


class _Quiet:
    """A view without a terminal, which has nothing to prepare or to restore."""

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
    """A `PipelineStatus` on each line, when it has changed, and every few seconds."""

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
    """A line for each change of state, one for many that change alike, and sometimes a summary.

    Args:
        prefix: begins each line, after the time.
        is_log_json: whether what goes to stderr has to be JSON.
    """

    def __init__(self, prefix: str = "", *, is_log_json: bool = False) -> None:
        self._prefix = prefix
        self._is_log_json = is_log_json
        self._states: dict[str, str] = {}
        self._tables: Mapping[str, TableStatus] = {}
        self._phase = ""
        self._summary = ""
        self._due = 0.0

    def show(self, status: PipelineStatus) -> None:
        if status.tables is not self._tables:
            self._tables = status.tables
            self._show_states(status.tables)
        if status.phase != self._phase:
            self._phase = status.phase
            self._due = 0.0
        if time.monotonic() >= self._due:
            summary = _summary(status)
            if summary != self._summary:
                self._summary = summary
                self._due = time.monotonic() + _SUMMARY_S
                self._say(summary)

    def _show_states(self, tables: Mapping[str, TableStatus]) -> None:
        news: dict[str, list[str]] = {}
        for name, table in tables.items():
            if self._states.get(name) != table.state:
                self._states[name] = table.state
                news.setdefault(f"{table.state}{_why(table)}", []).append(name)
        for state, names in news.items():
            for shown in one_by_one(names):
                self._say(f"{shown}: {state}")

    def stopping(self) -> None:
        # In a signal handler; click.echo's buffers may be in use.
        text = "stopping; once more stops at once"
        line = {"level": "INFO", "message": text}
        sys.stderr.write((json.dumps(line) if self._is_log_json else text) + "\n")

    def _say(self, line: str) -> None:
        click.echo(f"{time.strftime('%H:%M:%S')} {self._prefix}{line}")
        sys.stdout.flush()


def _why(table: TableStatus) -> str:
    if table.error is None:
        return ""
    return f": {table.error}. What to do: {table.solution}"


def _summary(status: PipelineStatus) -> str:
    ready = sum(table.state == "ready" for table in status.tables.values())
    parts = [
        f"{status.phase}: {ready} of {len(status.tables)} tables ready",
        f"{status.rows_total:,} change{'s' if status.rows_total != 1 else ''}",
        f"{status.rows_per_second:,.0f}/s",
        f"lag {human_bytes(status.lag_bytes)}, {status.lag_seconds:.1f} s",
        f"confirmed {status.confirmed_lsn}",
    ]
    if status.transactions_in_progress:
        parts.append(in_progress(status))
    if status.note:
        parts.append(status.note)
    if status.error:
        parts.append(f"{status.error}. What to do: {status.solution}")
    return ", ".join(parts)


def in_progress(status: PipelineStatus) -> str:
    """In words, the transactions that were sent before they committed."""
    count, size = status.transactions_in_progress, human_bytes(status.spooled_bytes)
    return f"{count} transaction{'s' if count != 1 else ''} in progress ({size} on disk)"


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
        self._key_echo = KeyEcho()

    def __enter__(self) -> Self:
        self._key_echo.turn_off()
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()
        self._key_echo.restore()

    def show(self, status: PipelineStatus) -> None:
        width, height = self._console.size
        limit = max(height - _OTHER_LINES, 3)
        hint = "stopping; Ctrl-C stops at once" if self._is_stopping else "Ctrl-C stops"
        screen = render(status, limit=limit, width=width, hint=hint)
        self._live.update(screen, refresh=True)

    def stopping(self) -> None:
        self._is_stopping = True

    def restore_terminal(self) -> None:
        sys.stdout.write("\x1b[?25h\n")
        sys.stdout.flush()
        self._key_echo.restore()

    def log_handler(self) -> logging.Handler | None:
        from rich.logging import RichHandler

        return RichHandler(console=self._console, show_path=False, markup=False)


class KeyEcho:
    """Whether the terminal prints the keys that are pressed, Ctrl-C as ``^C``, at the cursor.

    That moves the cursor away from the end of the display, whose top is then drawn twice. A shell
    turns it on again where the process is killed.
    """

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def turn_off(self) -> None:
        """Until `restore`; nothing happens where stdin isn't a terminal."""
        with contextlib.suppress(OSError, ValueError, ImportError):
            import termios

            with contextlib.suppress(termios.error):
                before = termios.tcgetattr(sys.stdin.fileno())
                quiet = [*before]
                quiet[_LOCAL_MODES] = before[_LOCAL_MODES] & ~termios.ECHO
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, quiet)
                self._before = before

    def restore(self) -> None:
        """Set it as it was before."""
        if self._before is not None:
            import termios

            with contextlib.suppress(OSError, ValueError, termios.error):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, self._before)
            self._before = None


def render(
    status: PipelineStatus,
    *,
    limit: int,
    width: int,
    hint: str = "Ctrl-C stops",
    below: Sequence[RenderableType] = (),
) -> RenderableType:
    """The pipeline on one screen, with at most `limit` tables, the ones that matter first.

    Args:
        width: of the terminal, columns.
        hint: what pressing a key does.
        below: what else is shown under the pipeline's figures.
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    tables = sorted(status.tables.values(), key=_urgency)
    inner = width - _BORDER_COLUMNS
    parts: list[RenderableType] = [
        *_header(status, inner),
        *below,
        Text(),
        table_grid(tables[:limit], inner),
    ]
    if len(tables) > limit:
        parts.append(Text(f"... and {len(tables) - limit} more tables", style="dim"))
    for table in tables[:limit]:
        if table.error:
            parts.append(Text(f"\n{table.name}: {table.error}", style="red"))
            parts.append(Text(f"What to do: {table.solution}"))
    if status.error:
        parts.append(Text(f"\n{status.error}", style="red"))
        parts.append(Text(f"What to do: {status.solution}"))
    return Panel(
        Group(*parts),
        title=Text.assemble((status.pipeline, "bold"), f" to {status.destination}"),
        subtitle=hint,
        title_align="left",
        subtitle_align="right",
        border_style="red" if status.error else "dim",
    )


def _header(status: PipelineStatus, width: int) -> list[RenderableType]:
    """The pipeline's figures, in as many lines as the width needs."""
    retained = status.retained_wal_bytes
    facts = {
        "phase": status.phase,
        "changes": f"{status.rows_total:,}",
        "rate": f"{status.rows_per_second:,.0f} rows/s",
        "lag": f"{human_bytes(status.lag_bytes)}, {status.lag_seconds:.1f} s",
        "confirmed": status.confirmed_lsn,
        "WAL kept": "-" if retained is None else human_bytes(retained),
    }
    if status.transactions_in_progress:
        facts["in progress"] = human_bytes(status.spooled_bytes)
    names = list(facts)
    for lines in range(1, len(names)):
        size = -(-len(names) // lines)
        grids = [
            _facts({name: facts[name] for name in names[first : first + size]})
            for first in range(0, len(names), size)
        ]
        if all(_width_of(grid) <= width for grid in grids):
            break
    return list(grids)


def _facts(facts: Mapping[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 3))
    for _ in facts:
        grid.add_column(no_wrap=True)
    grid.add_row(*(Text(name, style="dim") for name in facts))
    grid.add_row(*(Text(value, style="bold") for value in facts.values()))
    return grid


def _width_of(table: Table) -> int:
    """The columns of a terminal that the table needs."""
    from rich.console import Console
    from rich.measure import Measurement

    wide = Console(width=1000)
    return Measurement.get(wide, wide.options, table).maximum


#: The columns for each table, from the widest layout to the narrowest: the first that fits is used.
#: The columns of a copy are shown only during one.
_LAYOUTS = (
    ("state", "copy", "rows", "speed", "inserted", "updated", "deleted"),
    ("state", "copy", "rows", "speed", "changes"),
    ("state", "copied", "rows", "speed", "changes"),
    ("state", "copied", "rows", "speed"),
    ("state", "copied", "rows", "changes"),
    ("state", "copied", "rows"),
    ("state", "copied"),
)
_OF_COPY = ("copy", "copied", "speed")


def table_grid(tables: list[TableStatus], width: int) -> Table:
    """The tables with as many columns as a terminal of this width has room for."""
    is_copying = any(_is_copying(table) for table in tables)
    for layout in _LAYOUTS:
        columns = [name for name in layout if is_copying or name not in _OF_COPY]
        grid = _grid(tables, columns)
        if _width_of(grid) <= width:
            break
    return grid


def _grid(tables: list[TableStatus], columns: Sequence[str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    # In a terminal that is narrower than the last layout, a long name is cut first.
    grid.add_column("table", no_wrap=True, ratio=1 if columns == ["state"] else None)
    for name in columns:
        is_text = name in ("state", "copy")
        grid.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for table in tables:
        grid.add_row(Text(table.name), *(_cell(table, name) for name in columns))
    return grid


def _cell(table: TableStatus, column: str) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    is_copying = _is_copying(table)
    match column:
        case "state":
            return Text(table.state, style=_STATE_COLORS.get(table.state, "yellow"))
        case "copy":
            share = _share_copied(table)
            return ProgressBar(1.0, share, width=_BAR_COLUMNS) if is_copying else Text()
        case "copied":
            return Text(f"{_share_copied(table):.0%}" if is_copying else "")
        case "speed":
            return Text(_speed(table) if is_copying else "")
        case "rows" if is_copying:
            return Text(f"{table.copy_rows_done:,} of ~{table.copy_rows_estimated:,}")
        case "rows":
            return Text(row_count(table.row_count, is_estimated=table.row_count_estimated))
        case "inserted":
            return Text(f"{table.rows_inserted:,}")
        case "updated":
            return Text(f"{table.rows_updated:,}")
        case "deleted":
            return Text(f"{table.rows_deleted:,}")
    return Text(f"{table.rows_changed:,}")


def _share_copied(table: TableStatus) -> float:
    """From 0 to 1. The number of rows is the planner's guess; that of chunks is exact."""
    if table.copy_chunks_done == table.copy_chunks_total:
        return 1.0
    by_chunks = table.copy_chunks_done / table.copy_chunks_total
    by_rows = table.copy_rows_done / max(table.copy_rows_estimated, 1)
    return min(max(by_chunks, by_rows), 0.99)


def _speed(table: TableStatus) -> str:
    if table.copy_rows_per_second is None or table.copy_seconds_left is None:
        return ""
    return f"{table.copy_rows_per_second:,.0f}/s, {_duration(table.copy_seconds_left)} left"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _is_copying(table: TableStatus) -> bool:
    return bool(table.copy_chunks_total) and table.state != "ready"


def _urgency(table: TableStatus) -> tuple[int, str]:
    """Sorts errors first, then copies under way, then the rest; each by name."""
    return {"errored": 0, "ready": 2, "init": 3}.get(table.state, 1), table.name

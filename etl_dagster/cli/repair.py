"""`etl-dagster repair`: compare tables with the source, and copy again those that differ."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etl_dagster.cli.confirming import is_wanted
from etl_dagster.cli.options import config_option, json_option, load

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.model.stores import CoordinatingStore
    from etl_dagster.runtime.comparing.comparison import Comparison, Side
    from etl_dagster.runtime.comparing.eligible import Eligible


@click.command(short_help="Compare tables with the source; copy those again that differ.")
@click.argument("tables", nargs=-1, metavar="[SCHEMA.TABLE]...")
@config_option
@click.option("--all", "everything", is_flag=True, help="All tables of the pipeline.")
@click.option("--dry-run", is_flag=True, help="Compare, say what differs, and end.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@json_option
def repair(
    tables: tuple[str, ...],
    config_path: Path,
    everything: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Compare tables at the destination with the source's, and copy again those that differ.

    For a destination that was changed by hand, or in doubt. The pipeline must be running: each
    table is compared as of one position of its stream, which goes on. Both sides are read as a
    whole; only hashes and counts are kept, no value is shown or logged. Works for DuckDB, DuckLake
    and Postgres, and tables in mode mirror. A table that differs is copied again as a whole; its
    old rows stay readable until the new copy replaces them.

    With --dry-run, or --json without --yes, nothing is changed, and the exit code is 1 where a
    table differs or its comparison could not be settled.
    """
    if bool(tables) == everything:
        raise click.UsageError("name tables, or use --all")
    dry_run = dry_run or (as_json and not yes)
    config = load(config_path)
    from etl_dagster.cli.existing import existing_store

    with existing_store(config) as store:
        compared = _compare(config, store, tables)
        differing = {each.name: each for each, found in compared if _is_different(found)}
        requested: list[str] = []
        if as_json:
            if differing and not dry_run:
                requested = _request(store, list(differing.values()))
            shown = [_object(each, found, each.name in requested) for each, found in compared]
            click.echo(json.dumps({"tables": shown}, indent=2))
        else:
            for each, found in compared:
                click.echo(f"{each.name}: {_sentence(each, found)}")
            _repair(store, list(differing.values()), dry_run=dry_run, yes=yes)
    unsettled = any(found is not None and found.result == "unsettled" for _, found in compared)
    if unsettled or (differing and dry_run):
        click.get_current_context().exit(1)


def _compare(
    config: PipelineConfig, store: CoordinatingStore, tables: Sequence[str]
) -> list[tuple[Eligible, Comparison | None]]:
    from etl_dagster.assembly import build_destination
    from etl_dagster.cli.tables import table_ids
    from etl_dagster.runtime.comparing.comparison import TableComparison
    from etl_dagster.runtime.comparing.eligible import find_eligible, require_reader
    from etl_dagster.runtime.table_ids import find_table_ids
    from etl_dagster.source.control import SourceControl

    destination = build_destination(config)
    reader = require_reader(config, destination)
    wanted = table_ids(config, store, tables) if tables else find_table_ids(config, store)
    control = SourceControl(config.source, application_name=f"etl_dagster repair {config.pipeline}")
    compared: list[tuple[Eligible, Comparison | None]] = []
    with contextlib.closing(control), contextlib.ExitStack() as ending:
        ending.callback(destination.shutdown)
        for each in find_eligible(config, store, control, wanted):
            found = None
            if each.table is not None:
                with _progress(each) as on_rows:
                    found = TableComparison(
                        config,
                        store,
                        control,
                        reader,
                        each.table,
                        stop=threading.Event(),
                        on_rows=on_rows,
                    ).run()
            compared.append((each, found))
    return compared


@contextlib.contextmanager
def _progress(table: Eligible) -> Iterator[Callable[[Side, int], None]]:
    """On a terminal, how many rows of each side were read."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    estimated = table.table.estimated_rows if table.table is not None else 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} rows"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        tasks = {
            side: progress.add_task(f"{table.name} {side}", total=estimated or None)
            for side in ("source", "destination")
        }
        yield lambda side, count: progress.advance(tasks[side], count)


def _repair(
    store: CoordinatingStore, differing: Sequence[Eligible], *, dry_run: bool, yes: bool
) -> None:
    if not differing:
        return
    for each in differing:
        click.echo(f"{each.name} is copied again from the beginning; its old rows stay until then.")
    if not is_wanted(dry_run=dry_run, yes=yes):
        return
    _request(store, differing)
    click.echo("Done. The running pipeline begins with it now.")


def _request(store: CoordinatingStore, differing: Sequence[Eligible]) -> list[str]:
    from etl_dagster.runtime.copying.pausing import ask_for_copies

    ask_for_copies(store, [each.table_id for each in differing])
    for each in differing:
        store.request_copy(each.table_id)
    return [each.name for each in differing]


def _is_different(found: Comparison | None) -> bool:
    return found is not None and found.result == "different"


def _sentence(table: Eligible, found: Comparison | None) -> str:
    if found is None:
        return f"not compared: {table.why_not}"
    if found.result == "unsettled":
        return f"unsettled: {found.reason}"
    if found.result == "equal":
        return f"equal, {found.source_rows:,} rows at {found.lsn}"
    counts = [
        f"{count:,} {what}"
        for count, what in (
            (found.missing, "missing"),
            (found.extra, "too many"),
            (found.changed, "with other values"),
        )
        if count
    ]
    least = "at least " if found.has_more else ""
    rows = f"{found.source_rows:,} rows in the source, {found.destination_rows:,} at the"
    return f"differs, {least}{', '.join(counts)} ({rows} destination) at {found.lsn}"


def _object(table: Eligible, found: Comparison | None, is_requested: bool) -> dict[str, Any]:
    if found is None:
        return {"table": table.name, "result": "not compared", "reason": table.why_not}
    return {
        "table": table.name,
        "result": found.result,
        "reason": found.reason,
        "lsn": str(found.lsn),
        "source_rows": found.source_rows,
        "destination_rows": found.destination_rows,
        "missing": found.missing,
        "extra": found.extra,
        "changed": found.changed,
        "has_more": found.has_more,
        "unjudged": found.unjudged,
        "copy_requested": is_requested,
    }

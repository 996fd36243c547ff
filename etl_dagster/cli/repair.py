"""`etl-dagster repair`: compare tables with the source, and replace the rows that differ."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etl_dagster.cli.confirming import changes_something, is_wanted, require_decided
from etl_dagster.cli.failures import FAILED, show
from etl_dagster.cli.listing import NAMES, few, say_more
from etl_dagster.cli.options import config_option, json_option, load, load_whole

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.errors import EtlError
    from etl_dagster.model.stores import CoordinatingStore
    from etl_dagster.runtime.comparing.comparison import Comparison
    from etl_dagster.runtime.comparing.eligible import Eligible
    from etl_dagster.runtime.comparing.sides import Side
    from etl_dagster.runtime.repair_requests import RepairOutcome


#: How many rows are shown by their keys, and how many ranges by their numbers.
_MOST_KEYS = 20
_MOST_RANGES = 12


@click.command(short_help="Compare tables with the source; replace rows that differ.")
@click.argument("tables", nargs=-1, metavar="[SCHEMA.TABLE]...")
@config_option
@click.option("--all", "everything", is_flag=True, help="All tables of the pipeline.")
@changes_something
@click.option(
    "--show-keys",
    is_flag=True,
    help="Show the keys of some rows that differ; they may be values that others must not see.",
)
@json_option
def repair(
    tables: tuple[str, ...],
    config_path: Path,
    everything: bool,
    dry_run: bool,
    yes: bool,
    show_keys: bool,
    as_json: bool,
) -> None:
    """Compare tables at the destination with the source's, and replace the rows that differ.

    For a destination that was changed by hand, or in doubt. While the pipeline runs, each table is
    compared as of one position of its stream, which continues. Only hashes and counts are kept; no
    value is shown or logged. Works for DuckDB, DuckLake and Postgres, and tables in mode mirror.

    In a table that differs, the running pipeline replaces only the rows that differ, at one
    position, and then replays the changes since. Where that is not possible, the table is copied as
    a whole, and the reason is shown.

    With --all, and while no process runs the pipeline, the next start creates a new slot, and
    compares and repairs every table. This is also how a pipeline recovers that can't start because
    its slot is lost, or because source or destination were restored from a backup. With several
    destinations, --destination chooses one; without it, all are repaired then.

    With --dry-run nothing is changed, and the exit code is 1 where a table differs. It is also 1,
    with or without --dry-run, where a table could not be compared now, or its comparison could not
    be settled. Tables that can't be compared as they are configured only count where you name them.

    \b
    etl-dagster repair public.orders
    etl-dagster repair --all --dry-run --json
    """
    if bool(tables) == everything:
        raise click.UsageError("name tables, or use --all")
    require_decided(as_json=as_json, dry_run=dry_run, yes=yes)
    from etl_dagster.cli.existing import existing_store
    from etl_dagster.cli.repair_later import repair_at_next_start, repair_several_at_next_start
    from etl_dagster.errors import TablesLeft
    from etl_dagster.runtime.comparing.left import why_left

    if everything and not dry_run and (whole := load_whole(config_path)).destinations:
        repair_several_at_next_start(whole, yes=yes, as_json=as_json)
        return
    config = load(config_path)
    with existing_store(config) as store:
        if everything and not dry_run and not store.is_leased("apply"):
            repair_at_next_start(config, store, yes=yes, as_json=as_json)
            return
        compared = _compare(config, store, tables, most_keys=_MOST_KEYS if show_keys else 0)
        differing = {each.name: each for each, found in compared if _is_different(found)}
        left = {
            each.name: why
            for each, found in compared
            if (why := why_left(each, found, is_named=bool(tables))) is not None
        }
        if as_json:
            outcomes: Mapping[str, RepairOutcome] = {}
            if differing and not dry_run:
                outcomes = _request(store, list(differing.values()), left)
            shown = [_object(each, found, outcomes.get(each.name)) for each, found in compared]
            click.echo(json.dumps({"tables": shown}, indent=2))
        else:
            _show(compared)
            _repair(store, list(differing.values()), left, dry_run=dry_run, yes=yes)
    if left:
        error = TablesLeft(left, tables=len(compared))
        show(error.reason, error.solution)
    if left or (differing and dry_run):
        click.get_current_context().exit(FAILED)


def _compare(
    config: PipelineConfig, store: CoordinatingStore, tables: Sequence[str], *, most_keys: int
) -> list[tuple[Eligible, Comparison | None]]:
    from etl_dagster.assembly import build_destination
    from etl_dagster.cli.tables import table_ids
    from etl_dagster.runtime.comparing.tables import compare_tables
    from etl_dagster.runtime.table_ids import find_table_ids

    wanted = table_ids(config, store, tables) if tables else find_table_ids(config, store)
    destination = build_destination(config)
    try:
        found = compare_tables(
            config, store, destination, wanted, progress=_progress, most_keys=most_keys
        )
        return list(found)
    finally:
        destination.shutdown()


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


def _show(compared: Sequence[tuple[Eligible, Comparison | None]]) -> None:
    """A line for each table; the first ones of each result, those that are equal last."""
    by_result: dict[str, list[tuple[Eligible, Comparison | None]]] = {}
    for each, found in compared:
        by_result.setdefault("not compared" if found is None else found.result, []).append(
            (each, found)
        )
    for result in sorted(by_result, key=lambda result: result == "equal"):
        tables = by_result[result]
        for each, found in tables[:NAMES]:
            click.echo(f"{each.name}: {_sentence(each, found)}")
            _show_ranges(found)
        say_more(len(tables) - NAMES, f"more tables are {result}", full="--json")


def _repair(
    store: CoordinatingStore,
    differing: Sequence[Eligible],
    left: dict[str, EtlError],
    *,
    dry_run: bool,
    yes: bool,
) -> None:
    if not differing:
        return
    for each in few(differing):
        click.echo(f"{each.name}: the rows that differ will be replaced.")
    if not is_wanted(dry_run=dry_run, yes=yes):
        return
    for name, outcome in few(list(_request(store, differing, left).items())):
        click.echo(f"{name}: {_outcome_sentence(outcome)}")


def _request(
    store: CoordinatingStore, differing: Sequence[Eligible], left: dict[str, EtlError]
) -> Mapping[str, RepairOutcome]:
    """Have the pipeline repair the tables, and wait; adds those that fail to `left`."""
    from etl_dagster.cli.table_progress import TableProgress
    from etl_dagster.runtime.copying.pausing import ask_for_copies
    from etl_dagster.runtime.repair_requests import await_repairs, request_repairs

    names = {each.table_id: each.name for each in differing}
    ask_for_copies(store, list(names))
    with TableProgress(store, names, working="being compared and repaired") as progress:
        requests = request_repairs(store, list(names))
        outcomes = await_repairs(
            store,
            requests,
            on_look=progress.look,
            on_failed=lambda table_id, error: left.update({names[table_id]: error}),
        )
    return {names[table_id]: outcome for table_id, outcome in outcomes.items()}


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


def _outcome_sentence(outcome: RepairOutcome) -> str:
    if outcome.by == "copy":
        return f"copied as a whole, since {outcome.reason}"
    counts = f"{outcome.missing:,} added, {outcome.changed:,} replaced, {outcome.extra:,} deleted"
    return f"repaired at {outcome.lsn}: {counts}"


def _show_ranges(found: Comparison | None) -> None:
    """Print the ranges of keys in which rows differ, and the keys themselves with --show-keys."""
    if found is None or not found.ranges:
        return
    from etl_dagster.runtime.comparing.sums import RANGES

    shown = ", ".join(str(each.number) for each in found.ranges[:_MOST_RANGES])
    more = ", ..." if len(found.ranges) > _MOST_RANGES else ""
    click.echo(f"  in {len(found.ranges)} of {RANGES} ranges of keys: {shown}{more}")
    for key in found.keys:
        click.echo("  " + ", ".join(f"{name}={value}" for name, value in key.items()))


def _object(
    table: Eligible, found: Comparison | None, outcome: RepairOutcome | None
) -> dict[str, Any]:
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
        "ranges": [asdict(each) for each in found.ranges],
        "keys": list(found.keys),
        "repair": None if outcome is None else outcome.to_json(),
    }

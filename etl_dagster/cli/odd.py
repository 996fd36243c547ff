"""`etl-dagster odd`: the values that columns' types can't hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from etl_dagster.cli.listing import few, print_table
from etl_dagster.cli.options import config_option, json_option, load, load_shared

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import duckdb

    from etl_dagster.config import DestinationConfig, PipelineConfig
    from etl_dagster.destinations.duckdb.reading import OddValue, Twin
    from etl_dagster.table_name import TableName

Item = TypeVar("Item")


@click.command(short_help="List values that a column's type can't hold.")
@click.argument("table", required=False)
@config_option
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Values, at most."
)
@click.option("--all", "everything", is_flag=True, help="All values, also where they are many.")
@json_option
def odd(table: str | None, config_path: Path, limit: int, everything: bool, as_json: bool) -> None:
    """List the values that their columns' types can't hold, as Postgres printed them.

    They are kept in _etl.odd_values of the DuckDB file or the DuckLake, each with the key of its
    row. A row that is in quarantine because of one is in the table of the schema _etl_quarantine
    that is named. For other destinations, it shows how many the running pipeline has counted, and
    where they went.

    \b
    etl-dagster odd public.orders --limit 10
    """
    config = load_shared(config_path)
    from etl_dagster.destinations.duckdb import reading
    from etl_dagster.table_name import TableName

    try:
        name = None if table is None else TableName.parse(table)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="TABLE") from error
    reader = _reader(config.destination)
    if reader is None:
        # What was counted is in the store, and each shard has its own part of it.
        _show_counted(load(config_path), name, everything=everything, as_json=as_json)
        return
    with reader as connection:
        counts, values = reading.odd_values_of(connection, name, None if everything else limit)
        twins = [twin for twin in reading.twins_of(connection, name) if twin.row_count]
    if as_json:
        shown = {
            "counts": counts,
            "quarantines": {
                twin.table: {"rows": twin.row_count, "in": twin.twin} for twin in twins
            },
            "values": [_object(value) for value in values],
        }
        click.echo(json.dumps(shown, indent=2))
    else:
        _show(counts, values, twins, everything=everything)


def _reader(
    destination: DestinationConfig,
) -> AbstractContextManager[duckdb.DuckDBPyConnection] | None:
    """A connection to the destination; None if it can't be queried from here."""
    from etl_dagster.destinations.duckdb import reading
    from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
    from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig

    if isinstance(destination, DuckDBDestinationConfig):
        return reading.read_connection(destination.path)
    if isinstance(destination, DuckLakeDestinationConfig):
        from etl_dagster.destinations.ducklake.reading import read_connection

        return read_connection(destination)
    return None


def _show_counted(
    config: PipelineConfig, name: TableName | None, *, everything: bool, as_json: bool
) -> None:
    """What the pipeline has counted, for a destination that can't be queried from here."""
    from etl_dagster.cli.existing import existing_store

    with existing_store(config) as store:
        published = store.get_status("apply") or {}
    tables = published.get("tables", {})
    if name is not None and str(name) not in tables:
        raise click.BadParameter("the pipeline has not seen this table", param_hint="TABLE")
    wanted = {str(name): tables[str(name)]} if name is not None else tables
    counts = {
        table: dict(sorted(known["odd_values"].items()))
        for table, known in wanted.items()
        if known.get("odd_values")
    }
    uncounted = [table for table, known in wanted.items() if known.get("odd_values", {}) is None]
    where = config.destination.odd_values_at
    if as_json:
        click.echo(json.dumps({"counts": counts, "values": None, "where": where}, indent=2))
        return
    for table, columns in _some(list(counts.items()), everything=everything):
        click.echo(f"{table}: {_of_each(columns)}")
    for table in _some(uncounted, everything=everything):
        click.echo(f"{table}: not counted yet")
    if counts:
        click.echo(where)
    elif not uncounted:
        click.echo("Every value is held by its column, as far as the pipeline has counted.")


def _of_each(columns: Mapping[str, int]) -> str:
    return ", ".join(f"{column} {count:,}" for column, count in columns.items())


def _object(value: OddValue) -> dict[str, Any]:
    return {
        "table": value.table,
        "key": value.key,
        "column": value.column,
        "text": value.text,
        "position": str(value.position),
        "commit_time": value.commit_time,
        "quarantined": value.is_quarantined,
    }


def _some(items: Sequence[Item], *, everything: bool) -> Iterable[Item]:
    return items if everything else few(items, full="--all")


def _show(
    counts: dict[str, dict[str, int]],
    values: list[OddValue],
    twins: Sequence[Twin],
    *,
    everything: bool,
) -> None:
    from rich.table import Table
    from rich.text import Text

    total = sum(sum(columns.values()) for columns in counts.values())
    if not total:
        click.echo("Every value is held by its column.")
        return
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    headings = ["table", "key", "column", "text", "position", "committed"]
    for heading in [*headings, "row"] if twins else headings:
        shown.add_column(heading)
    for value in values:
        key = "" if value.key is None else ", ".join("null" if k is None else k for k in value.key)
        committed = (value.commit_time or "").partition(".")[0].replace("T", " ")
        cells = [value.table, key, value.column, value.text, str(value.position), committed]
        if twins:
            cells.append("quarantined" if value.is_quarantined else "")
        shown.add_row(*map(Text, cells))
    print_table(shown)
    for table, columns in _some(list(counts.items()), everything=everything):
        click.echo(f"{table}: {_of_each(columns)}")
    for twin in _some(twins, everything=everything):
        rows = "1 row is" if twin.row_count == 1 else f"{twin.row_count:,} rows are"
        click.echo(f"{twin.table}: {rows} in quarantine, in {twin.twin}")
    if total > len(values):
        click.echo(f"{len(values):,} of {total:,} values are shown; --all shows all.")

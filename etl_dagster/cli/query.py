"""`etl-dagster query`: query the destination."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etl_dagster.cli.listing import ROWS, print_table, say_more
from etl_dagster.cli.options import config_option, json_option, load_shared

if TYPE_CHECKING:
    import pyarrow as pa

    from etl_dagster.config import PipelineConfig

#: DuckDB's timestamps without end, as they come through Arrow.
_INFINITIES = {2**63 - 1: "infinity", -(2**63 - 1): "-infinity"}


@click.command(short_help="Query the destination, also while it is written.")
@click.argument("sql")
@config_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with a line of names.")
@json_option
def query(sql: str, config_path: Path, as_csv: bool, as_json: bool) -> None:
    """Run a query on the DuckDB file, the DuckLake or the Postgres, read only, also while it is
    written. --json prints an object on each line. Bytes are printed as Postgres does: \\x6162.

    \b
    etl-dagster query "select origin, count(*) from public.flights group by all"
    """
    if as_csv and as_json:
        raise click.UsageError("choose one of --csv and --json")
    columns, rows = _answer(load_shared(config_path), sql)
    if as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows(rows)
    elif as_json:
        if twice := [name for name, times in Counter(columns).items() if times > 1]:
            raise click.UsageError(
                f"two columns are called {twice[0]!r}, and an object has a name once: "
                "name them apart with AS"
            )
        for row in rows:
            click.echo(_json_of(dict(zip(columns, row, strict=True))))
    else:
        _show_table(columns, rows)


def _json_of(row: Mapping[str, Any]) -> str:
    """The row as an object. JSON cannot represent NaN and infinities: they become texts."""
    try:
        return json.dumps(row, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_spelled(row), default=str, allow_nan=False)


def _spelled(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _spelled(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(each) for each in value]
    return value


def _printed(value: Any) -> Any:
    """The value with its bytes, also those in parts of it, as the text that Postgres prints."""
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, Mapping):
        return {key: _printed(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_printed, value))
    return value


def _answer(config: PipelineConfig, sql: str) -> tuple[Sequence[str], list[Sequence[Any]]]:
    """Columns and rows."""
    from etl_dagster.destinations.postgres.config import PostgresDestinationConfig

    if isinstance(config.destination, PostgresDestinationConfig):
        from etl_dagster.destinations.postgres.querying import query as query_postgres

        return query_postgres(config.destination.dsn.get_secret_value(), sql)
    result = _run(config, sql)
    return result.column_names, list(zip(*map(_values, result.columns), strict=True))


def _run(config: PipelineConfig, sql: str) -> pa.Table:
    from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
    from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
    from etl_dagster.errors import DestinationError

    destination = config.destination
    if isinstance(destination, DuckLakeDestinationConfig):
        from etl_dagster.destinations.ducklake.reading import query as query_lake

        return query_lake(destination, sql)
    if not isinstance(destination, DuckDBDestinationConfig):
        raise DestinationError(
            f"a destination of type {destination.type} can't be queried from here",
            solution="Query it with its own tools.",
        )
    if not destination.path.exists():
        raise DestinationError(
            f"there is no DuckDB file {destination.path} yet",
            solution="`etl-dagster run` creates it.",
        )
    from etl_dagster.destinations.duckdb import query as query_file

    return query_file(destination.path, sql)


def _values(column: pa.ChunkedArray[Any]) -> list[Any]:
    """The column as Python values, as texts if Python has no such values; bytes are texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        texts: list[Any] = column.cast(pa.string()).to_pylist()
    else:
        return [_printed(each) for each in values] if _has_bytes(column.type) else values
    if pa.types.is_timestamp(column.type):
        offsets: list[Any] = pc.cast(column, pa.int64()).to_pylist()
        texts = [_INFINITIES.get(o, text) for o, text in zip(offsets, texts, strict=True)]
    return texts


def _has_bytes(type_: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        return True
    return pa.types.is_nested(type_)  # perhaps in its parts


def _show_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for index, column in enumerate(columns):
        first = next((row[index] for row in rows if row[index] is not None), None)
        is_number = isinstance(first, int | float) and not isinstance(first, bool)
        table.add_column(Text(column), justify="right" if is_number else "left")
    for row in rows[:ROWS]:
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    print_table(table)
    say_more(len(rows) - ROWS, full="--csv or --json")
    click.echo(f"{len(rows):,} row{'' if len(rows) == 1 else 's'}")

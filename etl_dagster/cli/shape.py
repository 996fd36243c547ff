"""`etl-dagster shape`: what tables are at the destination, before anything is copied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from etl_dagster.cli.listing import few, some
from etl_dagster.cli.options import config_option, json_option, load


@click.command(short_help="Show names and columns at the destination; changes nothing.")
@click.argument("table", required=False)
@config_option
@click.option("--all", "everything", is_flag=True, help="All tables, also where they are many.")
@json_option
def shape(table: str | None, config_path: Path, everything: bool, as_json: bool) -> None:
    """Show what the settings make of each table, or of TABLE: its name, columns and rows.

    Only the source's catalog is read, never a row. What can't be followed is an error, as it is for
    `etl-dagster run`.

    \b
    etl-dagster shape public.orders
    """
    config = load(config_path)
    from etl_dagster.config.text import suggest
    from etl_dagster.runtime.checking.preflight import shaped_tables
    from etl_dagster.shaping.described import described
    from etl_dagster.table_name import TableName

    try:
        wanted = None if table is None else str(TableName.parse(table))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="TABLE") from None
    schemas = shaped_tables(config)
    found = [described(schema) for schema in schemas if wanted in (None, schema.name)]
    if wanted is not None and not found:
        names = [schema.name for schema in schemas]
        raise click.BadParameter(
            f"the publication has {some(names)}{suggest(wanted, names, [])}",
            param_hint="TABLE",
        )
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for each in found if everything else few(found, full="--all"):
        _show(each)


def _show(table: Mapping[str, Any]) -> None:
    name = table["source"]
    click.secho(name if name == table["table"] else f"{name} -> {table['table']}", bold=True)
    columns = table["columns"]
    sources = [column["source"] or "" for column in columns]
    names = [column["column"] or "-" for column in columns]
    widths = [max(map(len, texts), default=0) for texts in (sources, names)]
    for column, source, there in zip(columns, sources, names, strict=True):
        made = "" if column["from"] == "the source" else f"  ({column['from']})"
        line = f"  {source:<{widths[0]}}  {there:<{widths[1]}}  {column['type'] or ''}{made}"
        click.echo(line.rstrip())
    if table["where"]:
        click.echo(f"  rows where {table['where']}")
    if table["hook"]:
        click.echo(f"  through {table['hook']}")

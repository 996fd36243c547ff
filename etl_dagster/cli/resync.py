"""`etl-dagster resync`: copy tables again next to their old rows."""

from __future__ import annotations

from pathlib import Path

import click

from etl_dagster.cli.options import config_option, load
from etl_dagster.cli.reset import copy_again


@click.command()
@click.argument("tables", nargs=-1, required=True, metavar="SCHEMA.TABLE...")
@config_option
@click.option("--dry-run", is_flag=True, help="Say what would happen, and end.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def resync(tables: tuple[str, ...], config_path: Path, dry_run: bool, yes: bool) -> None:
    """Copy tables again, next to their old rows.

    The old rows stay readable until the new copy replaces them as a whole: no reader ever sees an
    empty table, or one that is half copied. The pipeline may run. The same as `etl-dagster reset`
    with names. To resume a table that stopped without a copy: `etl-dagster retry`.
    """
    config = load(config_path)
    from etl_dagster.cli.existing import existing_store

    with existing_store(config) as store:
        copy_again(config, store, tables, dry_run=dry_run, yes=yes)

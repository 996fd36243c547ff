"""`etl-dagster pause` and `etl-dagster resume`: hold the copies of single tables back."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path

import click

from etl_dagster.cli.confirming import changes_something, is_wanted
from etl_dagster.cli.listing import few
from etl_dagster.cli.options import config_option, load


@click.command()
@click.argument("tables", nargs=-1, required=True, metavar="SCHEMA.TABLE...")
@config_option
@changes_something
def pause(tables: tuple[str, ...], config_path: Path, dry_run: bool, yes: bool) -> None:
    """Hold back the copies of tables until they are resumed.

    A copy that is under way continues; in Dagster, cancel its run as well. The stream of a table
    continues, too: only its next copy waits. In Dagster, materializing the asset copies a table
    although it is paused. The source keeps WAL for a copy that was interrupted.

    \b
    etl-dagster pause public.orders
    """
    config = load(config_path)
    from etl_dagster.cli.existing import existing_store
    from etl_dagster.cli.tables import table_ids
    from etl_dagster.runtime.copying.pausing import pause_copies

    with existing_store(config) as store:
        ids = table_ids(config, store, tables)
        for name in few(list(ids)):
            click.echo(f"pause  {name}")
        if is_wanted(dry_run=dry_run, yes=yes):
            pause_copies(store, list(ids.values()))
            click.echo(f"Paused {_count(ids)}: no copy begins until `etl-dagster resume`.")


@click.command()
@click.argument("tables", nargs=-1, required=True, metavar="SCHEMA.TABLE...")
@config_option
@changes_something
def resume(tables: tuple[str, ...], config_path: Path, dry_run: bool, yes: bool) -> None:
    """Allow copies of paused tables again, and of tables whose copy was canceled.

    \b
    etl-dagster resume public.orders
    """
    config = load(config_path)
    from etl_dagster.cli.existing import existing_store
    from etl_dagster.cli.tables import table_ids
    from etl_dagster.runtime.copying.pausing import paused_tables, resume_copies

    with existing_store(config) as store:
        ids = table_ids(config, store, tables)
        paused = paused_tables(store)
        for name, table_id in few(list(ids.items())):
            click.echo(f"resume  {name}" + ("" if table_id in paused else "  (not paused)"))
        if is_wanted(dry_run=dry_run, yes=yes):
            resume_copies(store, list(ids.values()))
            click.echo(f"Resumed {_count(ids)}: a copy, also one that was canceled, may begin.")


def _count(tables: Sized) -> str:
    return f"{len(tables)} table{'' if len(tables) == 1 else 's'}"

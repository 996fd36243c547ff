"""`etl-dagster resync`: copy tables again next to their old rows."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.confirming import changes_something, is_wanted
from etl_dagster.cli.listing import few
from etl_dagster.cli.options import config_option, load
from etl_dagster.cli.reset import copy_again

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.model.stores import CoordinatingStore


@click.command()
@click.argument("tables", nargs=-1, required=True, metavar="SCHEMA.TABLE...")
@config_option
@click.option("--cancel", is_flag=True, help="Cancel their copies; the old rows stay.")
@changes_something
def resync(
    tables: tuple[str, ...], config_path: Path, cancel: bool, dry_run: bool, yes: bool
) -> None:
    """Copy tables again, next to their old rows.

    The old rows stay readable until the new copy replaces them as a whole: no reader ever sees an
    empty table, or one that is half copied. The pipeline may run. The same as `etl-dagster reset`
    with names. To resume a table that stopped without a copy: `etl-dagster retry`.

    On a terminal, the copies are shown while the pipeline makes them; Ctrl-C ends only the view.

    --cancel stops a copy that is due or under way. The old rows stay in service as they were, and
    are not brought up to date until the table is copied.

    \b
    etl-dagster resync public.orders
    etl-dagster resync public.orders --cancel
    """
    config = load(config_path)
    from etl_dagster.cli.existing import existing_store

    with existing_store(config) as store:
        if cancel:
            _cancel(config, store, tables, dry_run=dry_run, yes=yes)
        else:
            copy_again(config, store, tables, dry_run=dry_run, yes=yes)


def _cancel(
    config: PipelineConfig,
    store: CoordinatingStore,
    tables: tuple[str, ...],
    *,
    dry_run: bool,
    yes: bool,
) -> None:
    from etl_dagster.cli.tables import table_ids
    from etl_dagster.runtime.copying.cancelling import cancel_copy
    from etl_dagster.source.control import SourceControl

    wanted = table_ids(config, store, tables)
    for name in few(list(wanted)):
        click.echo(f"The copy of {name} will be cancelled; rows from before stay as they are.")
    if not is_wanted(dry_run=dry_run, yes=yes):
        return
    control = SourceControl(config.source, application_name="etl_dagster resync")
    with contextlib.closing(control):
        for name, table_id in wanted.items():
            cancel_copy(config, store, control, table_id, name)
    click.echo("Done.")

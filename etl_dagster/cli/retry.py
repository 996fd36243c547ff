"""`etl-dagster retry`: resume tables that stopped, without a copy."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from etl_dagster.cli.confirming import changes_something, is_wanted
from etl_dagster.cli.failures import FAILED
from etl_dagster.cli.listing import few
from etl_dagster.cli.options import config_option, load


@click.command(short_help="Resume tables that stopped, without a copy.")
@click.argument("tables", nargs=-1, metavar="[SCHEMA.TABLE]...")
@config_option
@click.option("--all", "everything", is_flag=True, help="All tables that stopped.")
@changes_something
def retry(
    tables: tuple[str, ...], config_path: Path, everything: bool, dry_run: bool, yes: bool
) -> None:
    """Resume tables that stopped, where they stopped.

    For a table whose changes the destination refused, once the cause is gone. The source has kept
    its changes meanwhile in a slot of the table's own: they are applied in order, exactly once
    where the destination has transactions, and the stream takes the table over again. Nothing is
    copied. A table whose copy failed continues its copy where it was.

    A table whose changes are not kept any more (`retry.max_retained_wal`) is refused, with exit
    code 1: it needs a copy, `etl-dagster resync TABLE`.

    \b
    etl-dagster retry public.orders
    etl-dagster retry --all --yes
    """
    if bool(tables) == everything:
        raise click.UsageError("name tables, or use --all")
    config = load(config_path)
    from etl_dagster.cli.existing import existing_store
    from etl_dagster.cli.tables import table_ids
    from etl_dagster.config.commands import command
    from etl_dagster.errors import EtlError
    from etl_dagster.runtime.copying.pausing import ask_for_copies, paused_tables
    from etl_dagster.runtime.retrying import request_retry, require_retryable, stopped_tables
    from etl_dagster.runtime.table_ids import find_table_ids
    from etl_dagster.source.control import SourceControl

    control = SourceControl(config.source, application_name=f"etl_dagster retry {config.pipeline}")
    refused: list[str] = []
    with existing_store(config) as store, contextlib.closing(control):
        if everything:
            stopped = stopped_tables(store)
            wanted = {n: t for n, t in find_table_ids(config, store).items() if t in stopped}
            if not wanted:
                click.echo("No table has stopped.")
                return
        else:
            wanted = table_ids(config, store, tables)
        paused = paused_tables(store)
        resumed = {}
        for name, table_id in wanted.items():
            try:
                resumed[name] = require_retryable(config, store, control, table_id, name)
            except EtlError as error:
                refused.append(f"{error.reason}. What to do: {error.solution}")
        for refusal in few(refused, err=True):
            click.echo(refusal, err=True)
        for name in few(list(resumed)):
            lsn = resumed[name].lsn
            where = (
                "will continue its copy where it was"
                if lsn is None
                else f"will be resumed from {lsn}, without a copy"
            )
            click.echo(f"{name} {where}.")
            if wanted[name] in paused:
                click.echo(f"It is paused: `{command(config, 'resume', name)}`")
        if resumed and is_wanted(dry_run=dry_run, yes=yes):
            for name, state in resumed.items():
                try:
                    ask_for_copies(store, [wanted[name]])
                    request_retry(store, wanted[name], state)
                except EtlError as error:
                    refused.append(name)
                    click.echo(f"{name}: {error.reason}. What to do: {error.solution}", err=True)
            if store.is_leased("apply"):
                click.echo("Done. The running pipeline starts on it now.")
            else:
                click.echo("Done. The next start begins with it.")
    if refused:
        click.get_current_context().exit(FAILED)

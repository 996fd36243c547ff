"""`etl-dagster lake`: maintenance of a DuckLake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.confirming import changes_something, is_wanted, require_decided
from etl_dagster.cli.listing import few
from etl_dagster.cli.options import config_option, json_option, load_shared

if TYPE_CHECKING:
    from etl_dagster.destinations.ducklake.maintenance import Maintenance


@click.group(short_help="Maintain the DuckLake.")
def lake() -> None:
    """Commands for a destination of type ducklake."""


@lake.command(short_help="Flush small writes, merge files, expire snapshots.")
@config_option
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    default=7.0,
    show_default=True,
    metavar="DAYS",
    help="Expire snapshots that are older; the newest one stays.",
)
@changes_something
@json_option
def maintain(config_path: Path, days: float, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Write what is in the catalog to files, merge small files, and expire old snapshots.

    Files that no snapshot needs any longer are deleted a day later, for readers and writers that
    are under way. Run it once a day, also while the pipeline runs.

    \b
    etl-dagster lake maintain --older-than 30 --dry-run
    etl-dagster lake maintain --yes
    """
    require_decided(as_json=as_json, dry_run=dry_run, yes=yes)
    from datetime import timedelta

    from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
    from etl_dagster.destinations.ducklake.maintenance import maintain as run
    from etl_dagster.errors import DestinationError

    destination = load_shared(config_path).destination
    if not isinstance(destination, DuckLakeDestinationConfig):
        raise DestinationError(
            f"a destination of type {destination.type} is not a DuckLake",
            solution="Name the configuration of one with -c.",
        )
    if not dry_run and not as_json:
        click.echo(
            f"Small writes will be flushed to files, small files merged, and snapshots older than "
            f"{days:g} days expired."
        )
        if not is_wanted(dry_run=False, yes=yes):
            return
    done = run(destination, older_than=timedelta(days=days), is_dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(done.as_json(), indent=2))
    else:
        _show(done)


def _show(done: Maintenance) -> None:
    from etl_dagster.words import human_bytes

    would, full = ("would be ", "--json") if done.is_dry_run else ("", "")
    for table, rows in few(list(done.flushed_rows.items()), full=full):
        click.echo(f"{table}: {rows:,} rows {would}written from the catalog to files")
    for table, (before, after) in few(list(done.merged_files.items()), full=full):
        click.echo(f"{table}: {before:,} files {would}merged to {after:,}")
    click.echo(
        f"{done.expired_snapshots:,} snapshots {would}expired, "
        f"{done.deleted_files:,} files {would}deleted"
    )
    for step in done.postponed:
        click.echo(f"left for the next time, because of a write at the same time: {step}")
    click.echo(
        f"the lake has {done.snapshots:,} snapshots, and {done.files:,} files with "
        f"{human_bytes(done.bytes)}"
    )
    if done.is_dry_run:
        click.echo("Dry run: nothing changed.")

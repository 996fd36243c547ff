"""`etl-dagster move`: move tables from one shard to another, without a copy."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.confirming import changes_something, is_wanted
from etl_dagster.cli.listing import few
from etl_dagster.cli.options import config_option, load_whole, set_up_logging

if TYPE_CHECKING:
    from etl_dagster.lsn import Lsn
    from etl_dagster.model.schema import TableId
    from etl_dagster.runtime.moving import Shard
    from etl_dagster.source.control import SourceControl

_LOOK_S = 0.5


@click.command(short_help="Move tables to another shard, without a copy.")
@click.argument("tables", nargs=-1, required=True, metavar="SCHEMA.TABLE...")
@click.option("--to", metavar="SHARD", required=True, help="The shard that is to have them.")
@config_option
@changes_something
@click.pass_context
def move(
    context: click.Context,
    tables: tuple[str, ...],
    to: str,
    config_path: Path,
    dry_run: bool,
    yes: bool,
) -> None:
    """Move tables from the shard that has them to another one, without copying a row.

    For tables that are streamed, while neither shard runs. First, the shard that has them catches
    up. Then one transaction moves them to the other shard's publication; it waits some seconds for
    open transactions that write them. A slot keeps their changes until the other shard takes them
    over at its next start. If the command was interrupted, run it again: it continues.

    The source's user must own the tables and both publications. The first shard has the
    pipeline's name.

    \b
    etl-dagster move public.events --to events
    """
    whole = load_whole(config_path)
    if not whole.shards:
        raise click.UsageError("there are no shards: add them under `shards`, or leave --shard out")
    configs = whole.members()
    if to not in configs:
        raise click.UsageError(f"{whole.pipeline} has no shard {to!r}: {', '.join(configs)}")
    set_up_logging(context, logging.WARNING, names_pipelines=True)
    from etl_dagster.assembly import build_destination, opened_store
    from etl_dagster.cli.existing import that_ran
    from etl_dagster.runtime.moving import Move, Shard
    from etl_dagster.source.control import SourceControl

    control = SourceControl(whole.source, application_name=f"etl_dagster move {whole.pipeline}")
    with contextlib.ExitStack() as opened:
        opened.callback(control.close)
        shards = {
            name: Shard(config, opened.enter_context(opened_store(config)))
            for name, config in (that_ran(whole) | {to: configs[to]}).items()
        }
        destination = build_destination(configs[to])
        opened.callback(destination.shutdown)
        moves = [
            (Move(shards[name], shards[to], control, destination), shards[name], wanted)
            for name, wanted in _by_shard(shards, to, _table_ids(control, tables)).items()
        ]
        for mover, shard, wanted in moves:
            mover.check(wanted)
            for table in few(list(wanted.values())):
                click.echo(
                    f"{table} moves from {shard.name} (publication {shard.publication}) to {to} "
                    f"(publication {shards[to].publication}), without a copy."
                )
        if not is_wanted(dry_run=dry_run, yes=yes):
            return
        for mover, shard, wanted in moves:
            moved = mover.run(wanted, partial(_bring_up, shard))
            for table_id, lsn in few(list(moved.items())):
                click.echo(f"{wanted[table_id]} continues in {to} from {lsn}.")
    click.echo("Done. The next start of the shard takes them over.")


def _table_ids(control: SourceControl, tables: Sequence[str]) -> dict[TableId, str]:
    """The tables by OID, with the names that the source has for them now."""
    from etl_dagster.source.moving import fetch_table_id
    from etl_dagster.table_name import TableName

    found: dict[TableId, str] = {}
    for text in tables:
        try:
            name = TableName.parse(text)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        table_id = control.ask("looking for a table", fetch_table_id, name)
        if table_id is None:
            raise click.UsageError(f"the source has no table {name}")
        found[table_id] = str(name)
    return found


def _by_shard(
    shards: Mapping[str, Shard], to: str, tables: Mapping[TableId, str]
) -> dict[str, dict[TableId, str]]:
    """The tables by the shard that has them, or that had them before an interrupted move."""
    from etl_dagster.runtime.moved import find_move

    found: dict[str, dict[TableId, str]] = {}
    states = {
        name: shard.store.get_table_replication_states()
        for name, shard in shards.items()
        if name != to
    }
    for table_id, name in tables.items():
        begun = find_move(shards[to].store, table_id)
        holders = [shard for shard, known in states.items() if table_id in known]
        if begun is not None and begun.shard in shards:
            holders = [begun.shard]
        if not holders:
            there = table_id in shards[to].store.get_table_replication_states()
            where = f"{to} has it already" if there else "none of the shards has it"
            raise click.UsageError(f"{name} can't be moved: {where}")
        found.setdefault(holders[0], {})[table_id] = name
    return found


def _bring_up(shard: Shard, goal: Lsn) -> None:
    """Run the shard until everything before the LSN is durable."""
    from etl_dagster.assembly import build_destination
    from etl_dagster.errors import InvalidState
    from etl_dagster.runtime.pipeline import Pipeline

    click.echo(f"Bringing {shard.name} up to {goal} first.")
    pipeline = Pipeline(
        shard.config, shard.store, build_destination(shard.config), copies="elsewhere"
    )
    pipeline.start()
    try:
        while pipeline.confirmed < goal:
            pipeline.hurry(goal)
            if pipeline.wait(_LOOK_S):
                raise InvalidState(f"the shard {shard.name} ended before it had come to {goal}")
    finally:
        pipeline.shutdown()
        pipeline.wait()

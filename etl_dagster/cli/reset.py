"""`etl-dagster reset`: copy tables again."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.confirming import changes_something, is_wanted
from etl_dagster.cli.listing import few
from etl_dagster.cli.options import config_option, load, load_whole

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.integrations.meltano.positions.pending import Pending
    from etl_dagster.model.stores import CoordinatingStore


@click.command()
@click.argument("tables", nargs=-1, metavar="[SCHEMA.TABLE]...")
@config_option
@click.option("--all", "everything", is_flag=True, help="All tables, and the replication slots.")
@click.option("--from-meltano", is_flag=True, help="The tables whose Meltano state was cleared.")
@changes_something
def reset(
    tables: tuple[str, ...],
    config_path: Path,
    everything: bool,
    from_meltano: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Copy tables again from the beginning.

    Named tables may be reset while the pipeline runs: their old rows stay readable until the new
    copy replaces them. A name with a dot is quoted as in SQL: '"a.b".c'. --all also drops the
    pipeline's slots, which is the way back after one was lost. It is for a pipeline that is
    stopped, or that Dagster's sensor runs, whose replicator then does it.
    --from-meltano does now what the next start would do about changes to the tables' Meltano
    states; with --dry-run it shows them.

    \b
    etl-dagster reset public.orders public.customers
    etl-dagster reset --all --dry-run
    """
    if [bool(tables), everything, from_meltano].count(True) != 1:
        raise click.UsageError("name tables, or use --all, or --from-meltano")
    whole = load_whole(config_path)
    if everything and whole.destinations:
        _reset_all_of_several(whole, dry_run=dry_run, yes=yes)
        return
    config = load(config_path)
    from etl_dagster.cli.existing import existing_store

    with existing_store(config) as store:
        if everything:
            _reset_all(config, store, dry_run=dry_run, yes=yes)
        elif from_meltano:
            _reset_cleared(config, store, dry_run=dry_run, yes=yes)
        else:
            copy_again(config, store, tables, dry_run=dry_run, yes=yes)


def copy_again(
    config: PipelineConfig,
    store: CoordinatingStore,
    tables: tuple[str, ...],
    *,
    dry_run: bool,
    yes: bool,
) -> None:
    from etl_dagster.cli.table_progress import follow_copies
    from etl_dagster.cli.tables import table_ids
    from etl_dagster.runtime.copying.pausing import ask_for_copies
    from etl_dagster.runtime.repair_requests import forget_repairs

    wanted = table_ids(config, store, tables)
    for name in few(list(wanted)):
        click.echo(f"{name} will be copied again from the beginning; its old rows stay until then.")
    if not is_wanted(dry_run=dry_run, yes=yes):
        return
    ask_for_copies(store, list(wanted.values()))
    forget_repairs(store, list(wanted.values()))
    for table_id in wanted.values():
        store.request_copy(table_id)
    if store.is_leased("apply"):
        click.echo("Done. The running pipeline starts on it now.")
        follow_copies(
            store, {table_id: name for name, table_id in wanted.items()}, threading.Event()
        )
    else:
        click.echo("Done. The next start begins with it.")


def _reset_all(
    config: PipelineConfig, store: CoordinatingStore, *, dry_run: bool, yes: bool
) -> None:
    from etl_dagster.assembly import opened_store
    from etl_dagster.runtime.copying.pausing import ask_for_copies
    from etl_dagster.runtime.many import many
    from etl_dagster.runtime.resetting import (
        ALL,
        are_resets_offered,
        request_reset,
        reset_pipeline,
    )
    from etl_dagster.runtime.runner import in_use
    from etl_dagster.source.control import SourceControl
    from etl_dagster.source.slots import apply_slot_names

    used = in_use(store, config.pipeline, "a process")
    used.solution = "Stop it first: Ctrl-C where it runs, or turn the sensor off in Dagster."
    with contextlib.ExitStack() as opened:
        # One of several destinations: the process that runs all of them follows requests for each.
        is_offered = (
            are_resets_offered(store)
            if config.membership is None
            else are_resets_offered(opened.enter_context(opened_store(config.whole)), ALL)
        )
    copying = many(store).leased([f"table:{t}" for t in store.get_table_replication_states()])
    if not is_offered and (store.is_leased("apply") or copying):
        raise used
    count = len(store.get_table_replication_states())
    click.echo(
        f"All tables ({count:,}) will be copied again from the beginning; their old rows stay "
        "until then."
    )
    click.echo(
        f"The slot {apply_slot_names(config)[0]} and the pipeline's table sync slots will be "
        "dropped; the next start creates new ones."
    )
    if not is_wanted(dry_run=dry_run, yes=yes):
        return
    ask_for_copies(store, list(store.get_table_replication_states()))
    if is_offered:
        click.echo("The replicator of Dagster's sensor stops the stream and resets the tables.")
        answer = request_reset(store)
        if answer is None:
            raise used
        dropped = answer
    else:
        control = SourceControl(config.source, application_name="etl_dagster reset")
        try:
            dropped = reset_pipeline(config, store, control)
        finally:
            control.close()
    for name in few(dropped):
        click.echo(f"Dropped {name}.")
    if is_offered:
        click.echo("Done. The sensor requests a run for each table.")
    else:
        click.echo("Done. The next start, by `etl-dagster run` or the sensor, copies every table.")


def _reset_all_of_several(whole: PipelineConfig, *, dry_run: bool, yes: bool) -> None:
    """Every table of every destination, and all slots, the shared one last."""
    from etl_dagster.assembly import opened_store
    from etl_dagster.runtime.copying.pausing import ask_for_copies
    from etl_dagster.runtime.resetting import ALL, are_resets_offered, request_reset, reset_several
    from etl_dagster.runtime.runner import in_use
    from etl_dagster.source.control import SourceControl

    with contextlib.ExitStack() as opened:
        store = opened.enter_context(opened_store(whole))
        members = whole.members()
        stores = {name: opened.enter_context(opened_store(each)) for name, each in members.items()}
        used = in_use(store, whole.pipeline, "a process", key=ALL.runner)
        used.solution = "Stop it first: Ctrl-C where it runs, or turn the sensors off in Dagster."
        is_offered = are_resets_offered(store, ALL)
        is_leased = store.is_leased(ALL.lease) or any(
            each.is_leased("apply") for each in stores.values()
        )
        if is_leased and not is_offered:
            raise used
        click.echo(
            f"All tables of {', '.join(members)} will be copied again from the beginning; their "
            "old rows stay until then. The slots will be dropped; the next start creates new ones."
        )
        if not is_wanted(dry_run=dry_run, yes=yes):
            return
        for each in stores.values():
            ask_for_copies(each, list(each.get_table_replication_states()))
        if is_offered:
            click.echo(
                "The replicator of Dagster's sensors stops the stream and resets the tables."
            )
            answer = request_reset(store, ALL)
            if answer is None:
                raise used
            dropped = answer
        else:
            control = SourceControl(whole.source, application_name="etl_dagster reset")
            with contextlib.closing(control):
                dropped = reset_several(whole, stores, control)
    for name in few(dropped):
        click.echo(f"Dropped {name}.")
    if is_offered:
        click.echo("Done. The sensors request a run for each table.")
    else:
        click.echo("Done. The next start, by `etl-dagster run` or the sensors, copies every table.")


def _reset_cleared(
    config: PipelineConfig, store: CoordinatingStore, *, dry_run: bool, yes: bool
) -> None:
    from etl_dagster.integrations.meltano.positions.pending import PendingChanges

    with PendingChanges.of(config, store) as changes:
        if changes is None:
            raise click.UsageError("positions of this pipeline are not mirrored as Meltano state")
        found = changes.find()
        for pending in few(found):
            click.echo(f"{pending.position.state_id}: {_meaning(pending)}")
        copies = [pending for pending in found if pending.is_copy]
        if not copies:
            click.echo("No table is to be copied again.")
            return
        if store.is_leased("apply"):
            click.echo("The running pipeline does it by itself, within seconds.")
            return
        if not is_wanted(dry_run=dry_run, yes=yes):
            return
        for pending in copies:
            changes.request(pending)
    click.echo("Done. The next start begins with it.")


def _meaning(pending: Pending) -> str:
    """What happens because of a change, in one line."""
    from etl_dagster.integrations.meltano.positions.verdicts import Cleared, Refused, Renamed

    match pending.verdict:
        case Cleared(how) if pending.is_copy:
            table = pending.position.table
            return f"{how}; {table} is copied again, its old rows stay until then"
        case Cleared(how):
            return f"{how}; the table is going to be copied anyway"
        case Renamed(to):
            return f"it was moved to {to}; it is written again"
        case Refused(reason):
            return f"refused, {reason}; it is written again as it was"
    return "only what is displayed was changed; it is written again"

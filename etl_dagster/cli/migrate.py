"""`etl-dagster migrate`: create or show what the state store, or the source, needs."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.confirming import changes_something, is_wanted, require_decided
from etl_dagster.cli.listing import some
from etl_dagster.cli.options import config_option, json_option, load_whole

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.integrations.meltano.states.storage import StateStorage


@click.command(short_help="Create or upgrade the state store's tables, or the source's trigger.")
@config_option
@click.option(
    "--print", "only_print", is_flag=True, help="Print the SQL that is due, and change nothing."
)
@click.option(
    "--offline", is_flag=True, help="With --print: all of it, asking no server what is there."
)
@click.option(
    "--source", "of_source", is_flag=True, help="The event trigger on the source instead."
)
@click.option("--remove", is_flag=True, help="With --source: remove the event trigger.")
@changes_something
@json_option
def migrate(
    config_path: Path,
    only_print: bool,
    offline: bool,
    of_source: bool,
    remove: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Create or upgrade the tables of the state store, and those of the Meltano states in it.

    A start does so by itself. Where its user may not create tables, an administrator runs what
    --print prints, and then grants the user USAGE on the schema, and SELECT, INSERT, UPDATE and
    DELETE on its tables.

    \b
    etl-dagster migrate --dry-run
    etl-dagster migrate --print | psql "$ADMIN_DSN"

    With --source: install an event trigger on the source, which reports every ALTER TABLE in the
    stream. With it, changes of columns reach the destination with the commit that made them, in
    place where the rows allow it. Without it, most are found with the next row or in the catalog,
    some with a new copy of the table, and renamed enum values not at all. It needs a role that may
    create event triggers: a superuser, or rds_superuser, cloudsqlsuperuser, azure_pg_admin. Such a
    role can run what --print prints. Roles that alter tables need no right for it.

    \b
    etl-dagster migrate --source --print | psql "$ADMIN_DSN"
    etl-dagster migrate --source --remove
    """
    if offline and not only_print:
        raise click.UsageError("--offline goes with --print")
    if remove and not of_source:
        raise click.UsageError("--remove goes with --source")
    require_decided(as_json=as_json, dry_run=dry_run or only_print, yes=yes)
    config = load_whole(config_path)
    if of_source:
        _migrate_source(
            config,
            only_print=only_print,
            remove=remove,
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
        )
        return
    from etl_dagster.errors import ConfigError
    from etl_dagster.integrations.meltano.states.migrate import script as script_of_states
    from etl_dagster.pg.migrate import script as script_of
    from etl_dagster.stores.postgres import PostgresStore
    from etl_dagster.stores.postgres.config import PostgresStoreConfig
    from etl_dagster.stores.postgres.migrate import STORE

    if not isinstance(config.state_store, PostgresStoreConfig):
        raise ConfigError(
            [f"state_store.type: {config.state_store.type} has no migrations, only postgres has"],
            origin=str(config_path),
        )
    with contextlib.ExitStack() as opened:
        store = PostgresStore.from_config(config.state_store, config)
        opened.enter_context(contextlib.closing(store))
        states = _states(config)
        if states is not None:
            opened.enter_context(contextlib.closing(states))
        due = list(STORE) if offline else store.pending_migrations()
        names = [migration.name for migration in due]
        script, of_states = script_of(due, store.schema, STORE), ""
        if states is not None:
            of_states = script_of_states(states.tables) if offline else states.migration_script()
        if of_states:
            names.append("meltano_states")
            script += ("\n" if script else "") + of_states
        if only_print:
            facts = {"schema": store.schema, "pending": names, "sql": script}
            up_to_date = f"-- schema {store.schema} is up to date\n"
            click.echo(json.dumps(facts) if as_json else script or up_to_date, nl=as_json)
            return
        if as_json and dry_run:
            click.echo(json.dumps({"schema": store.schema, "pending": names}))
            return
        if not as_json:
            if not names:
                click.echo(f"schema {store.schema!r} is up to date")
                return
            click.echo(f"To be run in schema {store.schema!r}: {some(names)}")
            if not is_wanted(dry_run=dry_run, yes=yes):
                return
        run = [migration.name for migration in store.migrate()]
        if states is not None and of_states:
            states.migrate()
            run.append("meltano_states")
    if as_json:
        click.echo(json.dumps({"schema": store.schema, "run": run}))
    else:
        for name in run:
            click.echo(f"ran {name}")


def _migrate_source(
    config: PipelineConfig,
    *,
    only_print: bool,
    remove: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    from etl_dagster.source import trigger
    from etl_dagster.source.primary import writable_connection

    name = f"event trigger, version {trigger.VERSION}"
    if only_print:
        script = trigger.remove_script() if remove else trigger.install_script()
        click.echo(json.dumps({"sql": script}) if as_json else script, nl=as_json)
        return
    with writable_connection(config.source, application_name="etl_dagster migrate") as connection:
        found = trigger.fetch_trigger(connection)
        is_due = bool(found.trace) if remove else not found.reports
        if as_json and dry_run:
            click.echo(json.dumps({"to_remove" if remove else "to_install": is_due}))
            return
        if is_due and not as_json:
            what = "removed" if remove else "installed"
            click.echo(f"On the source, the {'event trigger' if remove else name} will be {what}.")
            if not is_wanted(dry_run=dry_run, yes=yes):
                return
        change = trigger.remove if remove else trigger.install
        is_changed = is_due and change(connection)
    if as_json:
        click.echo(json.dumps({"removed" if remove else "installed": is_changed}))
    elif remove:
        click.echo("removed the event trigger" if is_changed else "there is no event trigger")
    else:
        click.echo(f"installed the {name}" if is_changed else f"the {name} is installed")


def _states(config: PipelineConfig) -> StateStorage | None:
    """The Meltano states that mirror the positions; None if a state backend keeps them."""
    from etl_dagster.integrations.meltano.positions.mirrored import state_location
    from etl_dagster.integrations.meltano.states.storage import StateStorage

    if config.meltano.state_backend is not None:
        return None
    location = state_location(config)
    return None if location is None else StateStorage(location)

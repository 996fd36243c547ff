"""`etl-dagster migrate`: what the state store, or the source, needs: created or only shown."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
    "--all", "everything", is_flag=True, help="With --print: all of it, asking no server."
)
@click.option(
    "--source", "of_source", is_flag=True, help="The event trigger on the source instead."
)
@click.option("--remove", is_flag=True, help="With --source: remove the event trigger.")
@json_option
def migrate(
    config_path: Path,
    only_print: bool,
    everything: bool,
    of_source: bool,
    remove: bool,
    as_json: bool,
) -> None:
    """Create or upgrade the tables of the state store, and those of the Meltano states in it.

    A start does so by itself. Where its user may not create tables, an administrator runs what
    --print prints, and then grants the user USAGE on the schema, and SELECT, INSERT, UPDATE and
    DELETE on its tables.

    \b
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
    if everything and not only_print:
        raise click.UsageError("--all goes with --print")
    if remove and not of_source:
        raise click.UsageError("--remove goes with --source")
    config = load_whole(config_path)
    if of_source:
        _migrate_source(config, only_print=only_print, remove=remove, as_json=as_json)
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
    with contextlib.closing(PostgresStore.from_config(config.state_store, config)) as store:
        if everything:
            done = list(STORE)
        else:
            done = store.pending_migrations() if only_print else store.migrate()
    names = [migration.name for migration in done]
    script, states = script_of(done, store.schema, STORE), _states(config)
    if states is not None:
        with contextlib.closing(states):
            due = script_of_states(states.tables) if everything else states.migration_script()
            if due:
                names.append("meltano_states")
                script += ("\n" if script else "") + due
            if due and not only_print:
                states.migrate()
    if as_json:
        answer: dict[str, object] = {
            "schema": store.schema,
            "pending" if only_print else "run": names,
        }
        click.echo(json.dumps(answer | ({"sql": script} if only_print else {})))
    elif only_print:
        click.echo(script or f"-- schema {store.schema} is up to date\n", nl=False)
    else:
        for name in names:
            click.echo(f"ran {name}")
        if not names:
            click.echo(f"schema {store.schema!r} is up to date")


def _migrate_source(
    config: PipelineConfig, *, only_print: bool, remove: bool, as_json: bool
) -> None:
    from etl_dagster.source import trigger
    from etl_dagster.source.connection import connect

    name = f"event trigger, version {trigger.VERSION}"
    if only_print:
        script = trigger.remove_script() if remove else trigger.install_script()
        click.echo(json.dumps({"sql": script}) if as_json else script, nl=as_json)
        return
    with connect(config.source, application_name="etl_dagster migrate") as connection:
        is_changed = trigger.remove(connection) if remove else trigger.install(connection)
    if as_json:
        click.echo(json.dumps({"removed" if remove else "installed": is_changed}))
    elif remove:
        click.echo("removed the event trigger" if is_changed else "there is no event trigger")
    else:
        click.echo(f"installed the {name}" if is_changed else f"the {name} is installed")


def _states(config: PipelineConfig) -> StateStorage | None:
    """The place of the mirrored positions, where it has no other keeper."""
    from etl_dagster.integrations.meltano.positions.mirrored import state_location
    from etl_dagster.integrations.meltano.states.storage import StateStorage

    if config.meltano.state_backend is not None:
        return None
    location = state_location(config)
    return None if location is None else StateStorage(location)

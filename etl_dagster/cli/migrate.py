"""`etl-dagster migrate`: the tables of the state store, made or only shown."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.options import config_option, json_option, load

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.integrations.meltano.states.storage import StateStorage


@click.command(short_help="Create or upgrade the state store's tables.")
@config_option
@click.option(
    "--print", "only_print", is_flag=True, help="Print the SQL that is due, and change nothing."
)
@click.option(
    "--all", "everything", is_flag=True, help="With --print: all of it, asking no server."
)
@json_option
def migrate(config_path: Path, only_print: bool, everything: bool, as_json: bool) -> None:
    """Create or upgrade the tables of the state store, and those of the Meltano states in it.

    A start does so by itself. Where its user may not create tables, an administrator runs what
    --print prints, and then grants the user USAGE on the schema, and SELECT, INSERT, UPDATE and
    DELETE on its tables.

    \b
    etl-dagster migrate --print | psql "$ADMIN_DSN"
    """
    if everything and not only_print:
        raise click.UsageError("--all goes with --print")
    config = load(config_path)
    from etl_dagster.config import PostgresStoreConfig
    from etl_dagster.errors import ConfigError
    from etl_dagster.integrations.meltano.states.migrate import script as script_of_states
    from etl_dagster.stores.postgres import PostgresStore
    from etl_dagster.stores.postgres.migrate import STORE
    from etl_dagster.stores.postgres.migrate import script as script_of

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
    script, states = script_of(done, store.schema), _states(config)
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


def _states(config: PipelineConfig) -> StateStorage | None:
    """The place of the mirrored positions, where it has no other keeper."""
    from etl_dagster.integrations.meltano.positions.mirrored import state_location
    from etl_dagster.integrations.meltano.states.storage import StateStorage

    if config.meltano.state_backend is not None:
        return None
    location = state_location(config)
    return None if location is None else StateStorage(location)

"""`etl-dagster migrate`: the tables of the state store, made or only shown."""

from __future__ import annotations

import json
from pathlib import Path

import click

from etl_dagster.cli.options import config_option, json_option, load


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
    """Create or upgrade the tables of the state store.

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
    from etl_dagster.stores.postgres import PostgresStore
    from etl_dagster.stores.postgres.migrate import STORE, script

    if not isinstance(config.state_store, PostgresStoreConfig):
        raise ConfigError(
            [f"state_store.type: {config.state_store.type} has no migrations, only postgres has"],
            origin=str(config_path),
        )
    store = PostgresStore.from_config(config.state_store, config)
    try:
        if everything:
            done = list(STORE)
        else:
            done = store.pending_migrations() if only_print else store.migrate()
    finally:
        store.close()
    if as_json:
        state = "pending" if only_print else "run"
        names = [migration.name for migration in done]
        answer: dict[str, object] = {"schema": store.schema, state: names}
        if only_print:
            answer["sql"] = script(done, store.schema)
        click.echo(json.dumps(answer))
    elif only_print:
        click.echo(
            script(done, store.schema) or f"-- schema {store.schema} is up to date", nl=False
        )
        if not done:
            click.echo()
    else:
        for migration in done:
            click.echo(f"ran {migration.name}")
        if not done:
            click.echo(f"schema {store.schema!r} is up to date")

"""The database in which the commands on Meltano states find them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from etl_dagster.cli.options import config_option, load_shared

if TYPE_CHECKING:
    from etl_dagster.integrations.meltano.states.storage import StateLocation, StateStorage

Command = TypeVar("Command", bound=Callable[..., Any])

#: Meltano's own names for the settings, as environment variables.
_SETTINGS = ("MELTANO_STATE_BACKEND_POSTGRES_", "MELTANO_STATE_BACKEND_POSTGRESQL_")


def storage_options(command: Command) -> Command:
    command = click.option(
        "--uri", help="The database with the states, as in Meltano's state_backend.uri."
    )(command)
    return config_option(command)


@contextmanager
def opened_storage(
    uri: str | None, config_path: Path, *, create: bool = False
) -> Iterator[StateStorage]:
    """The states; their tables are only created with `create`."""
    from etl_dagster.integrations.meltano.states.storage import StateStorage, StorageOptions

    names = {
        "state_table": _setting("state_table") or "meltano_state",
        "locks_table": _setting("locks_table") or "meltano_state_locks",
    }
    options = StorageOptions(create_tables=create)
    storage = StateStorage(_location(uri, config_path), options=options, **names)
    try:
        yield storage
    finally:
        storage.close()


def _location(uri: str | None, config_path: Path) -> StateLocation:
    from etl_dagster.errors import ConfigError
    from etl_dagster.integrations.meltano.positions.mirrored import states_location
    from etl_dagster.integrations.meltano.states.uri import SETTINGS, locate

    uri = uri or os.environ.get("MELTANO_STATE_BACKEND_URI")
    if uri:
        return locate(uri, **{name: _setting(name) for name in SETTINGS})
    if not config_path.exists():
        nowhere = ConfigError(
            [f"there is no --uri, no MELTANO_STATE_BACKEND_URI and no {config_path}"],
            origin="the place of the states",
        )
        nowhere.solution = "--uri postgres://user:password@host:port/database/schema"
        raise nowhere
    location = states_location(load_shared(config_path))
    if location is None:
        raise ConfigError(
            [
                "state_store.type: only a Postgres store has Meltano states; or set "
                "meltano.state_backend"
            ],
            origin=str(config_path),
        )
    return location


def _setting(name: str) -> str | None:
    found = (os.environ.get(prefix + name.upper()) for prefix in _SETTINGS)
    return next((value for value in found if value), None)

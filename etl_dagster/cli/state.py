"""`etl-dagster state`: Meltano states in Postgres, with their history."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from etl_dagster.cli.failures import FAILED, show
from etl_dagster.cli.options import config_option, json_option, load

if TYPE_CHECKING:
    from etl_dagster.integrations.meltano.states.errors import StateCorrupt
    from etl_dagster.integrations.meltano.states.storage import (
        Difference,
        NewState,
        StateLocation,
        StateStorage,
        StateVersion,
        StoredState,
    )

Command = TypeVar("Command", bound=Callable[..., Any])

#: Meltano's own names for the settings, as environment variables.
_SETTINGS = ("MELTANO_STATE_BACKEND_POSTGRES_", "MELTANO_STATE_BACKEND_POSTGRESQL_")
#: A plan names so many states; the rest is counted.
_SHOWN = 20


@click.group(short_help="Look at Meltano states, go back to earlier ones, import others.")
def state() -> None:
    """Meltano states that live in Postgres: list them, see who wrote what when, bring an earlier
    version back, import from elsewhere.

    \b
    Where they are, the first that is given:
      --uri postgres://user:password@host:port/database/schema
      MELTANO_STATE_BACKEND_URI, and MELTANO_STATE_BACKEND_POSTGRES_PASSWORD etc.
      where etl.yaml has the positions of its tables mirrored: meltano.state_backend, or the
      state store

    What changes something (restore, import, clear) only says what it would do, until it is called
    with --yes.
    """


def _storage_options(command: Command) -> Command:
    command = click.option(
        "--uri", help="The database with the states, as in Meltano's state_backend.uri."
    )(command)
    return config_option(command)


_yes_option = click.option("--yes", is_flag=True, help="Do it; without, it is only shown.")


@state.command("list", short_help="List state IDs.")
@click.argument("pattern", required=False)
@_storage_options
@json_option
def list_states(pattern: str | None, uri: str | None, config_path: Path, as_json: bool) -> None:
    """List states, all or those that match a PATTERN such as 'dev:*' (* ? [..], in quotes)."""
    with _storage(uri, config_path) as storage:
        states = storage.get_all(pattern)
    if as_json:
        click.echo(json.dumps([_facts(stored) for stored in states], indent=2))
        return
    if not states:
        click.echo(f"No state{f' matches {pattern}' if pattern else ''}.", err=True)
    _show_table(
        ("state ID", "version", "updated", "by"),
        [(s.state_id, str(s.version), _time(s.updated_at), _by(s)) for s in states],
    )


@state.command("get", short_help="Print a state.")
@click.argument("state_id")
@_storage_options
@json_option
def get_state(state_id: str, uri: str | None, config_path: Path, as_json: bool) -> None:
    """Print what the next run gets: the partial state merged over the completed one.

    --json prints both halves apart, with version, time and writer.
    """
    with _storage(uri, config_path) as storage:
        stored = _existing(storage, state_id)
    if as_json:
        halves = {"completed": stored.completed_object(), "partial": stored.partial_object()}
        click.echo(json.dumps({**_facts(stored), **halves}, indent=2))
    else:
        click.echo(json.dumps(stored.merged(), indent=2))


@state.command("history", short_help="Show who wrote a state when.")
@click.argument("state_id")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@_storage_options
@json_option
def history(state_id: str, limit: int, uri: str | None, config_path: Path, as_json: bool) -> None:
    """Show the writes of a state, the newest first, also of one that was cleared."""
    with _storage(uri, config_path) as storage:
        versions = storage.history(state_id, limit=limit)
    if as_json:
        click.echo(json.dumps([_version_facts(v) for v in versions], indent=2))
        return
    if not versions:
        click.echo(f"No history of {state_id}.", err=True)
    _show_table(
        ("version", "what", "when", "by"),
        [(str(v.version), v.operation, _time(v.written_at), _by(v)) for v in versions],
    )


@state.command("diff", short_help="Compare two versions of a state.")
@click.argument("state_id")
@click.argument("before", type=int, required=False)
@click.argument("after", type=int, required=False)
@_storage_options
@json_option
def diff(
    state_id: str,
    before: int | None,
    after: int | None,
    uri: str | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """Show where two versions differ.

    \b
    etl-dagster state diff dev:tap-to-target          the last write
    etl-dagster state diff dev:tap-to-target 12       version 12 and now
    etl-dagster state diff dev:tap-to-target 12 15    version 12 and 15
    """
    with _storage(uri, config_path) as storage:
        if before is None:
            newest = storage.history(state_id, limit=2)
            if len(newest) < 2:
                raise click.UsageError(f"{state_id} has no two versions to compare")
            before, after = newest[1].version, newest[0].version
        changes = storage.diff(state_id, before, after)
    if as_json:
        click.echo(json.dumps([asdict(change) for change in changes], indent=2))
    else:
        _show_changes(changes)


@state.command("restore", short_help="Bring an earlier version of a state back.")
@click.argument("state_id")
@click.argument("version", type=int)
@_yes_option
@_storage_options
def restore(state_id: str, version: int, yes: bool, uri: str | None, config_path: Path) -> None:
    """Write an earlier VERSION of a state again; `state history` lists them.

    Shows what would change, and does it with --yes. What is there now stays in the history.
    """
    from etl_dagster.integrations.meltano.states.records import diff as compare

    with _storage(uri, config_path) as storage:
        old, now = storage.version(state_id, version), storage.get(state_id)
        _show_changes(compare(now or _nothing(state_id), old))
        if not _is_meant(yes):
            return
        storage.restore(state_id, version, expected_version=now.version if now else 0)
        click.echo(f"Restored version {version} of {state_id}.")


@state.command("clear", short_help="Forget states; their history stays.")
@click.argument("state_ids", nargs=-1, metavar="[STATE_ID]...")
@click.option("--pattern", help="All that match, such as 'dev:*'.")
@_yes_option
@_storage_options
def clear(
    state_ids: Sequence[str], pattern: str | None, yes: bool, uri: str | None, config_path: Path
) -> None:
    """Forget states, so that the next run loads everything again.

    Shows which, and does it with --yes. `state restore` brings them back.
    """
    if bool(state_ids) == bool(pattern):
        raise click.UsageError("name state IDs, or give --pattern")
    with _storage(uri, config_path) as storage:
        wanted = list(state_ids) or storage.list_ids(pattern)
        there = set(storage.list_ids())
        missing = [state_id for state_id in wanted if state_id not in there]
        if missing:
            raise click.UsageError(f"there is no state {', '.join(missing)}")
        for state_id in wanted[:_SHOWN]:
            click.echo(f"clear  {state_id}")
        _say_more(len(wanted))
        if not wanted or not _is_meant(yes):
            return
        for state_id in wanted:
            with storage.lock(state_id):
                storage.delete(state_id)
        click.echo(f"Cleared {_count(len(wanted))}.")


@state.command("export", short_help="Write states as `meltano state export` does.")
@click.argument("pattern", required=False)
@_storage_options
def export(pattern: str | None, uri: str | None, config_path: Path) -> None:
    """Print states as one JSON object, which `meltano state import` and `etl-dagster state import
    --from FILE` read."""
    with _storage(uri, config_path) as storage:
        states = storage.get_all(pattern)
    states, corrupt = _readable(states)
    # The halves to the letter, without a detour through numbers.
    lines = [
        f'  {json.dumps(s.state_id)}: {{"completed": {s.completed or "{}"}, '
        f'"partial": {s.partial or "{}"}}}'
        for s in states
    ]
    click.echo("{\n" + ",\n".join(lines) + "\n}" if lines else "{}")
    for error in corrupt:
        show(f"{error.reason}; it is left out", error.solution)
    if corrupt:
        raise SystemExit(FAILED)


@state.command("import", short_help="Import states from another backend, database or file.")
@click.option(
    "--from",
    "source",
    required=True,
    help="postgres://..., sqlite:///..., mysql://..., s3://..., file:///..., systemdb, or a file.",
)
@click.option("--table", help="The source's table; by default meltano_state or state.")
@click.option("--pattern", help="Only those that match, such as 'prod:*'.")
@click.option("--only-new", is_flag=True, help="Keep states that are here already.")
@_yes_option
@_storage_options
def import_states(
    source: str,
    table: str | None,
    pattern: str | None,
    only_new: bool,
    yes: bool,
    uri: str | None,
    config_path: Path,
) -> None:
    """Import states: all of a source, in one transaction. The source is only read.

    \b
    --from sqlite:///.meltano/meltano.db      Meltano's system database, also MySQL, Postgres
    --from postgres://host/database/schema    another Postgres backend's tables
    --from s3://bucket/prefix                 any backend that Meltano knows here, with its
                                              settings from the project or the environment
    --from systemdb                           the system database of the project around here
    --from states.json                        what `meltano state export` wrote

    Shows what would be imported, and does it with --yes.
    """
    from etl_dagster.integrations.meltano.states.glob import matcher
    from etl_dagster.integrations.meltano.states.sources import read_states

    found = read_states(source, table=table)
    matches = matcher(pattern)
    with _storage(uri, config_path, create=yes) as storage:
        here = _all_by_id(storage)
        plan = []
        for new in found:
            if matches is None or matches(new.state_id):
                plan.append((_verdict(new, here.get(new.state_id), only_new), new))
        for verdict, new in plan[:_SHOWN]:
            click.echo(f"{verdict:<9} {new.state_id}")
        _say_more(len(plan))
        chosen = [new for verdict, new in plan if verdict in ("new", "replace")]
        click.echo(
            f"{_count(len(plan))} at the source: "
            + ", ".join(
                f"{sum(verdict == kind for verdict, _ in plan)} {kind}"
                for kind in ("new", "replace", "same", "keep")
            )
            + "."
        )
        if not chosen or not _is_meant(yes):
            return
        click.echo(f"Imported {_count(storage.set_all(chosen))}.")


@state.command("locks", short_help="Show who writes or runs which state now.")
@_storage_options
@json_option
def locks(uri: str | None, config_path: Path, as_json: bool) -> None:
    """Show locks and run leases. They end by themselves when their process is gone."""
    with _storage(uri, config_path) as storage:
        rows = storage.locks()
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2, default=str))
        return
    if not rows:
        click.echo("No process holds a lock or runs a pipeline.", err=True)
    _show_table(
        ("state ID", "kind", "owner", "since", "until"),
        [
            (
                row.state_id,
                row.kind,
                row.owner + (f" run {row.run_id}" if row.run_id else ""),
                _time(row.acquired_at),
                "expired" if row.is_expired else _time(row.expires_at),
            )
            for row in rows
        ],
    )


# -- where --------------------------------------------------------------------------------------


@contextmanager
def _storage(uri: str | None, config_path: Path, *, create: bool = False) -> Iterator[StateStorage]:
    """Looking makes no tables."""
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
    location = states_location(load(config_path))
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


def _all_by_id(storage: StateStorage) -> dict[str, StoredState]:
    from etl_dagster.integrations.meltano.states.errors import (
        StateSchemaMissing,
        StateTablesMissing,
    )

    try:
        return {stored.state_id: stored for stored in storage.get_all()}
    except StateSchemaMissing:
        raise
    except StateTablesMissing:
        return {}  # they are made with --yes


def _existing(storage: StateStorage, state_id: str) -> StoredState:
    from etl_dagster.integrations.meltano.states.errors import StateVersionMissing

    stored = storage.get(state_id)
    if stored is None:
        raise StateVersionMissing(
            f"there is no state {state_id!r}",
            solution="`etl-dagster state list` shows what there is; `state history` also those "
            "that were cleared.",
        )
    return stored


# -- what is shown ------------------------------------------------------------------------------


def _verdict(new: NewState, here: StoredState | None, only_new: bool) -> str:
    """new, same, keep or replace.

    Raises:
        StateNotStorable: it couldn't be imported; not only --yes should find that out.
    """
    from etl_dagster.integrations.meltano.states.records import to_text

    partial = to_text(new.state_id, new.partial, "partial")
    completed = to_text(new.state_id, new.completed, "completed")
    if here is None:
        return "new"
    if (partial, completed) == (here.partial, here.completed):
        return "same"
    return "keep" if only_new else "replace"


def _nothing(state_id: str) -> StoredState:
    from etl_dagster.integrations.meltano.states.storage import StoredState

    return StoredState(state_id, None, None, 0, datetime.min, None, None)


def _is_meant(yes: bool) -> bool:
    if not yes:
        click.echo("Nothing was done. Call it with --yes to do it.")
    return yes


def _say_more(count: int) -> None:
    if count > _SHOWN:
        click.echo(f"... and {count - _SHOWN:,} more")


def _count(number: int) -> str:
    return f"{number:,} state{'' if number == 1 else 's'}"


def _facts(stored: StoredState) -> dict[str, Any]:
    return {
        "state_id": stored.state_id,
        "version": stored.version,
        "updated_at": stored.updated_at.isoformat(),
        "writer": stored.writer,
        "run_id": stored.run_id,
    }


def _version_facts(version: StateVersion) -> dict[str, Any]:
    facts = asdict(version)
    facts["written_at"] = version.written_at.isoformat()
    return facts


def _readable(
    states: Sequence[StoredState],
) -> tuple[list[StoredState], list[StateCorrupt]]:
    """Those that are JSON, and what is wrong with the others."""
    from etl_dagster.integrations.meltano.states.errors import StateCorrupt

    readable, corrupt = [], []
    for stored in states:
        try:
            stored.merged()
        except StateCorrupt as error:
            corrupt.append(error)
        else:
            readable.append(stored)
    return readable, corrupt


def _by(row: StoredState | StateVersion) -> str:
    return (row.writer or "?") + (f" run {row.run_id}" if row.run_id else "")


def _time(moment: datetime) -> str:
    return moment.astimezone().isoformat(sep=" ", timespec="seconds")


def _show_changes(changes: Sequence[Difference]) -> None:
    if not changes:
        click.echo("No difference.")
    for change in changes:
        if change.before is not None:
            click.secho(f"- {change.path}: {change.before}", fg="red")
        if change.after is not None:
            click.secho(f"+ {change.path}: {change.after}", fg="green")


def _show_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns with two spaces between, so that an ID can be copied and grep works."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for index, row in enumerate([heads, *rows]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.secho(line.rstrip(), bold=index == 0)

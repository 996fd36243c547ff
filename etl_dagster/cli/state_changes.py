"""The commands that change Meltano states: restore, clear, import."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.confirming import changes_something, is_wanted
from etl_dagster.cli.listing import few, some
from etl_dagster.cli.state_place import opened_storage, storage_options
from etl_dagster.cli.state_shown import show_changes

if TYPE_CHECKING:
    from etl_dagster.integrations.meltano.states.storage import (
        NewState,
        StateStorage,
        StoredState,
    )


@click.command("restore", short_help="Bring an earlier version of a state back.")
@click.argument("state_id")
@click.argument("version", type=int)
@changes_something
@storage_options
def restore(
    state_id: str, version: int, dry_run: bool, yes: bool, uri: str | None, config_path: Path
) -> None:
    """Write an earlier VERSION of a state again; `state history` lists them.

    Shows what would change first. What is there now stays in the history.

    \b
    etl-dagster state restore dev:tap-to-target 12
    """
    from etl_dagster.integrations.meltano.states.records import diff as compare

    with opened_storage(uri, config_path) as storage:
        old, now = storage.version(state_id, version), storage.get(state_id)
        show_changes(compare(now or _nothing(state_id), old))
        if not is_wanted(dry_run=dry_run, yes=yes):
            return
        storage.restore(state_id, version, expected_version=now.version if now else 0)
        click.echo(f"Restored version {version} of {state_id}.")


@click.command("clear", short_help="Forget states; their history stays.")
@click.argument("state_ids", nargs=-1, metavar="[STATE_ID]...")
@click.option("--pattern", help="All that match, such as 'dev:*'.")
@changes_something
@storage_options
def clear(
    state_ids: Sequence[str],
    pattern: str | None,
    dry_run: bool,
    yes: bool,
    uri: str | None,
    config_path: Path,
) -> None:
    """Forget states, so that the next run loads everything again.

    Shows which first. `state restore` brings them back.

    \b
    etl-dagster state clear dev:tap-to-target
    etl-dagster state clear --pattern 'dev:*' --dry-run
    """
    if bool(state_ids) == bool(pattern):
        raise click.UsageError("name state IDs, or give --pattern")
    with opened_storage(uri, config_path) as storage:
        wanted = list(state_ids) or storage.list_ids(pattern)
        there = set(storage.list_ids())
        missing = [state_id for state_id in wanted if state_id not in there]
        if missing:
            raise click.UsageError(f"there is no state {some(missing)}")
        if not wanted:
            click.echo(f"No state matches {pattern!r}.")
            return
        for state_id in few(wanted):
            click.echo(f"clear  {state_id}")
        if not is_wanted(dry_run=dry_run, yes=yes):
            return
        for state_id in wanted:
            with storage.lock(state_id):
                storage.delete(state_id)
        click.echo(f"Cleared {_count(len(wanted))}.")


@click.command("import", short_help="Import states from another backend, database or file.")
@click.option(
    "--from",
    "source",
    required=True,
    help="postgres://..., sqlite:///..., mysql://..., s3://..., file:///..., systemdb, or a file.",
)
@click.option("--table", help="The source's table; by default meltano_state or state.")
@click.option("--pattern", help="Only those that match, such as 'prod:*'.")
@click.option("--only-new", is_flag=True, help="Keep states that are here already.")
@changes_something
@storage_options
def import_states(
    source: str,
    table: str | None,
    pattern: str | None,
    only_new: bool,
    dry_run: bool,
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

    Shows what would be imported first.

    \b
    etl-dagster state import --from systemdb --dry-run
    """
    from etl_dagster.integrations.meltano.states.glob import matcher
    from etl_dagster.integrations.meltano.states.sources import read_states

    found = read_states(source, table=table)
    matches = matcher(pattern)
    with opened_storage(uri, config_path) as storage:
        here = _all_by_id(storage)
        plan = []
        for new in found:
            if matches is None or matches(new.state_id):
                plan.append((_verdict(new, here.get(new.state_id), only_new), new))
        for verdict, new in few(plan):
            click.echo(f"{verdict:<9} {new.state_id}")
        chosen = [new for verdict, new in plan if verdict in ("new", "replace")]
        click.echo(
            f"{_count(len(plan))} at the source: "
            + ", ".join(
                f"{sum(verdict == kind for verdict, _ in plan)} {kind}"
                for kind in ("new", "replace", "same", "keep")
            )
            + "."
        )
        if not chosen or not is_wanted(dry_run=dry_run, yes=yes):
            return
    with opened_storage(uri, config_path, create=True) as storage:
        click.echo(f"Imported {_count(storage.set_all(chosen))}.")


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
        return {}  # the import creates them


def _verdict(new: NewState, here: StoredState | None, only_new: bool) -> str:
    """new, same, keep or replace.

    Raises:
        StateNotStorable: it can't be imported; --dry-run finds that out, too.
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


def _count(number: int) -> str:
    return f"{number:,} state{'' if number == 1 else 's'}"

"""`etl-dagster state`: Meltano states in Postgres, with their history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.failures import FAILED, show
from etl_dagster.cli.listing import ROWS, say_more
from etl_dagster.cli.options import json_option
from etl_dagster.cli.state_changes import clear, import_states, restore
from etl_dagster.cli.state_place import opened_storage, storage_options
from etl_dagster.cli.state_shown import (
    facts,
    local_time,
    show_changes,
    show_table,
    version_facts,
    writer_of,
)

if TYPE_CHECKING:
    from etl_dagster.integrations.meltano.states.errors import StateCorrupt
    from etl_dagster.integrations.meltano.states.storage import StateStorage, StoredState


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

    \b
    etl-dagster state list 'dev:*'
    """


@state.command("list", short_help="List state IDs.")
@click.argument("pattern", required=False)
@click.option("--all", "everything", is_flag=True, help="All of them, also where they are many.")
@storage_options
@json_option
def list_states(
    pattern: str | None, everything: bool, uri: str | None, config_path: Path, as_json: bool
) -> None:
    """List states, or those that match a PATTERN such as 'dev:*' (* ? [..], in quotes).

    \b
    etl-dagster state list 'dev:*'
    """
    with opened_storage(uri, config_path) as storage:
        states = storage.get_all(pattern)
    if as_json:
        click.echo(json.dumps([facts(stored) for stored in states], indent=2))
        return
    if not states:
        click.echo(f"No state{f' matches {pattern}' if pattern else ''}.", err=True)
    shown = states if everything else states[:ROWS]
    show_table(
        ("state ID", "version", "updated", "by"),
        [(s.state_id, str(s.version), local_time(s.updated_at), writer_of(s)) for s in shown],
    )
    say_more(len(states) - len(shown), full="--all")


@state.command("get", short_help="Print a state.")
@click.argument("state_id")
@storage_options
@json_option
def get_state(state_id: str, uri: str | None, config_path: Path, as_json: bool) -> None:
    """Print what the next run gets: the partial state merged over the completed one.

    --json prints both halves apart, with version, time and writer.

    \b
    etl-dagster state get dev:tap-to-target
    """
    with opened_storage(uri, config_path) as storage:
        stored = _existing(storage, state_id)
    if as_json:
        halves = {"completed": stored.completed_object(), "partial": stored.partial_object()}
        click.echo(json.dumps({**facts(stored), **halves}, indent=2))
    else:
        click.echo(json.dumps(stored.merged(), indent=2))


@state.command("history", short_help="Show who wrote a state, and when.")
@click.argument("state_id")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Writes, at most."
)
@click.option("--all", "everything", is_flag=True, help="All writes, also where they are many.")
@storage_options
@json_option
def history(
    state_id: str,
    limit: int,
    everything: bool,
    uri: str | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """Show the writes of a state, the newest first, also of one that was cleared.

    \b
    etl-dagster state history dev:tap-to-target --limit 5
    """
    with opened_storage(uri, config_path) as storage:
        versions = storage.history(state_id, limit=None if everything else limit)
    if as_json:
        click.echo(json.dumps([version_facts(v) for v in versions], indent=2))
        return
    if not versions:
        click.echo(f"No history of {state_id}.", err=True)
    show_table(
        ("version", "what", "when", "by"),
        [(str(v.version), v.operation, local_time(v.written_at), writer_of(v)) for v in versions],
    )


@state.command("diff", short_help="Compare two versions of a state.")
@click.argument("state_id")
@click.argument("before", type=int, required=False)
@click.argument("after", type=int, required=False)
@click.option("--all", "everything", is_flag=True, help="All changes, also where they are many.")
@storage_options
@json_option
def diff(
    state_id: str,
    before: int | None,
    after: int | None,
    everything: bool,
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
    with opened_storage(uri, config_path) as storage:
        if before is None:
            newest = storage.history(state_id, limit=2)
            if len(newest) < 2:
                raise click.UsageError(f"{state_id} has no two versions to compare")
            before, after = newest[1].version, newest[0].version
        changes = storage.diff(state_id, before, after)
    if as_json:
        click.echo(json.dumps([asdict(change) for change in changes], indent=2))
    else:
        show_changes(changes, everything=everything)


@state.command("export", short_help="Write states as `meltano state export` does.")
@click.argument("pattern", required=False)
@storage_options
@json_option
def export(pattern: str | None, uri: str | None, config_path: Path, as_json: bool) -> None:
    """Print states as one JSON object, which `meltano state import` and `etl-dagster state import
    --from FILE` read. It is the same with and without --json.

    \b
    etl-dagster state export 'prod:*' > states.json
    """
    with opened_storage(uri, config_path) as storage:
        states = storage.get_all(pattern)
    states, corrupt = _readable(states)
    # The halves as they are stored: parsed and printed again, numbers might lose digits.
    lines = [
        f'  {json.dumps(s.state_id)}: {{"completed": {s.completed or "{}"}, '
        f'"partial": {s.partial or "{}"}}}'
        for s in states
    ]
    click.echo("{\n" + ",\n".join(lines) + "\n}" if lines else "{}")
    for error in corrupt:
        show(f"{error.reason}; it is left out", error.solution)
    if corrupt:
        click.get_current_context().exit(FAILED)


@state.command("locks", short_help="Show which states are written or run now, and by whom.")
@click.option("--all", "everything", is_flag=True, help="All of them, also where they are many.")
@storage_options
@json_option
def locks(everything: bool, uri: str | None, config_path: Path, as_json: bool) -> None:
    """Show locks and run leases. They end by themselves when their process is gone.

    \b
    etl-dagster state locks
    """
    with opened_storage(uri, config_path) as storage:
        rows = storage.locks()
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2, default=str))
        return
    if not rows:
        click.echo("No process holds a lock or runs a pipeline.", err=True)
    show_table(
        ("state ID", "kind", "owner", "since", "until"),
        [
            (
                row.state_id,
                row.kind,
                row.owner + (f" run {row.run_id}" if row.run_id else ""),
                local_time(row.acquired_at),
                "expired" if row.is_expired else local_time(row.expires_at),
            )
            for row in (rows if everything else rows[:ROWS])
        ],
    )
    if not everything:
        say_more(len(rows) - ROWS, full="--all")


for command in (restore, clear, import_states):
    state.add_command(command)


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


def _readable(
    states: Sequence[StoredState],
) -> tuple[list[StoredState], list[StateCorrupt]]:
    """The states that are valid JSON, and what is wrong with the others."""
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

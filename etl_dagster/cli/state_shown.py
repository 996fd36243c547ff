"""How the commands on Meltano states print them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from etl_dagster.cli.listing import ROWS, say_more

if TYPE_CHECKING:
    from etl_dagster.integrations.meltano.states.storage import (
        Difference,
        StateVersion,
        StoredState,
    )


def facts(stored: StoredState) -> dict[str, Any]:
    return {
        "state_id": stored.state_id,
        "version": stored.version,
        "updated_at": stored.updated_at.isoformat(),
        "writer": stored.writer,
        "run_id": stored.run_id,
    }


def version_facts(version: StateVersion) -> dict[str, Any]:
    facts = asdict(version)
    facts["written_at"] = version.written_at.isoformat()
    return facts


def writer_of(row: StoredState | StateVersion) -> str:
    return (row.writer or "?") + (f" run {row.run_id}" if row.run_id else "")


def local_time(moment: datetime) -> str:
    return moment.astimezone().isoformat(sep=" ", timespec="seconds")


def show_changes(changes: Sequence[Difference], *, everything: bool = False) -> None:
    if not changes:
        click.echo("No difference.")
    for change in changes if everything else changes[:ROWS]:
        if change.before is not None:
            click.secho(f"- {change.path}: {change.before}", fg="red")
        if change.after is not None:
            click.secho(f"+ {change.path}: {change.after}", fg="green")
    if not everything:
        say_more(len(changes) - ROWS, full="`etl-dagster state diff --all`")


def show_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns with two spaces between, so that an ID can be copied and grep works."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for index, row in enumerate([heads, *rows]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.secho(line.rstrip(), bold=index == 0)

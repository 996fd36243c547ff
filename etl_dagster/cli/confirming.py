"""One habit of every command that changes something: it shows what, asks, and takes --yes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def changes_something(command: Command) -> Command:
    """Adds ``--dry-run`` and ``--yes``; the command receives `dry_run` and `yes`."""
    yes = click.option("--yes", is_flag=True, help="Don't ask.")
    dry_run = click.option("--dry-run", is_flag=True, help="Show what would happen, and end.")
    return dry_run(yes(command))


def require_decided(*, as_json: bool, dry_run: bool, yes: bool) -> None:
    """JSON on stdout leaves no room for a question.

    Raises:
        UsageError: neither --yes nor --dry-run was given with --json.
    """
    if as_json and not (dry_run or yes):
        raise click.UsageError(
            "--json goes with --yes or --dry-run: it leaves no room for questions"
        )


def is_wanted(*, dry_run: bool, yes: bool) -> bool:
    """Whether to continue: not with ``--dry-run``, always with ``--yes``, else as a person answers.

    Raises:
        Abort: the answer is not yes.
        UsageError: there is no terminal to ask on.
    """
    if dry_run:
        click.echo("Dry run: nothing changed.")
        return False
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(
                "nothing was done: there is no terminal to ask on. Use --yes to do it"
            )
        click.confirm("Continue?", abort=True, err=True)
    return True

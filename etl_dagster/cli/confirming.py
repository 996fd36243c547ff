"""Asking before something is destroyed, the same way by every command."""

from __future__ import annotations

import sys

import click


def is_wanted(*, dry_run: bool, yes: bool) -> bool:
    """Whether to continue: no after ``--dry-run``, yes after ``--yes``, else as a person answers.

    Raises:
        ClickException: there is no terminal to ask on.
    """
    if dry_run:
        click.echo("Nothing was done (--dry-run).")
        return False
    if not yes:
        try:
            click.confirm("Continue?", abort=True)
        except click.Abort:
            if sys.stdin.isatty():
                raise
            raise click.ClickException(
                "nothing was done: there is no terminal to ask on. Use --yes to do it"
            ) from None
    return True

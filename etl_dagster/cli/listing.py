"""Long lists and wide tables: ten names or fifty rows, and how many more there are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from rich.table import Table

#: How many names are printed, and how many rows of a table.
NAMES, ROWS = 10, 50

#: Columns where there is no terminal: enough for any row, so that `grep` finds it in one line.
_WIDE = 100_000

Item = TypeVar("Item")


def some(names: Sequence[str]) -> str:
    """The first names, in a line."""
    if not names:
        return "none"
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more:,} more" if more > 0 else "")


def few(items: Sequence[Item], *, full: str = "", err: bool = False) -> Iterator[Item]:
    """The first items; after them, how many more there are is printed.

    Args:
        full: the option that shows all of them.
        err: print it on stderr.
    """
    yield from items[:NAMES]
    say_more(len(items) - NAMES, full=full, err=err)


def one_by_one(names: Sequence[str]) -> Sequence[str]:
    """Each name, for a line of its own; of many, one text for a single line."""
    return names if len(names) <= NAMES else [some(names)]


def say_more(number: int, what: str = "more", *, full: str = "", err: bool = False) -> None:
    """Print how many there are besides those that were shown, if there are any."""
    if number > 0:
        click.echo(f"... and {number:,} {what}" + (f"; {full} shows all" if full else ""), err=err)


def print_table(table: Table) -> None:
    """Print it as wide as the terminal, and without one as wide as its rows."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)

"""Long lists: ten names, or fifty rows of a table, and how many more there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import click

#: So many names are printed, and so many rows of a table.
NAMES, ROWS = 10, 50

Item = TypeVar("Item")


def some(names: Sequence[str]) -> str:
    """The first names, in a line."""
    if not names:
        return "none"
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more:,} more" if more > 0 else "")


def few(items: Sequence[Item], *, full: str = "") -> Iterator[Item]:
    """The first items; after them, how many more there are is printed.

    Args:
        full: the option that shows all of them.
    """
    yield from items[:NAMES]
    say_more(len(items) - NAMES, full=full)


def say_more(more: int, *, full: str = "") -> None:
    """Print how many there are besides those that were shown, if there are any."""
    if more > 0:
        click.echo(f"... and {more:,} more" + (f"; {full} shows all" if full else ""))

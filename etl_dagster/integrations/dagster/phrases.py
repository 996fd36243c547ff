"""How errors and points in time are written for people."""

from __future__ import annotations

from datetime import UTC, datetime


def with_solution(reason: str, solution: str | None) -> str:
    """The two in one text, without backticks: the UI shows plain text."""
    text = f"{reason}\n\nWhat to do: {solution}" if solution else reason
    return text.replace("`", "'")


def as_of(at: float) -> str:
    """A point in time for people.

    Args:
        at: seconds since 1970-01-01 UTC.
    """
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"

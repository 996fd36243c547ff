"""How reasons and moments are written for people."""

from __future__ import annotations

from datetime import UTC, datetime


def with_solution(reason: str, solution: str | None) -> str:
    """Both as the UI shows them: as plain text, in which backticks would stay."""
    text = f"{reason}\n\nWhat to do: {solution}" if solution else reason
    return text.replace("`", "'")


def as_of(at: float) -> str:
    """A moment in seconds since 1970-01-01 UTC, for people."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"

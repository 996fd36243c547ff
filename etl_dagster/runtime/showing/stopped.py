"""What is said of a table that stopped, the same way wherever it is shown."""

from __future__ import annotations

from datetime import UTC, datetime

from etl_dagster.model.states import Errored, TimedRetry
from etl_dagster.words import human_bytes


def what_to_do(state: Errored, name: str) -> str:
    """The solution, and how the table is resumed once the cause is gone."""
    if state.lsn is None or isinstance(state.retry, TimedRetry):
        return state.solution
    if state.is_kept:
        return f"{state.solution} To resume it without a copy: `etl-dagster retry {name}`."
    return (
        f"{state.solution} Its changes since are not kept, so it needs a copy: "
        f"`etl-dagster resync {name}`."
    )


def where_it_stopped(since: str | None, lsn: str | None, wal_bytes: int | None) -> str | None:
    """Where and when, and what it costs the source; None where that is not known.

    Args:
        since: ISO 8601.
        lsn: everything that was committed before is at the destination.
        wal_bytes: that the source keeps for it.
    """
    if since is None or lsn is None:
        return None
    moment = datetime.fromisoformat(since).astimezone(UTC)
    text = f"stopped at {lsn} since {moment:%Y-%m-%d %H:%M:%S} UTC"
    if wal_bytes is not None:
        text += f"; the source keeps {human_bytes(wal_bytes)} of WAL for it"
    return text

"""What is said of a table that stopped, the same way wherever it is shown."""

from __future__ import annotations

from datetime import UTC, datetime

from etl_dagster.config import PipelineConfig
from etl_dagster.config.commands import command
from etl_dagster.model.states import Errored, TimedRetry
from etl_dagster.words import human_bytes


def what_to_do(state: Errored, name: str, config: PipelineConfig | None = None) -> str:
    """The solution, and how the table is resumed once the cause is gone.

    Args:
        config: with it, commands name the shard or the destination.
    """
    if isinstance(state.retry, TimedRetry):
        if state.retry.attempt == 0:
            how = " without a copy" if state.is_kept else ""
            return f"No action needed: a retry was asked for, and the table is resumed{how}."
        moment = state.retry.next_retry.astimezone(UTC)
        return f"{state.solution} The table is tried again at {moment:%Y-%m-%d %H:%M:%S} UTC."
    if state.lsn is None:
        return state.solution
    if state.is_kept:
        return f"{state.solution} To resume it without a copy: `{command(config, 'retry', name)}`."
    return (
        f"{state.solution} Its changes since are not kept, so it needs a copy: "
        f"`{command(config, 'resync', name)}`."
    )


def retry_at(state: Errored) -> str | None:
    """When the table is tried again by itself (ISO 8601); None where a person decides."""
    return state.retry.next_retry.isoformat() if isinstance(state.retry, TimedRetry) else None


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

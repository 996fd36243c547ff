"""How long to wait before the next try."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from etl_dagster.backoff import Backoff
from etl_dagster.config import RetryConfig
from etl_dagster.errors import EtlError, TableLocked
from etl_dagster.model.states import (
    Errored,
    ManualRetry,
    RetryPolicy,
    TableState,
    TimedRetry,
    needs_sync,
)

#: The clocks of machines that share a pipeline are set to within this.
_CLOCKS_DIFFER = timedelta(minutes=1)


def backoff(config: RetryConfig) -> Backoff:
    """The pauses that the section ``retry`` asks for."""
    return Backoff(
        config.initial_delay_ms / 1000,
        config.max_delay_ms / 1000,
        max_attempts=config.max_attempts,
    )


def errored_state(error: BaseException, config: RetryConfig, attempt: int) -> Errored:
    """What a failed table's state becomes: timed while there are tries left and waiting may help.

    Args:
        attempt: how often in a row the table failed, this time included.
    """
    retry: RetryPolicy = ManualRetry()
    if isinstance(error, EtlError):
        reason, solution = error.reason, error.solution
        # A lock ends without our doing, also one of hours.
        is_left = attempt < config.max_attempts or isinstance(error, TableLocked)
        if error.retryable and is_left:
            delay = timedelta(seconds=backoff(config).delay_s(attempt - 1))
            retry = TimedRetry(datetime.now(UTC) + delay, attempt)
    else:
        # Not one of ours: its message may hold values, so only its kind is kept.
        reason = f"{type(error).__name__} in the table's worker"
        solution = "The log has the details. Report it if it is not the destination's own."
    return Errored(reason, solution, retry, since=datetime.now(UTC))


def is_sync_due(state: TableState | None, now: datetime | None = None) -> bool:
    """Whether a table sync worker should work on a table now."""
    if isinstance(state, Errored):
        now = now or datetime.now(UTC)
        return isinstance(state.retry, TimedRetry) and (
            state.retry.next_retry <= now or _was_set_back(state, now)
        )
    return state is not None and needs_sync(state)


def _was_set_back(errored: Errored, now: datetime) -> bool:
    """Whether the clock is before the failure: no one knows then how long the pause still is.

    A machine may begin with a clock that is years ahead.
    """
    return errored.since is not None and now < errored.since - _CLOCKS_DIFFER

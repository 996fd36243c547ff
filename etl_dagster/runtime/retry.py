"""How long to wait before the next try."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from etl_dagster.config import RetryConfig
from etl_dagster.errors import EtlError
from etl_dagster.model.states import (
    Errored,
    ManualRetry,
    RetryPolicy,
    TableState,
    TimedRetry,
    needs_sync,
)


class Backoff:
    """Delays that double up to a limit, each with jitter; `reset` after progress."""

    def __init__(self, config: RetryConfig, rand: Callable[[], float] = random.random) -> None:
        self._config = config
        self._random = rand
        self.attempt = 0

    @property
    def is_exhausted(self) -> bool:
        return self.attempt >= self._config.max_attempts

    def next_delay_s(self) -> float:
        """Seconds before the next try, between half of the nominal delay and all of it."""
        delay_ms: int = min(
            self._config.initial_delay_ms * 2**self.attempt, self._config.max_delay_ms
        )
        self.attempt += 1
        return delay_ms * (0.5 + self._random() / 2) / 1000

    def reset(self) -> None:
        self.attempt = 0


def errored_state(error: BaseException, config: RetryConfig, attempt: int) -> Errored:
    """What a failed table's state becomes: timed while there are tries left and waiting may help.

    Args:
        attempt: how often in a row the table failed, this time included.
    """
    retry: RetryPolicy = ManualRetry()
    if isinstance(error, EtlError):
        reason, solution = error.reason, error.solution
        if error.retryable and attempt < config.max_attempts:
            backoff = Backoff(config)
            backoff.attempt = attempt - 1
            delay = timedelta(seconds=backoff.next_delay_s())
            retry = TimedRetry(datetime.now(UTC) + delay, attempt)
    else:
        # Not one of ours: its message may hold values, so only its kind is kept.
        reason = f"{type(error).__name__} in the table's worker"
        solution = "The log has the details. Report it if it is not the destination's own."
    return Errored(reason, solution, retry)


def is_sync_due(state: TableState | None) -> bool:
    """Whether a table sync worker should work on a table now."""
    if isinstance(state, Errored):
        return isinstance(state.retry, TimedRetry) and state.retry.next_retry <= datetime.now(UTC)
    return state is not None and needs_sync(state)

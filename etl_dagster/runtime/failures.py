"""What may be said of an error that isn't ours."""

from __future__ import annotations

import logging
import traceback

from etl_dagster.errors import DestinationError, EtlError


def log_failure(log: logging.Logger, what: str, error: BaseException) -> None:
    """Log where an error came from, without its message: that may hold a row's value or a secret.

    At level DEBUG, which `etl-dagster --debug` turns on, it is logged whole.
    """
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    log.error("%s with %s at:\n%s", what, type(error).__name__, frames)
    log.debug("%s", what, exc_info=error)


def of_destination(raised: Exception, name: str, attempt: int, log: logging.Logger) -> EtlError:
    """A destination's failure as one of ours; an unknown one is tried again.

    Args:
        attempt: how often it has failed before; the first time it is logged.
    """
    if isinstance(raised, EtlError):
        return raised
    if attempt == 0:
        log_failure(log, f"{name} failed", raised)
    error = DestinationError(f"{name} failed {attempt + 1} times: {type(raised).__name__}")
    error.retryable = True
    error.__cause__ = raised
    return error

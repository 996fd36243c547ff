"""What may be said of an error that isn't ours."""

from __future__ import annotations

import logging
import traceback


def log_failure(log: logging.Logger, what: str, error: BaseException) -> None:
    """Log where an error came from, without its message: that may hold a row's value or a secret.

    At level DEBUG, which `etl-dagster --debug` turns on, it is logged whole.
    """
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    log.error("%s with %s at:\n%s", what, type(error).__name__, frames)
    log.debug("%s", what, exc_info=error)

"""A marker in the stream, written for a caller that waits until it is durable."""

from __future__ import annotations

import logging

from etl_dagster.backoff import Backoff
from etl_dagster.errors import EtlError
from etl_dagster.lsn import Lsn
from etl_dagster.runtime.clock import Clock
from etl_dagster.source.catalog import emit_marker
from etl_dagster.source.control import SourceControl

_log = logging.getLogger(__name__)

_AGAIN_S, _AGAIN_AT_MOST_S = 0.1, 5.0


class Marker:
    """Is written once, however often the connection breaks before.

    The pipeline survives an interruption, and so does a caller that waits for it: for how long is
    the caller's to decide. Not thread-safe.
    """

    def __init__(self, control: SourceControl, clock: Clock) -> None:
        self._control = control
        self._clock = clock
        self._pauses = Backoff(_AGAIN_S, _AGAIN_AT_MOST_S, clock=clock.now_s)
        self._due_at = clock.now_s()
        self._lsn: Lsn | None = None

    def write_if_due(self) -> Lsn | None:
        """Write it unless that is done; the position past it, None while the source is away.

        Raises:
            EtlError: trying again would not help.
        """
        if self._lsn is None and self._clock.now_s() >= self._due_at:
            try:
                self._lsn = self._control.ask("marking the stream", emit_marker)
            except EtlError as error:
                if not error.retryable:
                    raise
                if self._pauses.attempt == 0:
                    _log.warning("%s; trying again", error.reason)
                self._due_at = self._clock.now_s() + self._pauses.next_delay_s()
        return self._lsn

"""Heartbeats: written to the source now and then, and timed until they are durable."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from etl_dagster.config import SourceConfig
from etl_dagster.errors import EtlError
from etl_dagster.lsn import Lsn
from etl_dagster.runtime.clock import Clock
from etl_dagster.source.control import SourceControl
from etl_dagster.source.heartbeat import emit_heartbeat
from etl_dagster.source.primary import beat_on_primary

_log = logging.getLogger(__name__)

_REFUSED = (
    "the source refuses heartbeats (it is read-only, or this role may not call "
    "pg_logical_emit_message): grant EXECUTE on that function, or set source.heartbeat_s to 0"
)
_NO_PRIMARY = (
    "the source is a standby, where no heartbeat can be written, and there is no source.primary_dsn"
)


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat that was committed at the source."""

    lsn: Lsn
    #: Before it was written, by the pipeline's clock.
    sent_at_s: float


class Heart:
    """Writes a heartbeat every `source.heartbeat_s`; belongs to one thread.

    With several destinations one heart beats for all: they read the same WAL.
    """

    def __init__(self, config: SourceConfig, control: SourceControl, clock: Clock) -> None:
        self._config = config
        self._every_s = config.heartbeat_s
        self._control = control
        self._clock = clock
        self._due_s = clock.now_s() + self._every_s
        self._is_refused = False

    def beat_if_due(self) -> Beat | None:
        """A new heartbeat; None where none is due, wanted or allowed.

        Raises:
            EtlError: the source can't be reached.
        """
        now = self._clock.now_s()
        if self._every_s == 0 or now < self._due_s:
            return None
        self._due_s = now + self._every_s
        lsn = self._control.ask("writing a heartbeat", emit_heartbeat)
        why = _REFUSED
        if lsn is None and self._config.standby:
            lsn, why = self._beat_on_primary()
        if lsn is None and not self._is_refused:
            level = logging.INFO if why is _NO_PRIMARY else logging.WARNING
            _log.log(level, "%s; so the end-to-end latency is not measured", why)
        self._is_refused = lsn is None
        return None if lsn is None else Beat(lsn, now)

    def _beat_on_primary(self) -> tuple[Lsn | None, str]:
        """Where the source is a standby; with what to log if nothing was written."""
        if self._config.primary_dsn is None:
            return None, _NO_PRIMARY
        try:
            return beat_on_primary(self._control, self._config), _REFUSED
        except EtlError as error:
            return None, f"no heartbeat was written on the primary: {error.reason}"


class Latency:
    """How long it takes from a commit at the source until it is durable, by heartbeats.

    One clock measures both ends. Any thread may call it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last_s: float | None = None
        self._under_way: Beat | None = None

    def sent(self, beat: Beat) -> None:
        """A heartbeat is on its way. While an earlier one is, that one is what is measured."""
        with self._lock:
            self._under_way = self._under_way or beat

    def durable(self, lsn: Lsn) -> None:
        """Everything before `lsn` is durable."""
        with self._lock:
            beat = self._under_way
            if beat is not None and lsn >= beat.lsn:
                self._last_s = self._clock.now_s() - beat.sent_at_s
                self._under_way = None

    @property
    def waits_for(self) -> Lsn | None:
        """Where the stream must come for the measurement to end; None without one."""
        beat = self._under_way
        return None if beat is None else beat.lsn

    @property
    def seconds(self) -> float | None:
        """That of the last heartbeat, or the age of one that is late already; None before any."""
        with self._lock:
            beat, last_s = self._under_way, self._last_s
        if beat is None:
            return last_s
        age_s = self._clock.now_s() - beat.sent_at_s
        return age_s if last_s is None else max(last_s, age_s)

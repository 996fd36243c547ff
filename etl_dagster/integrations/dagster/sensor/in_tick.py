"""Streams a pipeline inside the sensor's ticks, on hosts that forbid child processes.

There is no other reason to use it: between two ticks nothing is streamed, and at each start
Postgres decodes again the WAL that the slot has kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from etl_dagster.assembly import build_destination, opened_store
from etl_dagster.backoff import Backoff
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError, EtlError, PipelineInUse
from etl_dagster.integrations.dagster.between_ticks import keep_status
from etl_dagster.integrations.dagster.sensor.supervision import Supervision
from etl_dagster.integrations.meltano.positions.mirror import mirrored_positions
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.resetting import follow_request, is_reset_wanted, offer_resets
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus

if TYPE_CHECKING:
    from etl_dagster.runtime.pipeline import Pipeline

#: With a new table the tick ends early, since its copy is requested at the end of the tick.
_WITH_NEW_TABLES_S = 5.0
_LOOK_EVERY_S = 0.25
#: If the next tick has not come after this time, the sensor counts as off.
_NEXT_WITHIN_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0

_Counts = tuple[int, int, int, int]


class TickCounts:
    """Adds up the changes of all ticks: each tick has a pipeline that counts from zero."""

    def __init__(self) -> None:
        #: By ID of the table: a name may pass to another table.
        self._counted: dict[int, _Counts] = {}

    def add(self, status: PipelineStatus) -> PipelineStatus:
        """The status of a tick's pipeline, with the counts of all ticks up to this one."""
        tables = {}
        for name, table in status.tables.items():
            before = self._counted.get(table.table_id, (0, 0, 0, 0))
            now = (table.rows_inserted, table.rows_updated, table.rows_deleted, table.truncates)
            inserted, updated, deleted, truncates = map(sum, zip(before, now, strict=True))
            self._counted[table.table_id] = (inserted, updated, deleted, truncates)
            tables[name] = replace(
                table,
                rows_inserted=inserted,
                rows_updated=updated,
                rows_deleted=deleted,
                truncates=truncates,
            )
        return replace(status, tables=tables)


class TickStreamer:
    """Streams one pipeline for a while in each tick; belongs to the code server's process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pauses = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        self._resume_at = float("-inf")
        self._failure: EtlError | None = None
        self._counted = TickCounts()

    def keep(self, config: PipelineConfig, tick_s: float, *, may_stream: bool) -> Supervision:
        """Stream for `tick_s` seconds.

        Args:
            may_stream: False for a preview.

        Raises:
            ConfigError: the pipeline has several destinations.
            EtlError: it can't be streamed. Ticks that come before the next try only report this.
        """
        if config.membership is not None:
            raise ConfigError(
                ["destinations: several can't be streamed in ticks; use another sensor_mode"],
                origin=f"pipeline {config.pipeline}",
            )
        if not may_stream:
            return Supervision(None, 1, "a preview does not stream")
        pause_s = self._resume_at - self._clock()
        if self._failure is not None and pause_s > 0:
            note = f"next try in {pause_s:.0f} s, after: {self._failure.reason}"
            return Supervision(None, 1, note, self._failure)
        # A tick that Dagster gave up continues to stream until its time is over.
        if not self._lock.acquire(blocking=False):
            return Supervision(None, 1, "the previous tick is still streaming")
        try:
            status = self._stream(config, tick_s)
        except PipelineInUse as error:
            return Supervision(None, 1, str(error))
        except EtlError as error:
            self._failure = error
            self._resume_at = self._clock() + self._pauses.next_delay_s()
            raise
        finally:
            self._lock.release()
        self._failure = None
        self._pauses.reset()
        return Supervision(status, 1)

    def _stream(self, config: PipelineConfig, tick_s: float) -> PipelineStatus:
        # The engine and its drivers; a process that only loads definitions goes without.
        from etl_dagster.runtime.pipeline import Pipeline

        with opened_store(config) as store:
            if is_reset_wanted(store) and not store.is_leased("apply"):
                follow_request(config, store)
            pipeline = Pipeline(config, store, build_destination(config), copies="elsewhere")
            pipeline.start()
            try:
                offer_resets(store)
                with mirrored_positions(config, store, pipeline.status):
                    self._wait(pipeline, store, tick_s)
                    status = pipeline.status()
            finally:
                pipeline.shutdown()
                pipeline.wait()
            status = self._counted.add(status)
            keep_status(store, status, next_within_s=_NEXT_WITHIN_S + tick_s)
        return status

    def _wait(self, pipeline: Pipeline, store: CoordinatingStore, tick_s: float) -> None:
        started = self._clock()
        while not pipeline.wait(_LOOK_EVERY_S):
            lasted = self._clock() - started
            if lasted >= tick_s or is_reset_wanted(store):
                return
            if lasted >= _WITH_NEW_TABLES_S and _has_new_table(pipeline.status().tables):
                return


def _has_new_table(tables: Mapping[str, TableStatus]) -> bool:
    return any(table.state == "init" for table in tables.values())


_streamers: dict[str, TickStreamer] = {}
_streamers_lock = threading.Lock()


def streamer_of(pipeline: str) -> TickStreamer:
    """This process's streamer of the pipeline, made at the first call."""
    with _streamers_lock:
        return _streamers.setdefault(pipeline, TickStreamer())

"""One destination of several: its pipeline, started again whenever it ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from etl_dagster.backoff import Backoff
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import (
    DestinationLeftBehind,
    EtlError,
    InvalidState,
    LeaseLost,
    PipelineInUse,
    SlotInvalidated,
    SlotNotCreated,
    Superseded,
)
from etl_dagster.lsn import Lsn
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.runtime.failures import log_failure
from etl_dagster.runtime.fan_out.member_wire import MemberWire
from etl_dagster.runtime.fan_out.pacing import FanOutPace
from etl_dagster.runtime.fan_out.parts import MemberParts
from etl_dagster.runtime.fan_out.shared import SharedSlot
from etl_dagster.runtime.memory import MemoryBudget
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.resetting import answer_request, is_reset_wanted
from etl_dagster.runtime.showing.observer import Observer
from etl_dagster.runtime.showing.status import PipelineStatus
from etl_dagster.runtime.slot import drop_pipeline_slots
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import apply_slot_name
from etl_dagster.threads import Background

_log = logging.getLogger(__name__)

#: Failures that concern the process, and with it every destination.
_OF_THE_PROCESS = (LeaseLost, PipelineInUse, Superseded)


class Member:
    """Runs one destination's pipeline on a thread of its own until told to stop.

    Args:
        on_fatal: called with a failure that ends every destination's pipeline.
    """

    def __init__(
        self,
        name: str,
        parts: MemberParts,
        shared: SharedSlot,
        control: SourceControl,
        *,
        copies: Literal["own", "elsewhere"],
        pace: FanOutPace,
        observer: Observer,
        memory: MemoryBudget,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.name = name
        self.config = parts.config
        self.store = parts.store
        self._parts = parts
        self._shared = shared
        self._control = control
        self._copies = copies
        self._pace = pace
        self._on_fatal = on_fatal
        self._observer = observer
        self._memory = memory
        assert parts.config.membership is not None
        self.own_slot = apply_slot_name(parts.config.membership.own_slot_of)
        self._stop = threading.Event()
        self.pipeline: Pipeline | None = None
        self.wire: MemberWire | None = None
        #: Why it was set aside last.
        self._aside_since = "since an earlier start"
        self._remark: str | None = None
        #: What the pipeline ended with; None while it runs.
        self.failure: BaseException | None = None
        self.failed_at = 0.0
        #: Set by the first start, whatever came of it.
        self.is_tried = threading.Event()
        #: Why its tables are to be copied again before the next start; None: they are not.
        self._copies_again: str | None = None
        self._asked_at = 0.0
        #: Whether that was requested, and not found necessary.
        self._is_reset = False
        #: Ends a pause.
        self._wanted = threading.Event()
        self._thread = Background(self._run, name=f"destination {name} of {shared.name}")

    def start(self) -> None:
        self._thread.start()

    def shutdown(self) -> None:
        """Ask it to stop; safe in a signal handler."""
        self._stop.set()
        self._wanted.set()
        if (pipeline := self.pipeline) is not None:
            pipeline.shutdown()

    def join(self) -> None:
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether its pipeline has started, and not ended."""
        return self.pipeline is not None and self.is_tried.is_set() and self.failure is None

    @property
    def is_busy(self) -> bool:
        """Whether its destination writes something that is to end by itself."""
        return self.pipeline is not None and self.pipeline.is_busy

    def durable(self) -> Lsn | None:
        """What it has; None of one that needs nothing yet.

        Raises:
            EtlError: the store can't be read.
        """
        return self.store.get_replication_progress(ApplyWorker())

    def status(self) -> PipelineStatus:
        pipeline, failure = self.pipeline, self.failure
        status = (
            pipeline.status()
            if pipeline is not None
            else PipelineStatus(
                pipeline=self.config.pipeline,
                destination=self.config.destination.type,
                phase="starting",
                note=self._remark,
                at=time.time(),
            )
        )
        if failure is None:
            return status
        return replace(
            status,
            phase="failed",
            error=describe(failure),
            solution=failure.solution if isinstance(failure, EtlError) else None,
        )

    # -- its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        pauses = Backoff(self._pace.again_s, self._pace.again_at_most_s)
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                if self._copies_again is not None:
                    self._start_over_if_due()
                self._run_pipeline()
                continue
            except _OF_THE_PROCESS as failure:
                if not self._stop.is_set():
                    self._on_fatal(failure)
                self.is_tried.set()
                return
            except BaseException as failure:
                if self._stop.is_set():
                    return
                if self._needs_copies(failure):
                    self._copies_again = describe(failure)
                    self._pause(self._pace.shortly_s)
                    continue
                self._report(failure)
            if time.monotonic() - began > self._pace.again_at_most_s:
                pauses.reset()
            self._pause(pauses.next_delay_s())

    def _pause(self, delay_s: float) -> None:
        self._wanted.wait(delay_s)
        self._wanted.clear()

    def _run_pipeline(self) -> None:
        self.pipeline = pipeline = Pipeline(
            self.config,
            self.store,
            self._parts.make_destination(),
            copies=self._copies,
            wire=self._make_wire,
            observer=self._observer,
            memory=self._memory,
        )
        if self._stop.is_set():
            return
        try:
            pipeline.start()
        except BaseException as failure:
            if self._stop.is_set() and isinstance(failure, InvalidState):
                return
            raise
        self.failure = None
        self.is_tried.set()
        pipeline.wait()

    def _make_wire(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        control: SourceControl,
        stop: threading.Event,
    ) -> MemberWire:
        self.wire = MemberWire(
            self._shared,
            config,
            store,
            control,
            stop,
            self._pace,
            why=self._aside_since,
            remark=lambda: self._remark,
        )
        return self.wire

    def _report(self, failure: BaseException) -> None:
        self.failure, self.failed_at = failure, time.monotonic()
        self._shared.expects_no_more(self.name)
        self.is_tried.set()
        if isinstance(failure, EtlError):
            _log.error("%s failed: %s", self.name, failure.reason)
        else:
            log_failure(_log, f"{self.name} failed", failure)

    # -- what was decided about it ---------------------------------------------------------------

    def set_aside(self, why: str) -> None:
        """Give the destination a slot of its own, unless that is being decided on just now.

        Raises:
            DestinationLeftBehind: the shared slot is past what it has.
            EtlError: the slot can't be made.
        """
        wire = self.wire
        if not (self._keep_for_later() if wire is None else wire.set_aside(why)):
            return
        self._aside_since = why
        _log.warning("%s is set aside, with a slot of its own: %s", self.name, why)
        if isinstance(self.failure, SlotNotCreated):
            # What it failed for want of is there now.
            self._wanted.set()
        elif not self.is_running:
            self._publish()

    def _keep_for_later(self) -> bool:
        """As `MemberWire.set_aside`, of one that hangs before it asked for anything."""
        lock = self._shared.deciding(self.name)
        if not lock.acquire(blocking=False):
            return False
        try:
            self._shared.set_aside(self.name, self.own_slot, self.durable())
        finally:
            lock.release()
        return True

    def _publish(self) -> None:
        """Show the status of one whose pipeline doesn't do so, since it doesn't run."""
        try:
            self.store.publish_status("apply", self.status().to_json())
        except EtlError as error:
            _log.warning("%s: the status can't be published: %s", self.name, error.reason)

    def remark(self, text: str | None) -> None:
        """Show this in the status from now on, and log it once."""
        if text == self._remark:
            return
        if text is None:
            _log.info("%s: settled: %s", self.name, self._remark)
        else:
            _log.warning("%s: %s", self.name, text)
        self._remark = text
        if not self.is_running:
            self._publish()

    # -- when nothing but a copy helps -----------------------------------------------------------

    def copy_again(self, why: str) -> None:
        """End the pipeline, drop its slot, and start it again with new copies of its tables."""
        if self._copies_again is not None:
            return
        self._copies_again, self._asked_at = why, time.monotonic()
        self._wanted.set()
        if (pipeline := self.pipeline) is not None:
            pipeline.shutdown()

    def look_for_reset(self) -> None:
        """Copy its tables again where a reset was requested, whether its pipeline runs or not.

        Raises:
            EtlError: the store can't be read.
        """
        if self._copies_again is None and is_reset_wanted(self.store):
            self._is_reset = True
            self.copy_again("a reset was requested")

    @property
    def is_overdue(self) -> bool:
        """Whether its pipeline doesn't end although it was asked to: its destination hangs."""
        return (
            self._copies_again is not None
            and time.monotonic() - self._asked_at > self._pace.ends_within_s
        )

    def _needs_copies(self, failure: BaseException) -> bool:
        if isinstance(failure, DestinationLeftBehind):
            return True
        is_own = self.wire is not None and self.wire.is_aside
        return is_own and isinstance(failure, SlotInvalidated)

    def _start_over_if_due(self) -> None:
        why = self._copies_again
        assert why is not None
        is_wanted = is_reset_wanted(self.store)
        if is_wanted or not self._is_reset:
            dropped = self.start_over(why)
            if is_wanted:
                answer_request(self.store, dropped)
        self._copies_again, self._is_reset = None, False

    def start_over(self, why: str) -> list[str]:
        """Forget position and copies, and drop the slots: the next start makes new copies.

        Its pipeline must not run. In this order: should it end in between, the rest follows from
        what is there. Returns the names of the slots.

        Raises:
            EtlError: store or source can't be reached.
        """
        _log.warning("%s: every table is copied again: %s", self.name, why)
        with self._shared.deciding(self.name):
            self.store.reset_for_resync()
            dropped = drop_pipeline_slots(self._control, self.config)
            self._shared.unpin(self.name)
        return dropped


def describe(failure: BaseException | None) -> str | None:
    """For people; the message of an error that isn't ours may hold values."""
    if failure is None:
        return None
    return failure.reason if isinstance(failure, EtlError) else type(failure).__name__

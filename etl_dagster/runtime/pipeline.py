"""A pipeline: its start, its workers, its end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import (
    EtlError,
    InvalidState,
    PublicationMissing,
)
from etl_dagster.log_fields import log_fields
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.destination import Destination, Interruptible, offered
from etl_dagster.model.states import Errored, Ready, TableState, TimedRetry
from etl_dagster.model.stores import PipelineStore
from etl_dagster.pg.cancelling import Abandoned, unless_stopped
from etl_dagster.runtime.checking.belonging import MISMATCHES, Belonging
from etl_dagster.runtime.checking.lock_watch import LockWatch
from etl_dagster.runtime.checking.origin import OriginCheck
from etl_dagster.runtime.checking.preflight import require_ready
from etl_dagster.runtime.clock import SYSTEM_CLOCK, Clock
from etl_dagster.runtime.copying.pausing import paused_tables
from etl_dagster.runtime.copying.table_syncs import TableSyncs
from etl_dagster.runtime.durable import Stopped, wait_durable
from etl_dagster.runtime.ending import Calls, Ending
from etl_dagster.runtime.failures import log_failure
from etl_dagster.runtime.kept_slots import KeptSlots
from etl_dagster.runtime.local_store import coordinating
from etl_dagster.runtime.marker import Marker
from etl_dagster.runtime.membership.members import Members
from etl_dagster.runtime.memory import MemoryBudget
from etl_dagster.runtime.pace import Pace
from etl_dagster.runtime.progress_wanted import wanted_progress
from etl_dagster.runtime.resetting import begin_again_without_slot
from etl_dagster.runtime.retention import prune_schemas
from etl_dagster.runtime.retry import backoff
from etl_dagster.runtime.sharding import (
    known_to_all,
    require_one_shard,
    require_seeing,
    require_shared,
)
from etl_dagster.runtime.showing.events import StatusTaken, StreamRetried
from etl_dagster.runtime.showing.metrics import CopyMeter, Metrics
from etl_dagster.runtime.showing.observer import SILENT, Observer
from etl_dagster.runtime.showing.reporter import Reporter
from etl_dagster.runtime.showing.status import Phase, PipelineStatus
from etl_dagster.runtime.showing.trouble import Trouble
from etl_dagster.runtime.showing.waits import Waits
from etl_dagster.runtime.streaming.apply_worker import AppliedStream, Known
from etl_dagster.runtime.streaming.heartbeat import Beat, Heart, Latency
from etl_dagster.runtime.streaming.wire import MakeWire, OwnSlot
from etl_dagster.runtime.tables.coming_copies import request_coming_copies
from etl_dagster.runtime.tables.odd_policies import require_quarantine
from etl_dagster.runtime.tables.renames import Renames
from etl_dagster.runtime.tables.representation import given
from etl_dagster.runtime.tables.reshaping import require_distinct_names
from etl_dagster.runtime.tables.rewrites import Rewrites
from etl_dagster.runtime.tables.shaped import shaping
from etl_dagster.runtime.tables.table_modes import require_modes
from etl_dagster.runtime.tenure import Tenure
from etl_dagster.runtime.timing import TIMING, Timing
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.control import SourceControl
from etl_dagster.source.money import fetch_own_sample
from etl_dagster.threads import Background, stops_with_the_interpreter

_log = logging.getLogger(__name__)

#: How often to look for progress while another process waits for that of an idle stream.
_HURRY_S = 0.1
#: How often the status is taken: usually, and at least where there are many tables.
_REPORT_S, _REPORT_AT_MOST_S = 1.0, 5.0


class Pipeline:
    """Replicates one publication to one destination until told to stop.

    Args:
        store: stays the caller's, to close after `wait`.
        destination: is started and shut down by the pipeline.
        copies: ``own`` runs the table sync workers as threads of this process; ``elsewhere``
            leaves them to other processes that share the store, such as Dagster runs.
        wire: makes what the changes come from; by default, a slot that is the pipeline's alone.
        make_control: makes the connection for questions to the source.
        clock: the time.
        timing: how long the pipeline's workers wait for each other.
        observer: told what happens; see `runtime.showing.events`.
        memory: the budget of all that reads in this process; by default, as configured.
    """

    def __init__(
        self,
        config: PipelineConfig,
        store: PipelineStore,
        destination: Destination,
        *,
        copies: Literal["own", "elsewhere"] = "own",
        wire: MakeWire | None = None,
        make_control: Callable[..., SourceControl] = SourceControl,
        clock: Clock = SYSTEM_CLOCK,
        timing: Timing = TIMING,
        observer: Observer = SILENT,
        memory: MemoryBudget | None = None,
    ) -> None:
        self._config = config = given(config, destination)
        self._store = store = coordinating(store)
        self._calls = Calls()
        self._destination = destination = shaping(destination, config, self._calls)
        self._waits = Waits(destination)
        self._control = make_control(
            config.source,
            application_name=f"etl_dagster control {config.pipeline}",
            verify=self._verify_source,
        )
        self._stop = threading.Event()
        self._clock, self._timing = clock, timing
        longest_s = config.retry.max_delay_ms / 1000
        self._refused = Trouble(observer, clock, forgets_after_s=2 * longest_s + _REPORT_AT_MOST_S)
        self._parts = parts = WorkerParts(
            config,
            store,
            destination,
            self._control,
            self._stop,
            clock,
            timing,
            self._refused,
            memory or MemoryBudget.of(config),
            make_control,
        )
        self._observer = observer
        self._tenure = Tenure(store)
        self._origin = OriginCheck(config, store)
        #: From the first comparison on, each new connection is compared.
        self._is_source_known = False
        self._metrics = Metrics()
        self._latency = Latency(clock)
        #: One destination among several is told of the heartbeats that are written for all.
        is_alone = config.membership is None
        self._heart = Heart(config.source, self._control, clock) if is_alone else None
        self._belonging = Belonging(config, store, destination)
        self._members = Members(config, store, self._control)
        self._rewrites = Rewrites(store, self._control, partial(fetch_own_sample, config.source))
        self._renames = Renames(store, self._control)
        self._locks = LockWatch(self._control, older_than_s=timing.long_lock_s)
        self._kept_slots = KeptSlots(config, store, self._control, clock, timing)
        self._done = threading.Event()
        self._ending = Ending(
            config.pipeline,
            self._stop,
            self._done,
            is_busy=lambda: self.is_busy,
            after_s=timing.abandon_s,
            give_up=self._give_up,
            leave=self._leave,
        )
        #: Taken by the thread that decides first: the start was waited for, or it is on its own.
        self._is_started = threading.Lock()
        self._is_left = threading.Lock()
        self._changed = threading.Event()
        #: A caller waits for a look at the publication that begins from now on.
        self._look_wanted = threading.Event()
        self._looks_begun = self._looks_done = 0
        #: What the last look at the tables failed with, if it did.
        self._look_trouble: EtlError | None = None
        make_wire = wire or partial(OwnSlot, timing=timing)
        self._wire = make_wire(config, store, self._control, self._stop)
        meter = CopyMeter()
        self._table_syncs = TableSyncs(parts, meter) if copies == "own" else None
        self._reporter = Reporter(
            config,
            store,
            destination,
            self._members,
            self._metrics,
            self._control,
            meter,
            slot_name=lambda: self._wire.slot_name,
            wal_kept=lambda: self._kept_slots.wal,
        )
        self._phase: Phase = "starting"
        self._failure: BaseException | None = None
        #: What the stream is being retried after.
        self._trouble: EtlError | None = None
        self._confirmed = LSN_ZERO
        self._apply: AppliedStream | None = None
        self._threads: list[Background] = []

    # -- start and end -------------------------------------------------------------------------

    def start(self) -> None:
        """Check everything, prepare slot and states, start the workers; returns once prepared.

        Raises:
            EtlError: something is wrong with configuration, source, store or destination.
            InvalidState: it was started, or told to stop, before.
        """
        if self._tenure.has_begun or self._done.is_set():
            raise InvalidState("this pipeline was started before; make a new one")
        stops_with_the_interpreter(self)
        try:
            unless_stopped(
                self._prepare,
                self._stop,
                after_s=self._timing.abandon_s,
                name=f"start {self._config.pipeline}",
            )
        except (Abandoned, KeyboardInterrupt) as failure:
            self._stop.set()
            if self._is_started.acquire(blocking=False):
                self._give_up()
                if isinstance(failure, KeyboardInterrupt):
                    raise
                raise _stopped_before_start() from None
        self._ending.start()
        for name, work in (
            ("apply", self._run),
            ("watcher", self._watch),
            ("manager", self._manage),
            ("reporter", self._report),
        ):
            thread = Background(partial(self._guard, work), name=f"{name} {self._config.pipeline}")
            self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    def _prepare(self) -> None:
        """All of the start but the workers; its caller may wait for it no longer."""
        self._prepare_all()
        if not self._is_started.acquire(blocking=False):
            self._leave()
            self._release()

    def _prepare_all(self) -> None:
        is_destination_open = False
        try:
            require_one_shard(self._config)
            require_seeing(self._config, self._store)
            require_shared(self._config, self._destination)
            require_quarantine(self._config, self._destination)
            require_modes(self._config, self._destination)
            # Nothing is changed anywhere before the source is known to be ready.
            members = self._control.ask("checking the source", require_ready, self._config)
            require_distinct_names(self._config, self._destination, members)
            self._tenure.begin(self._config.pipeline)
            # Before it is started: that may create what was removed, or change what isn't ours.
            # It may open something all the same, to read its mark.
            is_destination_open = True
            self._identify()
            if begin_again_without_slot(self._config, self._store, self._control):
                # What was expected of source and destination is forgotten with the slot.
                self._origin = OriginCheck(self._config, self._store)
                self._belonging = Belonging(self._config, self._store, self._destination)
                self._identify()
            self._is_source_known = True
            self._destination.startup(known_to_all(self._config, self._store))
            self._tenure.take_epoch()
            if self._destination.capabilities.transactional:
                # From here on it refuses what a stalled older process still has in its hands.
                fence = self._belonging.fence(self._tenure.epoch)
                wait_durable(self._destination.write_events(fence), self._stop)
            self._belonging.remember()
            self._members.update(members)
            self._reporter.recall()
            self._rewrites.look(members)
            request_coming_copies(self._store, self._config, [m.schema for m in members])
            self._renames.look(self._members.tables)
            self._confirmed = self._wire.prepare()
        except BaseException as failure:
            if is_destination_open:
                self._close_unstarted()
            self._release()
            is_interrupted = isinstance(failure, EtlError) and failure.retryable
            if isinstance(failure, Stopped) or (self._stop.is_set() and is_interrupted):
                raise _stopped_before_start() from None
            raise

    def _identify(self) -> None:
        """Refuse a source or a destination that isn't the one that the store knows."""
        self._belonging.require()
        self._origin.recall(self._belonging.continued)
        self._control.ask("identifying the source", self._origin.require)

    def shutdown(self) -> None:
        """Ask it to stop; `wait` tells when it has. Safe in a signal handler."""
        self._stop.set()
        apply = self._apply
        if apply is not None:
            apply.interrupt()
        if (destination := offered(self._destination, Interruptible)) is not None:
            destination.interrupt()

    def hurry(self, goal: Lsn) -> None:
        """Make what was committed before `goal` durable as soon as possible."""
        apply = self._apply
        if apply is not None:
            apply.hurry(goal)

    def expect(self, beat: Beat) -> None:
        """Measure how long this heartbeat takes to become durable."""
        self._latency.sent(beat)
        self._confirm_heartbeat()

    def _confirm_heartbeat(self) -> None:
        apply, lsn = self._apply, self._latency.waits_for
        if apply is not None and lsn is not None:
            apply.confirm_from(lsn)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it came in time. Raises what the pipeline failed with."""
        if not self._done.wait(timeout_s):
            return False
        if self._failure is not None:
            raise self._failure
        return True

    def wait_until_caught_up(self, timeout_s: float | None = None) -> bool:
        """Wait until every table is ready (or errored) and what is committed now is durable.

        The publication is read again first, so tables that it holds by now are waited for. An
        interruption that the pipeline survives is waited out. Returns False when the time was over
        first, or the pipeline was told to stop. Raises what the pipeline failed with.
        """
        deadline = None if timeout_s is None else self._clock.now_s() + timeout_s
        marker = Marker(self._control, self._clock)
        looks: int | None = None
        while True:
            if (goal := marker.write_if_due()) is not None:
                if looks is None:
                    looks = self._looks_begun
                    self._look_wanted.set()
                    self._changed.set()
                if self._has_caught_up(goal, looks):
                    return True
            if self._done.is_set():
                self.wait()
                return False
            if deadline is not None and self._clock.now_s() > deadline:
                return False
            if goal is not None:
                self.hurry(goal)
            self._clock.wait(self._done, 0.1)

    def _has_caught_up(self, goal: Lsn, looks: int) -> bool:
        if self._looks_done <= looks or self._confirmed < goal:
            return False
        try:
            return self._are_tables_settled()
        except EtlError as error:
            if not error.retryable:
                raise
            # The store is away, which the pipeline survives; a caller that waits does, too.
            return False

    def _are_tables_settled(self) -> bool:
        if not (self._members.is_settled and self._renames.is_settled):
            return False
        states = self._store.get_table_replication_states()
        moving = [t for t in self._members.ids if not _is_settled(states.get(t))]
        # Those that wait for a person, like a table that stopped.
        return not moving or paused_tables(self._store).keys() >= set(moving)

    def _finish(self) -> None:
        """The end of the apply thread is the end of the pipeline."""
        self._phase = "stopping"
        try:
            self._end_workers()
        except Exception as error:
            self._failure = self._failure or error
        self._phase = "stopped" if self._failure is None else "failed"
        if not self._ending.impatient.is_set():
            self._tell_last()
        try:
            self._leave()
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self._release()
            self._done.set()

    def _tell_last(self) -> None:
        try:
            if self._failure is None:
                self._reporter.measure(at_once=True)
        except Exception as error:
            _log.warning("the last numbers can't be measured: %s", _reason(error))
        try:
            self._reporter.publish(self.status(), at_once=True)
        except Exception as error:
            _log.warning("the last status can't be published: %s", _reason(error))

    def _close_unstarted(self) -> None:
        """Have the destination release what a start that failed has opened."""
        try:
            self._leave()
        except Exception as error:
            # What the start failed with says more.
            log_failure(_log, f"{self._destination.name} can't be closed", error)

    def _leave(self) -> None:
        """End with the destination, once."""
        if self._is_left.acquire(blocking=False):
            self._destination.shutdown()

    def _give_up(self) -> None:
        """Ask nothing more, and wait for no answer. The lease ends with its session."""
        self._control.end()

    def _end_workers(self) -> None:
        self._stop.set()
        self._changed.set()
        self._store.wake()
        # The manager first: until it has ended, it may start another table sync worker.
        for thread in self._threads:
            if thread is not threading.current_thread():
                self._ending.join(thread)
        if self._table_syncs is not None:
            self._table_syncs.join(self._ending.join)

    def _release(self) -> None:
        self._control.end()
        self._tenure.release()

    def _guard(self, work: Callable[[], None]) -> None:
        """Run a thread's work; an unexpected failure ends the pipeline, and is raised."""
        try:
            with log_fields(pipeline=self._config.pipeline, position=lambda: str(self._confirmed)):
                work()
        except BaseException as failure:
            if not isinstance(failure, EtlError):
                log_failure(_log, f"{threading.current_thread().name} failed", failure)
            self._failure = self._failure or failure
            self.shutdown()

    # -- the apply thread ------------------------------------------------------------------------

    def _run(self) -> None:
        pauses = backoff(self._config.retry)
        try:
            while not self._stop.is_set():
                started, confirmed = self._clock.now_s(), self._confirmed
                try:
                    self._stream()
                except EtlError as error:
                    if (
                        self._clock.now_s() - started > self._timing.stable_s
                        or self._confirmed > confirmed
                    ):
                        pauses.reset()
                    if not error.retryable or pauses.is_exhausted:
                        raise
                    self._trouble, self._phase = error, "retrying"
                    self._observer.observe(
                        StreamRetried(self._config.pipeline, type(error).__name__)
                    )
                    delay_s = pauses.next_delay_s()
                    _log.warning("%s; trying again in %.1f s", error.reason, delay_s)
                    self._clock.wait(self._stop, delay_s)
                    # Another server may answer by now: the next question is put to that one.
                    self._control.close()
        except Stopped:
            pass
        except BaseException as failure:
            # Where another thread failed before, the stream ends in consequence of that.
            self._failure = self._failure or failure
        finally:
            self._apply = None
            self._finish()

    def _stream(self) -> None:
        self._tenure.require()
        start_lsn = self._wire.prepare()
        self._apply = AppliedStream(
            self._parts,
            Known(
                self._origin,
                self._belonging,
                self._members,
                self._rewrites,
                self._renames,
                self._metrics,
            ),
            self._tenure,
            open_stream=self._wire.open(start_lsn),
            start_lsn=start_lsn,
            on_durable=self._durable,
        )
        self._confirm_heartbeat()
        self._phase = "streaming"
        self._apply.run()

    def _verify_source(self, connection: Any) -> None:
        if self._is_source_known:
            self._origin.require(connection)

    def _durable(self, lsn: Lsn) -> None:
        self._confirmed = max(self._confirmed, lsn)
        self._latency.durable(lsn)
        self._trouble = None

    # -- the other threads -----------------------------------------------------------------------

    def _watch(self) -> None:
        """Pass on that some state changed."""
        while not self._stop.is_set():
            wanted = LSN_ZERO
            try:
                wanted = wanted_progress(self._store) or LSN_ZERO
                self._store.wait_for_change(_HURRY_S if wanted > self._confirmed else 1.0)
            except EtlError as error:
                _log.warning("the store can't be watched: %s", error.reason)
                self._stop.wait(1.0)
            self._changed.set()
            apply = self._apply
            if apply is not None:
                apply.states_changed()
                if wanted > self._confirmed:
                    apply.hurry(wanted)

    def _manage(self) -> None:
        """Keep the tables in step with the publication, and start copies where they are ours."""
        pace = Pace(self._timing.membership_s)
        membership_due = prune_due = self._clock.now_s() + self._timing.membership_s
        while not self._stop.is_set():
            try:
                if self._look_wanted.is_set() or self._clock.now_s() >= membership_due:
                    membership_due = self._clock.now_s() + self._timing.membership_s
                    pace.begin()
                    self._look()
                    membership_due = self._clock.now_s() + pace.end()
                elif self._members.settle():
                    # A table that had to wait for another's last changes may begin.
                    membership_due = 0.0
                self._hurry_for_members()
                if self._clock.now_s() >= prune_due:
                    prune_due = self._clock.now_s() + self._timing.prune_s
                    prune_schemas(self._store)
                # Before a retry begins: one whose slot is lost would be a copy.
                self._kept_slots.look()
                if self._table_syncs is not None:
                    self._table_syncs.start_due(self._members.ids)
                self._look_trouble = None
            except PublicationMissing:
                # Postgres 18 continues streaming, with nothing in the stream.
                raise
            except MISMATCHES:
                raise  # an idle stream would not meet it
            except EtlError as error:
                # The stream meets what is worth stopping for.
                self._look_trouble = error
                _log.warning("cannot refresh the publication or start copies: %s", error.reason)
            self._changed.wait(1.0)
            self._changed.clear()

    def _look(self) -> None:
        self._look_wanted.clear()
        self._looks_begun = begun = self._looks_begun + 1
        try:
            self._members.refresh()
            self._rewrites.look(self._members.tables.values())
            self._renames.look(self._members.tables)
            self._locks.look(self._members.relation_ids)
        except EtlError:
            self._look_wanted.set()
            raise
        self._looks_done = begun

    def _hurry_for_members(self) -> None:
        self._renames.settle()
        waiting = (self._members.waits_for, self._renames.waits_for)
        goal = max((lsn for lsn in waiting if lsn is not None), default=None)
        if goal is not None:
            self.hurry(goal)

    def _report(self) -> None:
        pace = Pace(_REPORT_S, at_most_s=_REPORT_AT_MOST_S)
        while not self._stop.wait(pace.pause_s):
            pace.begin()
            try:
                if self._heart is not None and (beat := self._heart.beat_if_due()) is not None:
                    self.expect(beat)
                self._reporter.measure()
                status = self.status()
                self._observer.observe(StatusTaken(status))
                self._reporter.publish(status)
            except EtlError as error:
                _log.warning("the status can't be published: %s", error.reason)
            pace.end()

    # -- status ------------------------------------------------------------------------

    @property
    def confirmed(self) -> Lsn:
        """Everything before is durable."""
        return self._confirmed

    @property
    def batches(self) -> int:
        """How many batches the stream has made durable."""
        return self._metrics.batches

    @property
    def is_writing(self) -> bool:
        """Whether the destination was given a batch that is not durable yet."""
        apply = self._apply
        return apply is not None and apply.is_writing

    @property
    def is_busy(self) -> bool:
        """Whether the destination is at a write, which an end waits for."""
        return self._calls.are_under_way

    def status(self) -> PipelineStatus:
        """How things are now; cheap, from memory."""
        apply, trouble = self._apply, self._failure or self._trouble
        received = apply.received if apply is not None else LSN_ZERO
        server = apply.server_end if apply is not None else LSN_ZERO
        confirmed, in_progress = self._confirmed, self._wire.in_progress
        # The stream tells the server's end with each message, the reporter asks every few seconds.
        end = max(server, received, confirmed, self._reporter.server_lsn)
        latency_s, wal = self._latency.seconds, self._reporter.retained_wal
        refusal = self._refused.refusal if self._phase == "streaming" and not trouble else None
        error = _reason(trouble) if refusal is None else refusal.reason
        solution = trouble.solution if isinstance(trouble, EtlError) else None
        return PipelineStatus(
            pipeline=self._config.pipeline,
            destination=self._config.destination.type,
            phase=self._phase if refusal is None else "retrying",
            epoch=self._tenure.epoch,
            confirmed_lsn=str(confirmed),
            received_lsn=str(max(received, confirmed)),
            server_lsn=str(end),
            lag_bytes=end.offset - confirmed.offset,
            lag_seconds=round(apply.lag_s, 3) if apply is not None else 0.0,
            latency_seconds=None if latency_s is None else round(latency_s, 3),
            retained_wal_bytes=None if wal is None else wal.retained_bytes,
            wal_warned_above_bytes=None if wal is None else wal.warned_above_bytes,
            transactions_in_progress=in_progress.transactions,
            spooled_bytes=in_progress.spooled_bytes,
            rows_total=self._metrics.rows,
            rows_per_second=round(self._metrics.rows_per_second, 1),
            batches=self._metrics.batches,
            tables=self._reporter.tables(),
            error=error,
            solution=solution if refusal is None else refusal.solution,
            note=self._note(),
            at=time.time(),
        )

    def _note(self) -> str | None:
        notes = [self._wire.note, self._parts.memory.note, self._waits.note]
        # A stream may continue for days over its connection, though no other one can be made.
        trouble = self._look_trouble
        if trouble is not None and self._phase == "streaming":
            notes.append(f"new and stopped tables wait: {trouble.reason}")
        return "; ".join(note for note in notes if note) or None


def _stopped_before_start() -> InvalidState:
    return InvalidState("the pipeline was stopped before it started")


def _is_settled(state: TableState | None) -> bool:
    """Whether nothing more happens to the table by itself but streaming."""
    if isinstance(state, Errored):
        return not isinstance(state.retry, TimedRetry)
    return isinstance(state, Ready)


def _reason(trouble: BaseException | None) -> str | None:
    if trouble is None:
        return None
    # The message of an error that isn't ours may hold values.
    return trouble.reason if isinstance(trouble, EtlError) else type(trouble).__name__

"""A pipeline with several destinations: one shared slot, a pipeline for each of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Literal

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import (
    ConfigError,
    EtlError,
    InvalidState,
    LeaseLost,
    SlotAdvanced,
    SlotError,
    SlotMissing,
)
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import Lease
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.pg.cancelling import Abandoned, unless_stopped
from etl_dagster.runtime.checking.preflight import require_ready_for_all
from etl_dagster.runtime.clock import SYSTEM_CLOCK
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.ending import Ending
from etl_dagster.runtime.failures import log_failure
from etl_dagster.runtime.fan_out.decisions import Decisions
from etl_dagster.runtime.fan_out.member import Member
from etl_dagster.runtime.fan_out.pacing import PACE, FanOutPace
from etl_dagster.runtime.fan_out.parts import MemberParts
from etl_dagster.runtime.fan_out.shared import SharedSlot
from etl_dagster.runtime.fan_out.waiting import wait_for_each
from etl_dagster.runtime.memory import MemoryBudget
from etl_dagster.runtime.resetting import ALL
from etl_dagster.runtime.runner import RUNNER, in_use, note_runner
from etl_dagster.runtime.showing.observer import SILENT, Observer
from etl_dagster.runtime.showing.status import PipelineStatus
from etl_dagster.runtime.slot import keep_for_standbys, make_permanent_slot
from etl_dagster.runtime.streaming.heartbeat import Heart
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import drop_slot, fetch_slot, require_usable
from etl_dagster.threads import Background, stops_with_the_interpreter
from etl_dagster.words import names

_log = logging.getLogger(__name__)


class FanOut:
    """Replicates one publication to several destinations until told to stop; as a `Pipeline`.

    Each destination has a pipeline of its own, with states, positions and copies. They share the
    reading: the slot is read once, and confirmed up to the least of what all have.

    Args:
        config: of the pipeline as a whole.
        store: of the pipeline as a whole; for its lease.
        parts: what each destination's pipeline is made of, by name. The stores stay the caller's.
        follows_resets: whether to do what `resetting.request_reset` asks for of one destination.
    """

    def __init__(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        parts: Mapping[str, MemberParts],
        *,
        copies: Literal["own", "elsewhere"] = "own",
        pace: FanOutPace = PACE,
        follows_resets: bool = False,
        observer: Observer = SILENT,
    ) -> None:
        self._config = config
        self._pace = pace
        self._follows_resets = follows_resets
        self._store = store
        self._control = SourceControl(
            config.source, application_name=f"etl_dagster control {config.pipeline}"
        )
        # A question may wait for a lock, and the stream must not wait for that.
        self._shared_control = SourceControl(
            config.source, application_name=f"etl_dagster slots {config.pipeline}"
        )
        #: One for all destinations.
        memory = MemoryBudget.of(config)
        self._shared = SharedSlot(config, self._shared_control, pace, memory)
        self._heart = Heart(config.source, self._control, SYSTEM_CLOCK)
        self.members = {
            name: Member(
                name,
                each,
                self._shared,
                self._control,
                copies=copies,
                pace=pace,
                observer=observer,
                memory=memory,
                on_fatal=self._end_with,
            )
            for name, each in parts.items()
        }
        self._decisions = Decisions(config, self._shared, self.members, self._control, pace)
        self._stop = threading.Event()
        self._done = threading.Event()
        self._failure: BaseException | None = None
        self._leases: dict[str, Lease] = {}
        self._ending = Ending(
            config.pipeline,
            self._stop,
            self._done,
            is_busy=lambda: any(member.is_busy for member in self.members.values()),
            after_s=pace.abandon_s,
            give_up=self._give_up,
        )
        self._thread = Background(self._run, name=f"fan-out {config.pipeline}")

    # -- start and end ---------------------------------------------------------------------------

    def start(self) -> None:
        """Check everything, make the slot, start a pipeline for each destination.

        Returns once each has started or failed, or some seconds after the first one has started.
        Those that failed are tried again.

        Raises:
            EtlError: something is wrong with configuration, source or store, or with every
                destination.
            InvalidState: it was started or told to stop before.
        """
        if self._leases or self._done.is_set():
            raise InvalidState("this pipeline was started before; make a new one")
        stops_with_the_interpreter(self)
        try:
            unless_stopped(
                self._start,
                self._stop,
                after_s=self._pace.abandon_s,
                name=f"start {self._config.pipeline}",
            )
        except (Abandoned, KeyboardInterrupt) as failure:
            self.shutdown()
            self._give_up()
            self._done.set()
            if isinstance(failure, KeyboardInterrupt):
                raise
            raise InvalidState("the pipeline was stopped before it started") from None
        self._ending.start()
        self._thread.start()

    def _start(self) -> None:
        """All of the start; its caller may wait for it no longer."""
        try:
            self._prepare()
            for member in self.members.values():
                member.start()
            self._wait_for_starts()
            if self._failure is not None:
                raise self._failure
            if (failure_of_all := self._failure_of_all()) is not None:
                raise failure_of_all
        except BaseException as failure:
            self._end()
            self._done.set()
            if isinstance(failure, Stopped):
                raise InvalidState("the pipeline was stopped before it started") from None
            raise
        if self._done.is_set():
            self._end()

    def _wait_for_starts(self) -> None:
        """One that hangs in its start holds the others' up for some seconds only."""
        deadline: float | None = None
        while not all(member.is_tried.is_set() for member in self.members.values()):
            if self._stop.wait(0.05):
                raise Stopped
            if deadline is None and any(member.is_running for member in self.members.values()):
                deadline = time.monotonic() + self._pace.starting_s
            if deadline is not None and time.monotonic() > deadline:
                return

    def _failure_of_all(self) -> BaseException | None:
        """What the first one failed with, where no destination is left that works."""
        failures = [member.failure for member in self.members.values()]
        return failures[0] if None not in failures else None

    def _prepare(self) -> None:
        """All that concerns the destinations together; none of their pipelines runs yet."""
        for member in self.members.values():
            self._control.ask("checking the source", require_ready_for_all, member.config)
            break  # the source is the same for all
        self._acquire(ALL.lease)
        note_runner(self._store, ALL.runner)
        if self._config.fan_out.former is None:
            # As a pipeline with one destination would; the former destination takes it itself.
            self._acquire("apply")
            if self._store.get_table_replication_states():
                raise ConfigError(
                    [
                        f"destinations: the pipeline {self._config.pipeline!r} has tables at the "
                        "one destination that it had before. Name that under `destinations`, and "
                        "as `fan_out.former`, to keep them; or give the pipeline another name, and "
                        f"drop the slot {self._shared.name!r} on the source"
                    ],
                    origin=f"pipeline {self._config.pipeline}",
                )
        self._shared.start(self._pins(), set(self.members))

    def _acquire(self, name: str) -> None:
        lease = self._store.acquire_lease(name)
        if lease is None:
            key = ALL.runner if name == ALL.lease else RUNNER
            raise in_use(self._store, self._config.pipeline, key=key)
        self._leases[name] = lease

    def _pins(self) -> dict[str, Lsn]:
        """What each destination has that needs the shared slot, which is made where it is missing.

        Raises:
            SlotError: the shared slot can't continue where the destinations are.
        """
        ask, name = self._control.ask, self._shared.name
        slot = ask("looking at the slot", fetch_slot, name)
        if slot is not None and slot.is_unfinished:
            # No process is at it: the lease is ours.
            ask("dropping a slot that was never finished", drop_slot, name)
            slot = None
        joined = {
            member.name: durable
            for member in self.members.values()
            if (durable := member.durable()) is not None
            and ask("looking at the slot", fetch_slot, member.own_slot) is None
        }
        if slot is None:
            if joined:
                raise SlotMissing(
                    f"slot {name!r} is gone from the source, but {names(list(joined))} read it"
                )
            make_permanent_slot(self._control, self._config, name, stop=self._stop)
            return {}
        if slot.plugin != "pgoutput" or slot.confirmed_flush_lsn is None:
            raise SlotError(
                f"slot {name!r} is not a logical slot of pgoutput, so no pipeline made it",
                solution=f"Drop it (select pg_drop_replication_slot('{name}')), or give the "
                "pipeline another name.",
            )
        require_usable(slot)
        keep_for_standbys(self._control, self._config, slot, self._stop)
        confirmed = slot.confirmed_flush_lsn
        behind = [member for member, durable in joined.items() if durable < confirmed]
        if behind and len(behind) == len(self.members):
            raise SlotAdvanced(
                f"slot {name!r} was confirmed up to {confirmed}, but no destination has received "
                "that much"
            )
        for member in behind:
            # It was not among the destinations for a while; what it lacks doesn't come again.
            self.members[member].start_over(
                f"slot {name!r} was confirmed up to {confirmed} without it"
            )
        return {member: lsn for member, lsn in joined.items() if member not in behind}

    def shutdown(self) -> None:
        """Ask it to stop; `wait` tells when it has. Safe in a signal handler."""
        self._stop.set()
        for member in self.members.values():
            member.shutdown()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it came in time. Raises what it failed with."""
        if not self._done.wait(timeout_s):
            return False
        if self._failure is not None:
            raise self._failure
        return True

    def wait_until_caught_up(self, timeout_s: float | None = None) -> bool:
        """As `Pipeline.wait_until_caught_up`, for every destination.

        A destination that fails doesn't keep the others from it.

        Raises:
            DestinationsFailed: the others have caught up, or the time was over. Those that failed
                are tried again all the same.
            EtlError: what the pipeline as a whole failed with.
        """
        if wait_for_each(self.members, stop=self._stop, done=self._done, timeout_s=timeout_s):
            return True
        if self._done.is_set():
            self.wait()
        return False

    def _end_with(self, failure: BaseException) -> None:
        if not isinstance(failure, EtlError):
            log_failure(_log, "the pipeline ends", failure)
        self._failure = self._failure or failure
        self.shutdown()

    def _end(self) -> None:
        self.shutdown()
        for member in self.members.values():
            member.join()
        # Last: what they confirmed until now is still told to the source.
        self._shared.stop()
        self._shared.join()
        self._give_up()
        for lease in self._leases.values():
            lease.release()

    def _give_up(self) -> None:
        """Ask nothing more, and wait for no answer. The leases end with their sessions."""
        self._shared.stop()
        self._control.end()
        self._shared_control.end()

    # -- its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            resets_due = 0.0
            while not self._stop.wait(self._pace.look_s):
                try:
                    self._require_leases()
                    self._require_any()
                    if self._follows_resets and time.monotonic() >= resets_due:
                        resets_due = time.monotonic() + self._pace.resets_s
                        for member in self.members.values():
                            member.look_for_reset()
                    self._decisions.look()
                    self._beat_if_due()
                except (LeaseLost, _AllFailed):
                    raise
                except EtlError as error:
                    _log.warning("the destinations can't be compared: %s", error.reason)
        except _AllFailed as failed:
            self._end_with(failed.failure)
        except BaseException as failure:
            self._end_with(failure)
        finally:
            try:
                self._end()
            except BaseException as failure:
                self._failure = self._failure or failure
            self._done.set()

    def _beat_if_due(self) -> None:
        beat = self._heart.beat_if_due()
        for member in self.members.values():
            if beat is not None and (pipeline := member.pipeline) is not None:
                pipeline.expect(beat)

    def _require_leases(self) -> None:
        for name, lease in self._leases.items():
            if lease.is_held:
                continue
            # The store was away for a moment. If no other process took our place, we keep it.
            lease.release()
            again = self._store.acquire_lease(name)
            if again is None:
                raise LeaseLost("the lease of the pipeline is held by another process")
            self._leases[name] = again

    def _require_any(self) -> None:
        if self._shared.failure is not None:
            raise _AllFailed(self._shared.failure)
        if (failure := self._failure_of_all()) is not None:
            raise _AllFailed(failure)

    # -- status ------------------------------------------------------------------------

    def statuses(self) -> dict[str, PipelineStatus]:
        """How things are now, by destination."""
        return {name: member.status() for name, member in self.members.items()}


class _AllFailed(Exception):
    """No destination is left that works."""

    def __init__(self, failure: BaseException) -> None:
        super().__init__()
        self.failure = failure

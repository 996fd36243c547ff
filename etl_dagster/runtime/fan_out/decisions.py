"""Which slot each destination reads from now on: decided at each look at all of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import DestinationLeftBehind, EtlError
from etl_dagster.lsn import Lsn
from etl_dagster.runtime.fan_out.budget import Budget, DestinationReader
from etl_dagster.runtime.fan_out.member import Member
from etl_dagster.runtime.fan_out.pacing import FanOutPace
from etl_dagster.runtime.fan_out.shared import SharedSlot
from etl_dagster.source.catalog import fetch_insert_lsn
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import drop_slot, end_slot_reader, fetch_slot
from etl_dagster.words import human_bytes

_log = logging.getLogger(__name__)


class Decisions:
    """Belongs to one thread."""

    def __init__(
        self,
        config: PipelineConfig,
        shared: SharedSlot,
        members: Mapping[str, Member],
        control: SourceControl,
        pace: FanOutPace,
    ) -> None:
        self._config = config
        self._shared = shared
        self._members = members
        self._control = control
        self._pace = pace
        self._budget = Budget(config.fan_out.max_wal_behind, pace)
        #: Since when each does not read the shared slot, though that keeps WAL for it.
        self._absent_since: dict[str, float] = {}
        #: Why it could not be set aside, and when that is tried again.
        self._refused: dict[str, str] = {}
        self._again_at: dict[str, float] = {}

    def look(self) -> None:
        """Compare the destinations, and do what follows from that.

        Raises:
            EtlError: the source can't be asked.
        """
        wal_end = self._control.ask("reading the WAL's end", fetch_insert_lsn)
        found = self._budget.look(self._readers(), wal_end, time.monotonic())
        for name, member in self._members.items():
            try:
                self._look_at(member, found.slow.get(name), wal_end)
            except DestinationLeftBehind as behind:
                member.copy_again(behind.reason)
            except EtlError as error:
                _log.warning("cannot decide which slot %s reads: %s", name, error.reason)
            member.remark(self._refused.get(name) or found.tolerated.get(name))

    def _readers(self) -> dict[str, DestinationReader]:
        """The destinations that work, with the slot that each reads now."""
        pinned, readers = self._shared.pinned(), {}
        for name, member in self._members.items():
            pipeline, wire = member.pipeline, member.wire
            if pipeline is None or wire is None or not member.is_running:
                continue
            branch, pin = self._shared.branch_of(name), pinned.get(name)
            written, is_writing = pipeline.batches, pipeline.is_writing
            if wire.is_aside:
                readers[name] = DestinationReader(
                    pipeline.confirmed, written, is_writing, is_aside=True
                )
            elif branch is not None and branch.phase == "open" and pin is not None:
                readers[name] = DestinationReader(
                    pin, written, is_writing, branch.held_up_s, branch.asked_s
                )
        return readers

    def _look_at(self, member: Member, slow: str | None, wal_end: Lsn) -> None:
        pin = self._shared.pinned().get(member.name)
        if pin is None:
            self._forget(member)
            self._look_at_own_slot(member)
        elif member.wire is not None and member.wire.is_returning:
            # It has its own slot still, and the shared one keeps what it needs from its place on.
            behind = wal_end.offset - pin.offset
            if member.failure is not None or behind > self._config.fan_out.max_wal_behind:
                member.wire.give_up_return()
        elif (why := slow or self._why_aside(member, wal_end.offset - pin.offset)) is not None:
            self._set_aside(member, why)
        elif self._is_reading(member):
            # Not while it only tries to start again.
            self._refused.pop(member.name, None)
        wire, pipeline = member.wire, member.pipeline
        if wire is not None and pipeline is not None and member.failure is None:
            goal = wire.approach(wal_end)
            if goal is not None:
                pipeline.hurry(goal)

    def _forget(self, member: Member) -> None:
        for noted in (self._absent_since, self._refused, self._again_at):
            noted.pop(member.name, None)

    def _why_aside(self, member: Member, behind: int) -> str | None:
        """Why one is to be set aside that doesn't read the shared slot; None where it is not."""
        now = time.monotonic()
        if member.failure is not None:
            is_for_good = now - member.failed_at > self._pace.set_aside_after_s
            return "it failed" if is_for_good else None
        if self._is_reading(member):
            self._absent_since.pop(member.name, None)
            return None
        since = self._absent_since.setdefault(member.name, now)
        if behind <= self._config.fan_out.max_wal_behind:
            return None
        # While the shared stream is interrupted, none of them reads it.
        is_expected = self._shared.is_open or not member.is_running
        if is_expected and now - since >= self._pace.starting_s:
            return "it hung in its start, or between two streams"
        return None

    def _is_reading(self, member: Member) -> bool:
        branch = self._shared.branch_of(member.name)
        return member.is_running and branch is not None and branch.phase == "open"

    def _set_aside(self, member: Member, why: str) -> None:
        name, now = member.name, time.monotonic()
        if now < self._again_at.get(name, now):
            return
        try:
            member.set_aside(why)
        except DestinationLeftBehind:
            raise
        except EtlError as error:
            # Such as no slot being free: the shared one continues keeping what it needs.
            self._again_at[name] = now + self._pace.slot_again_s
            self._refused[name] = (
                f"can't be set aside, so the others may have to wait for it: {error.reason}. "
                f"What to do: {error.solution} It is tried again"
            )
        else:
            self._forget(member)

    def _look_at_own_slot(self, member: Member) -> None:
        """See that a slot of a destination's own doesn't keep more WAL than it may."""
        slot = self._control.ask("looking at the slot", fetch_slot, member.own_slot)
        if slot is None:
            return
        most = self._config.fan_out.max_wal_kept
        if slot.is_lost or slot.retained_bytes > most:
            why = (
                "the source has removed WAL that its slot needed"
                if slot.is_lost
                else f"its slot keeps {human_bytes(slot.retained_bytes)} of WAL, more than "
                f"fan_out.max_wal_kept ({human_bytes(most)})"
            )
            member.copy_again(why)
            if member.is_overdue:
                # WAL must not be kept until its destination answers. First the states, so that
                # nothing is left that depends on the slot.
                member.store.reset_for_resync()
                self._control.ask("ending a reader", end_slot_reader, member.own_slot)
                self._control.ask("dropping a slot", drop_slot, member.own_slot)

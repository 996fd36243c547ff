"""Which slot each destination reads from now on: decided at each look at all of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import DestinationLeftBehind, EtlError
from etl_dagster.lsn import Lsn
from etl_dagster.runtime.fan_out.budget import Budget, Reader
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
        #: What was in the way at the last look, by destination; told once.
        self._troubles: dict[str, str | None] = {}

    def look(self) -> None:
        """Compare the destinations, and do what follows from that.

        Raises:
            EtlError: the source can't be asked.
        """
        wal_end = self._control.ask("reading the WAL's end", fetch_insert_lsn)
        pinned = self._shared.pinned()
        readers = {}
        for name, durable in pinned.items():
            branch = self._shared.branch_of(name)
            if branch is not None and self._is_reading(self._members[name]):
                readers[name] = Reader(durable, branch.held_up_s)
        slow = self._budget.look(readers, wal_end, time.monotonic())
        for name, member in self._members.items():
            trouble = None
            try:
                self._look_at(member, slow.get(name), wal_end)
            except DestinationLeftBehind as behind:
                member.copy_again(behind.reason)
            except EtlError as error:
                # Such as no slot being free: the shared one goes on keeping what it needs.
                trouble = f"{error.reason}. What to do: {error.solution}"
            if trouble is not None and trouble != self._troubles.get(name):
                _log.warning("%s can't be set aside or brought back: %s", name, trouble)
            self._troubles[name] = trouble

    def _look_at(self, member: Member, slow: str | None, wal_end: Lsn) -> None:
        wire, pin = member.wire, self._shared.pinned().get(member.name)
        has_failed = member.failure is not None
        if pin is None:
            self._look_at_own_slot(member)
        elif has_failed and time.monotonic() - member.failed_at > self._pace.set_aside_after_s:
            self._keep_for_later(member)
        elif slow is not None and wire is not None:
            wire.set_aside(slow)
        elif not self._is_reading(member) and (
            wal_end.offset - pin.offset > self._config.fan_out.max_wal_behind
        ):
            # It hangs in its start, or between two streams.
            self._keep_for_later(member)
        if wire is not None and not has_failed and member.pipeline is not None:
            goal = wire.approach(wal_end)
            if goal is not None:
                member.pipeline.hurry(goal)

    def _is_reading(self, member: Member) -> bool:
        branch = self._shared.branch_of(member.name)
        return branch is not None and branch.phase == "open" and member.is_running

    def _keep_for_later(self, member: Member) -> None:
        """Of a destination that doesn't read the shared slot, and has it keep WAL."""
        lock = self._shared.deciding(member.name)
        if not lock.acquire(blocking=False):
            return
        try:
            self._shared.set_aside(member.name, member.own_slot, member.durable())
        finally:
            lock.release()
        _log.warning("%s is set aside, with a slot of its own, until it works again", member.name)

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

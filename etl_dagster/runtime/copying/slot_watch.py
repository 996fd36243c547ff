"""Whether a slot still keeps all changes since a copy began: without them the copy is useless."""

from __future__ import annotations

from typing import Final

from etl_dagster.config.commands import command
from etl_dagster.errors import EtlError, SlotInvalidated, SlotMissing
from etl_dagster.runtime.clock import Clock
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import fetch_slot

#: How often the slot is looked at.
_EVERY_S: Final = 2.0


class SlotWatch:
    """Looks at the slot of one copy, now and then; for one thread.

    Args:
        what: the table, or the tables, for people.
        retry: what they pass to `etl-dagster retry` then.
    """

    def __init__(
        self, control: SourceControl, slot_name: str, clock: Clock, *, what: str, retry: str
    ) -> None:
        self._control = control
        self._slot_name = slot_name
        self._clock = clock
        self._what = what
        self._retry = retry
        self._look_at = 0.0

    def require(self) -> None:
        """See that the slot is there and not lost; called all the time while rows are copied.

        Raises:
            SlotInvalidated, SlotMissing: it isn't.
        """
        now = self._clock.now_s()
        if now < self._look_at:
            return
        self._look_at = now + _EVERY_S
        try:
            slot = self._control.ask("looking at the slot", fetch_slot, self._slot_name)
        except EtlError:
            return  # the copy itself meets what is worth ending it for
        if slot is None:
            raise SlotMissing(
                f"slot {self._slot_name!r} is gone from the source while {self._what} is copied",
                solution=f"Find out who dropped it, then: `{command(None, 'retry', self._retry)}`.",
            )
        if slot.is_lost:
            raise SlotInvalidated(
                f"slot {self._slot_name!r} is lost while {self._what} is copied: "
                f"{slot.invalidation_reason or 'the server removed WAL that it still needed'}",
                solution="Raise max_slot_wal_keep_size on the source, to more than the WAL that is "
                f"written during the copy, then: `{command(None, 'retry', self._retry)}`.",
            )

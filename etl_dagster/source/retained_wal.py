"""How much WAL a slot makes the source keep, and from where on that is too much."""

from __future__ import annotations

from dataclasses import dataclass

from etl_dagster.config import SourceConfig
from etl_dagster.source.slots import Slot
from etl_dagster.words import human_bytes

#: Where `source.max_retained_wal` lies past the server's own limit, half of that is left to act.
_PART_OF_LIMIT = 2


def warned_above(max_retained: int, limit: int | None) -> int:
    """From how many bytes on a slot is warned about: always before the server's limit.

    Args:
        max_retained: `source.max_retained_wal`.
        limit: max_slot_wal_keep_size in bytes; None where the server has none.
    """
    if limit is None or max_retained < limit:
        return max_retained
    return limit // _PART_OF_LIMIT


@dataclass(frozen=True, slots=True)
class RetainedWal:
    """WAL that the server keeps for a slot, against the bound that the configuration sets."""

    slot_name: str
    retained_bytes: int
    warned_above_bytes: int
    #: max_slot_wal_keep_size; None: no limit.
    limit_bytes: int | None

    @classmethod
    def of(cls, slot: Slot, config: SourceConfig) -> RetainedWal:
        limit = slot.wal_limit_bytes
        above = warned_above(config.max_retained_wal, limit)
        return cls(slot.name, slot.retained_bytes, above, limit)

    @property
    def is_too_much(self) -> bool:
        return self.retained_bytes > self.warned_above_bytes

    @property
    def reason(self) -> str:
        kept, above = human_bytes(self.retained_bytes), human_bytes(self.warned_above_bytes)
        if self.limit_bytes is None:
            end = (
                f"more than source.max_retained_wal ({above}); max_slot_wal_keep_size is "
                "unlimited, so it may grow until the disk is full"
            )
        else:
            end = (
                f"more than {above}; past max_slot_wal_keep_size "
                f"({human_bytes(self.limit_bytes)}) the slot is lost"
            )
        return f"the source keeps {kept} of WAL for slot {self.slot_name!r}, {end}"

    solution = (
        "Find out what holds the pipeline up (`etl-dagster status` shows whether it runs and what "
        "it waits for; a transaction that stays open on the source holds WAL, too); or raise "
        "source.max_retained_wal, and max_slot_wal_keep_size on the source."
    )

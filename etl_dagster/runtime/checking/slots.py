"""What earlier runs left on the source: the pipeline's slots, and others that keep WAL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import SlotError, SlotInvalidated
from etl_dagster.runtime.checking.check import Check, Connection
from etl_dagster.source.catalog import PublishedTable
from etl_dagster.source.retained_wal import RetainedWal
from etl_dagster.source.slots import (
    fetch_apply_slot,
    fetch_creation_waits,
    fetch_leftover_slots,
    fetch_table_sync_slots,
    require_usable,
)
from etl_dagster.words import human_bytes, names

#: What the check of slots that nothing reads is called.
LEFTOVER = "slots of destinations"


def check_apply_slot(connection: Connection, config: PipelineConfig) -> Check:
    slot = fetch_apply_slot(connection, config)
    if slot is None:
        return Check.ok("slot", "not there yet; the first start creates it")
    retained = human_bytes(slot.retained_bytes)
    try:
        require_usable(slot)
    except SlotInvalidated as failure:
        if config.on_lost_slot == "stop":
            return Check.error("slot", failure)
        does = "copies" if config.on_lost_slot == "recopy" else "compares and repairs"
        again = " again" if config.on_lost_slot == "recopy" else ""
        return Check.warning(
            "slot",
            f"{failure.reason}; the next start makes another one and {does} every table{again}",
            "Start the pipeline; or set on_lost_slot to stop.",
        )
    except SlotError as failure:
        return Check.error("slot", failure)
    if slot.is_unfinished:
        waited_for = fetch_creation_waits(connection, slot)
        if waited_for:
            return Check.warning(
                "slot",
                f"{slot.name!r} is being created, which waits for {waited_for[0]}",
                f"{waited_for[0].where}: {waited_for[0].solution}",
            )
        return Check.ok("slot", f"{slot.name!r} is being created by backend {slot.active_pid}")
    if slot.wal_status == "unreserved":
        return Check.warning(
            "slot",
            f"{slot.name!r} is about to be lost: it needs {retained} of WAL, more than "
            "max_slot_wal_keep_size",
            "Start the pipeline now, or raise max_slot_wal_keep_size.",
        )
    wal = RetainedWal.of(slot, config.source)
    if slot.active and wal.is_too_much:
        return Check.warning("slot", wal.reason, wal.solution)
    if slot.active:
        return Check.ok(
            "slot", f"{slot.name!r} is read by backend {slot.active_pid}; it keeps {retained}"
        )
    if wal.is_too_much:
        return Check.warning(
            "slot",
            f"no process reads the slot, and {wal.reason}",
            "Start the pipeline; or, if it is not needed any more, "
            f"select pg_drop_replication_slot('{slot.name}');",
        )
    return Check.ok("slot", f"{slot.name!r} waits for the pipeline; it keeps {retained} of WAL")


def check_sync_slots(
    connection: Connection, config: PipelineConfig, tables: Sequence[PublishedTable]
) -> Iterator[Check]:
    published = {table.schema.id for table in tables}
    orphans = [
        name
        for table_id, name in fetch_table_sync_slots(connection, config.pipeline).items()
        if table_id not in published
    ]
    if orphans:
        drops = " ".join(f"select pg_drop_replication_slot('{name}');" for name in orphans)
        yield Check.warning(
            "table sync slots",
            f"left by tables that are not published any more, and keeping WAL: {names(orphans)}",
            drops,
        )


def check_leftover_slots(connection: Connection, config: PipelineConfig) -> Iterator[Check]:
    """Slots of what was removed from the configuration: nothing reads them."""
    left = fetch_leftover_slots(connection, config)
    if left:
        kept = human_bytes(sum(slot.retained_bytes for slot in left))
        yield Check.warning(
            LEFTOVER,
            f"slots of destinations or shards that the pipeline does not have keep {kept} of WAL: "
            f"{names([slot.name for slot in left])}",
            "If one was left out or renamed by mistake, put it back by its name. Else, and if no "
            "other pipeline has such a name: "
            + " ".join(f"select pg_drop_replication_slot('{slot.name}');" for slot in left),
        )

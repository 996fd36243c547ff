"""Slots that tables get of their own when the pipeline's stream continues without them."""

from __future__ import annotations

from typing import Any

import psycopg

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import NoSlotFree, SlotAdvanced, SlotMissing
from etl_dagster.lsn import Lsn
from etl_dagster.source.connection import connect
from etl_dagster.source.slots import (
    apply_slot_names,
    copy_slot,
    drop_slot,
    fetch_apply_slot,
    make_failover_slot,
    require_usable,
)

#: So many slots are left for copies: many tables may stop at once.
_LEFT_FREE = 2
#: One destination among several may be given another slot to read at any moment.
_TRIES = 3
#: What is left of an earlier copy is not read for long.
_DROP_WAIT_S = 5.0


def copy_apply_slot(
    connection: psycopg.Connection[Any], config: PipelineConfig, name: str, *, needed_from: Lsn
) -> Lsn:
    """Make a slot that begins where the pipeline's is; returns where that is.

    One of that name is dropped before. May be repeated.

    Args:
        needed_from: every transaction that commits from here on must be in the slot.

    Raises:
        SlotAdvanced: the pipeline's slot is past that.
        SlotNotCreated: no slot is free but those that copies may need.
        SlotError: the pipeline's slot is lost or missing.
    """
    drop_slot(connection, name, wait_s=_DROP_WAIT_S)
    _require_room(connection, name)
    for _ in range(_TRIES):
        slot = fetch_apply_slot(connection, config)
        if slot is None:
            raise SlotMissing(f"slot {apply_slot_names(config)[-1]!r} does not exist")
        require_usable(slot)
        begins = copy_slot(connection, slot.name, name)
        if begins <= needed_from:
            return begins
        drop_slot(connection, name)
    raise SlotAdvanced(
        f"the pipeline's slot was confirmed past {needed_from}, from where on changes are needed"
    )


def keep_on_standbys(config: PipelineConfig, name: str) -> None:
    """Have standbys keep the slot, too, where they keep the pipeline's. Before it is read.

    Raises:
        EtlError: the source can't be reached or refuses.
    """
    if config.source.failover:
        with connect(
            config.source, application_name=f"etl_dagster slot {config.pipeline}", replication=True
        ) as replication:
            make_failover_slot(replication, name)


def _require_room(connection: psycopg.Connection[Any], name: str) -> None:
    row = connection.execute(
        "select current_setting('max_replication_slots')::int - count(*) from pg_replication_slots"
    ).fetchone()
    assert row is not None
    if row[0] <= _LEFT_FREE:
        raise NoSlotFree(
            f"slot {name!r} was not created: {row[0]} of the server's replication slots are free, "
            "which copies may need"
        )

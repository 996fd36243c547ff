"""What source and state store know about a pipeline's slots, fetched once for several checks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.resources.pipeline_parts import PipelineParts
from etl_dagster.lsn import Lsn
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore

if TYPE_CHECKING:
    # They import psycopg, and every process of Dagster imports this module.
    from etl_dagster.source.control import SourceControl
    from etl_dagster.source.retained_wal import RetainedWal
    from etl_dagster.source.slots import Slot


@dataclass(frozen=True)
class SlotLook:
    """The pipeline's slots, and how far they were read according to the store."""

    #: The name of the slot that the stream reads.
    name: str
    slot: Slot | None
    #: None if there is no slot.
    wal: RetainedWal | None
    #: Everything before this is durable at the destination; None before the first batch.
    progress: Lsn | None
    #: Whether a process runs the pipeline now.
    is_run: bool
    #: Why the stream can't resume from the slot exactly where the destination is, if it can't.
    problem: EtlError | None = None
    #: The slots that tables are copied with.
    copying: tuple[Slot, ...] = ()
    #: Slots of copies of tables that the pipeline doesn't have.
    leftover: tuple[str, ...] = ()
    #: Whether standbys should have the slot, too.
    wants_failover: bool = False


def look_at_slots(config: PipelineConfig, store: CoordinatingStore) -> SlotLook:
    """Ask source and store; changes nothing.

    Raises:
        EtlError: source or store can't be reached.
    """
    from etl_dagster.runtime.slot import require_continuable
    from etl_dagster.source.control import SourceControl
    from etl_dagster.source.retained_wal import RetainedWal
    from etl_dagster.source.slots import apply_slot_names, fetch_apply_slot, fetch_copying_slots

    control = SourceControl(config.source, application_name="etl_dagster check")
    with contextlib.closing(control):
        slot = control.ask("looking at the slot", fetch_apply_slot, config)
        copying = control.ask("looking at slots", fetch_copying_slots, config.pipeline)
        # The slot was fetched first: it is never confirmed past what the store knew by then.
        leftover = _leftover(config, store, control)
        store.load_table_replication_states()
        name = slot.name if slot is not None else apply_slot_names(config)[-1]
        problem: EtlError | None = None
        try:
            require_continuable(slot, name, store)
        except EtlError as error:
            problem = error
        return SlotLook(
            name,
            slot,
            None if slot is None else RetainedWal.of(slot, config.source),
            store.get_replication_progress(ApplyWorker()),
            store.is_leased("apply"),
            problem,
            tuple(copying),
            leftover,
            config.source.failover,
        )


def resource_look(resource: PipelineParts) -> Callable[[PipelineConfig], SlotLook]:
    """`look_at_slots` with the store of a resource."""

    def look(config: PipelineConfig) -> SlotLook:
        with resource.get_store() as store:
            return look_at_slots(config, store)

    return look


def _leftover(
    config: PipelineConfig, store: CoordinatingStore, control: SourceControl
) -> tuple[str, ...]:
    """Slots of copies whose table the pipeline doesn't have: nothing reads them any more.

    A copy under way is not taken for one of them, since the store knows a table before it has a
    slot.
    """
    from etl_dagster.source.slots import fetch_table_sync_slots

    slots = control.ask("looking at slots", fetch_table_sync_slots, config.pipeline)
    store.load_table_replication_states()
    known = store.get_table_replication_states()
    found = [name for table_id, name in slots.items() if table_id not in known]
    return tuple(sorted(found))

"""Takes a pipeline away for good: its slots, its tables on request, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError, NotOffered
from etl_dagster.model.destination import Destination, RemovesTables, offered
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.stores import CoordinatingStore, RemovesPipeline
from etl_dagster.runtime.many import many
from etl_dagster.runtime.runner import in_use
from etl_dagster.runtime.slot import drop_pipeline_slots, list_pipeline_slots
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import fetch_slot


@dataclass(frozen=True)
class Removal:
    """What there is to remove."""

    #: Slots on the source that exist now.
    slots: Sequence[str]
    #: The newest schema of each table that the pipeline has.
    tables: Sequence[TableSchema]


def find_removal(
    config: PipelineConfig, store: CoordinatingStore, control: SourceControl | None
) -> Removal:
    """Look, and change nothing.

    Args:
        control: of the source; None to leave it alone.

    Raises:
        PipelineInUse: a process runs the pipeline, or copies a table.
        ConfigError: the store can't forget a pipeline.
        EtlError: store or source can't be reached.
    """
    if not isinstance(store, RemovesPipeline):
        raise ConfigError(
            [f"state_store.type: a {type(store).__name__} has no remove_pipeline()"],
            origin=f"pipeline {config.pipeline}",
        )
    states = store.get_table_replication_states()
    leases = ["apply", *(f"table:{table_id}" for table_id in states)]
    if many(store).leased(leases):
        raise used(config, store)
    newest: dict[int, TableSchema] = {}
    for schema in store.get_table_schemas():
        before = newest.get(schema.id)
        if before is None or before.snapshot_id <= schema.snapshot_id:
            newest[schema.id] = schema
    names = [] if control is None else list_pipeline_slots(control, config)
    assert control is not None or not names
    slots = [n for n in names if control and control.ask("looking at a slot", fetch_slot, n)]
    return Removal(slots, sorted(newest.values(), key=lambda schema: schema.name))


def used(config: PipelineConfig, store: CoordinatingStore) -> Exception:
    """The pipeline runs, with what to do before it is removed."""
    error = in_use(store, config.pipeline, "a process")
    error.solution = (
        "Stop it first: Ctrl-C where it runs, or turn the sensor off in Dagster. Take its assets "
        "out of the code location too, or the sensor begins again."
    )
    return error


def remove_pipeline(
    config: PipelineConfig,
    store: CoordinatingStore,
    control: SourceControl | None,
    destination: Destination | None,
    removal: Removal,
    *,
    before_state: Callable[[], None] = lambda: None,
) -> tuple[list[str], list[str]]:
    """Remove it; returns the names of the slots and of the tables that were dropped.

    In an order in which a second call finishes what a first one began: slots, which make the
    server keep WAL, then the tables, and last what names all of them.

    Args:
        control: of the source; None to leave its slots alone.
        destination: where the tables are dropped, not started; None to keep them.
        before_state: called before the state goes.

    Raises:
        PipelineInUse: a process has started it meanwhile.
        SlotInUse: another process reads one of its slots.
        EtlError: source, store or destination can't be reached.
    """
    lease = store.acquire_lease("apply")
    if lease is None:
        raise used(config, store)
    try:
        slots = [] if control is None else drop_pipeline_slots(control, config)
        tables = _drop_tables(config, store, destination, removal) if destination else []
        before_state()
        assert isinstance(store, RemovesPipeline)
        store.remove_pipeline()
    finally:
        lease.release()
    return slots, tables


def require_removable(config: PipelineConfig, destination: Destination) -> RemovesTables:
    """The destination as one whose tables can be dropped.

    Raises:
        NotOffered: it has no way to do so.
    """
    removing = offered(destination, RemovesTables)
    if removing is None:
        raise NotOffered(
            f"a destination of type {config.destination.type} can't drop its tables",
            solution="Leave --with-tables out, and remove them with the destination's own tools.",
        )
    return removing


def _drop_tables(
    config: PipelineConfig,
    store: CoordinatingStore,
    destination: Destination,
    removal: Removal,
) -> list[str]:
    removing = require_removable(config, destination)
    destination.startup(store)
    try:
        return list(removing.remove_tables(config.pipeline, removal.tables))
    finally:
        destination.shutdown()

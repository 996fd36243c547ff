"""Waits until no other table has the name at the destination that a copy is about to take."""

from __future__ import annotations

from etl_dagster.errors import TableNameTaken
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import Catchup, FinishedCopy, Ready, SyncDone, SyncWait
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.tables.representation import chosen_tables
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.catalog import fetch_published_tables

_POLL_S = 0.2


def require_free_name(parts: WorkerParts, schema: TableSchema) -> None:
    """Wait for the stream to tell the destination the new name of a table that had this name:
    its rows are under the old one until then.

    Raises:
        TableNameTaken: it took too long.
        Stopped: told to stop.
    """
    deadline = parts.clock.now_s() + parts.timing.name_wait_s
    name = str(schema.target)
    while (holder := _holder_of(parts, name, schema.id)) is not None:
        if parts.clock.now_s() > deadline:
            raise TableNameTaken(name, holder)
        if parts.clock.wait(parts.stop, _POLL_S):
            raise Stopped
        parts.store.load_destination_tables_metadata()


def _holder_of(parts: WorkerParts, name: str, table_id: TableId) -> str | None:
    """The table that has the name at the destination, and another one in the source.

    Upper and lower case count as one: to some destinations they are.
    """
    store = parts.store
    # One question for all versions of all tables, instead of one for each table.
    namesakes = {
        schema.id
        for schema in store.get_table_schemas()
        if str(schema.target).lower() == name.lower() and schema.id != table_id
    }
    if not namesakes:
        return None
    states = store.get_table_replication_states()
    holders = []
    for other_id in namesakes:
        metadata = store.get_destination_table_metadata(other_id)
        # What is copied again gives up its rows, and its name with them.
        is_kept = isinstance(
            states.get(other_id), FinishedCopy | SyncWait | Catchup | SyncDone | Ready
        )
        if metadata and is_kept and metadata.destination_table_id.lower() == name.lower():
            holders.append(other_id)
    if not holders:
        return None
    published = parts.control.ask(
        "reading the publication",
        fetch_published_tables,
        parts.config.source.publication,
        holders,
        with_filters=False,
    )
    now = (str(other.schema.target) for other in chosen_tables(published, parts.config))
    return next((other for other in now if other.lower() != name.lower()), None)

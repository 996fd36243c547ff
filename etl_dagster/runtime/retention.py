"""Forgets versions of table schemas that nothing asks for any more."""

from __future__ import annotations

import logging

from etl_dagster.model.schema import TableSchemaRetention
from etl_dagster.model.states import Ready
from etl_dagster.model.stores import ApplyWorker, PipelineStore

_log = logging.getLogger(__name__)


def prune_schemas(store: PipelineStore) -> int:
    """Remove old versions of the tables that are streamed; returns how many.

    Kept are the version that the destination's table has, the one before a change that is under
    way, the one in force where the stream would begin again, and all that came after any of them.
    Of a table that is being copied, everything is.
    """
    flushed = store.get_replication_progress(ApplyWorker())
    if flushed is None:
        return 0
    retentions = {}
    for table_id, state in store.get_table_replication_states().items():
        metadata = store.get_destination_table_metadata(table_id)
        if isinstance(state, Ready) and metadata is not None:
            needed = [flushed, metadata.snapshot_id, metadata.previous_snapshot_id]
            oldest = min(lsn for lsn in needed if lsn is not None)
            retentions[table_id] = TableSchemaRetention(oldest)
    count = store.prune_table_schemas(retentions) if retentions else 0
    if count:
        _log.info("forgot %d old versions of schemas", count)
    return count

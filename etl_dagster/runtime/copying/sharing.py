"""Which copies several processes make together, as noted in the store.

A process that wants helpers notes the wish before the copy begins. The worker that has the table's
lease, in any process, notes the copy that it shares before it copies the first chunk, and from then
on claims each. Helpers take chunks of that copy only, so a worker that knows of no helpers never
has any.
"""

from __future__ import annotations

from etl_dagster.model.coordination import CopyPlan
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import CoordinatingStore


def want_shared(store: CoordinatingStore, table_id: TableId) -> None:
    """Have the table's copy shared, the one under way or the next one, up to its hand-over."""
    if not is_wanted(store, table_id):
        store.put_note(_key(table_id), {"wanted": True})


def is_wanted(store: CoordinatingStore, table_id: TableId) -> bool:
    """Whether the table's copy is to be shared."""
    return bool((store.get_note(_key(table_id)) or {}).get("wanted"))


def begin_sharing(store: CoordinatingStore, table_id: TableId, plan: CopyPlan) -> bool:
    """Let helpers take chunks of the copy, if that is wanted; whether it is.

    By the worker that has the table's lease, before it copies a chunk.
    """
    if not is_wanted(store, table_id):
        return False
    store.put_note(_key(table_id), {"wanted": True, "copy_id": plan.copy_id})
    return True


def is_shared(store: CoordinatingStore, table_id: TableId, plan: CopyPlan) -> bool:
    """Whether helpers may take chunks of the copy."""
    return (store.get_note(_key(table_id)) or {}).get("copy_id") == plan.copy_id


def end_sharing(store: CoordinatingStore, table_id: TableId) -> None:
    """The table is handed over: its next copy is one worker's again."""
    if is_wanted(store, table_id):
        store.put_note(_key(table_id), {})


def _key(table_id: TableId) -> str:
    return f"shared_copy:{table_id}"

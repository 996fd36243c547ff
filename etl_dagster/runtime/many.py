"""Many tables at once, for stores and destinations that know only one at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from etl_dagster.model.coordination import CopyPlan, FinishedChunk, Lease
from etl_dagster.model.destination import CopiesManyTables, Destination, offered
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import TableState
from etl_dagster.model.stores import CoordinatingStore, DestinationTableMetadata, ManyTables


def group_lease(table_id: TableId) -> str:
    """The lease of the group that is named after the table; its slot is named likewise."""
    return f"group:{table_id}"


def copying_many(destination: Destination) -> CopiesManyTables | None:
    """The destination itself where it takes many copies at once.

    A class that inherits this and overrides `write_table_rows` means its own way of writing rows;
    so does a wrapper that passes on what it hasn't.
    """
    kinds = type(destination).__mro__
    definers = [
        next((place for place, kind in enumerate(kinds) if name in vars(kind)), len(kinds))
        for name in ("write_whole_tables", "drop_tables_for_copy", "write_table_rows")
    ]
    if len(kinds) in definers or max(definers[:2]) > definers[2]:
        return None
    return offered(destination, CopiesManyTables)


def many(store: CoordinatingStore) -> ManyTables:
    """The store itself where it answers for many tables at once, else one that asks it for each."""
    return store if isinstance(store, ManyTables) else _OneByOne(store)


class _OneByOne:
    def __init__(self, store: CoordinatingStore) -> None:
        self._store = store

    def transition_table_states(
        self, changes: Sequence[tuple[TableId, TableState, TableState]]
    ) -> Collection[TableId]:
        transition = self._store.transition_table_state
        return {table for table, expected, new in changes if transition(table, expected, new)}

    def clear_table_copy_states(self, table_ids: Collection[TableId]) -> None:
        for table_id in table_ids:
            self._store.clear_table_copy_state(table_id)

    def store_table_schemas(self, schemas: Sequence[TableSchema]) -> None:
        for schema in schemas:
            self._store.store_table_schema(schema)

    def store_destination_tables_metadata(
        self, metadata: Mapping[TableId, DestinationTableMetadata]
    ) -> None:
        for table_id, described in metadata.items():
            self._store.store_destination_table_metadata(table_id, described)

    def get_copy_plans(self, table_ids: Collection[TableId]) -> Mapping[TableId, CopyPlan]:
        plans = {table_id: self._store.get_copy_plan(table_id) for table_id in table_ids}
        return {table_id: plan for table_id, plan in plans.items() if plan is not None}

    def store_copy_plans(self, plans: Mapping[TableId, CopyPlan]) -> None:
        for table_id, plan in plans.items():
            self._store.store_copy_plan(table_id, plan)

    def finish_chunks(self, chunks: Sequence[tuple[TableId, str, FinishedChunk]]) -> None:
        for table_id, copy_id, chunk in chunks:
            self._store.finish_chunk(table_id, copy_id, chunk)

    def finished_chunks(
        self, table_id: TableId, copy_id: str, indexes: Collection[int]
    ) -> Mapping[int, FinishedChunk] | None:
        plan = self._store.get_copy_plan(table_id)
        if plan is None or plan.copy_id != copy_id:
            return None
        return {index: plan.finished[index] for index in indexes if index in plan.finished}

    def acquire_leases(self, names: Collection[str]) -> Mapping[str, Lease]:
        leases: dict[str, Lease] = {}
        try:
            for name in names:
                lease = self._store.acquire_lease(name)
                if lease is not None:
                    leases[name] = lease
        except BaseException:
            for lease in leases.values():
                lease.release()
            raise
        return leases

    def leased(self, names: Collection[str]) -> Collection[str]:
        return {name for name in names if self._store.is_leased(name)}

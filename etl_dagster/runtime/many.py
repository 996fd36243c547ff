"""Questions about many tables, for stores that answer them one by one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import TableState
from etl_dagster.model.stores import (
    CoordinatingStore,
    CopyPlan,
    DestinationTableMetadata,
    Lease,
    ManyTables,
)


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

"""Which tables the pipeline has: the publication's, kept in step with the store's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from etl_dagster.config import PipelineConfig
from etl_dagster.lsn import LSN_MAX
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Init, Ready
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.source.catalog import PublishedTable, fetch_publication, fetch_published_tables
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import drop_slot, fetch_table_sync_slots

_log = logging.getLogger(__name__)


class Members:
    """The tables of the publication, as last read."""

    def __init__(
        self, config: PipelineConfig, store: CoordinatingStore, control: SourceControl
    ) -> None:
        self._config = config
        self._store = store
        self._control = control
        self._tables: Mapping[TableId, PublishedTable] = {}

    @property
    def ids(self) -> list[TableId]:
        return list(self._tables)

    @property
    def tables(self) -> Mapping[TableId, PublishedTable]:
        return self._tables

    def refresh(self) -> None:
        """Read the publication again.

        Raises:
            PublicationMissing: it is gone.
        """
        name = self._config.source.publication
        self._control.ask("reading the publication", fetch_publication, name)
        self.update(self._control.ask("reading the publication", fetch_published_tables, name))

    def update(self, members: Sequence[PublishedTable]) -> None:
        """New tables begin at `Init`; what is kept of those that left is removed.

        Their rows at the destination stay. Slots that no table needs any more are dropped, so
        that they don't keep WAL for ever.
        """
        published = {table.schema.id: table for table in members}
        states = self._store.get_table_replication_states()
        new = [table_id for table_id in published if table_id not in states]
        if new:
            names = ", ".join(published[table_id].schema.name for table_id in new)
            _log.info("new in the publication: %s", names)
            self._store.update_table_replication_states([(t, Init()) for t in new])
        for table_id in states.keys() - published.keys():
            if not self._is_worked_on(table_id):
                schema = self._store.get_table_schema(table_id, LSN_MAX)
                left = f"table {table_id}" if schema is None else schema.name
                _log.warning("%s left the publication; its rows stay", left)
                self._store.delete_table_pipeline_state(table_id)
        self._tables = published
        self._copy_again_what_was_out()
        self._drop_unneeded_slots()

    def _copy_again_what_was_out(self) -> None:
        """A table that was taken out of the publication and put in again has missed changes."""
        last = (self._store.get_status("members") or {}).get("memberships", {})
        now = {str(table_id): table.membership for table_id, table in self._tables.items()}
        for table_id, table in self._tables.items():
            if last.get(str(table_id), table.membership) == table.membership:
                continue
            if not isinstance(self._store.get_table_replication_state(table_id), Init):
                _log.warning("%s was out of the publication; copying it again", table.schema.name)
                self._store.request_copy(table_id)
        if now != last:
            self._store.publish_status("members", {"memberships": now})

    def _drop_unneeded_slots(self) -> None:
        slots = self._control.ask("listing slots", fetch_table_sync_slots, self._config.pipeline)
        for table_id, slot_name in slots.items():
            state = self._store.get_table_replication_state(table_id)
            is_needed = table_id in self._tables and not isinstance(state, Ready)
            if not is_needed and not self._is_worked_on(table_id):
                self._control.ask("dropping a slot", drop_slot, slot_name)

    def _is_worked_on(self, table_id: TableId) -> bool:
        return self._store.is_leased(f"table:{table_id}")

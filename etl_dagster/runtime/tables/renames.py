"""Tables that have another name in the source than at the destination, and no change to say so."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Ready
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.source.catalog import PublishedTable, emit_marker, fetch_relations
from etl_dagster.source.control import SourceControl
from etl_dagster.table_name import TableName


class Renames:
    """Has the stream follow the names that the catalog has.

    Postgres describes a renamed table with its next row, which may never come; meanwhile another
    table may get its name. So names are compared with the catalog. The stream takes a new name over
    once it has passed everything that was committed before: until then it may still bring the
    table under an earlier name.

    The stream itself may give the destination a name that is not the table's any more: it was
    renamed again with no row since, or its rows come through a partition, for which Postgres goes
    on describing the root as it was. The catalog is asked about such a table again.
    """

    def __init__(self, store: CoordinatingStore, control: SourceControl) -> None:
        self._store = store
        self._control = control
        self._lock = threading.Lock()
        #: The names of the last look; None before the first.
        self._names: Mapping[TableId, TableName] | None = None
        #: Names that may not be known at the destination.
        self._due: dict[TableId, TableName] = {}
        #: Those of them that the stream takes over once it has passed the LSN.
        self._marked: set[TableId] = set()
        self._lsn = LSN_ZERO
        #: Tables that the stream has given another name than that of the last look.
        self._doubtful: set[TableId] = set()

    def look(self, tables: Mapping[TableId, PublishedTable]) -> None:
        """Compare the names with those of the last look, at first with what the store has.

        Raises:
            EtlError: the source or the store can't be asked.
        """
        names = {
            table_id: TableName(table.schema.schema_name, table.schema.table_name)
            for table_id, table in tables.items()
        }
        before = self._stored_names() if self._names is None else self._names
        with self._lock:
            due = {t: name for t, name in self._due.items() if names.get(t) == name}
            changed = {t: name for t, name in names.items() if before.get(t, name) != name}
            self._due = due | changed
            self._marked &= due.keys() - changed.keys()
            self._names = names
        self.settle()

    def settle(self) -> None:
        """Have the stream take over the names of tables that it streams by now.

        Raises:
            EtlError: the source or the store can't be asked.
        """
        self._ask_about_doubtful()
        ready = self._ready() - self._marked
        if ready:
            lsn = self._control.ask("marking the stream", emit_marker)
            with self._lock:
                self._marked |= ready
                self._lsn = lsn

    def described(self, table_id: TableId, name: TableName) -> None:
        """The stream has brought the table under this name. From any thread."""
        with self._lock:
            if self._names is not None and self._names.get(table_id, name) != name:
                self._doubtful.add(table_id)

    def _ask_about_doubtful(self) -> None:
        with self._lock:
            doubtful = set(self._doubtful)
        if not doubtful:
            return
        found = self._control.ask("reading tables' names", fetch_relations, list(doubtful))
        with self._lock:
            names = {t: TableName(now.schema_name, now.name) for t, now in found.items()}
            self._names = {**(self._names or {}), **names}
            self._due |= names
            self._marked -= doubtful
            self._doubtful -= doubtful

    @property
    def waits_for(self) -> Lsn | None:
        """The LSN that the stream must pass; None when no name is to be taken over."""
        return self._lsn if self._ready() else None

    @property
    def is_settled(self) -> bool:
        """Whether the destination knows the names of all tables that are streamed."""
        with self._lock:
            if self._doubtful:
                return False
        return not self._ready()

    def take(self, reached: Lsn) -> Mapping[TableId, TableName]:
        """The names to take over now that the stream has reached an LSN; `done` follows."""
        with self._lock:
            if not self._marked or reached < self._lsn:
                return {}
            return {t: name for t, name in self._due.items() if t in self._marked}

    def done(self, taken: Mapping[TableId, TableName]) -> None:
        """These names are known at the destination, or were refused there."""
        with self._lock:
            for table_id, name in taken.items():
                if self._due.get(table_id) == name:
                    del self._due[table_id]
                    self._marked.discard(table_id)

    def _ready(self) -> set[TableId]:
        with self._lock:
            due = list(self._due)
        if not due:
            return set()
        states = self._store.get_table_replication_states()
        return {table_id for table_id in due if isinstance(states.get(table_id), Ready)}

    def _stored_names(self) -> dict[TableId, TableName]:
        versions = sorted(self._store.get_table_schemas(), key=lambda schema: schema.snapshot_id)
        return {s.id: TableName(s.schema_name, s.table_name) for s in versions}

"""Which table of the destination has which name, while names move among the source's tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from dataclasses import replace

from etl_dagster.destinations.sql.clashes import same_name
from etl_dagster.destinations.sql.ledger import Ledger
from etl_dagster.destinations.sql.odd_values import OddValues
from etl_dagster.destinations.sql.quarantine import Quarantine
from etl_dagster.destinations.sql.session import Session
from etl_dagster.destinations.sql.tables import Target, move_table
from etl_dagster.model.schema import INITIAL_SNAPSHOT, TableId, TableSchema
from etl_dagster.table_name import TableName

_log = logging.getLogger(__name__)


class TableNames:
    """Gives names to tables inside one transaction.

    A table is its OID. In the source a name may pass from one table to another, and two tables may
    swap theirs; the destination learns of each table by itself, perhaps much later of one than of
    the other. So the table renamed last has the name. The table that had it before is set aside
    under another name, keeps its rows and continues receiving changes, until it gets a new name or
    the old one is free again. Inside a batch, where each table is written by itself, the versions
    of the schemas tell which was named last.

    Args:
        tables: the tables of a batch as they are stored; kept up to date.
    """

    def __init__(
        self,
        session: Session,
        ledger: Ledger,
        tables: MutableMapping[TableId, TableSchema] | None = None,
    ) -> None:
        self._session = session
        self._ledger = ledger
        self.tables = {} if tables is None else tables
        #: The tables that this transaction set aside, as they were named before.
        self._set_aside: dict[TableId, TableSchema] = {}
        self._is_changed = False

    def stored(self, schema: TableSchema, before: TableSchema) -> TableSchema:
        """The schema under the name that the destination has: another one while it is set aside.

        Args:
            before: the table as it is stored.
        """
        wanted = self._ledger.wanted_name(schema.id)
        if (before.schema_name, wanted) == (schema.schema_name, schema.table_name):
            return replace(schema, table_name=before.table_name)
        return schema

    def claim(self, schema: TableSchema) -> None:
        """Make the table's name free for it.

        Raises:
            TableWriteFailed: another table has a name that differs only in case.
        """
        self._is_changed = True
        for other in self._ledger.in_the_way([schema]):
            if other.id == schema.id:
                continue
            if other.name != schema.name:
                raise same_name(self._session.dialect, schema, other)
            self._put_aside(other)

    def drop_replaced(
        self, other: TableSchema, schema: TableSchema, is_known: Callable[[TableId], bool]
    ) -> None:
        """Drop a table that is in the way of a complete copy, where the copy replaces it.

        That is the table itself as it was before, and one of the same name that the pipeline has
        forgotten. Others keep their rows: `claim` sets them aside.

        Args:
            is_known: whether the pipeline has a table.
        """
        is_namesake = other.name == schema.name and not is_known(other.id)
        if other.id != schema.id and not is_namesake:
            return
        old = Target.of(self._session.dialect, other)
        self._session.execute(f"DROP TABLE IF EXISTS {old.sql}")
        self._ledger.forget_table(other.id)
        OddValues(self._session).clear(other.id)
        Quarantine(self._session).drop(other.id)
        if is_namesake:
            _log.warning(
                "%s is another table now; the rows of the one that had the name before (OID %s) "
                "are replaced",
                schema.name,
                other.id,
            )

    def retire(self, other: TableSchema, mark: str) -> TableName:
        """Let go of a table that keeps more than the source has: it stays under another name.

        Args:
            mark: the ending of that name.
        """
        self._is_changed = True
        while self._is_taken(
            other.schema_name, name := self._session.dialect.aside(other.table_name, mark)
        ):
            mark += "_"
        self._session.let_go(Target.of(self._session.dialect, other).sql, other, mark)
        self._rename(other, name)
        self._ledger.forget_table(other.id)
        OddValues(self._session).hand_over(other.id, name)
        return TableName(other.schema_name, name)

    def is_missing(self, stored: TableSchema) -> bool:
        """Whether a table of the ledger isn't at the destination: dropped or renamed by hand."""
        return not self._is_taken(stored.schema_name, stored.table_name)

    def forget_missing(self, stored: TableSchema, mark: str) -> None:
        """Let go of a table that is no longer at the destination under its name.

        It may have been renamed by hand, so the texts of its odd values stay, as after `retire`.

        Args:
            mark: the ending of the name under which these texts stay.
        """
        self._is_changed = True
        self._ledger.forget_table(stored.id)
        name = self._session.dialect.aside(stored.table_name, mark)
        OddValues(self._session).hand_over(stored.id, name)

    def settle(self) -> None:
        """At the end of a transaction: what was set aside returns to a name that is free now."""
        if not self._is_changed:
            return
        for table_id in list(self._set_aside):
            self._give_back(table_id)
        for table_id, wanted in self._ledger.wanted_names().items():
            stored = self._ledger.tables([table_id])[table_id]
            named = replace(stored, table_name=wanted)
            if not self._is_taken(stored.schema_name, wanted):
                self._rename(stored, wanted)
                self._keep(named, None)
                self._set_aside.pop(table_id, None)
        for table_id, before in self._set_aside.items():
            stored = self._ledger.tables([table_id])[table_id]
            _log.warning(
                "%s names another table now; the rows of the one that had the name before "
                "(OID %s) are in %s until its new name is known",
                before.name,
                table_id,
                stored.name,
            )

    def _give_back(self, table_id: TableId) -> None:
        """Set aside the table that took the name, if it got that name earlier than this one."""
        stored = self._ledger.tables([table_id])[table_id]
        wanted = self._ledger.wanted_name(table_id)
        if wanted is None:
            return
        for other in self._ledger.in_the_way([replace(stored, table_name=wanted)]):
            # The name that a copy found is that of today; it has no place in the stream.
            if other.id != table_id and INITIAL_SNAPSHOT < other.snapshot_id < stored.snapshot_id:
                self._put_aside(other)

    def _put_aside(self, other: TableSchema) -> None:
        mark = f"__old_{other.id}"
        while self._is_taken(
            other.schema_name, name := self._session.dialect.aside(other.table_name, mark)
        ):
            mark += "_"
        wanted = self._ledger.wanted_name(other.id) or other.table_name
        self._rename(other, name)
        self._keep(replace(other, table_name=name), wanted)
        self._set_aside.setdefault(other.id, replace(other, table_name=wanted))

    def _rename(self, stored: TableSchema, name: str) -> None:
        before = TableName(stored.schema_name, stored.table_name)
        move_table(self._session, before, replace(before, table_name=name))

    def _keep(self, stored: TableSchema, wanted: str | None) -> None:
        self._ledger.keep_table(stored, wanted_name=wanted)
        if stored.id in self.tables:
            self.tables[stored.id] = stored

    def _is_taken(self, schema_name: str, name: str) -> bool:
        """Whether the destination has something of that name, ours or not."""
        dialect = self._session.dialect
        found = self._session.fetch(
            f"SELECT schema_name, table_name FROM {dialect.tables} AS there"  # noqa: S608  (a constant)
        )
        wanted = dialect.fold_table(TableName(schema_name, name))
        return any(dialect.fold_table(TableName(*there)) == wanted for there in found)

"""Keeps every change as a row, in the order of ``_etl_commit_lsn`` and ``_etl_ordinal``."""

# Values are never part of a query's text, and every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import Collapsed, cells_at, complete_from_old
from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.logged import logged
from etl_dagster.destinations.sql import statements
from etl_dagster.destinations.sql.dialect import Dialect, column_list, quote
from etl_dagster.destinations.sql.modes.base import Mode, added_types
from etl_dagster.destinations.sql.modes.columns import moment, none_unchanged, with_columns
from etl_dagster.destinations.sql.odd_values import OddValues
from etl_dagster.destinations.sql.session import Session
from etl_dagster.destinations.sql.tables import Target
from etl_dagster.destinations.versions import every_row
from etl_dagster.model.events import TableChanges, TruncateEvent
from etl_dagster.model.modes import TableMode
from etl_dagster.model.position import Position

_NEWEST = "_etl newest"


class Append(Mode[Collapsed]):
    """A delete has the values that Postgres sends of its row, a truncate has none.

    ``_etl_op`` is insert, update, delete, truncate, or copy for a row of a copy.
    """

    name: ClassVar[TableMode] = "append"

    def prepare(self, changes: TableChanges, after: Position) -> Collapsed:
        """All rows that the changes brought, as far as they have them."""
        key = changes.schema.key_columns
        if key:
            versions = every_row(changes, key)
            return versions.collapsed(versions.rows)
        changes = complete_from_old(changes)
        every = np.arange(len(changes))
        nowhere = changes.rows.slice(0, 0).select([])
        odd = cells_at(changes.odd, every, {})
        return Collapsed(nowhere, changes.rows, changes.unchanged, odd=odd)

    def change(
        self, session: Session, target: Target, changes: TableChanges, prepared: Collapsed
    ) -> int:
        whole = self.whole(target)
        rows = with_columns(prepared.rows, _added(changes))
        if not prepared.unknown:
            session.run(statements.insert(whole, rows))
            return 0
        complete = Collapsed(prepared.removed, rows, prepared.unknown, prepared.lookup_places)
        rows_now = _rows_now(target, prepared.lookup)
        session.run(
            statements.keep_known(whole, complete, rows_now=rows_now, told_in="_etl_unchanged")
        )
        for statement in statements.insert_known(whole):
            session.run(statement)
        return 0

    def follow_odd(
        self,
        odd: OddValues,
        target: Target,
        changes: TableChanges,
        prepared: Collapsed,
        *,
        has_entries: bool,
    ) -> bool:
        added = odd.add_each(target.schema, prepared.rows, prepared.odd, changes, target.types)
        return added or has_entries

    def truncate(
        self, session: Session, target: Target, event: TruncateEvent, after: Position
    ) -> int:
        types = added_types(target.dialect, self.name)
        names = ("_etl_op", "_etl_commit_lsn", "_etl_ordinal", "_etl_commit_time", "_etl_xid")
        values = ", ".join(
            f"CAST(${number} AS {types[name]})" for number, name in enumerate(names, start=1)
        )
        session.execute(
            f"INSERT INTO {target.sql} ({column_list(names)}) VALUES ({values})",
            [
                "truncate",
                event.position.commit_lsn.offset,
                event.position.ordinal,
                moment(event.commit_time_us),
                event.xid,
            ],
        )
        return 0

    def begin(self, dialect: Dialect, copy: CopyMoment) -> dict[str, str | None]:
        return {
            "_etl_op": "copy",
            "_etl_commit_lsn": str(copy.position.commit_lsn.offset),
            "_etl_ordinal": "0",
            "_etl_commit_time": moment(copy.time_us),
            "_etl_xid": None,
            "_etl_before": None,
            "_etl_unchanged": None,
        }

    def join(
        self, session: Session, target: Target, staging: Target, copy: CopyMoment, is_odd: str
    ) -> None:
        """The rows of the copy follow those of before."""
        values = self.begin(target.dialect, copy)
        types = added_types(target.dialect, self.name)
        columns, names = target.columns, [name for name, value in values.items() if value]
        given = ", ".join(
            f"CAST(${number} AS {types[name]})" for number, name in enumerate(names, start=1)
        )
        session.make_room_as(target.sql, staging.sql, target.schema)
        session.execute(
            f"INSERT INTO {target.sql} ({column_list([*columns, *names])}) "
            f"SELECT {', '.join([*map(quote, columns), given])} FROM {staging.sql}",
            [values[name] for name in names],
        )
        session.execute(f"DROP TABLE {staging.sql}")


def _added(changes: TableChanges) -> dict[str, pa.Array[Any]]:
    """By name, the columns besides those of the source."""
    return logged(changes) | {"_etl_unchanged": none_unchanged(len(changes))}


def _rows_now(target: Target, lookup: pa.RecordBatch | None) -> str:
    """SQL for the last row of each key whose values are looked up, if there is one."""
    if lookup is None:
        return target.sql
    key = lookup.schema.names
    asked = ", ".join(
        f"CAST({quote(f'_etl key {place}')} AS {target.types[name]})"
        for place, name in enumerate(key)
    )
    return (
        "(SELECT * FROM (SELECT log.*, row_number() OVER ("
        f"PARTITION BY {column_list(key)} ORDER BY _etl_commit_lsn DESC, _etl_ordinal DESC"
        f") AS {quote(_NEWEST)} FROM {target.sql} AS log "
        f"WHERE ({column_list(key)}) IN (SELECT {asked} FROM _etl_rows)) AS numbered "
        f"WHERE {quote(_NEWEST)} = 1 AND _etl_op NOT IN ('delete', 'truncate'))"
    )

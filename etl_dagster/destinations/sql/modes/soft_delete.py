"""Keeps what the source has now, and marks rows that it no longer has instead of deleting them.

If a row gets another key, the source no longer has the old key. A key that has a row again
isn't marked any longer.
"""

# Values are never part of a query's text, and every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from typing import Any, ClassVar

import pyarrow as pa

from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.sql import statements
from etl_dagster.destinations.sql.dialect import ZONED, Dialect, column_list, quote
from etl_dagster.destinations.sql.modes.base import Mode
from etl_dagster.destinations.sql.modes.columns import AT, moment, times, with_columns
from etl_dagster.destinations.sql.odd_values import OddValues
from etl_dagster.destinations.sql.session import Session, Statement
from etl_dagster.destinations.sql.tables import Target, move_table
from etl_dagster.destinations.versions import Versions, last_rows
from etl_dagster.model.events import TableChanges, TruncateEvent
from etl_dagster.model.modes import TableMode
from etl_dagster.model.position import Position

DELETED_AT = "_etl_deleted_at"


class SoftDelete(Mode[Versions]):
    """`DELETED_AT` is the commit time of the change that removed the row from the source."""

    name: ClassVar[TableMode] = "soft_delete"
    has_one_row_each: ClassVar[bool] = True

    def prepare(self, changes: TableChanges, after: Position) -> Versions:
        return last_rows(changes, changes.schema.key_columns)

    def change(
        self, session: Session, target: Target, changes: TableChanges, prepared: Versions
    ) -> int:
        whole, obsolete = self.whole(target), 0
        if len(prepared.rows):
            deleted_at = times(changes.commit_times_us, prepared.ended_by)
            rows = with_columns(prepared.rows, {DELETED_AT: deleted_at})
            keys = prepared.rows.select(list(changes.schema.key_columns))
            if prepared.unknown:
                is_there = f"target.{quote(DELETED_AT)} IS NULL"
                collapsed = prepared.collapsed(rows)
                session.run(statements.keep_known(whole, collapsed, condition=is_there))
            obsolete += session.run(statements.delete_keys(target, keys))
            if prepared.unknown:
                for statement in statements.insert_known(whole):
                    session.run(statement)
            else:
                session.run(statements.insert(whole, rows))
        if len(prepared.over):
            at = times(changes.commit_times_us, prepared.over_by)
            obsolete += session.run(_mark(target, prepared.over, at))
        return obsolete

    def follow_odd(
        self,
        odd: OddValues,
        target: Target,
        changes: TableChanges,
        prepared: Versions,
        *,
        has_entries: bool,
    ) -> bool:
        """A row that is marked keeps its values."""
        return odd.follow(
            target.schema,
            changes,
            prepared.collapsed(prepared.rows),
            target.types,
            has_entries=has_entries,
            replaced=prepared.rows.select(list(changes.schema.key_columns)),
        )

    def truncate(
        self, session: Session, target: Target, event: TruncateEvent, after: Position
    ) -> int:
        return session.run(_mark_all(target, event.commit_time_us))

    def begin(self, dialect: Dialect, copy: CopyMoment) -> dict[str, str | None]:
        return {DELETED_AT: None}

    def join(
        self, session: Session, target: Target, staging: Target, copy: CopyMoment, is_odd: str
    ) -> None:
        """The copy becomes the table, with the earlier rows that it lacks."""
        dialect, columns = target.dialect, column_list(target.columns)
        deleted_at = quote(DELETED_AT)
        if not dialect.renames_altered:
            self._join_rows(session, target, staging, copy)
            self._keep_odd(session, target, is_odd)
            return
        session.run_each(dialect.add_column(staging.sql, DELETED_AT, ZONED))
        session.make_room_as(staging.sql, target.sql, target.schema)
        match = statements.same_key(target, "copied", "target")
        session.execute(
            f"INSERT INTO {staging.sql} ({columns}, {deleted_at}) SELECT {columns}, "
            f"coalesce({deleted_at}, CAST($1 AS {ZONED})) FROM {target.sql} AS target "
            f"WHERE NOT EXISTS (SELECT 1 FROM {staging.sql} AS copied WHERE {match})",
            [moment(copy.time_us)],
        )
        session.execute(f"DROP TABLE {target.sql}")
        session.complete(staging.sql, target.schema)
        move_table(session, staging.name, target.name)
        self._keep_odd(session, target, is_odd)

    @staticmethod
    def _keep_odd(session: Session, target: Target, is_odd: str) -> None:
        """Rows that the copy has bring their odd values with them."""
        if is_odd != "false":
            gone = f"{target.sql} WHERE {quote(DELETED_AT)} IS NOT NULL"
            OddValues(session).keep_only(target.schema, gone, target.types)

    def _join_rows(
        self, session: Session, target: Target, staging: Target, copy: CopyMoment
    ) -> None:
        """The rows of the copy replace those with their keys, and the others are marked."""
        match = statements.same_key(target, "copied", "target")
        columns = column_list(target.columns)
        session.make_room_as(target.sql, staging.sql, target.schema)
        session.execute(
            f"DELETE FROM {target.sql} AS target USING {staging.sql} AS copied WHERE {match}"
        )
        session.run(_mark_all(target, copy.time_us))
        session.execute(f"INSERT INTO {target.sql} ({columns}) SELECT {columns} FROM {staging.sql}")
        session.execute(f"DROP TABLE {staging.sql}")


def _mark(target: Target, keys: pa.RecordBatch, at: pa.Array[Any]) -> Statement:
    """Mark the rows with these keys."""
    selected = target.dialect.select_list(keys.schema.names, target.types)
    return Statement(
        f"UPDATE {target.sql} AS target SET {quote(DELETED_AT)} = gone.{quote(AT)} "
        f"FROM (SELECT {selected}, {quote(AT)} FROM _etl_keys) AS gone "
        f"WHERE {statements.key_match(keys)}",
        staged={"_etl_keys": with_columns(keys, {AT: at})},
    )


def _mark_all(target: Target, time_us: int) -> Statement:
    """Mark the rows that aren't marked."""
    return Statement(
        f"UPDATE {target.sql} SET {quote(DELETED_AT)} = CAST($1 AS {ZONED}) "
        f"WHERE {quote(DELETED_AT)} IS NULL",
        [moment(time_us)],
    )

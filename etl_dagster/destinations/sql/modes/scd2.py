"""Keeps a row for each version of a row, with the time in which it was valid.

What a row is after a transaction is a version; what it is in between isn't. A batch may end inside
of a transaction: then the versions that the transaction has already opened are replaced by those
that it opens later.
"""

# Values are never part of a query's text, and every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.sql import statements
from etl_dagster.destinations.sql.dialect import ZONED, Dialect, column_list, quote
from etl_dagster.destinations.sql.modes.base import Mode
from etl_dagster.destinations.sql.modes.columns import (
    AT,
    moment,
    none_unchanged,
    times,
    with_columns,
)
from etl_dagster.destinations.sql.odd_values import OddValues
from etl_dagster.destinations.sql.session import Session, Statement
from etl_dagster.destinations.sql.tables import Target
from etl_dagster.destinations.versions import Versions, all_versions
from etl_dagster.model.events import TableChanges, TruncateEvent
from etl_dagster.model.modes import TableMode
from etl_dagster.model.position import Position

FROM, TO, CURRENT = (quote(f"_etl_{name}") for name in ("valid_from", "valid_to", "is_current"))


@dataclass(frozen=True)
class _Work:
    versions: Versions
    #: For each of `versions.over`, whether the transaction that ends its row may have opened it.
    is_same: np.ndarray


class Scd2(Mode[_Work]):
    """Times are commit times. ``_etl_valid_to`` is null while the row is the current one."""

    name: ClassVar[TableMode] = "scd2"

    def prepare(self, changes: TableChanges, after: Position) -> _Work:
        versions = all_versions(changes, changes.schema.key_columns)
        lsns = changes.commit_lsns[versions.over_by]
        return _Work(versions, lsns == np.uint64(after.commit_lsn.offset))

    def change(
        self, session: Session, target: Target, changes: TableChanges, prepared: _Work
    ) -> int:
        versions, whole = prepared.versions, self.whole(target)
        commit_times = changes.commit_times_us
        rows = with_columns(
            versions.rows,
            {
                "_etl_valid_from": times(commit_times, versions.given_by),
                "_etl_valid_to": times(commit_times, versions.ended_by),
                "_etl_is_current": pa.array(versions.ended_by < 0),
                "_etl_unchanged": none_unchanged(len(versions.rows)),
            },
        )
        if versions.unknown:
            session.run(
                statements.keep_known(
                    whole,
                    versions.collapsed(rows),
                    condition=f"target.{CURRENT}",
                    told_in="_etl_unchanged",
                )
            )
        obsolete = self._end(session, target, prepared, times(commit_times, versions.over_by))
        if versions.unknown:
            for statement in statements.insert_known(whole):
                session.run(statement)
        elif len(rows):
            session.run(statements.insert(whole, rows))
        return obsolete

    def _end(self, session: Session, target: Target, work: _Work, at: pa.Array[Any]) -> int:
        obsolete = 0
        over = with_columns(work.versions.over, {AT: at})
        if work.is_same.any():
            same = over.filter(pa.array(work.is_same))
            obsolete += session.run(_delete_opened(target, same))
        return obsolete + session.run(_close(target, over))

    def follow_odd(
        self,
        odd: OddValues,
        target: Target,
        changes: TableChanges,
        prepared: _Work,
        *,
        has_entries: bool,
    ) -> bool:
        versions = prepared.versions
        if has_entries and prepared.is_same.any():
            keys = versions.over.filter(pa.array(prepared.is_same))
            odd.remove_of(target.schema, keys, int(changes.commit_lsns[0]), target.types)
        added = odd.add_each(target.schema, versions.rows, versions.odd, changes, target.types)
        return added or has_entries

    def truncate(
        self, session: Session, target: Target, event: TruncateEvent, after: Position
    ) -> int:
        at, obsolete = moment(event.commit_time_us), 0
        if event.position.commit_lsn == after.commit_lsn:
            obsolete = session.execute(
                f"DELETE FROM {target.sql} WHERE {CURRENT} AND {FROM} = CAST($1 AS {ZONED})", [at]
            )
            # Rows of the transaction itself are not versions; their odd values are removed, too.
            OddValues(session).remove_all_of(target.schema, event.position.commit_lsn.offset)
        return obsolete + session.execute(
            f"UPDATE {target.sql} SET {TO} = CAST($1 AS {ZONED}), {CURRENT} = false "
            f"WHERE {CURRENT}",
            [at],
        )

    def begin(self, dialect: Dialect, copy: CopyMoment) -> dict[str, str | None]:
        return {
            "_etl_valid_from": moment(copy.time_us),
            "_etl_valid_to": None,
            "_etl_is_current": "true",
            "_etl_unchanged": None,
        }

    def join(
        self, session: Session, target: Target, staging: Target, copy: CopyMoment, is_odd: str
    ) -> None:
        """Close versions that the copy lacks or has with other values; open those that differ.

        A null may stand for a value that the column's type can't hold. So rows with entries of
        odd values always count as different.
        """
        session.make_room_as(target.sql, staging.sql, target.schema)
        dialect, columns, at = target.dialect, column_list(target.columns), moment(copy.time_us)
        same_key = statements.same_key(target, "copied", "target")
        same_row = dialect.same_row(
            [
                (
                    dialect.exact(f"copied.{quote(name)}", target.types[name]),
                    dialect.exact(f"target.{quote(name)}", target.types[name]),
                )
                for name in target.columns
            ]
        )
        known = f"target.{quote('_etl_unchanged')} IS NULL"
        session.execute(
            f"UPDATE {target.sql} AS target SET {TO} = CAST($1 AS {ZONED}), {CURRENT} = false "
            f"WHERE {CURRENT} AND NOT EXISTS (SELECT 1 FROM {staging.sql} AS copied "
            f"WHERE {same_key} AND {known} AND {same_row} AND NOT {is_odd})",
            [at],
        )
        session.execute(
            f"INSERT INTO {target.sql} ({columns}, {FROM}, {CURRENT}) "
            f"SELECT {columns}, CAST($1 AS {ZONED}), true FROM {staging.sql} AS copied "
            f"WHERE NOT EXISTS (SELECT 1 FROM {target.sql} AS target "
            f"WHERE target.{CURRENT} AND {same_key})",
            [at],
        )
        session.execute(f"DROP TABLE {staging.sql}")


def _close(target: Target, over: pa.RecordBatch) -> Statement:
    """End the current rows with these keys."""
    return Statement(
        f"UPDATE {target.sql} AS target SET {TO} = gone.{quote(AT)}, {CURRENT} = false "
        f"FROM {_gone(target, over)} WHERE target.{CURRENT} AND {_match(over)}",
        staged={"_etl_keys": over},
    )


def _delete_opened(target: Target, over: pa.RecordBatch) -> Statement:
    """Delete the current rows with these keys that were opened at the same time."""
    return Statement(
        f"DELETE FROM {target.sql} AS target USING {_gone(target, over)} "
        f"WHERE target.{CURRENT} AND target.{FROM} = gone.{quote(AT)} AND {_match(over)}",
        staged={"_etl_keys": over},
    )


def _gone(target: Target, over: pa.RecordBatch) -> str:
    key = over.schema.names[:-1]
    selected = target.dialect.select_list(key, target.types)
    return f"(SELECT {selected}, {quote(AT)} FROM _etl_keys) AS gone"


def _match(over: pa.RecordBatch) -> str:
    return statements.key_match(over.select(over.schema.names[:-1]))

"""Values that a column's type can't hold, kept in ``_etl.odd_values`` as Postgres printed them.

An entry belongs to one value of one row, and goes with it: it is written, replaced, moved to
another key and removed in the transaction that does so with the row.

`key` has the texts of the row's key columns, in the order of the key, as the database casts them;
a moment with a time zone in UTC. Rows without a key can't be told apart: their entries have no key,
and there is one for each such value.
"""

# Values are never part of a query's text, and every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import Collapsed, OddCells, odd_added_and_removed
from etl_dagster.destinations.evolution import DropColumn, RenameColumn, schema_changes
from etl_dagster.destinations.sql.dialect import AMONG, ZONED, quote
from etl_dagster.destinations.sql.session import Session, Statement
from etl_dagster.model.events import CopiedRows, TableChanges
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.values.columns import ColumnSchema

_COLUMN, _TEXT, _LSN, _ORDINAL, _TIME = (
    f"_etl {name}" for name in ("column", "text", "lsn", "ordinal", "time")
)
#: Of ``_etl.odd_values``, in order.
_COLUMNS = (
    *("table_id", "schema_name", "table_name", "key", "column_name", "text"),
    *("commit_lsn", "ordinal", "commit_time"),
)


def key_text(value: str, type_: str) -> str:
    """SQL for one element of an entry's key."""
    typed = f"CAST({value} AS {type_})"
    if type_ == ZONED:
        typed += " AT TIME ZONE 'UTC'"
    return f"CAST({typed} AS VARCHAR)"


def key_value(text: str, type_: str) -> str:
    """SQL for the value of a key column, from its text in an entry's key."""
    if type_ == ZONED:
        return f"(CAST({text} AS TIMESTAMP) AT TIME ZONE 'UTC')"
    return f"CAST({text} AS {type_})"


def key_list(key: Sequence[str], types: Mapping[str, str], prefix: str = "") -> str:
    """SQL for an entry's key, from the columns of a row."""
    if not key:
        return "CAST(NULL AS VARCHAR[])"
    return f"ARRAY[{', '.join(key_text(prefix + quote(name), types[name]) for name in key)}]"


@dataclass(frozen=True, slots=True)
class OddEntries:
    """Odd values with the key of their row: a column for each key column, then `_etl ...`."""

    batch: pa.RecordBatch
    key: Sequence[str]

    @classmethod
    def of(
        cls,
        rows: pa.RecordBatch,
        key: Sequence[str],
        odd: Mapping[str, OddCells],
        changes: TableChanges | None = None,
    ) -> OddEntries:
        """The entries of some rows; with the positions of their changes, where there are any."""
        cells = list(odd.values())
        places = pa.array(np.concatenate([cell.rows for cell in cells]))
        names = [name for name, cell in odd.items() for _ in range(len(cell.rows))]
        arrays: list[pa.Array[Any]] = [rows.column(name).take(places) for name in key]
        arrays += [
            pa.array(names, pa.string()),
            pa.concat_arrays([cell.texts.cast(pa.string()) for cell in cells]),
        ]
        columns = [*key, _COLUMN, _TEXT]
        if changes is not None:
            which = np.concatenate([cell.changes for cell in cells])
            times = pa.array(np.asarray(changes.commit_times_us)[which])
            arrays += [
                pa.array(changes.commit_lsns[which]),
                pa.array(changes.ordinals[which]),
                times.view(pa.timestamp("us", "UTC")),
            ]
            columns += [_LSN, _ORDINAL, _TIME]
        return cls(pa.RecordBatch.from_arrays(arrays, columns), key)

    @classmethod
    def copied(cls, piece: CopiedRows, key: Sequence[str]) -> OddEntries:
        """The entries of some rows of a copy."""
        none = np.empty(0, np.int64)
        cells = {name: OddCells(odd.places, odd.texts, none) for name, odd in piece.odd.items()}
        return cls.of(piece.rows, key, cells)


class OddValues:
    """Reads and writes the entries inside a transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # -- the stream ----------------------------------------------------------------------------

    def follow(
        self,
        schema: TableSchema,
        changes: TableChanges,
        collapsed: Collapsed | None,
        types: dict[str, str],
        *,
        has_entries: bool,
        replaced: pa.RecordBatch | None = None,
    ) -> bool:
        """Let the entries follow what the changes do with their rows.

        Args:
            collapsed: what the changes amount to; None for a table without a key.
            types: of the table's columns.
            has_entries: whether the table may have any.
            replaced: the keys whose rows are deleted; by default all that were touched.

        Returns:
            Whether there may be entries now.
        """
        key = changes.schema.key_columns
        if collapsed is None:
            added, removed = odd_added_and_removed(changes)
            if added:
                self._insert(schema, OddEntries.of(changes.rows, key, added, changes), types)
            if removed:
                self._remove_one_each(schema.id, removed)
            return has_entries or bool(added)
        if has_entries:
            gone = collapsed.removed if replaced is None else replaced
            self._leave(schema.id, collapsed, gone, key, types)
        if collapsed.odd:
            entries = OddEntries.of(collapsed.rows, key, collapsed.odd, changes)
            self._insert(schema, entries, types)
        return has_entries or bool(collapsed.odd)

    def add_each(
        self,
        schema: TableSchema,
        rows: pa.RecordBatch,
        odd: Mapping[str, OddCells],
        changes: TableChanges,
        types: dict[str, str],
    ) -> bool:
        """Add entries for what is odd in some rows, keeping all others; returns whether any."""
        if odd:
            entries = OddEntries.of(rows, changes.schema.key_columns, odd, changes)
            self._insert(schema, entries, types)
        return bool(odd)

    def remove_of(
        self, table: TableSchema, keys: pa.RecordBatch, commit_lsn: int, types: dict[str, str]
    ) -> None:
        """Remove the entries of these keys that a transaction has brought."""
        self._session.run(
            Statement(
                "DELETE FROM _etl.odd_values AS entry "
                f"USING (SELECT {key_list(keys.schema.names, types)} AS key FROM _etl_keys) "
                "AS gone WHERE entry.table_id = $1 AND entry.commit_lsn = $2 "
                "AND entry.key = gone.key",
                [table.id, commit_lsn],
                {"_etl_keys": keys},
            )
        )

    def remove_all_of(self, table: TableSchema, commit_lsn: int) -> None:
        """Remove the entries that a transaction has brought."""
        self._session.execute(
            "DELETE FROM _etl.odd_values WHERE table_id = $1 AND commit_lsn = $2",
            [table.id, commit_lsn],
        )

    def keep_only(self, table: TableSchema, rows: str, types: dict[str, str]) -> None:
        """Keep the entries of some rows, given as SQL, and none of others."""
        self._session.execute(
            "DELETE FROM _etl.odd_values WHERE table_id = $1 AND key NOT IN "
            f"(SELECT {key_list(table.key_columns, types)} FROM {rows})",
            [table.id],
        )

    def is_odd(self, table: TableSchema, alias: str, types: dict[str, str]) -> str:
        """SQL for whether a row may have an entry, of its copy or of before."""
        found = self._session.fetch_row(
            "SELECT EXISTS (SELECT 1 FROM _etl.odd_values WHERE table_id = $1) "
            "OR EXISTS (SELECT 1 FROM _etl.odd_copied WHERE table_id = $1)",
            [table.id],
        )
        if found == (False,):
            return "false"
        key = key_list(table.key_columns, types, f"{alias}.")
        return (
            "("
            + " OR ".join(
                f"EXISTS (SELECT 1 FROM _etl.{name} AS entry "
                # Not all databases take a parameter here.
                f"WHERE entry.table_id = {table.id:d} AND entry.key = {key})"
                for name in ("odd_values", "odd_copied")
            )
            + ")"
        )

    def hand_over(self, table_id: TableId, table_name: str) -> None:
        """The table is no longer ours, and has this name: its entries stay, with no table's ID."""
        self._session.execute(
            "UPDATE _etl.odd_values SET table_id = -table_id, table_name = $1 WHERE table_id = $2",
            [table_name, table_id],
        )

    def _insert(self, schema: TableSchema, entries: OddEntries, types: dict[str, str]) -> None:
        self._session.run(
            Statement(
                f"INSERT INTO _etl.odd_values SELECT CAST($1 AS BIGINT), CAST($2 AS VARCHAR), "
                f"CAST($3 AS VARCHAR), {key_list(entries.key, types)}, {quote(_COLUMN)}, "
                f"{quote(_TEXT)}, {quote(_LSN)}, {quote(_ORDINAL)}, {quote(_TIME)} FROM _etl_odd",
                [schema.id, schema.schema_name, schema.table_name],
                {"_etl_odd": entries.batch},
            )
        )

    def _leave(
        self,
        table_id: TableId,
        collapsed: Collapsed,
        gone: pa.RecordBatch,
        key: Sequence[str],
        types: dict[str, str],
    ) -> None:
        """Remove the entries of keys whose rows are gone, except for values that stay.

        A value that the changes don't have stays as it is, and so does its entry, under the row's
        new key.
        """
        stays = _staying(collapsed, key)
        kept = f"{self._session.dialect.temporary}_etl_kept"
        if stays is not None:
            before = [f"_etl before {place}" for place in range(len(key))]
            old_types = dict(zip(before, (types[name] for name in key), strict=True))
            columns = ", ".join(
                "stays.new_key AS key" if name == "key" else f"entry.{name}" for name in _COLUMNS
            )
            self._session.run(
                Statement(
                    f"CREATE TEMP TABLE _etl_kept AS SELECT {columns} "
                    "FROM _etl.odd_values AS entry "
                    f"JOIN (SELECT {key_list(before, old_types)} AS old_key, "
                    f"{key_list(key, types)} AS new_key, "
                    f"{quote(_COLUMN)} AS column_name "
                    "FROM _etl_stays) AS stays "
                    "ON entry.key = stays.old_key AND entry.column_name = stays.column_name "
                    # Not all databases take a parameter here.
                    f"WHERE entry.table_id = {table_id:d}",
                    staged={"_etl_stays": stays},
                )
            )
        self._session.run(
            Statement(
                "DELETE FROM _etl.odd_values AS entry "
                f"USING (SELECT {key_list(key, types)} AS key FROM _etl_keys) AS gone "
                "WHERE entry.table_id = $1 AND entry.key = gone.key",
                [table_id],
                {"_etl_keys": gone},
            )
        )
        if stays is not None:
            self._session.execute(
                f"INSERT INTO _etl.odd_values SELECT {', '.join(_COLUMNS)} FROM {kept}"
            )
            self._session.execute(f"DROP TABLE {kept}")

    def _remove_one_each(self, table_id: TableId, removed: Mapping[str, pa.Array[Any]]) -> None:
        """Remove one entry for each of these texts."""
        names = [name for name, texts in removed.items() for _ in range(len(texts))]
        texts = pa.concat_arrays([texts.cast(pa.string()) for texts in removed.values()])
        gone = pa.RecordBatch.from_arrays([pa.array(names, pa.string()), texts], ["name", "text"])
        row_id = self._session.dialect.row_id
        self._session.run(
            Statement(
                f"""
                DELETE FROM _etl.odd_values WHERE {row_id} IN (
                    SELECT row_id FROM (
                        SELECT entry.{row_id} AS row_id, gone.times, row_number() OVER (
                            PARTITION BY entry.column_name, entry.text ORDER BY entry.{row_id}
                        ) AS place
                        FROM _etl.odd_values AS entry JOIN (
                            SELECT name, text, count(*) AS times FROM _etl_gone GROUP BY name, text
                        ) AS gone ON entry.column_name = gone.name AND entry.text = gone.text
                        WHERE entry.table_id = $1
                    ) AS found WHERE place <= times
                )
                """,
                [table_id],
                {"_etl_gone": gone},
            )
        )

    def clear(self, table_id: TableId) -> None:
        """The table has no rows any more."""
        self._session.execute("DELETE FROM _etl.odd_values WHERE table_id = $1", [table_id])

    # -- the table's columns and key -----------------------------------------------------------

    def evolve(
        self,
        old: TableSchema,
        new: TableSchema,
        old_types: Mapping[str, str],
        new_types: Mapping[str, str],
    ) -> None:
        """Follow a change of the table's columns; entries have the new key's columns already."""
        self.follow_columns(old, new)
        before, after = key_before(old, new), key_columns(new)
        types = [
            (old_types[was.name], new_types[now.name])
            for was, now in zip(before, after, strict=True)
        ]
        if any(was != now for was, now in types):
            # As ALTER TABLE converts the column itself.
            elements = [
                key_text(key_value(f"key[{place}]", was), now)
                for place, (was, now) in enumerate(types, start=1)
            ]
            self._session.execute(
                f"UPDATE _etl.odd_values SET key = ARRAY[{', '.join(elements)}] "
                "WHERE table_id = $1",
                [new.id],
            )

    def follow_columns(self, old: TableSchema, new: TableSchema) -> None:
        """Remove the entries of a dropped column; let those of a renamed one follow it."""
        for change in schema_changes(old, new):
            match change:
                case DropColumn(column):
                    self._session.execute(
                        "DELETE FROM _etl.odd_values WHERE table_id = $1 AND column_name = $2",
                        [new.id, column.name],
                    )
                case RenameColumn(old_name, new_name):
                    self._session.execute(
                        "UPDATE _etl.odd_values SET column_name = $1 "
                        "WHERE table_id = $2 AND column_name = $3",
                        [new_name, new.id, old_name],
                    )

    def rename(self, schema: TableSchema) -> None:
        """The table has another name."""
        self._session.execute(
            "UPDATE _etl.odd_values SET schema_name = $1, table_name = $2 WHERE table_id = $3",
            [schema.schema_name, schema.table_name, schema.id],
        )

    # -- the copy ------------------------------------------------------------------------------

    def keep_copied(
        self, table_id: TableId, entries: Sequence[OddEntries], types: dict[str, str]
    ) -> None:
        """Keep the entries of a copy that isn't complete."""
        for each in entries:
            self._session.run(
                Statement(
                    f"INSERT INTO _etl.odd_copied SELECT CAST($1 AS BIGINT), "
                    f"{key_list(each.key, types)}, {quote(_COLUMN)}, {quote(_TEXT)} FROM _etl_odd",
                    [table_id],
                    {"_etl_odd": each.batch},
                )
            )

    def forget_copied(self, table_ids: Sequence[TableId]) -> None:
        """Forget the entries of copies that aren't complete."""
        self._session.execute(
            f"DELETE FROM _etl.odd_copied WHERE table_id {AMONG}", [list(table_ids)]
        )

    def complete(
        self, copies: Sequence[tuple[TableSchema, Position]], *, forgets: bool = True
    ) -> set[TableId]:
        """The copies are the tables now, and their entries the tables' entries.

        Args:
            copies: each table with the position that it has after its copy.
            forgets: whether the entries from before are removed.

        Returns:
            The tables that have any.
        """
        table_ids = [schema.id for schema, _ in copies]
        if forgets:
            self._session.execute(
                f"DELETE FROM _etl.odd_values WHERE table_id {AMONG}", [table_ids]
            )
        found = self._session.fetch(
            f"SELECT DISTINCT table_id FROM _etl.odd_copied WHERE table_id {AMONG}", [table_ids]
        )
        having = {table_id for (table_id,) in found}
        for schema, position in copies:
            if schema.id in having:
                self._session.execute(
                    "INSERT INTO _etl.odd_values SELECT table_id, CAST($1 AS VARCHAR), "
                    "CAST($2 AS VARCHAR), key, column_name, text, $3, $4, NULL "
                    "FROM _etl.odd_copied WHERE table_id = $5",
                    [
                        schema.schema_name,
                        schema.table_name,
                        position.commit_lsn.offset,
                        position.ordinal,
                        schema.id,
                    ],
                )
        if having:
            self.forget_copied(table_ids)
        return having


def _staying(collapsed: Collapsed, key: Sequence[str]) -> pa.RecordBatch | None:
    """Which values stay: the row's key, the one before (`_etl before ...`), and the column."""
    if collapsed.lookup_places is None:
        return None
    rows: list[np.ndarray] = []
    names: list[str] = []
    for name, mask in collapsed.unknown.items():
        places = np.flatnonzero(mask)
        # A row can have become one other row only, as where the rows themselves are changed.
        _, once = np.unique(collapsed.lookup_places[places], return_index=True)
        rows.append(places[once])
        names += [name] * len(once)
    if not names:
        return None
    which = np.concatenate(rows)
    now = collapsed.rows.select(list(key)).take(pa.array(which))
    before = collapsed.removed.take(pa.array(collapsed.lookup_places[which]))
    return pa.RecordBatch.from_arrays(
        [*now.columns, *before.columns, pa.array(names, pa.string())],
        [*key, *(f"_etl before {place}" for place in range(len(key))), _COLUMN],
    )


def key_columns(schema: TableSchema) -> list[ColumnSchema]:
    """The columns of the table's key, in its order."""
    by_name = {column.name: column for column in schema.columns}
    return [by_name[name] for name in schema.key_columns]


def key_before(old: TableSchema, new: TableSchema) -> list[ColumnSchema]:
    """The columns of the new key as they are in the old schema, without those that it lacks."""
    known = {_identity(column): column for column in old.columns}
    identities = map(_identity, key_columns(new))
    return [known[identity] for identity in identities if identity in known]


def _identity(column: ColumnSchema) -> int | str:
    return column.attnum or column.name

"""Statements that find and change the rows of a table."""

# Values are never part of a query's text, and every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import Collapsed
from etl_dagster.destinations.sql.dialect import column_list, literal, quote
from etl_dagster.destinations.sql.session import Rows, Statement
from etl_dagster.destinations.sql.tables import Target

#: Columns of staged rows besides those of the table.
PLACE, ROW_ID = "_etl place", "_etl row id"


def insert(target: Target, rows: Rows) -> Statement:
    """Append the rows."""
    values = target.dialect.select_list(target.columns, target.types)
    return Statement(
        f"INSERT INTO {target.sql} ({column_list(target.columns)}) SELECT {values} FROM _etl_rows",
        staged={"_etl_rows": rows},
        appends_to=(target.sql, target.types),
    )


def delete_all(target: Target) -> Statement:
    """Delete every row. A TRUNCATE would not count them."""
    return Statement(f"DELETE FROM {target.sql}")


def delete_keys(target: Target, keys: pa.RecordBatch) -> Statement:
    """Delete the rows with these keys."""
    names = keys.schema.names
    return Statement(
        f"DELETE FROM {target.sql} AS target "
        f"USING (SELECT {target.dialect.select_list(names, target.types)} FROM _etl_keys) AS gone "
        f"WHERE {key_match(keys)}",
        staged={"_etl_keys": keys},
        by_key_of=target.sql,
    )


def delete_one_each(target: Target, rows: pa.RecordBatch) -> Statement:
    """Delete, for each of the rows, one row that is equal in every column."""
    row_id, names = target.dialect.row_id, target.columns
    dialect, types = target.dialect, target.types

    def exact(table: str, name: str) -> str:
        return dialect.exact(f"{table}.{quote(name)}", types[name])

    match = dialect.same_row([(exact("target", name), f"gone.{quote(name)}") for name in names])
    values = ", ".join(f"{exact('typed', name)} AS {quote(name)}" for name in names)
    times, group, columns = quote("_etl times"), quote("_etl group"), column_list(names)
    return Statement(
        f"""
        DELETE FROM {target.sql} WHERE {row_id} IN (
            SELECT row_id FROM (
                SELECT target.{row_id} AS row_id, gone.{times} AS times,
                    row_number() OVER (PARTITION BY gone.{group}) AS place
                FROM {target.sql} AS target JOIN (
                    SELECT *, row_number() OVER () AS {group} FROM (
                        SELECT {columns}, count(*) AS {times} FROM (
                            SELECT {values} FROM (
                                SELECT {dialect.select_list(names, types)} FROM _etl_gone
                            ) AS typed
                        ) AS exact GROUP BY {columns}
                    ) AS counted
                ) AS gone ON {match}
            ) AS found WHERE place <= times
        )
        """,
        staged={"_etl_gone": rows},
    )


# -- by row ID ---------------------------------------------------------------------------------


def find_rows(target: Target, keys: pa.RecordBatch) -> Statement:
    """Which rows have which key: the key's place among the keys (`PLACE`), and `ROW_ID`."""
    selected = target.dialect.select_list(keys.schema.names, target.types)
    return Statement(
        f"SELECT gone.{quote(PLACE)}, target.{target.dialect.row_id} AS {quote(ROW_ID)} "
        f"FROM {target.sql} AS target "
        f"JOIN (SELECT {selected}, {quote(PLACE)} FROM _etl_keys) AS gone ON {key_match(keys)}",
        staged={"_etl_keys": keys.append_column(PLACE, pa.array(np.arange(len(keys))))},
    )


def delete_rows(target: Target, row_ids: np.ndarray) -> Statement:
    """Delete the rows with these IDs."""
    return Statement(
        f"DELETE FROM {target.sql} WHERE {target.dialect.row_id} "
        f"IN (SELECT {quote(ROW_ID)} FROM _etl_gone)",
        staged={"_etl_gone": pa.RecordBatch.from_arrays([pa.array(row_ids)], [ROW_ID])},
    )


def update_rows(
    target: Target,
    rows: pa.RecordBatch,
    row_ids: np.ndarray,
    changed: Mapping[str, np.ndarray | None],
) -> Statement:
    """Set columns in the rows with these IDs.

    Args:
        rows: the new values, one for each ID, of the columns in `changed`.
        changed: by column a bool array, true for rows that keep what they have; None if none do.
    """
    partly = {name: stays for name, stays in changed.items() if stays is not None}
    masks = {name: f"_etl stays {name}" for name in partly}
    settings = ", ".join(
        f"{quote(name)} = CASE WHEN incoming.{quote(masks[name])} THEN target.{quote(name)} "
        f"ELSE incoming.{quote(name)} END"
        if name in masks
        else f"{quote(name)} = incoming.{quote(name)}"
        for name in changed
    )
    others = "".join(f", {quote(name)}" for name in (*masks.values(), ROW_ID))
    selected = target.dialect.select_list(changed, target.types)
    return Statement(
        f"UPDATE {target.sql} AS target SET {settings} "
        f"FROM (SELECT {selected}{others} FROM _etl_rows) AS incoming "
        f"WHERE target.{target.dialect.row_id} = incoming.{quote(ROW_ID)}",
        staged={
            "_etl_rows": pa.RecordBatch.from_arrays(
                [*rows.columns, *map(pa.array, partly.values()), pa.array(row_ids)],
                [*rows.schema.names, *masks.values(), ROW_ID],
            )
        },
    )


# -- without row IDs ---------------------------------------------------------------------------


def keep_known(
    target: Target,
    collapsed: Collapsed,
    *,
    rows_now: str | None = None,
    condition: str = "true",
    told_in: str | None = None,
) -> Statement:
    """Keep the rows in a temporary table, completed with what the table has now.

    To be run before the old rows are deleted.

    Args:
        rows_now: where a row is completed from, as SQL; by default the table.
        condition: which of these rows, called `target`.
        told_in: a column for the names of those that stay unknown. A value that was left out as
            unchanged is never null, so one that is null at the destination isn't known there.
    """
    lookup = collapsed.lookup
    types = target.types
    key = [] if lookup is None else lookup.schema.names
    found_by = [f"_etl key {place}" for place in range(len(key))]
    # Numbered: with a prefix, a name may be longer than the database takes.
    unknown_of = {
        name: f"_etl unknown {number}"
        for number, name in enumerate(target.columns)
        if name in collapsed.unknown
    }
    values = {name: _typed(target, name) for name in target.columns}
    for name, is_unknown in unknown_of.items():
        values[name] = (
            f"CASE WHEN incoming.{quote(is_unknown)} THEN target.{quote(name)} "
            f"ELSE CAST(incoming.{quote(name)} AS {types[name]}) END"
        )
    if told_in is not None:
        values[told_in] = _names_of_unknown(unknown_of)
    columns = ", ".join(f"{sql} AS value_{number}" for number, sql in enumerate(values.values()))
    matches = [
        f"target.{quote(name)} {_equals(lookup, name)} "
        f"CAST(incoming.{quote(alias)} AS {types[name]})"
        for name, alias in zip(key, found_by, strict=True)
        if lookup is not None
    ]
    match = " AND ".join([*matches, *([condition] if condition != "true" else [])]) or "false"
    arrays: list[pa.Array[Any]] = [
        *collapsed.rows.columns,
        *(() if lookup is None else lookup.columns),
        *(pa.array(collapsed.unknown[name]) for name in unknown_of),
        pa.array(np.arange(len(collapsed.rows))),
    ]
    names = [*collapsed.rows.schema.names, *found_by, *unknown_of.values(), PLACE]
    return Statement(
        f"CREATE TEMP TABLE _etl_known AS SELECT {columns}, incoming.{quote(PLACE)} AS place "
        f"FROM _etl_rows AS incoming LEFT JOIN {rows_now or target.sql} AS target ON {match}",
        staged={"_etl_rows": pa.RecordBatch.from_arrays(arrays, names)},
        by_key_of=target.sql,
    )


def _names_of_unknown(unknown_of: Mapping[str, str]) -> str:
    """SQL for the names of the columns whose values are unknown and not found; null for none."""
    names = ", ".join(
        f"CASE WHEN incoming.{quote(mask)} AND target.{quote(name)} IS NULL "
        f"THEN {literal(name)} END"
        for name, mask in unknown_of.items()
    )
    return (
        f"(SELECT array_agg(each.name) FROM (SELECT unnest(ARRAY[{names}]) AS name) AS each "
        "WHERE each.name IS NOT NULL)"
    )


def _typed(target: Target, name: str) -> str:
    """A value of `incoming`, of the type that the table's have."""
    value, type_ = f"incoming.{quote(name)}", target.types[name]
    return f"CAST({value} AS {type_})" if target.dialect.is_cast(type_) else value


def insert_known(target: Target) -> list[Statement]:
    """Append what `keep_known` kept."""
    known, row_id = f"{target.dialect.temporary}_etl_known", target.dialect.row_id
    values = ", ".join(f"value_{number}" for number in range(len(target.columns)))
    return [
        Statement(
            f"INSERT INTO {target.sql} ({column_list(target.columns)}) "
            f"SELECT {values} FROM {known} "
            # Two chunks of a copy may both have brought a row that moved between them.
            f"WHERE {row_id} IN (SELECT min({row_id}) FROM {known} GROUP BY place)"
        ),
        Statement(f"DROP TABLE {known}"),
    ]


def key_match(keys: pa.RecordBatch) -> str:
    """The condition under which a row of `target` has a key of `gone`."""
    return " AND ".join(
        f"target.{quote(name)} {_equals(keys, name)} gone.{quote(name)}"
        for name in keys.schema.names
    )


def same_key(target: Target, one: str, other: str) -> str:
    """The condition under which two rows with the table's columns have the same key."""
    equals = "IS NOT DISTINCT FROM" if target.dialect.joins_nulls else "="
    return " AND ".join(
        f"{one}.{quote(name)} {equals} {other}.{quote(name)}" for name in target.schema.key_columns
    )


def _equals(keys: pa.RecordBatch, name: str) -> str:
    # A key is null where its column's type can't hold it, such as the NaN of a numeric(10,2). Only
    # then: most databases can't use an index or a hash table for what may be null on both sides.
    return "IS NOT DISTINCT FROM" if keys[name].null_count else "="

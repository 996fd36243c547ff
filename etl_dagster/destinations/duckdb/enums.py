"""Columns of DuckDB's ENUM, whose labels follow those of the source.

A label is added by ALTER TABLE, which writes the column again. That is as rare as it is at the
source; the labels sort as they do there, and a row has a number instead of a text.
"""

# Values are never part of a query's text, labels and identifiers are quoted.
# ruff: noqa: S608

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from etl_dagster.destinations.duckdb.tables import enum_type
from etl_dagster.destinations.sql.dialect import quote
from etl_dagster.destinations.sql.labels import Labels, enums_of, joined, labels_of, occurring
from etl_dagster.destinations.sql.session import Session
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.values.forms import with_labels


def make_room(
    session: Session,
    table: str,
    known: TableSchema,
    wanted: TableSchema,
    rows: pa.RecordBatch,
) -> TableSchema:
    """Give the table's enums the labels that some rows need, before these are written.

    Args:
        table: as SQL.
        known: what is known of the table; its enums may have more labels than that.
        wanted: has the labels in the order that they have at the source, as far as they are known.

    Returns:
        `known`, with the labels that the table has now.
    """
    others: dict[str, ColumnSchema] = {}
    order = {column.name: labels_of(column) for column in wanted.columns}
    for column in enums_of(known):
        labels = labels_of(column)
        needed = joined(labels, order.get(column.name, ()), occurring(rows, column))
        if needed == labels:
            continue
        there = _labels_there(session, table, column.name)
        needed = joined(there, order.get(column.name, ()), occurring(rows, column))
        if needed != there:
            _give_labels(session, table, column.name, needed)
        others[column.name] = with_labels(column, needed)
    if not others:
        return known
    return replace(known, columns=tuple(others.get(c.name, c) for c in known.columns))


def make_room_as(session: Session, table: str, other: str, schema: TableSchema) -> None:
    """Give the table's enums the labels that those of another table have.

    Args:
        table: as SQL; `other`, too.
        schema: what is known of both.
    """
    for column in enums_of(schema):
        there = _labels_there(session, table, column.name)
        needed = joined(there, _labels_there(session, other, column.name), ())
        if needed != there:
            _give_labels(session, table, column.name, needed)


def _labels_there(session: Session, table: str, column: str) -> Labels:
    [(labels,)] = session.fetch(f"SELECT enum_range((SELECT {quote(column)} FROM {table} LIMIT 0))")
    return tuple(labels)


def _give_labels(session: Session, table: str, column: str, labels: Labels) -> None:
    session.execute(f"ALTER TABLE {table} ALTER COLUMN {quote(column)} TYPE {enum_type(labels)}")

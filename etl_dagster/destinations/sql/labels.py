"""Columns of a type that lists its values, whose labels follow those of the source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import pyarrow as pa

from etl_dagster.destinations.sql.session import Session
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.values.listed import labels_in, listed_enum

Labels: TypeAlias = "tuple[str, ...]"
#: A column, and the labels that there is room for.
_Known: TypeAlias = "tuple[ColumnSchema, set[str]]"


def enums_of(schema: TableSchema) -> list[ColumnSchema]:
    """The columns that are enums at the destination."""
    return [column for column in schema.columns if listed_enum(column) is not None]


def labels_of(column: ColumnSchema | None) -> Labels:
    """The labels that the column's enum is known to have."""
    enum = None if column is None else listed_enum(column)
    return () if enum is None else enum.labels


def joined(there: Labels, wanted: Labels, occurring: Sequence[str]) -> Labels:
    """The labels that a column is to have.

    The wanted ones, in their order, if no existing one would be lost; else the existing ones.
    Others that occur come last: only the source knows their place.
    """
    labels = wanted if set(wanted) >= set(there) else there
    more = dict.fromkeys([*wanted, *occurring])
    return (*labels, *(label for label in more if label not in set(labels)))


def occurring(rows: pa.RecordBatch, column: ColumnSchema) -> list[str]:
    """The labels in a column; none where the rows lack it."""
    if column.name not in rows.schema.names:
        return []
    return labels_in(rows.column(column.name), column.type)


def pieces_with_room(
    session: Session,
    table: str,
    schema: TableSchema,
    batches: Iterator[pa.RecordBatch],
) -> Iterator[Iterator[pa.RecordBatch]]:
    """The rows in stretches, each of which the table's enums have room for; mostly one.

    A stretch must be used up before the next one is asked for.
    """
    held = next(batches, None)

    def stretch(known: Sequence[_Known]) -> Iterator[pa.RecordBatch]:
        nonlocal held
        while held is not None and _has_room(held, known):
            yield held
            held = next(batches, None)

    while held is not None:
        schema = session.make_room(table, schema, schema, held)
        yield stretch([(column, set(labels_of(column))) for column in enums_of(schema)])


def _has_room(rows: pa.RecordBatch, known: Sequence[_Known]) -> bool:
    return all(labels.issuperset(occurring(rows, column)) for column, labels in known)

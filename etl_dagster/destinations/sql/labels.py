"""Columns of a type that lists its values, whose labels follow those of the source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.destinations.sql.session import Session
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.values.forms import labels_of

Labels: TypeAlias = "tuple[str, ...]"


def enums_of(schema: TableSchema) -> list[ColumnSchema]:
    """The columns that are enums at the destination."""
    return [c for c in schema.columns if c.own_type and labels_of(c) is not None]


def joined(there: Labels, wanted: Labels, occurring: Sequence[str]) -> Labels:
    """The labels that a column is to have.

    Those that are wanted, in their order, where none that is there would be lost; else those that
    are there. Others that occur come last: what their place is, only the source can tell.
    """
    labels = wanted if set(wanted) >= set(there) else there
    more = dict.fromkeys([*wanted, *occurring])
    return (*labels, *(label for label in more if label not in set(labels)))


def occurring(rows: pa.RecordBatch, name: str) -> list[str]:
    """The labels in a column; none where the rows lack it."""
    if name not in rows.schema.names:
        return []
    column: Any = rows.column(name)
    labels = column.dictionary if pa.types.is_dictionary(column.type) else pc.unique(column)
    found: list[str] = labels.drop_null().to_pylist()
    return found


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

    def stretch(known: Mapping[str, set[str]]) -> Iterator[pa.RecordBatch]:
        nonlocal held
        while held is not None and _has_room(held, known):
            yield held
            held = next(batches, None)

    while held is not None:
        schema = session.make_room(table, schema, schema, held)
        yield stretch({c.name: set(labels_of(c) or ()) for c in enums_of(schema)})


def _has_room(rows: pa.RecordBatch, known: Mapping[str, set[str]]) -> bool:
    return all(labels.issuperset(occurring(rows, name)) for name, labels in known.items())

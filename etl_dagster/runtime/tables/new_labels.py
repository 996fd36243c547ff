"""Labels of enums that were added since a schema was read, which nothing in the stream tells."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from etl_dagster.model.events import EventBatch, TableChanges, TableStep
from etl_dagster.model.schema import ColumnSchema, TableId, TableSchema
from etl_dagster.source.types import TypeCatalog
from etl_dagster.values.forms import with_labels
from etl_dagster.values.listed import labels_in, listed_enum
from etl_dagster.values.types import Enum

#: What the catalog said of enums, by their OIDs.
Enums = Mapping[int, Enum]


@dataclass(frozen=True, slots=True)
class NewLabels:
    """What a batch has that its schemas lack."""

    #: The OIDs of the enums, each with the tables whose rows have labels of it that are new.
    enums: Mapping[int, Collection[TableId]]
    #: Those labels.
    labels: Mapping[int, Collection[str]]


def find_new_labels(events: EventBatch, known: Enums) -> NewLabels:
    """Which labels in the rows are new, of enums that the destination has as enums.

    Args:
        known: what the catalog said last; of other enums, the schema's labels are known.
    """
    enums: dict[int, set[TableId]] = {}
    labels: dict[int, set[str]] = {}
    for table_id, steps in events.tables.items():
        for step in steps:
            if not isinstance(step, TableChanges):
                continue
            for column, enum in _enums(step.schema):
                found = _occurring(step, column) - set(_newest(enum, known).labels)
                if found:
                    enums.setdefault(enum.oid, set()).add(table_id)
                    labels.setdefault(enum.oid, set()).update(found)
    return NewLabels(enums, labels)


def read_enums(catalog: TypeCatalog, oids: Collection[int]) -> dict[int, Enum]:
    """What the catalog says of the enums; nothing of one that is gone, or wasn't asked about."""
    types = ((oid, catalog.type_of(oid)) for oid in oids)
    return {oid: type_ for oid, type_ in types if isinstance(type_, Enum)}


def tables_with_renamed(new: NewLabels, known: Enums) -> set[TableId]:
    """Tables that have a label which the catalog, by now, has not: it was renamed.

    Args:
        known: what the catalog says.
    """
    return {
        table_id
        for oid, tables in new.enums.items()
        if oid in known and not set(new.labels[oid]) <= set(known[oid].labels)
        for table_id in tables
    }


def completed(events: EventBatch, known: Enums) -> EventBatch:
    """The batch with schemas whose enums have the labels that the catalog said."""
    if not known:
        return events
    tables = {
        table_id: [_completed_step(step, known) for step in steps]
        for table_id, steps in events.tables.items()
    }
    return replace(events, tables=tables)


def completed_schema(schema: TableSchema, known: Enums) -> TableSchema:
    """The schema with the labels that the catalog said; itself where these are no more."""
    others = {
        column.name: with_labels(column, newest.labels, newest.label_ids)
        for column, enum in _enums(schema)
        if (newest := _newest(enum, known)) is not enum
    }
    if not others:
        return schema
    return replace(schema, columns=tuple(others.get(c.name, c) for c in schema.columns))


def _newest(enum: Enum, known: Enums) -> Enum:
    """What the catalog said, where the schema lacks labels of it; else what the schema says.

    Of a label that was renamed, the schema may be the only trace until the table is copied again.
    """
    found = known.get(enum.oid, enum)
    return found if set(found.labels) > set(enum.labels) else enum


def _completed_step(step: TableStep, known: Enums) -> TableStep:
    schema = completed_schema(step.schema, known)
    return step if schema is step.schema else replace(step, schema=schema)


def _enums(schema: TableSchema) -> Iterator[tuple[ColumnSchema, Enum]]:
    """The columns that the destination has as enums."""
    for column in schema.columns:
        if (enum := listed_enum(column)) is not None:
            yield column, enum


def _occurring(changes: TableChanges, column: ColumnSchema) -> set[str]:
    """The labels in the rows, without texts that aren't in the database's encoding."""
    import pyarrow as pa

    values: Any = changes.rows.column(column.name)
    if (odd := changes.odd.get(column.name)) is not None:
        values = values.filter(pa.array(~odd.mask(len(values))))
    return set(labels_in(values, column.type))

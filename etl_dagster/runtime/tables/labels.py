"""Enums whose labels were renamed, of which the stream has nothing.

Postgres sends an enum's value as its label. After ``ALTER TYPE ... RENAME VALUE`` it sends the new
one, so that rows with the old one are not found by it, in a key or without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from etl_dagster.model.schema import TableSchema
from etl_dagster.values.types import Enum, enums_in

#: By the OIDs of the type and of the label (pg_enum.oid), the label.
Labels: TypeAlias = dict[int, dict[int, str]]


def enums_of(table: TableSchema) -> Iterator[Enum]:
    """The enums in the values of the table's columns."""
    for column in table.columns:
        if column.type is not None:
            yield from enums_in(column.type)


def labels_of(tables: Iterable[TableSchema]) -> Labels:
    """The labels of all enums that the tables have."""
    return {
        enum.oid: dict(zip(enum.label_ids, enum.labels, strict=True))
        for table in tables
        for enum in enums_of(table)
        if enum.label_ids
    }


def has_renamed(before: Labels, known: TableSchema | None, today: TableSchema) -> bool:
    """Whether a label in the table's values was renamed.

    Args:
        before: as of the last look.
        known: the schema at the destination, for enums that no look has seen; values of a column
            whose type is another since are not compared.
    """
    of_schema = {} if known is None else {enum.oid: enum for enum in enums_of(known)}
    for enum in enums_of(today):
        if (seen := before.get(enum.oid)) is not None:
            if _differ(seen, enum):
                return True
        elif (old := of_schema.get(enum.oid)) is not None and _is_renamed(old, enum):
            return True
    return False


def _differ(seen: Mapping[int, str], enum: Enum) -> bool:
    labels = zip(enum.label_ids, enum.labels, strict=True)
    return any(seen.get(label_id, label) != label for label_id, label in labels)


def _is_renamed(old: Enum, new: Enum) -> bool:
    if old.label_ids:
        return _differ(dict(zip(old.label_ids, old.labels, strict=True)), new)
    # An earlier version kept the labels alone. They stay, in their order, where others are added.
    labels = iter(new.labels)
    return not all(label in labels for label in old.labels)


def labels_to_json(labels: Labels) -> dict[str, dict[str, str]]:
    """As the store keeps them."""
    return {
        str(type_id): {str(label_id): label for label_id, label in each.items()}
        for type_id, each in labels.items()
    }


def labels_from_json(content: Mapping[str, Mapping[str, str]]) -> Labels:
    """What `labels_to_json` was given."""
    return {
        int(type_id): {int(label_id): label for label_id, label in each.items()}
        for type_id, each in content.items()
    }

"""Which column is which, where a Relation message describes a table and gives no attnums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from etl_dagster.model.schema import TableSchema
from etl_dagster.protocol.pgoutput import Relation, RelationColumn
from etl_dagster.source.columns import TableToday
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.retyping import keeps_rows

#: With more possibilities than this a table is copied again without looking at them all.
_MOST_CANDIDATES = 10_000


class Unclear(Exception):
    """The message fits more than one history of the table, or none; the text says which."""


@dataclass(frozen=True, slots=True)
class _Created:
    """A column that was created since the known schema."""

    attnum: int
    #: As it is today; None when it was dropped since.
    today: ColumnSchema | None


def align(relation: Relation, known: TableSchema, today: TableToday) -> list[ColumnSchema]:
    """The message's columns with their attnums, where only one history of the table leads to it.

    Postgres sends columns in the order of their attnums: a renamed one keeps its place, a dropped
    one is missing, a new one stands at the end. So the message holds the known columns that still
    existed, in order, and then some that were created since. What exists today existed then, too.

    That rows were not written again is taken for granted: where they were, the table is copied
    again anyway (`rewrites.py`).

    Raises:
        Unclear: several histories, or none, are possible.
    """
    limit = max((column.attnum for column in known.columns), default=0)
    published = {column.attnum: column for column in today.schema.columns}
    if any(attnum <= limit for attnum in published.keys() - {c.attnum for c in known.columns}):
        raise Unclear("a column that was left out of the publication is in it now")
    created = [
        _Created(attnum, published.get(attnum))
        for attnum in range(limit + 1, today.last_attnum + 1)
        # One that exists and isn't published was never sent.
        if attnum in published or attnum not in today.attnums
    ]
    found: list[list[ColumnSchema]] = []
    for number, candidate in enumerate(_candidates(relation, known, created, published)):
        if number > _MOST_CANDIDATES:
            raise Unclear("too many columns were added and dropped since")
        aligned = _place(relation.columns, candidate, published)
        if aligned is not None and aligned not in found:
            found.append(aligned)
        if len(found) > 1:
            raise Unclear("columns were dropped or created, and the catalog does not show which")
    if not found:
        raise Unclear("a column has another type")
    if any(column.attnum in today.unclear for column in found[0] if column.attnum > limit):
        raise Unclear("the default of an added column differs among the partitions")
    return found[0]


def _candidates(
    relation: Relation,
    known: TableSchema,
    created: Sequence[_Created],
    published: Mapping[int, ColumnSchema],
) -> Iterator[list[ColumnSchema | _Created]]:
    """Every selection of columns that may be behind the message, in its order."""
    wanted = len(relation.columns)
    gone = [column for column in known.columns if column.attnum not in published]
    for count in range(max(wanted - len(known.columns), 0), len(created) + 1):
        dropped = len(known.columns) + count - wanted
        if dropped > len(gone):
            continue
        for missing in combinations(gone, dropped):
            kept = [column for column in known.columns if column not in missing]
            for newest in range(count, len(created) + 1):
                for new in _created_until(created[:newest], count):
                    yield [*kept, *new]


def _created_until(created: Sequence[_Created], count: int) -> Iterator[tuple[_Created, ...]]:
    """Selections of `count`, the last of them included; those that exist today can't be missing."""
    if not count:
        if not created:
            yield ()
        return
    *earlier, last = created
    for chosen in combinations(earlier, count - 1):
        if all(column.today is None or column in chosen for column in earlier):
            yield (*chosen, last)


def _place(
    sent: Sequence[RelationColumn],
    candidate: Sequence[ColumnSchema | _Created],
    published: Mapping[int, ColumnSchema],
) -> list[ColumnSchema] | None:
    """The candidate's columns as the message describes them; None where their types differ."""
    columns = []
    for message, column in zip(sent, candidate, strict=True):
        if isinstance(column, _Created):
            if column.today is None:
                # What it held before is not known, and not needed: it will be dropped.
                columns.append(replace(_described(message), attnum=column.attnum))
                continue
            found = _retyped(column.today, message)
            if not keeps_rows(found, column.today):
                return None
            columns.append(found)
        else:
            today = published.get(column.attnum, column)
            # What the catalog says of the type, where it is this one.
            found = _retyped(today if today.type_oid == message.type_oid else column, message)
            if not keeps_rows(column, found):
                return None
            columns.append(found)
    return columns


def _retyped(column: ColumnSchema, sent: RelationColumn) -> ColumnSchema:
    column = replace(column, name=sent.name, is_identity=sent.is_identity)
    if column.type_oid != sent.type_oid:
        return replace(
            column,
            type_oid=sent.type_oid,
            type_modifier=sent.type_modifier,
            type_name="",
            base_type_oid=0,
        )
    # A domain's own modifier is in the type, not in the message.
    if column.base_type_oid in (0, column.type_oid) and column.type_modifier != sent.type_modifier:
        return replace(column, type_modifier=sent.type_modifier, type_name="")
    return column


def _described(sent: RelationColumn) -> ColumnSchema:
    return ColumnSchema(sent.name, sent.type_oid, sent.type_modifier, is_identity=sent.is_identity)

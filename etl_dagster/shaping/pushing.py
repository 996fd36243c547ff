"""Which part of a table's condition the source may evaluate while the table is copied.

The pipeline evaluates the whole condition on every row that it reads; what the source evaluates
only saves reading rows that would be left out. So the pushed part must be true for every row for
which the condition is true, but need not be all of it: of the terms joined by AND, those that mean
the same to Postgres. These are comparisons of integers and booleans. Texts depend on collations;
numbers and times have values (NaN, infinity) that are null here, and that Postgres compares with
others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, assert_never

from etl_dagster.model.schema import TableSchema
from etl_dagster.shaping.conditions import (
    Compared,
    Condition,
    IsNull,
    IsTrue,
    Joined,
    Like,
    Not,
    parse_condition,
)
from etl_dagster.shaping.filtering import name_in_condition
from etl_dagster.table_name import quote_identifier
from etl_dagster.values import oids
from etl_dagster.values.columns import ColumnSchema

_INTEGERS: Final = (oids.INT2, oids.INT4, oids.INT8)
#: Literals that Postgres reads as an integer.
_INTEGER: Final = re.compile(r"[+-]?\d{1,18}", re.ASCII)


def pushed_condition(schema: TableSchema) -> str | None:
    """SQL that is true for every row for which the table's condition is true; None: there is none.

    Args:
        schema: the table in the source, with the shape that was chosen for it.
    """
    if schema.shape is None or not schema.shape.where:
        return None
    columns = {name_in_condition(column): column for column in schema.columns}
    terms = _terms(parse_condition(schema.shape.where))
    pushed = [text for term in terms if (text := _sql(term, columns)) is not None]
    return " AND ".join(pushed) or None


def with_pushed(schema: TableSchema, row_filter: str | None) -> str | None:
    """The publication's row filter, joined by AND with `pushed_condition`; None without both."""
    found = [text for text in (row_filter, pushed_condition(schema)) if text is not None]
    return " AND ".join(f"({text})" for text in found) or None


def _terms(condition: Condition) -> Iterator[Condition]:
    if isinstance(condition, Joined) and condition.word == "and":
        for part in condition.parts:
            yield from _terms(part)
    else:
        yield condition


def _sql(condition: Condition, columns: Mapping[str, ColumnSchema]) -> str | None:
    """The condition in SQL; None if it may mean something else in Postgres."""
    match condition:
        case Compared(name, sign, literal):
            column = columns[name]
            return _compared(column, sign, literal) if _is_plain(column) else None
        case IsNull(name):
            column = columns[name]
            return f"{quote_identifier(column.name)} IS NULL" if _is_plain(column) else None
        case IsTrue(name):
            column = columns[name]
            return quote_identifier(column.name) if _is_plain(column) else None
        case Not(inner):
            text = _sql(inner, columns)
            return None if text is None else f"NOT ({text})"
        case Joined(word, parts):
            texts = [_sql(part, columns) for part in parts]
            known = [f"({text})" for text in texts if text is not None]
            return f" {word.upper()} ".join(known) if len(known) == len(parts) else None
        case Like():
            return None
        case _:
            assert_never(condition)


def _is_plain(column: ColumnSchema) -> bool:
    # A cast value is compared after the cast: in another order, or as null.
    is_cast = column.shape is not None and column.shape.cast is not None
    return not is_cast and column.type_oid in (*_INTEGERS, oids.BOOL)


def _compared(column: ColumnSchema, sign: str, literal: str) -> str | None:
    name = quote_identifier(column.name)
    if column.type_oid == oids.BOOL:
        is_known = sign in ("=", "<>") and literal in ("true", "false")
        return f"{name} {sign} {literal}" if is_known else None
    return f"{name} {sign} {literal}" if _INTEGER.fullmatch(literal) else None

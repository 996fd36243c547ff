"""Every built-in type of Postgres."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from etl_dagster.values import oids
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.families import binary, geometric, network, numbers, positions, texts, times
from etl_dagster.values.form import BuiltIn
from etl_dagster.values.types import scalars_in

#: By OID.
REGISTRY: Final[Mapping[int, BuiltIn]] = {
    row.oid: row
    for family in (numbers, texts, binary, times, network, geometric, positions)
    for row in family.ROWS
}

#: For enums, arrays and types of extensions: only what Postgres prints is known.
UNKNOWN: Final = texts.printed(0, "unknown")


def row_of(column: ColumnSchema) -> BuiltIn:
    """The row of the column's type; for a domain, of its base type."""
    return REGISTRY.get(column.effective_type_oid, UNKNOWN)


def text_tells(column: ColumnSchema) -> str:
    """What the texts of the column's values have in them besides the values.

    See `BuiltIn.text_tells`. Empty if a value always prints the same.
    """
    if column.type is None:
        return row_of(column).text_tells
    rows = (REGISTRY.get(scalar.oid, UNKNOWN) for scalar in scalars_in(column.type))
    return next((row.text_tells for row in rows if row.text_tells), "")


def prints_money(column: ColumnSchema) -> bool:
    """Whether the column's values have money in them, which is printed by a setting."""
    if column.type is None:
        return column.effective_type_oid == oids.MONEY
    return any(scalar.oid == oids.MONEY for scalar in scalars_in(column.type))


def type_name(type_oid: int) -> str | None:
    """The name as format_type() spells it; None if the type isn't built in."""
    row = REGISTRY.get(type_oid)
    return None if row is None else row.name

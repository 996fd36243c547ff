"""Every type that Postgres brings, and how the values of a column are held."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import pyarrow as pa

from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.families import binary, geometric, network, numbers, positions, texts, times
from etl_dagster.values.form import BuiltIn, Form

#: By OID.
REGISTRY: Final[Mapping[int, BuiltIn]] = {
    row.oid: row
    for family in (numbers, texts, binary, times, network, geometric, positions)
    for row in family.ROWS
}

#: Of an enum, an array, a type of an extension: nothing is known but what Postgres prints.
_UNKNOWN: Final = texts.printed(0, "unknown")


def row_of(column: ColumnSchema) -> BuiltIn:
    """What is known of the column's type; of a domain, of the type behind it."""
    return REGISTRY.get(column.effective_type_oid, _UNKNOWN)


def type_name(type_oid: int) -> str | None:
    """As format_type() spells it; None where the type isn't built in."""
    row = REGISTRY.get(type_oid)
    return None if row is None else row.name


def form_of(column: ColumnSchema) -> Form:
    """How the column's values are held."""
    return _form_of(column.effective_type_oid, column.type_modifier)


@lru_cache(maxsize=4096)
def _form_of(type_oid: int, type_modifier: int) -> Form:
    return REGISTRY.get(type_oid, _UNKNOWN).form_for(type_modifier)


def arrow_type(column: ColumnSchema) -> pa.DataType:
    """The Arrow type of the column's values."""
    return form_of(column).arrow

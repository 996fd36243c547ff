"""Results without the types of DuckDB that lose something on their way to Arrow.

An INTERVAL of more than 292 years in hours becomes another one there, a TIME WITH TIME ZONE is
without its zone, and a BIT is the bytes that DuckDB keeps.
"""

from __future__ import annotations

from typing import Any, Final

import duckdb

from etl_dagster.destinations.sql.dialect import quote

_AS_TEXT: Final = ("INTERVAL", "TIME WITH TIME ZONE", "BIT")


def exact(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The same rows, with text in place of values of such types, also inside of others."""
    types = [_exact_type(type_) for type_ in relation.types]
    if not any(types):
        return relation
    columns = (
        f"CAST(#{place} AS {type_}) AS {quote(name)}" if type_ else f"#{place} AS {quote(name)}"
        for place, (name, type_) in enumerate(zip(relation.columns, types, strict=True), start=1)
    )
    return relation.project(", ".join(columns))


def _exact_type(type_: Any) -> str | None:
    """The type to cast to, in SQL; None where values stay as they are."""
    kind = type_.id
    if str(type_) in _AS_TEXT:
        return "VARCHAR"
    if kind not in ("list", "array", "struct", "map"):
        return None
    parts = [(name, part, _exact_type(part)) for name, part in type_.children if name != "size"]
    if not any(cast for _, _, cast in parts):
        return None
    inner = [(name, cast or str(part)) for name, part, cast in parts]
    if kind == "struct":
        return f"STRUCT({', '.join(f'{quote(name)} {cast}' for name, cast in inner)})"
    if kind == "map":
        return f"MAP({', '.join(cast for _, cast in inner)})"
    length = dict(type_.children).get("size", "")
    return f"{inner[0][1]}[{length}]"

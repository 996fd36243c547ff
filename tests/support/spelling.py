"""How DuckDB spells what it holds in types of its own."""

from __future__ import annotations

import re
from typing import Any

_SINGULAR = re.compile(r"(^| )(-?1) (year|month|day)s\b")


def spelled(value: Any, duckdb_type: str) -> Any:
    """A value as `exact.exact` gives it back, from what a column's Arrow form has."""
    if isinstance(value, dict):
        return {key: spelled(member, duckdb_type) for key, member in value.items()}
    if isinstance(value, list):
        return [spelled(element, duckdb_type) for element in value]
    if not isinstance(value, str):
        return value
    if "UBIGINT" in duckdb_type:
        return int(value)
    return interval(value) if "INTERVAL" in duckdb_type else value


def interval(text: str) -> str:
    """What DuckDB prints of an interval that Postgres prints as `text`."""
    text = re.sub(r"\bmon(s?)\b", r"month\1", text.replace("+", ""))
    return _SINGULAR.sub(r"\1\2 \3", text)

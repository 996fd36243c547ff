"""Column types as the destination spells them: those of the source, where it has them, too."""

from __future__ import annotations

from typing import Final

from etl_dagster.destinations.sql.dialect import ZONED
from etl_dagster.model.schema import ColumnSchema
from etl_dagster.values import oids
from etl_dagster.values.forms import form_of
from etl_dagster.values.registry import REGISTRY
from etl_dagster.values.types import (
    FIRST_OWN,
    Array,
    Multirange,
    PgType,
    Range,
    Scalar,
    is_users_own,
    without_domains,
)

#: For what the destination has no type for.
TEXT: Final = "text"
#: For values with parts that come as such: a pipeline sends their text.
PARTS: Final = "json"
_BIT, _VARBIT, _INTERVAL, _TIMETZ = 1560, 1562, 1186, 1266
_SECONDS: Final = (oids.TIME, oids.TIMESTAMP, oids.TIMESTAMPTZ, _TIMETZ)
#: INTERVAL_MASK of the fields, in Postgres' datetime.h and timestamp.h.
_YEAR, _MONTH, _DAY, _HOUR, _MINUTE, _SECOND = 1 << 2, 1 << 1, 1 << 3, 1 << 10, 1 << 11, 1 << 12
_FIELDS: Final = {
    _YEAR: "year",
    _MONTH: "month",
    _DAY: "day",
    _HOUR: "hour",
    _MINUTE: "minute",
    _SECOND: "second",
    _YEAR | _MONTH: "year to month",
    _DAY | _HOUR: "day to hour",
    _DAY | _HOUR | _MINUTE: "day to minute",
    _DAY | _HOUR | _MINUTE | _SECOND: "day to second",
    _HOUR | _MINUTE: "hour to minute",
    _HOUR | _MINUTE | _SECOND: "hour to second",
    _MINUTE | _SECOND: "minute to second",
}


def column_type(column: ColumnSchema) -> str:
    """The type of a column."""
    if column.own_type and column.type is not None:
        return made_type(column.type)
    if form_of(column).parts or (column.type is not None and column.nested == "json"):
        return PARTS
    if column.type is not None:
        return spelled(column.type)
    return _built_in(column.effective_type_oid, column.type_modifier)


def made_type(type_: PgType) -> str:
    """A type in SQL, where users' own types are made (`own_types.py`); see `is_users_own`."""
    if not is_users_own(type_):
        return spelled(type_)
    if isinstance(type_, Array):
        return f"{made_type(type_.element)}[]"
    return type_.name


def spelled(type_: PgType) -> str:
    """A type in SQL; text where it is the user's own, or is built of such."""
    type_ = without_domains(type_)
    match type_:
        case Scalar():
            return _built_in(type_.oid, type_.modifier)
        case Array():
            if isinstance(without_domains(type_.element), Array):
                return TEXT  # of a domain over arrays; an array of arrays is none of arrays
            element = spelled(type_.element)
            is_own = element == TEXT and not _is_text(type_.element)
            return TEXT if is_own else f"{element}[]"
        case Range() | Multirange():
            return type_.name if type_.oid < FIRST_OWN else TEXT
    return TEXT


def _is_text(type_: PgType) -> bool:
    type_ = without_domains(type_)
    return isinstance(type_, Scalar) and type_.oid == oids.TEXT


def _built_in(oid: int, modifier: int) -> str:
    row = REGISTRY.get(oid)
    # What names objects of the source names others here, or none.
    if row is None or row.text_tells:
        return TEXT
    if oid == oids.BPCHAR and modifier < 0:
        return "bpchar"
    if oid == oids.NUMERIC and modifier >= 4:
        precision = ((modifier - 4) >> 16) & 0xFFFF
        scale = (((modifier - 4) & 0x7FF) ^ 1024) - 1024
        return f"numeric({precision},{scale})"
    if oid in (oids.VARCHAR, oids.BPCHAR) and modifier >= 4:
        return f"{row.name}({modifier - 4})"
    if oid == _BIT and modifier < 0:
        return '"bit"'  # of any length
    if oid in (_BIT, _VARBIT) and modifier >= 0:
        return f"{row.name}({modifier})"
    if oid in _SECONDS and modifier >= 0:
        first, _, rest = row.name.partition(" ")
        return f"{first}({modifier}) {rest}"
    if oid == _INTERVAL and modifier >= 0:
        return _interval(modifier)
    return ZONED if oid == oids.TIMESTAMPTZ else row.name


def _interval(modifier: int) -> str:
    fields = _FIELDS.get((modifier >> 16) & 0x7FFF, "")
    digits = modifier & 0xFFFF
    text = f"interval {fields}".strip()
    return text if digits == 0xFFFF else f"{text}({digits})"

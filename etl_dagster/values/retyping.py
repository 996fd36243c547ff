"""Which changes of a column's type leave its values as they are."""

from __future__ import annotations

from typing import Final

from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.oids import (
    FLOAT4,
    FLOAT8,
    INT2,
    INT4,
    INT8,
    NUMERIC,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    VARCHAR,
)

_TIMETZ, _VARBIT = 1266, 1562
_STRINGS: Final = frozenset((TEXT, VARCHAR))
#: Changes that compute each value again and arrive at the same one, in Postgres as anywhere else.
_WIDER: Final = frozenset([(INT2, INT4), (INT2, INT8), (INT4, INT8), (FLOAT4, FLOAT8)])
#: Types whose modifier is a bound on length or digits: a larger bound, or none, changes no value.
_BOUNDED: Final = frozenset((VARCHAR, TIME, _TIMETZ, TIMESTAMP, TIMESTAMPTZ, _VARBIT))
#: Digits that a destination's decimal type holds; more are text there, which may be NaN.
_DECIMAL_DIGITS: Final = 38


def keeps_rows(old: ColumnSchema, new: ColumnSchema) -> bool:
    """Whether Postgres changes the type without writing the rows again, and every value stays.

    Nothing but the type tells: a USING clause always has the rows written again.

    Source: ATColumnChangeRequiresRewrite() in Postgres' tablecmds.c.
    """
    before, after = old.effective_type_oid, new.effective_type_oid
    if before in _STRINGS and after in _STRINGS:
        # A text without a bound may be longer than any.
        limit = old.type_modifier if before == VARCHAR else -1
        return new.type_modifier == -1 or after == TEXT or 0 <= limit <= new.type_modifier
    if before != after:
        return False
    if old.type_modifier == new.type_modifier:
        return True
    if before == NUMERIC:
        return _has_more_digits(old.type_modifier, new.type_modifier)
    if before in _BOUNDED:
        return new.type_modifier == -1 or 0 <= old.type_modifier <= new.type_modifier
    return False


def keeps_values(old: ColumnSchema, new: ColumnSchema) -> bool:
    """Whether every value stays when the type changes without a USING clause."""
    return keeps_rows(old, new) or (old.effective_type_oid, new.effective_type_oid) in _WIDER


def _has_more_digits(old: int, new: int) -> bool:
    """Source: numeric_typmod_precision() and numeric_typmod_scale() in Postgres' numeric.c."""
    if old < 4 or new < 4 or (old - 4) & 0x7FF != (new - 4) & 0x7FF:
        return False
    before, after = (old - 4) >> 16, (new - 4) >> 16
    return before <= after <= _DECIMAL_DIGITS

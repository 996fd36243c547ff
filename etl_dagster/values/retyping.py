"""Which changes of a column's type leave its values as they are."""

from __future__ import annotations

from typing import Final

from etl_dagster.values.columns import ColumnSchema

#: How many digits a destination's decimal type holds; wider numbers are text there, which may be
#: NaN.
_DECIMAL_DIGITS: Final = 38


def keeps_rows(old: ColumnSchema, new: ColumnSchema) -> bool:
    """Whether Postgres changes the type without rewriting the rows, and every value stays.

    The types alone decide: with a USING clause, Postgres always rewrites the rows.

    Source: ATColumnChangeRequiresRewrite() in Postgres' tablecmds.c.
    """
    from etl_dagster.values.registry import row_of

    before, after = row_of(old), row_of(new)
    if before.same_bytes is not None and before.same_bytes == after.same_bytes:
        # A text without a bound may be longer than any.
        limit = old.type_modifier if before.bound else -1
        return new.type_modifier == -1 or after.bound is None or 0 <= limit <= new.type_modifier
    if old.effective_type_oid != new.effective_type_oid:
        return False
    if old.type_modifier == new.type_modifier:
        return True
    if before.bound == "digits":
        return _has_more_digits(old.type_modifier, new.type_modifier)
    if before.bound == "length":
        return new.type_modifier == -1 or 0 <= old.type_modifier <= new.type_modifier
    return False


def keeps_values(old: ColumnSchema, new: ColumnSchema) -> bool:
    """Whether every value stays when the type changes without a USING clause."""
    from etl_dagster.values.registry import row_of

    return keeps_rows(old, new) or old.effective_type_oid in row_of(new).widens


def _has_more_digits(old: int, new: int) -> bool:
    """Source: numeric_typmod_precision() and numeric_typmod_scale() in Postgres' numeric.c."""
    if old < 4 or new < 4 or (old - 4) & 0x7FF != (new - 4) & 0x7FF:
        return False
    before, after = (old - 4) >> 16, (new - 4) >> 16
    return before <= after <= _DECIMAL_DIGITS

"""What a row has in place of a value that its column's type can't hold."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.values.form import AnyArray
from etl_dagster.values.oids import DATE_INFINITY, TIMESTAMP_INFINITY
from etl_dagster.values.parsed import Odd

_compute: Any = pc
#: A day or a moment as Postgres prints it, with a year of six digits or more.
_LATE: Final = re.compile(r"(?P<year>\d{6,7})-\d\d-\d\d( \d\d:\d\d:\d\d(\.\d+)?(\+00)?)?", re.ASCII)
#: The years in which 64-bit microseconds, and 32-bit days, since 1970 end.
_LAST_YEAR: Final = 294_247
_LAST_YEAR_OF_DAYS: Final = 5_881_580


def clamp(array: AnyArray, odd: Odd) -> AnyArray:
    """The array, with the nearest value that its type can hold, if there is a nearest one.

    For dates and timestamps it is the last finite one; for decimals the rounded one, the largest or
    the smallest. NaN, a text that isn't a value at all (of a column that is cast), and values of
    other types stay as they are: null, or a text with escapes.
    """
    nearest = [_nearest(array.type, text) for text in odd.texts.to_pylist()]
    if not any(value is not None for value in nearest):
        return array
    is_odd = pa.array(odd.mask(len(array)))
    number = _number_type(array.type)
    if number is None:
        clamped: AnyArray = _compute.replace_with_mask(array, is_odd, pa.array(nearest, array.type))
        return clamped
    # Python has no objects for such late dates and times.
    numbers = _compute.replace_with_mask(array.view(number), is_odd, pa.array(nearest, number))
    viewed: AnyArray = numbers.view(array.type)
    return viewed


def is_one_of_a_kind(array: AnyArray, odd: Odd) -> bool:
    """Whether the odd values stay distinct in the array, as those of a key must.

    Texts stay distinct by their escapes; the only odd value of a decimal with a declared precision
    is NaN.
    """
    if not array.null_count:
        return True
    return pa.types.is_decimal(array.type) and set(odd.texts.to_pylist()) <= {"NaN"}


def _number_type(arrow_type: pa.DataType) -> pa.DataType | None:
    if pa.types.is_timestamp(arrow_type):
        return pa.int64()
    return pa.int32() if pa.types.is_date32(arrow_type) else None


def _nearest(arrow_type: pa.DataType, text: str | None) -> int | Decimal | None:
    if text is None:
        return None
    if pa.types.is_timestamp(arrow_type):
        return TIMESTAMP_INFINITY - 1 if _is_from(_LAST_YEAR, text) else None
    if pa.types.is_date32(arrow_type):
        return DATE_INFINITY - 1 if _is_from(_LAST_YEAR_OF_DAYS, text) else None
    if pa.types.is_decimal(arrow_type):
        return _nearest_decimal(arrow_type.precision, arrow_type.scale, text)
    return None


def _is_from(year: int, text: str) -> bool:
    """Whether the text is a day or a moment, AD, of this year or a later one."""
    found = _LATE.fullmatch(text)
    return found is not None and int(found["year"]) >= year


def _nearest_decimal(precision: int, scale: int, text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:  # a text that is cast, and is not a number
        return None
    if number.is_nan():
        return None
    context = Context(prec=precision, rounding=ROUND_HALF_UP)
    try:
        return context.quantize(number, Decimal(1).scaleb(-scale))
    except InvalidOperation:  # more digits before the point than there are, or an infinity
        return Decimal((int(number.is_signed()), (9,) * precision, -scale))

"""What stands in a row for a value that its column's type can't hold."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.values.form import AnyArray
from etl_dagster.values.oids import DATE_INFINITY, TIMESTAMP_INFINITY
from etl_dagster.values.parsed import Odd

_compute: Any = pc
_WORDS: Final = ("Infinity", "-Infinity")


def clamp(array: AnyArray, odd: Odd) -> AnyArray:
    """The array with the nearest value that its type holds, where one is nearest.

    Of dates and timestamps the first or last one that isn't an infinity; of decimals the rounded
    one, the largest or the smallest. NaN, and values of other types, stay what they are: null, or a
    text with escapes.
    """
    nearest = [_nearest(array.type, text) for text in odd.texts.to_pylist()]
    if not any(value is not None for value in nearest):
        return array
    is_odd = pa.array(odd.mask(len(array)))
    number = _number_type(array.type)
    if number is None:
        clamped: AnyArray = _compute.replace_with_mask(array, is_odd, pa.array(nearest, array.type))
        return clamped
    # Python has no date and no time so far away.
    numbers = _compute.replace_with_mask(array.view(number), is_odd, pa.array(nearest, number))
    viewed: AnyArray = numbers.view(array.type)
    return viewed


def is_one_of_a_kind(array: AnyArray, odd: Odd) -> bool:
    """Whether the odd values stay distinct in the array, as those of a key must.

    A text is one with escapes; a decimal of a declared precision can only lack NaN.
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
    if pa.types.is_timestamp(arrow_type) or pa.types.is_date32(arrow_type):
        infinity = TIMESTAMP_INFINITY if pa.types.is_timestamp(arrow_type) else DATE_INFINITY
        return 1 - infinity if text.endswith(" BC") else infinity - 1
    if pa.types.is_decimal(arrow_type):
        if text not in _WORDS and not text.lstrip("-")[:1].isdigit():
            return None
        return _nearest_decimal(arrow_type.precision, arrow_type.scale, text)
    return None


def _nearest_decimal(precision: int, scale: int, text: str) -> Decimal:
    context = Context(prec=precision, rounding=ROUND_HALF_UP)
    last_place = Decimal(1).scaleb(-scale)
    try:
        return context.quantize(Decimal(text), last_place)
    except InvalidOperation:  # more digits before the point than there are, or an infinity
        return Decimal((int(text.startswith("-")), (9,) * precision, -scale))

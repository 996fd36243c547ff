"""Vectorised casts from text that separate the odd values.

One cast converts the ordinary values of a column. Only if it refuses, the others (infinity, NaN,
BC, years of five digits) are looked for. No value is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.values.form import AnyArray
from etl_dagster.values.parsed import Odd, Parsed, odd_where
from etl_dagster.values.strings import valid_text

#: An odd value's number in the array's unit; None: the type can't hold it.
OddValue: TypeAlias = Callable[[str], int | None]

_compute: Any = pc


def cast_numbers(arrow_type: pa.DataType, strings: AnyArray) -> Parsed:
    """Numbers; a word such as NaN is odd if the type has no such number."""
    try:
        return Parsed(pc.cast(strings, arrow_type))
    except pa.ArrowInvalid:
        pass
    strings = valid_text(strings).array
    words = pa.array(("NaN", "Infinity", "-Infinity"), strings.type)
    is_odd = _compute.is_in(strings, words)
    try:
        array = pc.cast(_compute.if_else(is_odd, None, strings), arrow_type)
    except pa.ArrowInvalid:
        return one_by_one(strings, lambda text: _cast_one(text, arrow_type), arrow_type)
    return Parsed(array, odd_where(strings, is_odd))


def _cast_one(text: str, arrow_type: pa.DataType) -> Any:
    try:
        return pa.scalar(text).cast(arrow_type).as_py()
    except pa.ArrowInvalid:
        return None


def one_by_one(strings: AnyArray, convert: Callable[[str], Any], arrow_type: pa.DataType) -> Parsed:
    """Each distinct value by a Python function, which returns None if it can't convert it."""
    encoded: Any = strings.dictionary_encode()
    values: Any = pa.array([convert(text) for text in encoded.dictionary.to_pylist()], arrow_type)
    array = values.take(encoded.indices)
    return Parsed(array, odd_where(strings, _compute.and_(array.is_null(), strings.is_valid())))


def cast_or_convert(
    strings: AnyArray,
    arrow_type: pa.DataType,
    number_type: pa.DataType,
    ordinary: str,
    convert: OddValue,
) -> Parsed:
    """Cast the ordinary values, and convert the others one by one.

    Args:
        number_type: the integer type with the same bits as `arrow_type`.
        ordinary: a regular expression for the texts that the cast reads.
        convert: for all other texts.
    """
    try:
        return Parsed(pc.cast(strings, arrow_type))
    except pa.ArrowInvalid:
        pass
    strings = valid_text(strings).array
    matches = _compute.match_substring_regex(strings, ordinary)
    is_odd = _compute.fill_null(_compute.invert(matches), False)
    cast: Any
    try:
        cast = pc.cast(_compute.if_else(is_odd, None, strings), arrow_type)
    except pa.ArrowInvalid:
        return viewed(one_by_one(strings, convert, number_type), arrow_type)
    found = one_by_one(strings.filter(is_odd), convert, number_type)
    numbers = _compute.replace_with_mask(cast.view(number_type), is_odd, found.array)
    places = is_odd.to_numpy(zero_copy_only=False).nonzero()[0]
    odd = found.odd and Odd(places[found.odd.places], found.odd.texts)
    return Parsed(numbers.view(arrow_type), odd)


def viewed(parsed: Parsed, arrow_type: pa.DataType) -> Parsed:
    """The same bits as values of another type."""
    return Parsed(parsed.array.view(arrow_type), parsed.odd)


def bits_of(arrow_type: pa.DataType, array: AnyArray) -> Parsed:
    """An array that ADBC read and that has the values themselves, perhaps in another type."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if array.type == arrow_type:
        return Parsed(array)
    return Parsed(array.cast(arrow_type))

"""A column's values as JSON, a column at a time."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.destinations.singer.streams import Spelling
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.form import AnyArray
from etl_dagster.values.forms import form_of
from etl_dagster.values.parsed import Odd, Parsed
from etl_dagster.values.python import to_objects

_compute: Any = pc
#: Offsets of 32 bits end at 2 GB, which a batch of long texts may have.
TEXT: Final = pa.large_string()
_NULL: Final = pa.scalar("null", TEXT)
_QUOTE: Final = pa.scalar('"', TEXT)
_NOTHING: Final = pa.scalar("", TEXT)
#: What JSON escapes.
_SPECIAL: Final = r'[\x00-\x1f"\\]'
#: The control characters that texts have; others are rare.
_USUAL: Final = (("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r"))
_DAY_US: Final = 86_400_000_000
#: 0001-01-01 to 9999-12-31, which is what an ISO 8601 date with four digits can be.
_FIRST_DAY: Final = -719_162
_LAST_DAY: Final = 2_932_896


def to_json(column: ColumnSchema, array: AnyArray, spelling: Spelling) -> Parsed:
    """The values as JSON (large string, null where the value is), and those that JSON can't hold.

    These are null in the array: NaN and infinities of a number; dates that are infinite or outside
    of the years 1 to 9999; 24:00:00.
    """
    arrow, form = array.type, form_of(column)
    if pa.types.is_dictionary(arrow):
        return Parsed(quoted(array.cast(TEXT)))
    if pa.types.is_nested(arrow):
        return Parsed(_nested(array, form.to_json))
    if pa.types.is_boolean(arrow) or pa.types.is_integer(arrow):
        return Parsed(array.cast(TEXT))
    if pa.types.is_floating(arrow):
        held = _compute.is_finite(array)
        return _held(column, array, held, lambda numbers: numbers.cast(TEXT))
    if pa.types.is_decimal(arrow):
        digits = _plain_digits(array)
        return Parsed(digits if spelling.decimals == "number" else _in_quotes(digits))
    if pa.types.is_date(arrow):
        days = array.view(pa.int32())
        return _held(column, array, _between(days, _FIRST_DAY, _LAST_DAY), _dates)
    if pa.types.is_time(arrow):
        held = _between(array.view(pa.int64()), 0, _DAY_US - 1)
        return _held(column, array, held, _dates)
    if pa.types.is_timestamp(arrow):
        micros = array.view(pa.int64())
        held = _between(micros, _FIRST_DAY * _DAY_US, (_LAST_DAY + 1) * _DAY_US - 1)
        zone = "+00:00" if arrow.tz else ""
        return _held(column, array, held, lambda moments: _moments(moments, zone))
    if pa.types.is_binary(arrow) or pa.types.is_large_binary(arrow):
        encoded = [None if v is None else f'"{b64encode(v).decode()}"' for v in array.to_pylist()]
        return Parsed(pa.array(encoded, TEXT))
    texts = array.cast(TEXT)
    if form.meaning == "json" and spelling.json_values == "value":
        return Parsed(_one_line(texts))
    return Parsed(quoted(texts))


def quoted(texts: AnyArray) -> AnyArray:
    """Texts (large strings) as JSON strings."""
    if not _any(_compute.match_substring_regex(texts, _SPECIAL)):
        return _in_quotes(texts)
    texts = _compute.replace_substring(texts, "\\", "\\\\")
    texts = _compute.replace_substring(texts, '"', '\\"')
    is_control = _compute.match_substring_regex(texts, r"[\x00-\x1f]")
    if _any(is_control):
        for character, escape in _USUAL:
            texts = _compute.replace_substring(texts, character, escape)
        is_control = _compute.match_substring_regex(texts, r"[\x00-\x1f]")
    if _any(is_control):
        rest = [_escaped(str(text)) for text in texts.filter(is_control).to_pylist()]
        texts = _compute.replace_with_mask(texts, is_control, pa.array(rest, TEXT))
    return _in_quotes(texts)


def _escaped(text: str) -> str:
    """A text whose quotes and backslashes are escaped already."""
    return "".join(f"\\u{ord(c):04x}" if c < " " else c for c in text)


def _in_quotes(texts: AnyArray) -> AnyArray:
    found: AnyArray = _compute.binary_join_element_wise(_QUOTE, texts, _QUOTE, _NOTHING)
    return found


def _one_line(texts: AnyArray) -> AnyArray:
    """JSON without its line breaks; inside of its strings there is none."""
    for character in "\n\r":
        if _any(_compute.match_substring(texts, character)):
            texts = _compute.replace_substring(texts, character, " ")
    return texts


def _plain_digits(array: AnyArray) -> AnyArray:
    texts = array.cast(TEXT)
    is_scientific = _compute.match_substring(texts, "E")
    if not _any(is_scientific):
        return texts
    plain = [format(Decimal(str(text)), "f") for text in texts.filter(is_scientific).to_pylist()]
    replaced: AnyArray = _compute.replace_with_mask(texts, is_scientific, pa.array(plain, TEXT))
    return replaced


def _dates(array: AnyArray) -> AnyArray:
    return _in_quotes(array.cast(TEXT))


def _moments(array: AnyArray, zone: str) -> AnyArray:
    texts = array.view(pa.timestamp("us")).cast(TEXT)
    texts = _compute.replace_substring(texts, " ", "T", max_replacements=1)
    end = pa.scalar(f'{zone}"', TEXT)
    found: AnyArray = _compute.binary_join_element_wise(_QUOTE, texts, end, _NOTHING)
    return found


def _between(numbers: AnyArray, first: int, last: int) -> AnyArray:
    found: AnyArray = _compute.and_(
        _compute.greater_equal(numbers, pa.scalar(first, numbers.type)),
        _compute.less_equal(numbers, pa.scalar(last, numbers.type)),
    )
    return found


def _held(
    column: ColumnSchema,
    array: AnyArray,
    is_held: AnyArray,
    to_text: Callable[[AnyArray], AnyArray],
) -> Parsed:
    """The values for which `is_held` is true, as text; the others as Postgres prints them."""
    is_odd = _compute.invert(is_held)
    if not _any(is_odd):
        return Parsed(to_text(array))
    filled = is_odd.fill_null(False)
    printed = form_of(column).print(array.filter(filled))
    places = np.flatnonzero(filled.to_numpy(zero_copy_only=False))
    held = _compute.if_else(filled, pa.scalar(None, array.type), array)
    return Parsed(to_text(held), Odd(places, pa.array(printed, pa.string())))


def _nested(array: AnyArray, writer: Callable[[Any], Any] | None) -> AnyArray:
    """Values with parts, one by one."""
    texts = [
        None
        if value is None
        else json.dumps(value if writer is None else writer(value), ensure_ascii=False)
        for value in to_objects(array)
    ]
    return pa.array(texts, TEXT)


def or_null(texts: AnyArray) -> AnyArray:
    """The texts, with JSON's `null` in place of nulls."""
    return _compute.fill_null(texts, _NULL) if texts.null_count else texts


def _any(mask: AnyArray) -> bool:
    return bool(_compute.any(mask).as_py())

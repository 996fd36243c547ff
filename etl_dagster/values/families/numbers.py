"""Booleans and numbers."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.values import oids
from etl_dagster.values.casts import bits_of, cast_numbers
from etl_dagster.values.form import CAST, AnyArray, BuiltIn, Edge, Form, print_plain
from etl_dagster.values.parsed import Parsed, odd_where
from etl_dagster.values.respelling import as_booleans, matching
from etl_dagster.values.strings import ascii_scalar, read_text, valid_text

_compute: Any = pc
_MAX_DECIMAL_DIGITS: Final = 76
_NOT_HELD: Final = "null; the column's type has no such number"


def _read_bools(strings: AnyArray) -> Parsed:
    return Parsed(_compute.equal(strings, ascii_scalar("t", strings.type)))


def _number(arrow: pa.DataType, **more: Any) -> Form:
    return Form(arrow, partial(cast_numbers, arrow), **more)


def _float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _float4(value: float) -> float | str:
    """The shortest number that is the same float4, which is what Postgres prints."""
    return float(str(np.float32(value))) if math.isfinite(value) else _float(value)


_IN_DIGITS: Final = "string of digits: many JSON readers keep only 53 bits of a number"
_BOOL: Final = Form(pa.bool_(), _read_bools, spelling="boolean", json="`true` or `false`")
_INT2: Final = _number(pa.int16(), spelling="integer", json="number")
_INT4: Final = _number(pa.int32(), spelling="integer", json="number")
_INT8: Final = _number(pa.int64(), to_json=str, from_json=int, spelling="digits", json=_IN_DIGITS)
_OID: Final = _number(pa.uint32(), to_json=str, from_json=int, spelling="digits", json=_IN_DIGITS)
_FLOAT_JSON: Final = 'number; `"NaN"`, `"Infinity"`, `"-Infinity"`'
_FLOAT4: Final = _number(
    pa.float32(),
    to_json=_float4,
    from_json=lambda value: float(np.float32(value)),
    spelling="float",
    json=_FLOAT_JSON,
)
_FLOAT8: Final = _number(
    pa.float64(), to_json=_float, from_json=float, spelling="float", json=_FLOAT_JSON
)

# -- numeric -----------------------------------------------------------------------------------


def _numeric(value: Decimal | str) -> str:
    return value if isinstance(value, str) else format(value, "f")


def _print_decimals(array: AnyArray) -> list[str | None]:
    """A null stands for a value that the type can't hold, of which NaN is the only one.

    With a precision there is no infinity: Postgres refuses it.
    """
    return ["NaN" if text is None else text for text in print_plain(array)]


#: One without precision is a text in Arrow and in Python, too.
_NUMERIC_AS_TEXT: Final = Form(
    pa.string(), read_text, to_json=_numeric, spelling="digits", json=_IN_DIGITS
)


@lru_cache(maxsize=1024)
def numeric_form(type_modifier: int) -> Form:
    """A decimal as wide as the precision, up to 76 digits; else the text.

    Source: numeric_typmod_precision() and numeric_typmod_scale() in Postgres' numeric.c.
    """
    if type_modifier < 4:
        return _NUMERIC_AS_TEXT
    precision = ((type_modifier - 4) >> 16) & 0xFFFF
    # Eleven bits with a sign: since version 15 the scale may be negative, or above the precision.
    scale = (((type_modifier - 4) & 0x7FF) ^ 1024) - 1024
    if scale < 0:
        precision, scale = precision - scale, 0
    precision = max(precision, scale)
    if precision > _MAX_DECIMAL_DIGITS:
        return _NUMERIC_AS_TEXT
    arrow = pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)
    return _number(
        arrow,
        to_json=_numeric,
        from_json=Decimal,
        print=_print_decimals,
        spelling="digits",
        json=_IN_DIGITS,
    )


def numeric_of_any(type_modifier: int) -> Form:
    """As `numeric_form`, read from numbers of any width, such as those of a cast."""
    form = numeric_form(type_modifier)
    return replace(form, read=partial(_read_any, form.arrow))


def _read_any(decimal: Any, strings: AnyArray) -> Parsed:
    """Numbers of any width as decimals; one with other digits than the type has is odd."""
    strings = valid_text(strings).array
    whole, scale = decimal.precision - decimal.scale, decimal.scale
    # Zeros at the end tell nothing. Without a place before the point, Postgres prints a zero there.
    kept = rf"\.\d{{{scale}}}" if scale else ""
    zeros = rf"^(-?\d+{kept})0+$" if scale else r"^(-?\d+)\.0+$"
    trimmed = _compute.replace_substring_regex(strings, zeros, r"\1")
    before = rf"\d{{1,{whole}}}" if whole else "0"
    after = rf"(\.\d{{1,{scale}}})?" if scale else ""
    # Arrow's own cast takes too many digits for another number.
    is_held = _compute.match_substring_regex(trimmed, rf"^-?{before}{after}$")
    array = pc.cast(_compute.if_else(is_held, trimmed, None), decimal)
    return Parsed(array, odd_where(strings, _compute.invert(is_held)))


def _read_any_doubles(strings: AnyArray) -> Parsed:
    """Numbers of any width as the nearest doubles; one past the last double is odd."""
    strings = valid_text(strings).array
    array = pc.cast(strings, pa.float64())
    words = pa.array(("Infinity", "-Infinity"), strings.type)
    is_odd = _compute.and_not(_compute.is_inf(array), _compute.is_in(strings, words))
    if not is_odd.true_count:
        return Parsed(array)
    return Parsed(_compute.if_else(is_odd, None, array), odd_where(strings, is_odd))


_DECIMAL: Final = re.compile(r"decimal\(([1-9]\d?),(\d\d?)\)")


@lru_cache(maxsize=256)
def chosen_numeric(choice: str) -> Form:
    """How a numeric without precision is held, by `ColumnSchema.numeric`."""
    match = _DECIMAL.fullmatch(choice)
    if match is None:
        return replace(_FLOAT8, read=_read_any_doubles) if choice == "double" else _NUMERIC_AS_TEXT
    arrow = pa.decimal128(*map(int, match.groups()))
    return Form(
        arrow,
        partial(_read_any, arrow),
        to_json=_numeric,
        from_json=Decimal,
        spelling="digits",
        json=_IN_DIGITS,
    )


# -- ADBC --------------------------------------------------------------------------------------


def _unsigned(array: AnyArray) -> Parsed:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return Parsed(array.view(pa.uint32()) if array.type == pa.int32() else array.cast(pa.uint32()))


def _floats(arrow: pa.DataType, array: AnyArray) -> Parsed:
    """With one NaN: of Postgres' many, all print the same, and are equal."""
    parsed = bits_of(arrow, array)
    is_nan = _compute.is_nan(parsed.array)
    if not is_nan.true_count:
        return parsed
    return Parsed(_compute.if_else(is_nan, pa.scalar(math.nan, arrow), parsed.array))


#: Numbers that print as words.
_WORDS: Final = "NaN|-?Infinity"


def _as_numerics(texts: Any) -> Any:
    """Numbers without zeros in front, which count as digits otherwise."""
    texts = matching(rf"-?\d+(\.\d+)?|{_WORDS}", texts)
    return _compute.replace_substring_regex(texts, r"^(-?)0+(\d)", r"\1\2")


def _as_floats(arrow: pa.DataType, texts: Any) -> Any:
    """Numbers in the range of the type: Arrow's cast takes any larger one for infinity."""
    texts = matching(rf"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|{_WORDS}", texts)
    words = pa.array(("Infinity", "-Infinity"), texts.type)
    is_infinite = _compute.is_inf(pc.cast(texts, arrow))
    is_beyond = _compute.and_not(is_infinite, _compute.is_in(texts, words))
    return _compute.if_else(_compute.fill_null(is_beyond, False), None, texts)


# -- rows --------------------------------------------------------------------------------------

ROWS: Final = (
    BuiltIn(
        oid=oids.BOOL,
        name="boolean",
        reads=as_booleans,
        aliases=("bool",),
        form=_BOOL,
        adbc=partial(bits_of, pa.bool_()),
        is_ascii=True,
        edges=(Edge("t"), Edge("f")),
    ),
    BuiltIn(
        oid=oids.INT2,
        name="smallint",
        reads=partial(matching, r"-?\d{1,5}"),
        form=_INT2,
        adbc=partial(bits_of, pa.int16()),
        is_ascii=True,
        edges=(Edge("-32768"), Edge("32767"), Edge("0")),
    ),
    BuiltIn(
        oid=oids.INT4,
        name="integer",
        reads=partial(matching, r"-?\d{1,10}"),
        aliases=("int",),
        form=_INT4,
        adbc=partial(bits_of, pa.int32()),
        is_ascii=True,
        widens=frozenset([oids.INT2]),
        edges=(Edge("-2147483648"), Edge("2147483647")),
    ),
    BuiltIn(
        oid=oids.INT8,
        name="bigint",
        reads=partial(matching, r"-?\d{1,19}"),
        form=_INT8,
        adbc=partial(bits_of, pa.int64()),
        is_ascii=True,
        widens=frozenset([oids.INT2, oids.INT4]),
        edges=(Edge("-9223372036854775808"), Edge("9223372036854775807")),
    ),
    BuiltIn(
        oid=oids.OID,
        name="oid",
        form=_OID,
        adbc=_unsigned,
        is_ascii=True,
        edges=(Edge("0"), Edge("4294967295")),
    ),
    BuiltIn(
        oid=oids.FLOAT4,
        name="real",
        reads=partial(_as_floats, pa.float32()),
        form=_FLOAT4,
        adbc=partial(_floats, pa.float32()),
        is_ascii=True,
        edges=(
            Edge("NaN"),
            Edge("Infinity"),
            Edge("-Infinity"),
            Edge("-0"),
            Edge("1e-45"),
            Edge("3.4028235e+38"),
            Edge("0.1"),
        ),
    ),
    BuiltIn(
        oid=oids.FLOAT8,
        name="double precision",
        reads=partial(_as_floats, pa.float64()),
        aliases=("double",),
        form=_FLOAT8,
        adbc=partial(_floats, pa.float64()),
        is_ascii=True,
        widens=frozenset([oids.FLOAT4]),
        edges=(
            Edge("NaN"),
            Edge("Infinity"),
            Edge("-Infinity"),
            Edge("-0"),
            Edge("5e-324"),
            Edge("1.7976931348623157e+308"),
        ),
    ),
    BuiltIn(
        oid=oids.NUMERIC,
        name="numeric",
        reads=_as_numerics,
        aliases=("decimal",),
        form=numeric_form,
        output=CAST,
        is_ascii=True,
        bound="digits",
        edges=(
            Edge("NaN", f"itself; with a precision, {_NOT_HELD}"),
            Edge("-Infinity"),
            Edge("1.500", "itself; the digits after the point stay as many as they are"),
            Edge("-0.01"),
            Edge("1" + "0" * 100),
            Edge("0.00000000000000000001"),
        ),
    ),
    BuiltIn(
        oid=oids.MONEY,
        name="money",
        form=Form(pa.string(), read_text),
        stays_text="it is printed with a currency, and DuckDB has no such type",
        edges=(Edge("$12.34"), Edge("-$92,233,720,368,547,758.08")),
    ),
)

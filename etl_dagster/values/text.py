"""Arrow arrays from the text that Postgres prints, and from what ADBC reads.

The ordinary values of a column are converted by one vectorised cast. Only where that refuses, the
odd values (infinity, NaN, BC, years of five digits) are set apart. No value is an error.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.values.oids import (
    BOOL,
    BYTEA,
    DATE,
    DATE_INFINITY,
    OID,
    TIME,
    TIMESTAMP,
    TIMESTAMP_INFINITY,
    TIMESTAMPTZ,
)

_DAY_US: Final = 86_400_000_000
#: From 1970-01-01 to 2000-01-01: ADBC adds this to Postgres' numbers, also to those for infinity.
_EPOCH_US: Final = 946_684_800_000_000
_EPOCH_DAYS: Final = 10_957
#: 4714-11-24 BC, before which Postgres has no timestamp and no date.
_FIRST_TIMESTAMP_US: Final = -210_866_803_200_000_000
_FIRST_DATE_DAYS: Final = _FIRST_TIMESTAMP_US // _DAY_US

#: An odd value's number in the array's unit; None: the type can't hold it.
OddValue = Callable[[str], int | None]


def parse(type_oid: int, arrow_type: Any, strings: Any) -> tuple[Any, int]:
    """See `types.parse_text`."""
    if arrow_type == pa.string():
        strings, lost = _valid_text(strings)
        return strings.cast(arrow_type), lost
    if type_oid == BOOL:
        return _bools(strings)
    if type_oid == BYTEA:
        return _bytes(strings)
    if type_oid == DATE:
        return _with_odd(strings, arrow_type, pa.int32(), _odd_date)
    if type_oid in (TIMESTAMP, TIMESTAMPTZ):
        return _with_odd(strings, arrow_type, pa.int64(), _odd_timestamp)
    if type_oid == TIME:
        return _times(strings)
    return _numbers(strings, arrow_type)


def buffer_of(array: Any) -> Any:
    """The memory of a NumPy array, for Arrow."""
    return pa.py_buffer(array)


# -- texts -------------------------------------------------------------------------------------


_ESCAPE: Final = "backslashreplace"
_JSON_ESCAPE: Final = "etl_dagster.json_escape"


def _escape_in_json(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    odd = error.object[error.start : error.end]
    return "".join(rf"\\x{byte:02x}" for byte in odd), error.end


codecs.register_error(_JSON_ESCAPE, _escape_in_json)


def decode_strings(strings: Any, codec: str, *, is_json: bool) -> tuple[Any, int]:
    """See `types.decode_text`."""
    errors = _JSON_ESCAPE if is_json else _ESCAPE
    if codec == "utf-8":
        return _valid_text(strings, errors)
    is_large = strings.type == pa.large_string()
    _, offset_buffer, data_buffer = strings.buffers()
    if data_buffer is None:
        return strings, 0
    offsets = np.frombuffer(offset_buffer, np.int64 if is_large else np.int32)
    begin, end = offsets[strings.offset], offsets[strings.offset + len(strings)]
    if not (np.frombuffer(data_buffer, np.uint8)[begin:end] >= 0x80).any():
        return strings, 0  # every encoding of a database has ASCII in the same place
    return _decoded(strings, codec, errors)


def _valid_text(strings: Any, errors: str = _ESCAPE) -> tuple[Any, int]:
    """The strings with what isn't UTF-8 escaped: a SQL_ASCII database keeps any byte."""
    try:
        strings.validate(full=True)
    except pa.ArrowInvalid:
        return _decoded(strings, "utf-8", errors)
    return strings, 0


def _decoded(strings: Any, codec: str, errors: str) -> tuple[Any, int]:
    r"""The texts, each distinct one by Python; a byte without a character becomes ``\x81``.

    Not U+FFFD, which is the same for all such bytes: two keys must not become one.
    """
    encoded = strings.cast(pa.large_binary()).dictionary_encode()
    values = encoded.dictionary.to_pylist()
    texts = [value.decode(codec, errors) for value in values]
    is_odd = [_is_odd(value, codec) for value in values]
    decoded: Any = pa.array(texts, strings.type).take(encoded.indices)
    odd: Any = pa.array(is_odd, pa.bool_()).take(encoded.indices)
    return decoded, pc.sum(odd).as_py() or 0


def _is_odd(value: bytes, codec: str) -> bool:
    try:
        value.decode(codec)
    except UnicodeDecodeError:
        return True
    return False


def _scalar(text: str, string_type: Any) -> Any:
    """An ASCII string of the given type. pa.scalar() and pa.array() import pandas, if it is there,
    which takes a second; what every stream needs doesn't call them."""
    number = np.int64 if string_type == pa.large_string() else np.int32
    offsets = buffer_of(np.array([0, len(text)], number))
    return pa.Array.from_buffers(string_type, 1, [None, offsets, pa.py_buffer(text.encode())])[0]


# -- casts -------------------------------------------------------------------------------------

_NOT_A_NUMBER: Final = ("NaN", "Infinity", "-Infinity")


def _numbers(strings: Any, arrow_type: Any) -> tuple[Any, int]:
    try:
        return pc.cast(strings, arrow_type), 0
    except pa.ArrowInvalid:
        pass
    strings = _valid_text(strings)[0]
    is_odd = pc.is_in(strings, pa.array(_NOT_A_NUMBER, strings.type))
    lost = pc.sum(is_odd).as_py() or 0
    try:
        return pc.cast(pc.if_else(is_odd, None, strings), arrow_type), lost
    except pa.ArrowInvalid:
        return _one_by_one(strings, lambda text: _cast_one(text, arrow_type), arrow_type)


def _cast_one(text: str, arrow_type: Any) -> Any:
    try:
        return pa.scalar(text).cast(arrow_type).as_py()
    except pa.ArrowInvalid:
        return None


def _one_by_one(strings: Any, convert: Callable[[str], Any], arrow_type: Any) -> tuple[Any, int]:
    """Each distinct value by a Python function, which says None to what it can't convert."""
    encoded = strings.dictionary_encode()
    values: Any = pa.array([convert(text) for text in encoded.dictionary.to_pylist()], arrow_type)
    array = values.take(encoded.indices)
    return array, array.null_count - strings.null_count


def _bools(strings: Any) -> tuple[Any, int]:
    return pc.equal(strings, _scalar("t", strings.type)), 0


# -- dates and times ---------------------------------------------------------------------------

_ORDINARY: Final = r"^\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d(\.\d+)?(\+00)?)?$"
_ODD_DATE: Final = re.compile(r"(\d{4,7})-(\d\d)-(\d\d)( BC)?")
_ODD_TIMESTAMP: Final = re.compile(
    r"(\d{4,6})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(?:\+00)?( BC)?"
)


def _with_odd(strings: Any, arrow_type: Any, number_type: Any, odd: OddValue) -> tuple[Any, int]:
    """Cast what is ordinary, and convert the rest by `odd`."""
    try:
        return pc.cast(strings, arrow_type), 0
    except pa.ArrowInvalid:
        pass
    strings = _valid_text(strings)[0]
    is_odd = pc.fill_null(pc.invert(pc.match_substring_regex(strings, _ORDINARY)), False)
    ordinary: Any
    try:
        ordinary = pc.cast(pc.if_else(is_odd, None, strings), arrow_type)
    except pa.ArrowInvalid:
        numbers, lost = _one_by_one(strings, odd, number_type)
        return numbers.view(arrow_type), lost
    numbers, lost = _one_by_one(strings.filter(is_odd), odd, number_type)
    return pc.replace_with_mask(ordinary.view(number_type), is_odd, numbers).view(arrow_type), lost


def _odd_date(text: str) -> int | None:
    if text in ("infinity", "-infinity"):
        return DATE_INFINITY if text == "infinity" else -DATE_INFINITY
    match = _ODD_DATE.fullmatch(text)
    if match is None:
        return None
    year, month, day, bc = match.groups()
    days = _days(int(year), int(month), int(day), bc is not None)
    return days if abs(days) < DATE_INFINITY else None


def _odd_timestamp(text: str) -> int | None:
    if text in ("infinity", "-infinity"):
        return TIMESTAMP_INFINITY if text == "infinity" else -TIMESTAMP_INFINITY
    match = _ODD_TIMESTAMP.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, bc = match.groups()
    days = _days(int(year), int(month), int(day), bc is not None)
    seconds = (int(hour) * 60 + int(minute)) * 60 + int(second)
    micros = days * _DAY_US + seconds * 1_000_000 + int((fraction or "0").ljust(6, "0"))
    # Postgres counts from 2000, so its last 30 years are past the end of a count from 1970.
    return micros if abs(micros) < TIMESTAMP_INFINITY else None


def _days(year: int, month: int, day: int, is_bc: bool) -> int:
    """Days since 1970-01-01 in the proleptic Gregorian calendar.

    Years begin in March here, so that a leap day is a year's last: the months' lengths then
    follow one formula.
    """
    if is_bc:
        year = 1 - year
    if month <= 2:
        year, month = year - 1, month + 12
    day_of_year = (153 * (month - 3) + 2) // 5 + day - 1
    return 365 * year + year // 4 - year // 100 + year // 400 + day_of_year - 719_468


def _times(strings: Any) -> tuple[Any, int]:
    """Arrow has no cast from text to a time of day, but one by way of that time on a day."""
    moments = pc.binary_join_element_wise(
        _scalar("1970-01-01", strings.type), strings, _scalar(" ", strings.type)
    )
    odd = _odd_time_of_moment
    array, lost = _with_odd(moments, pa.timestamp("us"), pa.int64(), odd)
    return array.view(pa.int64()).view(pa.time64("us")), lost


def _odd_time_of_moment(text: str) -> int | None:
    return _DAY_US if text.endswith(" 24:00:00") else _odd_timestamp(text)


# -- bytes -------------------------------------------------------------------------------------

_NO_DIGIT: Final = 255
_HEX: Final = np.full(256, _NO_DIGIT, np.uint8)
for _digit in "0123456789abcdefABCDEF":
    _HEX[ord(_digit)] = int(_digit, 16)


def _bytes(strings: Any) -> tuple[Any, int]:
    r"""Decode ``\x00ff``: all values at once, since they lie one behind the other."""
    strings = strings.cast(pa.large_string())
    count = len(strings)
    _, offset_buffer, data_buffer = strings.buffers()
    if not count or data_buffer is None:
        return strings.cast(pa.binary()), 0
    offsets = np.frombuffer(offset_buffer, np.int64)[strings.offset : strings.offset + count + 1]
    data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    begins = (offsets[:-1] - offsets[0])[lengths > 0]
    is_digit = np.ones(len(data), bool)
    if (lengths == 1).any() or (lengths % 2).any() or (data[begins] != ord("\\")).any():
        return _one_by_one(_valid_text(strings)[0], _bytes_of, pa.binary())
    is_digit[begins] = False
    is_digit[begins + 1] = False
    digits = _HEX[data[is_digit]]
    if (data[begins + 1] != ord("x")).any() or (digits == _NO_DIGIT).any():
        return _one_by_one(_valid_text(strings)[0], _bytes_of, pa.binary())
    values = digits[0::2] << 4 | digits[1::2]
    new_offsets = np.zeros(count + 1, np.int32)
    np.cumsum(np.maximum(lengths - 2, 0) // 2, out=new_offsets[1:])
    validity = None
    if strings.null_count:
        is_valid = strings.is_valid().to_numpy(zero_copy_only=False)
        validity = buffer_of(np.packbits(is_valid, bitorder="little"))
    buffers = [validity, buffer_of(new_offsets), buffer_of(values)]
    return pa.Array.from_buffers(pa.binary(), count, buffers), 0


def _bytes_of(text: str) -> bytes | None:
    if not text.startswith("\\x"):
        return None
    try:
        return bytes.fromhex(text[2:])
    except ValueError:
        return None


# -- what ADBC reads ---------------------------------------------------------------------------


def from_adbc(type_oid: int, arrow_type: Any, array: Any) -> Any:
    """See `types.fix_adbc`."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if type_oid == OID and array.type == pa.int32():
        return array.view(arrow_type)
    if type_oid == DATE:
        return _unwrap(array, np.int32, _EPOCH_DAYS, DATE_INFINITY, _FIRST_DATE_DAYS)
    if type_oid in (TIMESTAMP, TIMESTAMPTZ):
        return _unwrap(array, np.int64, _EPOCH_US, TIMESTAMP_INFINITY, _FIRST_TIMESTAMP_US)
    return array if array.type == arrow_type else array.cast(arrow_type)


def _unwrap(array: Any, number: Any, epoch: int, infinity: int, first: int) -> Any:
    """Undo an addition of `epoch` that went past the largest number.

    Postgres' infinities are the largest and the smallest number. All that is below `first`, which
    no value is, went round; it is an infinity, or too late for a count from 1970.
    """
    count = len(array)
    values = np.frombuffer(array.buffers()[1], number)[array.offset : array.offset + count]
    if not count or values.min() >= first:
        return array
    largest = np.iinfo(number).max
    is_positive = values == -largest - 2 + epoch
    is_negative = values == -largest - 1 + epoch
    is_lost = (values < first) & ~is_positive & ~is_negative
    fixed = np.where(is_positive, infinity, np.where(is_negative, -infinity, values))
    is_null = array.is_null().to_numpy(zero_copy_only=False) | is_lost
    integers: Any = pa.array(fixed.astype(number), mask=is_null)
    return integers.view(array.type)


# -- Python objects ----------------------------------------------------------------------------


def to_dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as dictionaries.

    Python has no object for some dates and timestamps. Of these the infinities become the texts
    ``infinity`` and ``-infinity``; others (BC, years past 9999) stay numbers, days or microseconds
    since 1970-01-01. The end of a day is the text ``24:00:00``.
    """
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    columns = [_to_objects(column) for column in batch.columns]
    names = batch.schema.names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _to_objects(array: Any) -> list[Any]:
    if array.type == pa.time64("us"):
        return _to_times(array)
    try:
        objects: list[Any] = array.to_pylist()
    except OverflowError:
        objects = [_to_object(scalar) for scalar in array]
    return objects


def _to_object(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except OverflowError:
        number = scalar.value
        if abs(number) in (DATE_INFINITY, TIMESTAMP_INFINITY):
            return "infinity" if number > 0 else "-infinity"
        return number


def _to_times(array: Any) -> list[Any]:
    """Arrow's own conversion makes 24:00:00 the beginning of the day."""
    numbers = array.view(pa.int64()).to_pylist()
    return [
        "24:00:00" if number == _DAY_US else value
        for number, value in zip(numbers, array.to_pylist(), strict=True)
    ]

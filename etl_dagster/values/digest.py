"""A 64-bit hash of each row of Arrow data, to compare tables without comparing values one by one.

Equal values hash alike whatever the width and layout of their Arrow type, such as string and
dictionary of strings. Values of the same type that differ have different hashes, but for one pair
in 2**64. Floats are equal if their bits are, except that there is one NaN.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_dagster.errors import InvalidState

#: One for each row.
Hashes: TypeAlias = npt.NDArray[np.uint64]

_NULL: Final = np.uint64(0x6A09E667F3BCC908)
_SEED: Final = np.uint64(0xBB67AE8584CAA73B)
_STEP: Final = np.uint64(0x9E3779B97F4A7C15)


def hash_rows(rows: pa.RecordBatch, columns: Iterable[str] | None = None) -> Hashes:
    """A hash of each row, over these columns in this order; over all without them.

    Raises:
        InvalidState: a column is of an Arrow type that no destination has.
    """
    names = rows.schema.names if columns is None else list(columns)
    combined = np.full(rows.num_rows, _SEED)
    for name in names:
        combined = _mixed(combined + hash_values(rows.column(rows.schema.get_field_index(name))))
    return combined


def hash_values(array: pa.Array[Any]) -> Hashes:
    """A hash of each value; null has one, too."""
    hashes = _hash_valid(array)
    if array.null_count:
        return np.where(array.is_null().to_numpy(zero_copy_only=False), _NULL, hashes)
    return hashes


def _hash_valid(array: Any) -> Hashes:
    type_ = array.type
    if isinstance(array, pa.ExtensionArray):
        return hash_values(array.storage)
    if pa.types.is_null(type_):
        return np.full(len(array), _NULL)
    if pa.types.is_dictionary(type_):
        return hash_values(array.dictionary_decode())
    if pa.types.is_struct(type_):
        fields = array.flatten()
        combined = np.full(len(array), _SEED)
        for field in fields:
            combined = _mixed(combined + hash_values(field))
        return combined
    if pa.types.is_map(type_):
        pairs = _mixed(hash_values(array.keys)) + hash_values(array.items)
        return _of_runs(_numbers(array.offsets), pairs)
    if _is_list(type_):
        lists = array.cast(pa.large_list(type_.value_type))
        return _of_runs(_numbers(lists.offsets), hash_values(lists.values))
    if _is_bytes(type_):
        values = array.cast(pa.large_binary())
        _, offsets, data = values.buffers()
        ends = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
        content = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
        part = content[ends[0] : ends[-1]] if len(ends) else content
        return _of_runs(ends - ends[0] if len(ends) else ends, part)
    if pa.types.is_decimal(type_):
        wide = array.cast(pa.decimal256(76, type_.scale))
        words = np.frombuffer(wide.buffers()[1], np.uint64)
        parts = words[4 * wide.offset : 4 * (wide.offset + len(wide))].reshape(-1, 4)
        combined = np.full(len(array), _SEED)
        for place in range(4):
            combined = _mixed(combined + parts[:, place])
        return combined
    return _mixed(_bits(array))


def _bits(array: Any) -> Hashes:
    type_ = array.type
    if pa.types.is_boolean(type_):
        return _numbers(array.cast(pa.uint8())).view(np.uint64)
    if pa.types.is_floating(type_):
        floats = array.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
        return np.where(np.isnan(floats), np.float64("nan"), floats).view(np.uint64)
    if pa.types.is_uint64(type_):
        whole: Hashes = array.fill_null(0).to_numpy(zero_copy_only=False)
        return whole
    if pa.types.is_integer(type_):
        return _numbers(array).view(np.uint64)
    if pa.types.is_date32(type_) or pa.types.is_time32(type_):
        return _numbers(array.cast(pa.int32())).view(np.uint64)
    if pa.types.is_temporal(type_) and not pa.types.is_interval(type_):
        return _numbers(array.cast(pa.int64())).view(np.uint64)
    raise InvalidState(f"values of the Arrow type {type_} can't be compared")


def _numbers(array: Any) -> npt.NDArray[np.int64]:
    """Whole numbers, 0 for null."""
    numbers: npt.NDArray[np.int64] = (
        array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    )
    return numbers


def _of_runs(offsets: npt.NDArray[np.int64], elements: npt.NDArray[Any]) -> Hashes:
    """A hash of each run of elements, by what they are and where each stands.

    The sum of each element times a factor of its place: the hash of strings that takes the fewest
    steps a byte.

    Args:
        offsets: where each run begins in `elements`, and then where the last one ends.
        elements: hashes, or bytes.
    """
    if len(offsets) < 2:
        return np.empty(0, np.uint64)
    lengths = np.diff(offsets)
    first, last = offsets[0], offsets[-1]
    places = np.arange(last - first) - np.repeat(offsets[:-1] - first, lengths)
    if len(places) and lengths.max() > len(_FACTORS):
        factors = _factors(places)
    else:
        factors = _FACTORS[places]
    values = elements[first:last]
    each = _BYTES[values] if values.dtype == np.uint8 else _mixed(values)
    each *= factors
    sums = np.empty(len(each) + 1, np.uint64)
    sums[0] = 0
    np.cumsum(each, out=sums[1:])
    totals = sums[offsets[1:] - first] - sums[offsets[:-1] - first]
    return _mixed(totals + lengths.astype(np.uint64) * _STEP)


def _factors(places: npt.NDArray[np.int64]) -> Hashes:
    """Of each place an odd number: then no bit of an element is lost."""
    return _mixed(places.astype(np.uint64) + _SEED) | np.uint64(1)


def _mixed(words: Hashes) -> Hashes:
    """The finalizer of SplitMix64: every bit of a word decides about every bit of the result."""
    words = words + _STEP
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


_BYTES: Final = _mixed(np.arange(256, dtype=np.uint64))
#: Of the first places; most values are shorter.
_FACTORS: Final = _factors(np.arange(1024))


def _is_list(type_: pa.DataType) -> bool:
    return (
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
    )


def _is_bytes(type_: pa.DataType) -> bool:
    return (
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
        or pa.types.is_binary(type_)
        or pa.types.is_large_binary(type_)
        or pa.types.is_binary_view(type_)
        or pa.types.is_fixed_size_binary(type_)
    )

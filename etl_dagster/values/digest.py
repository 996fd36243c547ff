"""A 64-bit hash of each row of Arrow data, to compare tables without comparing values one by one.

Equal values have equal hashes, whatever the width and layout of their Arrow type, such as string
and dictionary of strings. Different values of the same type have different hashes, except for one
pair in 2**64. Floats are equal if their bits are; all NaN are equal, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_dagster.errors import InvalidState

#: One for each row.
Hashes: TypeAlias = npt.NDArray[np.uint64]


class RowHashes(NamedTuple):
    """Two hashes for each of some rows."""

    #: Of each row's key; in a table without one, the hash of the row.
    keys: Hashes
    #: Of all values of each row.
    rows: Hashes


_NULL: Final = np.uint64(0x6A09E667F3BCC908)
_SEED: Final = np.uint64(0xBB67AE8584CAA73B)
_STEP: Final = np.uint64(0x9E3779B97F4A7C15)
#: How many rows, and words of texts, are hashed at a time: few enough for the processor's cache, so
#: that memory stays small however many there are.
_ROWS_AT_ONCE: Final = 8192
_WORDS_AT_ONCE: Final = 8192
#: If no text has more words than this, all texts are hashed at once, one word of each at a time.
_SHORT_WORDS: Final = 32


def hash_rows(rows: pa.RecordBatch, columns: Iterable[str] | None = None) -> Hashes:
    """A hash of each row, over these columns in this order; by default over all columns.

    Raises:
        InvalidState: a column has an Arrow type that no destination has.
    """
    names = rows.schema.names if columns is None else columns
    arrays = [rows.column(rows.schema.get_field_index(name)) for name in names]
    return combined(np.full(rows.num_rows, _SEED), arrays)


def combined(hashes: Hashes, arrays: Sequence[pa.Array[Any]]) -> Hashes:
    """For each row, a hash of its hash so far and of its values in the arrays."""
    found = np.empty(len(hashes), np.uint64)
    for first in range(0, len(hashes), _ROWS_AT_ONCE):
        some = _mixed(hashes[first : first + _ROWS_AT_ONCE])
        for array in arrays:
            some = _mixed(some + hash_values(array[first : first + _ROWS_AT_ONCE]))
        found[first : first + _ROWS_AT_ONCE] = some
    return found


def hash_values(array: pa.Array[Any]) -> Hashes:
    """A hash of each value, also of null."""
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
        return _of_texts(ends, content)
    if pa.types.is_decimal(type_):
        return _of_decimals(array)
    return _mixed(_bits(array))


def _of_decimals(array: Any) -> Hashes:
    """A hash of each decimal: of its two lower words, and of the others if they add something."""
    if array.type.bit_width < 128:
        array = array.cast(pa.decimal128(array.type.precision, array.type.scale))
    size = array.type.bit_width // 64
    words = np.frombuffer(array.buffers()[1], np.uint64)
    parts = words[size * array.offset : size * (array.offset + len(array))].reshape(-1, size)
    combined = _mixed(_mixed(parts[:, 0] + _SEED) + parts[:, 1])
    if size > 2:
        sign = (parts[:, 1].view(np.int64) >> 63).view(np.uint64)
        is_wide = (parts[:, 2] != sign) | (parts[:, 3] != sign)
        if is_wide.any():
            longer = _mixed(_mixed(combined + parts[:, 2]) + parts[:, 3])
            combined = np.where(is_wide, longer, combined)
    return combined


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
    """A hash of each run of elements, from their hashes and their places in the run.

    Args:
        offsets: the index in `elements` at which each run begins; at the end, where the last ends.
        elements: hashes.
    """
    if len(offsets) < 2:
        return np.empty(0, np.uint64)
    lengths = np.diff(offsets)
    first, last = offsets[0], offsets[-1]
    places = np.arange(last - first) - np.repeat(offsets[:-1] - first, lengths)
    each = _mixed(elements[first:last])
    each *= _factors_of(places)
    sums = np.empty(len(each) + 1, np.uint64)
    sums[0] = 0
    np.cumsum(each, out=sums[1:])
    totals = sums[offsets[1:] - first] - sums[offsets[:-1] - first]
    return _mixed(totals + lengths.astype(np.uint64) * _STEP)


def _of_texts(offsets: npt.NDArray[np.int64], content: npt.NDArray[np.uint8]) -> Hashes:
    """A hash of each text, from its words of eight bytes, their places, and its length.

    It is made of the sum of all words, each mixed and multiplied by a factor for its place. A sum
    can be computed for all texts at once.

    Args:
        offsets: the index in `content` at which each text begins; at the end, where the last ends.
    """
    if len(offsets) < 2:
        return np.empty(0, np.uint64)
    lengths = np.diff(offsets)
    most = int(lengths.max())
    sums = _sums_of_short if most <= 8 * _SHORT_WORDS else _sums_of_any
    return _mixed(sums(offsets, lengths, content) + lengths.astype(np.uint64) * _STEP)


def _sums_of_short(
    offsets: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    content: npt.NDArray[np.uint8],
) -> Hashes:
    """The sum of each text's words: first all first words, then all second ones, and so on."""
    first, size = int(offsets[0]), int(offsets[-1] - offsets[0])
    # Padded with zeros, so that eight bytes can be read from any place in a text.
    padded = np.zeros(size + 8, np.uint8)
    padded[:size] = content[first : first + size]
    words = np.ndarray((size + 1,), np.uint64, padded, strides=(1,))
    at, left = offsets[:-1] - first, lengths
    totals = np.zeros(len(lengths), np.uint64)
    here: Any = slice(None)  # the texts that have a word at this place
    for place in range(_SHORT_WORDS):
        has_more = left > 0
        if not has_more.all():
            more = np.flatnonzero(has_more)
            if not len(more):
                break
            here = more if isinstance(here, slice) else here[more]
            at, left = at[more], left[more]
        found = words[at]
        found &= _MASKS[np.minimum(left, 8)]
        found = _mixed(found)
        found *= _FACTORS[place]
        totals[here] += found
        at, left = at + 8, left - 8
    return totals


def _sums_of_any(
    offsets: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    content: npt.NDArray[np.uint8],
) -> Hashes:
    """The sum of each text's words, some thousand words at a time.

    The words of a long text may be in several of these portions.
    """
    begins = offsets[:-1]
    counts = (lengths + 7) >> 3
    #: The number of words before each text; at the end, of all words.
    firsts = np.zeros(len(offsets), np.int64)
    np.cumsum(counts, out=firsts[1:])
    #: The sum over all words before each text's first.
    before = np.zeros(len(offsets), np.uint64)
    total = np.uint64(0)
    for start in range(0, int(firsts[-1]), _WORDS_AT_ONCE):
        end = min(start + _WORDS_AT_ONCE, int(firsts[-1]))
        # The texts that have words in this portion; empty ones may be among them.
        low = int(np.searchsorted(firsts, start, "right")) - 1
        high = int(np.searchsorted(firsts, end, "left"))
        here = np.minimum(firsts[low + 1 : high + 1], end) - np.maximum(firsts[low:high], start)
        places = np.arange(start, end) - np.repeat(firsts[low:high], here)
        at = np.repeat(begins[low:high], here) + (places << 3)
        words = _words(content, at, np.repeat(offsets[low + 1 : high + 1], here) - at)
        sums = _mixed(words)
        sums *= _factors_of(places)
        np.cumsum(sums, out=sums)
        sums += total
        total = sums[-1]
        ended = slice(low + 1, int(np.searchsorted(firsts, end, "right")))
        before[ended] = sums[firsts[ended] - start - 1]
    totals: Hashes = np.diff(before)
    return totals


def _words(
    content: npt.NDArray[np.uint8], at: npt.NDArray[np.int64], left: npt.NDArray[np.int64]
) -> Hashes:
    """The eight bytes at each place; those past the first `left` bytes are zero.

    Args:
        at: the places, ascending.
        left: how many bytes of its text there are from each place on; may be more than eight.
    """
    origin = int(at[0])
    part = content[origin : int(at[-1]) + 8]
    aligned = np.zeros((len(part) >> 3) + 2, np.uint64)
    aligned.view(np.uint8)[: len(part)] = part
    at = at - origin
    which, shift = at >> 3, ((at & 7) << 3).astype(np.uint64)
    words: Hashes = aligned[which] >> shift
    # In two steps, since a shift by 64 isn't defined.
    words |= (aligned[which + 1] << (np.uint64(63) - shift)) << np.uint64(1)
    short = np.flatnonzero(left < 8)
    words[short] &= (np.uint64(1) << (left[short] << 3).astype(np.uint64)) - np.uint64(1)
    return words


def _factors_of(places: npt.NDArray[np.int64]) -> Hashes:
    """As `_factors`; small places are looked up."""
    if len(places) and places.max() >= len(_FACTORS):
        return _factors(places)
    return _FACTORS[places]


def _factors(places: npt.NDArray[np.int64]) -> Hashes:
    """A factor for each place; it is odd, so that multiplying loses no bit of an element."""
    return _mixed(places.astype(np.uint64) + _SEED) | np.uint64(1)


def _mixed(words: Hashes) -> Hashes:
    """The finalizer of SplitMix64: every bit of a word affects every bit of the result."""
    words = words + _STEP
    shifted = words >> np.uint64(30)
    words ^= shifted
    words *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(words, np.uint64(27), out=shifted)
    words ^= shifted
    words *= np.uint64(0x94D049BB133111EB)
    np.right_shift(words, np.uint64(31), out=shifted)
    words ^= shifted
    return words


#: The factors of the first places; most values are shorter.
_FACTORS: Final = _factors(np.arange(1024))
#: Masks for the first bytes of a word, by their number.
_MASKS: Final[Hashes] = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)


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

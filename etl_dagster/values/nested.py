r"""Reads values with parts, a column at a time: split all texts, read all parts, put them together.

The texts of a column are in memory one after the other. Arrays over their bytes tell which commas
and braces are outside of quotes; a part is between two of these. So all parts of all values become
one string array, which the reader of their type reads with one cast, and the counts of parts become
the offsets of a list. No Python object is made for a value or a part.

What Postgres prints:

| type | text | quotes of a part |
|---|---|---|
| array | ``{1,NULL,3}``, ``{{1,2},{3,4}}``, ``[0:1]={1,2}`` | ``"a\"b\\c"`` |
| composite | ``(1,,"a b")``; an empty place between commas is null | ``"a""b\\c"`` |
| range | ``[1,5)``, ``(,)``, ``empty`` | as in a composite |
| multirange | ``{[1,3),[5,8)}`` | in its ranges |
| hstore | ``"a"=>"1", "b"=>NULL`` | as in an array |

Source: array_out() in arrayfuncs.c, record_out() in rowtypes.c, range_deparse() in rangetypes.c,
multirange_out() in multirangetypes.c, hstore_out() in hstore_io.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from etl_dagster.values.form import AnyArray, Form
from etl_dagster.values.parsed import Parsed
from etl_dagster.values.splitting import Bytes, Delimiters, Flags, Places, Texts, validity_of
from etl_dagster.values.strings import buffer_of, cut

_QUOTE, _COMMA = ord('"'), ord(",")
_OPEN, _CLOSE = ord("{"), ord("}")

RANGE_FIELDS: Final = ("lower", "upper", "lower_inc", "upper_inc", "empty")


# -- arrays ------------------------------------------------------------------------------------


def read_arrays(element: Form, dimensions: int, delimiter: str, strings: AnyArray) -> Parsed:
    """Lists, as deep as declared; an array with other dimensions or lower bounds is odd.

    Postgres doesn't enforce the declared dimensions. An empty array is an empty list, however deep
    the others are.
    """
    texts = Texts(strings)
    is_array = texts.first(_OPEN) & texts.last(_CLOSE)
    rows = texts.rows()
    wrong = rows[~is_array]
    if len(wrong):
        texts = texts.only(is_array)
        rows = texts.rows()
    split = _split(texts, dimensions, delimiter)
    if not split.is_regular.all():
        wrong = np.sort(np.concatenate([wrong, rows[~split.is_regular]]))
        texts = texts.only(split.is_regular)
        rows = texts.rows()
        split = _split(texts, dimensions, delimiter)
    parsed = element.read(split.parts)
    array: AnyArray = parsed.array
    for counts in reversed(split.counts[1:]):
        array = _list(array, counts, None)
    outer = np.zeros(texts.count, np.int64)
    outer[rows] = split.counts[0]
    array = _list(array, outer, texts.is_valid)
    if parsed.odd is not None:
        leaf_ends = np.cumsum(split.leaf_counts)
        holders = np.searchsorted(leaf_ends, parsed.odd.places, side="right")
        wrong = np.union1d(wrong, rows[holders])
    return Parsed(array, Texts(strings).odd(wrong))


class _Split:
    """The parts of some arrays."""

    def __init__(
        self, parts: AnyArray, counts: list[Places], leaf_counts: Places, is_regular: Flags
    ) -> None:
        self.parts = parts
        #: For each dimension, the number of parts of each array (of arrays).
        self.counts = counts
        #: The number of innermost parts of each value.
        self.leaf_counts = leaf_counts
        #: Bool: which values have the declared dimensions, or are empty.
        self.is_regular = is_regular


def _split(texts: Texts, dimensions: int, delimiter: str) -> _Split:
    marks = Delimiters(texts.data, doubles=False)
    data, count = texts.data, len(texts.begins)
    places = np.flatnonzero(marks.of(_OPEN, _CLOSE, ord(delimiter)))
    kinds = data[places]
    is_open, is_close = kinds == _OPEN, kinds == _CLOSE
    marks_before = np.searchsorted(places, texts.ends)
    holders = np.repeat(np.arange(count), np.diff(marks_before, prepend=0))
    # A part is between a mark that opens or separates, and one that separates or closes. If there
    # is nothing between the marks, the array is empty, and there is no part.
    begins, ends = places[:-1] + 1, places[1:]
    is_part = ~is_close[:-1] & ~is_open[1:] & (ends > begins)
    begins, ends, values = begins[is_part], ends[is_part], holders[:-1][is_part]
    leaf_counts = np.bincount(values, minlength=count)
    if dimensions == 1:
        # One brace at each end, and none in between.
        is_regular = np.bincount(holders[is_open], minlength=count) == 1
        counts = [leaf_counts]
    else:
        depth = np.cumsum(is_open.astype(np.int64) - is_close)
        deepest = np.zeros(count, np.int64)
        np.maximum.at(deepest, holders, depth)
        is_regular = deepest <= dimensions
        is_regular[values[depth[:-1][is_part] != dimensions]] = False
        counts = _nested_counts(places, depth, is_open, begins, dimensions)
    parts = marks.parts(begins, ends, _is_null(data, begins, ends))
    return _Split(parts, counts, leaf_counts, is_regular)


def _nested_counts(
    places: Places,
    depth: Places,
    is_open: Flags,
    begins: Places,
    dimensions: int,
) -> list[Places]:
    """For each dimension, the number of children of each array."""
    opened = [places[is_open & (depth == level)] for level in range(1, dimensions + 1)]
    children = [*opened[1:], begins]
    counts = []
    for parents, inner in zip(opened, children, strict=True):
        holder = np.searchsorted(parents, inner, side="right") - 1
        counts.append(np.bincount(holder[holder >= 0], minlength=len(parents)))
    return counts


def _is_null(data: Bytes, begins: Places, ends: Places) -> Flags:
    """Which parts are the word NULL; a text with this content is quoted."""
    is_null: Flags = ends - begins == 4
    maybe = np.flatnonzero(is_null)
    for offset, byte in enumerate(b"NULL"):
        maybe = maybe[data[begins[maybe] + offset] == byte]
    is_null[:] = False
    is_null[maybe] = True
    return is_null


def _list(values: AnyArray, counts: Places, is_valid: Flags | None) -> AnyArray:
    """Lists of `counts` values each."""
    offsets = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    return pa.Array.from_buffers(
        pa.list_(values.type),
        len(counts),
        [validity_of(is_valid), buffer_of(offsets)],
        children=[values],
    )


# -- composites and ranges ---------------------------------------------------------------------


def read_composites(names: Sequence[str], forms: Sequence[Form], strings: AnyArray) -> Parsed:
    """Structs with a field for each attribute.

    A value with another number of attributes is odd: an attribute was added to the type, or
    dropped, since the schema was read.
    """
    texts = Texts(strings)
    fields, is_right = _fields(texts, len(forms), b"(", b")")
    rows = texts.rows()
    wrong = rows[~is_right]
    if len(wrong):
        texts = texts.only(is_right)
        rows = texts.rows()
        fields, _ = _fields(texts, len(forms), b"(", b")")
    odd_rows = [wrong]
    children = []
    for form, field in zip(forms, fields, strict=True):
        parsed = form.read(field)
        children.append(_spread(parsed.array, texts))
        if parsed.odd is not None:
            odd_rows.append(rows[parsed.odd.places])
    array = _struct(struct_of(names, [form.arrow for form in forms]), children, texts)
    return Parsed(array, Texts(strings).odd(np.unique(np.concatenate(odd_rows))))


def struct_of(names: Sequence[str], types: Sequence[pa.DataType]) -> pa.DataType:
    """A struct type."""
    return pa.struct([pa.field(name, type_) for name, type_ in zip(names, types, strict=True)])


def _fields(
    texts: Texts, width: int, openers: bytes, closers: bytes
) -> tuple[list[AnyArray], Flags]:
    """The fields, each as a string array over all texts; and which texts have `width` fields.

    If not all texts have, there are no fields.
    """
    marks = Delimiters(texts.data, doubles=True)
    commas = np.flatnonzero(marks.of(_COMMA))
    counts = np.bincount(
        np.searchsorted(texts.ends, commas, side="right"), minlength=len(texts.begins)
    )
    is_right = counts == width - 1
    is_right &= np.logical_or.reduce([texts.first(byte) for byte in openers])
    is_right &= np.logical_or.reduce([texts.last(byte) for byte in closers])
    if not is_right.all():
        return [], is_right
    between = commas.reshape(len(texts.begins), width - 1)
    begins = np.column_stack([texts.begins, between]) + 1
    ends = np.column_stack([between, texts.ends - 1])
    fields = []
    for place in range(width):
        begin, end = np.ascontiguousarray(begins[:, place]), np.ascontiguousarray(ends[:, place])
        # An empty place is null: an empty text is quoted.
        fields.append(marks.parts(begin, end, begin == end))
    return fields, is_right


def _spread(array: AnyArray, texts: Texts) -> AnyArray:
    """The values of the texts, with null for the other rows."""
    if texts.is_valid is None:
        return array
    places = np.cumsum(texts.is_valid) - 1
    indices: Any = pa.array(places, mask=~texts.is_valid)
    return array.take(indices)


def _struct(type_: pa.DataType, children: list[AnyArray], texts: Texts) -> AnyArray:
    return pa.Array.from_buffers(
        type_, texts.count, [validity_of(texts.is_valid)], children=children
    )


def read_ranges(subtype: Form, strings: AnyArray) -> Parsed:
    """Structs of `RANGE_FIELDS`; an infinite bound is null."""
    texts = Texts(strings)
    is_empty = _is_word(texts, b"empty")
    bounded = texts.only(~is_empty) if is_empty.any() else texts
    fields, is_right = _fields(bounded, 2, b"[(", b"])")
    wrong = bounded.rows()[~is_right]
    if len(wrong):
        bounded = bounded.only(is_right)
        fields, _ = _fields(bounded, 2, b"[(", b"])")
    rows = bounded.rows()
    if len(wrong):
        keep = np.ones(len(texts.begins), bool)
        keep[np.searchsorted(texts.rows(), wrong)] = False
        texts = texts.only(keep)
    odd_rows = [wrong]
    children = []
    for field in fields:
        parsed = subtype.read(field)
        children.append(_spread(parsed.array, bounded))
        if parsed.odd is not None:
            odd_rows.append(rows[parsed.odd.places])
    flags = np.zeros((3, texts.count), bool)
    flags[0][rows] = bounded.first(ord("["))
    flags[1][rows] = bounded.last(ord("]"))
    flags[2][texts.rows()] = True
    flags[2][rows] = False
    children += [_bools(flag) for flag in flags]
    array = _struct(range_type(subtype.arrow), children, texts)
    return Parsed(array, Texts(strings).odd(np.unique(np.concatenate(odd_rows))))


def range_type(subtype: pa.DataType) -> pa.DataType:
    """The struct type of a range."""
    return struct_of(RANGE_FIELDS, [subtype, subtype, pa.bool_(), pa.bool_(), pa.bool_()])


def _bools(flags: Flags) -> AnyArray:
    bits = buffer_of(np.packbits(flags, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(flags), [None, bits])


def _is_word(texts: Texts, word: bytes) -> Flags:
    found: Flags = texts.ends - texts.begins == len(word)
    maybe = np.flatnonzero(found)
    for offset, byte in enumerate(word):
        maybe = maybe[texts.data[texts.begins[maybe] + offset] == byte]
    found[:] = False
    found[maybe] = True
    return found


# -- multiranges and hstore --------------------------------------------------------------------


def read_multiranges(range_: Form, strings: AnyArray) -> Parsed:
    """Lists of ranges."""
    texts = Texts(strings)
    is_right = texts.first(_OPEN) & texts.last(_CLOSE)
    wrong = texts.rows()[~is_right]
    if len(wrong):
        texts = texts.only(is_right)
    marks = Delimiters(texts.data, doubles=True)
    begins = np.flatnonzero(marks.of(ord("["), ord("(")))
    ends = np.flatnonzero(marks.of(ord("]"), ord(")"))) + 1
    rows = texts.rows()
    holders = np.searchsorted(texts.ends, begins, side="right")
    counts = np.bincount(holders, minlength=len(rows))
    # Whole ranges, with their quotes.
    parsed = range_.read(cut(texts.data, begins, ends))
    outer = np.zeros(texts.count, np.int64)
    outer[rows] = counts
    if parsed.odd is not None:
        wrong = np.union1d(wrong, rows[holders[parsed.odd.places]])
    array = _list(parsed.array, outer, texts.is_valid)
    return Parsed(array, Texts(strings).odd(wrong))


MAP_OF_TEXTS: Final = pa.map_(pa.string(), pa.string())


def read_hstores(text: Form, strings: AnyArray) -> Parsed:
    """Maps from text to text, in the order in which Postgres prints them."""
    texts = Texts(strings)
    marks = Delimiters(texts.data, doubles=False)
    opens, closes = marks.quotes()
    after = np.append(texts.data, np.zeros(4, np.uint8))
    is_key = after[closes + 1] == ord("=")
    keys = marks.parts(opens[is_key], closes[is_key] + 1, None)
    is_null = after[closes[is_key] + 3] != _QUOTE
    # The quoted text after a key is its value, unless the value is null.
    following = np.minimum(np.flatnonzero(is_key) + 1, max(len(opens) - 1, 0))
    begins = np.where(is_null, opens[is_key], opens[following])
    ends = np.where(is_null, opens[is_key], closes[following] + 1)
    values = marks.parts(begins, ends, is_null)
    rows = texts.rows()
    holders = np.searchsorted(texts.ends, opens[is_key], side="right")
    counts = np.zeros(texts.count, np.int64)
    counts[rows] = np.bincount(holders, minlength=len(rows))
    offsets = np.zeros(texts.count + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    read_keys, read_values = text.read(keys), text.read(values)
    entry = pa.struct([MAP_OF_TEXTS.key_field, MAP_OF_TEXTS.item_field])
    entries = pa.Array.from_buffers(
        entry, len(keys), [None], children=[read_keys.array, read_values.array]
    )
    array = pa.Array.from_buffers(
        MAP_OF_TEXTS,
        texts.count,
        [validity_of(texts.is_valid), buffer_of(offsets)],
        children=[entries],
    )
    odd = [part.odd.places for part in (read_keys, read_values) if part.odd is not None]
    wrong = np.unique(rows[holders[np.concatenate(odd)]]) if odd else rows[:0]
    return Parsed(array, Texts(strings).odd(wrong))


# -- enums -------------------------------------------------------------------------------------

DICTIONARY_OF_TEXTS: Final = pa.dictionary(pa.int32(), pa.string())


def read_labels(text: Form, strings: AnyArray) -> Parsed:
    """A dictionary array of the labels that occur, also of labels that were added since."""
    parsed = text.read(strings)
    encoded: Any = parsed.array
    return Parsed(encoded.dictionary_encode(), parsed.odd)

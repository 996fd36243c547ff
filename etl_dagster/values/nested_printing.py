"""Values with parts as text that Postgres reads back as the same values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from etl_dagster.values.form import AnyArray, Form

Texts = list[str | None]


def print_arrays(element: Form, delimiter: str, array: AnyArray) -> Texts:
    """Lists of any depth as arrays."""
    lists: Any = array

    def texts_of(values: Any, is_leaf: bool) -> Texts:
        if not is_leaf:
            return print_arrays(element, delimiter, values)
        return [_quoted(text) for text in _parts(element, values)]

    is_leaf = lists.type.value_type == element.arrow
    texts = texts_of(lists.values, is_leaf)
    return _gathered(lists, lambda begin, end: _braced(texts[begin:end], delimiter))


def _braced(texts: Sequence[str | None], delimiter: str) -> str:
    # An empty array has no dimensions, so it can't be inside of another array.
    return "{" + delimiter.join("NULL" if text is None else text for text in texts) + "}"


def _parts(form: Form, values: AnyArray) -> Texts:
    """The texts of parts; null stays null, also for types that print it as another value."""
    texts = form.print(values)
    nulls = values.is_null().to_pylist()
    return [None if is_null else text for text, is_null in zip(texts, nulls, strict=True)]


def _gathered(lists: Any, text_of: Callable[[int, int], str]) -> Texts:
    offsets: list[int] = lists.offsets.to_pylist()
    valid: list[bool] = lists.is_valid().to_pylist()
    return [
        text_of(offsets[place], offsets[place + 1]) if is_valid else None
        for place, is_valid in enumerate(valid)
    ]


def _quoted(text: str | None) -> str | None:
    if text is None:
        return None
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _doubled(text: str | None) -> str:
    """A part of a composite or a range, where nothing is null."""
    if text is None:
        return ""
    return '"' + text.replace("\\", "\\\\").replace('"', '""') + '"'


def print_composites(forms: Sequence[Form], array: AnyArray) -> Texts:
    """Structs as rows."""
    structs: Any = array
    columns = [_parts(form, structs.field(place)) for place, form in enumerate(forms)]
    texts = ["(" + ",".join(map(_doubled, row)) + ")" for row in zip(*columns, strict=True)]
    return _where_valid(structs, texts)


def _where_valid(array: AnyArray, texts: Sequence[str]) -> Texts:
    valid = array.is_valid().to_pylist()
    return [text if is_valid else None for text, is_valid in zip(texts, valid, strict=True)]


def print_ranges(subtype: Form, array: AnyArray) -> Texts:
    """Structs of `nested.RANGE_FIELDS` as ranges."""
    structs: Any = array
    lower, upper = (_parts(subtype, structs.field(place)) for place in (0, 1))
    flags = (structs.field(place).to_pylist() for place in (2, 3, 4))
    texts = [
        "empty"
        if is_empty
        else ("[" if from_lower else "(")
        + f"{_doubled(first)},{_doubled(last)}"
        + ("]" if to_upper else ")")
        for first, last, from_lower, to_upper, is_empty in zip(lower, upper, *flags, strict=True)
    ]
    return _where_valid(structs, texts)


def print_multiranges(range_: Form, array: AnyArray) -> Texts:
    """Lists of ranges as multiranges."""
    lists: Any = array
    texts = range_.print(lists.values)
    return _gathered(lists, lambda begin, end: _braced(texts[begin:end], ","))


def print_hstores(array: AnyArray) -> Texts:
    """Maps as hstore."""
    maps: Any = array
    keys: list[str] = maps.keys.cast(pa.string()).to_pylist()
    items: Texts = maps.items.cast(pa.string()).to_pylist()
    pairs = [
        f"{_quoted(key)}=>{_quoted(item) or 'NULL'}" for key, item in zip(keys, items, strict=True)
    ]
    return _gathered(maps, lambda begin, end: ", ".join(pairs[begin:end]))

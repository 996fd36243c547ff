"""How the values of a column are held, with or without parts.

| Postgres | Arrow | JSON |
|---|---|---|
| array | list, as deep as declared | list |
| range | struct: lower, upper, lower_inc, upper_inc, empty | object |
| multirange | list of ranges | list |
| composite | struct of its attributes | object |
| enum | dictionary of strings | string |
| hstore | map from string to string | object |
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from etl_dagster.values import nested, nested_printing
from etl_dagster.values.columns import ColumnSchema, Nested
from etl_dagster.values.families.numbers import chosen_numeric, numeric_form
from etl_dagster.values.families.texts import AS_PRINTED
from etl_dagster.values.form import AnyArray, Form, Reader
from etl_dagster.values.oids import BOOL, NUMERIC, TEXT
from etl_dagster.values.parsed import Odd, Parsed
from etl_dagster.values.python import to_objects
from etl_dagster.values.read_as import form_as, read_as
from etl_dagster.values.registry import REGISTRY, UNKNOWN, row_of
from etl_dagster.values.shapes import CastTo
from etl_dagster.values.strings import decode_stored
from etl_dagster.values.types import (
    Array,
    Composite,
    Domain,
    Enum,
    Multirange,
    PgType,
    Range,
    Scalar,
    scalars_in,
    without_domains,
)


def form_of(column: ColumnSchema, codec: str | None = None) -> Form:
    """How the column's values are held.

    Args:
        codec: Python's name for the encoding of the texts that the form reads, if they are read as
            the database stores them; None: UTF-8.
    """
    if column.shape is not None and column.shape.cast is not None:
        return _cast_form(column.shape.cast, codec)
    if column.type is None or column.nested == "text":
        form = _scalar_form(column.effective_type_oid, column.type_modifier, column.own_type)
        if is_any_numeric(column):
            form = chosen_numeric(column.numeric)
        if column.as_text:
            form = AS_PRINTED
        return form if codec is None else _stored(form, codec, column.effective_type_oid)
    return _nested_form(column.type, column.nested, column.numeric, codec, column.own_type)


def is_any_numeric(column: ColumnSchema) -> bool:
    """Whether the column is a numeric without precision, which may hold any number."""
    return column.effective_type_oid == NUMERIC and column.type_modifier < 0


def has_any_numeric(column: ColumnSchema) -> bool:
    """Whether the column is such a numeric, or has parts that are held as such numerics."""
    if is_any_numeric(column):
        return True
    if column.type is None or not has_parts(column):
        return False
    return any(s.oid == NUMERIC and s.modifier < 0 for s in scalars_in(column.type))


def arrow_type(column: ColumnSchema) -> pa.DataType:
    """The Arrow type of the column's values."""
    return form_of(column).arrow


def may_be_odd(column: ColumnSchema) -> bool:
    """Whether the column's type has values that would be null; not so if it is held as text."""
    if form_of(column).parts:
        return True
    if column.shape is not None and column.shape.cast is not None:
        return column.shape.cast.type_oid != TEXT
    edges = row_of(column).edges_for(own_type=column.own_type)
    return pa.types.is_decimal(arrow_type(column)) or any(edge.is_odd for edge in edges)


def is_always_held(column: ColumnSchema) -> bool:
    """Whether no value of the column can be odd, whatever the database's encoding is."""
    # Values in ASCII can be read in every encoding.
    return not may_be_odd(column) and row_of(column).is_ascii


def has_parts(column: ColumnSchema) -> bool:
    """Whether the column's values have parts that are held as such."""
    return bool(form_of(column).parts)


def labels_of(column: ColumnSchema) -> tuple[str, ...] | None:
    """The labels of an enum, in their order; None for a column of another type."""
    type_ = None if column.type is None else without_domains(column.type)
    return type_.labels if isinstance(type_, Enum) else None


def with_labels(
    column: ColumnSchema, labels: tuple[str, ...], label_ids: tuple[int, ...] = ()
) -> ColumnSchema:
    """The column, whose enum now has these labels."""

    def of(type_: PgType) -> PgType:
        match type_:
            case Enum():
                return replace(type_, labels=labels, label_ids=label_ids)
            case Domain():
                return replace(type_, base=of(type_.base))
            case Array():
                return replace(type_, element=of(type_.element))
        return type_

    assert column.type is not None
    return replace(column, type=of(column.type))


def may_have_own_type(column: ColumnSchema, *, in_key: bool) -> bool:
    """Whether the values, or parts of them, may be held in a type of the destination's own."""
    if (labels := labels_of(column)) is not None:
        return bool(labels)  # no destination has an enum without labels
    if column.type is None or isinstance(without_domains(column.type), Scalar):
        own = row_of(column).own
        return own is not None and (own.in_keys or not in_key)
    if column.nested != "native":
        return False
    scalars = (REGISTRY.get(scalar.oid, UNKNOWN) for scalar in scalars_in(column.type))
    return any(row.own is not None for row in scalars)


@lru_cache(maxsize=4096)
def _scalar_form(type_oid: int, type_modifier: int, own_type: bool = False) -> Form:
    return REGISTRY.get(type_oid, UNKNOWN).form_for(type_modifier, own_type=own_type)


@lru_cache(maxsize=1024)
def _cast_form(cast: CastTo, codec: str | None) -> Form:
    """For a column whose values are read as another type."""
    form = replace(form_as(cast), read=partial(read_as, cast))
    return form if codec is None else _decoded(form, codec)


@lru_cache(maxsize=1024)
def _stored(form: Form, codec: str, type_oid: int = 0) -> Form:
    """The same form, for texts as the database stores them."""
    return form if REGISTRY.get(type_oid, UNKNOWN).is_ascii else _decoded(form, codec)


def _decoded(form: Form, codec: str) -> Form:
    def read(strings: AnyArray) -> Parsed:
        decoded = decode_stored(strings, codec, is_json=form.meaning == "json")
        return form.read(decoded.array).also(decoded.odd)

    return replace(form, read=read)


@lru_cache(maxsize=4096)
def _nested_form(
    type_: PgType, mode: Nested, numeric: str, codec: str | None, own_type: bool
) -> Form:
    type_ = without_domains(type_)
    form = _Forms(codec, numeric, own_type).form(type_)
    if isinstance(type_, Enum) and mode == "native":
        read = partial(nested.read_labels, form)
        return Form(nested.DICTIONARY_OF_TEXTS, read, json="string")
    if not form.parts:
        return form
    form = replace(form, read=partial(_read_whole, form.read, codec or "utf-8"))
    return _as_json(form) if mode == "json" else form


def _read_whole(read: Reader, codec: str, strings: AnyArray) -> Parsed:
    """The values, with texts of the odd ones that are valid UTF-8."""
    parsed = read(strings)
    if parsed.odd is None:
        return parsed
    decoded = decode_stored(parsed.odd.texts, codec, is_json=False)
    texts = decoded.array
    if decoded.odd is not None:
        source = np.arange(len(texts))
        source[decoded.odd.places] = len(texts) + np.arange(len(decoded.odd))
        texts = pa.concat_arrays([texts, decoded.odd.texts]).take(source)
    return Parsed(parsed.array, Odd(parsed.odd.places, texts))


class _Forms:
    """Makes the forms of values with parts.

    Texts are split as bytes, and decoded part by part. That is safe: in every encoding of a
    database quotes, commas and braces are as in ASCII, and no invalid byte looks like one of them.
    """

    def __init__(self, codec: str | None, numeric: str, own_type: bool) -> None:
        self._codec = codec
        #: How a numeric without precision is held (`ColumnSchema.numeric`).
        self._numeric = numeric
        self._own_type = own_type
        self._text = AS_PRINTED if codec is None else _stored(AS_PRINTED, codec)

    def form(self, type_: PgType) -> Form:
        """The form of a part, or of a whole value."""
        match type_:
            case Domain():
                return self.form(type_.base)
            case Scalar():
                return self._scalar(type_)
            case Array():
                return self._array(type_)
            case Range():
                return self._range(type_)
            case Multirange():
                return self._multirange(type_)
            case Composite():
                return self._composite(type_)
            case Enum():
                return self._text

    def _scalar(self, type_: Scalar) -> Form:
        if (type_.extension, type_.name.rpartition(".")[2]) == ("hstore", "hstore"):
            return self._hstore()
        if type_.oid == NUMERIC and type_.modifier < 0:
            return chosen_numeric(self._numeric)
        form = _scalar_form(type_.oid, type_.modifier, self._own_type)
        # Few destinations have such wide numbers, and none has them in a list.
        if pa.types.is_decimal256(form.arrow):
            form = numeric_form(-1)
        return form if self._codec is None else _stored(form, self._codec, type_.oid)

    def _array(self, type_: Array) -> Form:
        element = self.form(type_.element)
        arrow = element.arrow
        for _ in range(type_.dimensions):
            arrow = pa.list_(arrow)
        return Form(
            arrow,
            partial(nested.read_arrays, element, type_.dimensions, type_.delimiter),
            to_json=_each(element.to_json, type_.dimensions),
            from_json=_each(element.from_json, type_.dimensions),
            print=partial(nested_printing.print_arrays, element, type_.delimiter),
            json="list",
            parts=(element,),
        )

    def _range(self, type_: Range) -> Form:
        subtype, flag = self.form(type_.subtype), _scalar_form(BOOL, -1)
        keys = ("lower", "upper")
        return Form(
            nested.range_type(subtype.arrow),
            partial(nested.read_ranges, subtype),
            to_json=_members(dict.fromkeys(keys, subtype.to_json)),
            from_json=_members(dict.fromkeys(keys, subtype.from_json)),
            print=partial(nested_printing.print_ranges, subtype),
            json="object: lower, upper (null: infinite), lower_inc, upper_inc, empty",
            parts=(subtype, subtype, flag, flag, flag),
        )

    def _multirange(self, type_: Multirange) -> Form:
        range_ = self._range(type_.range)
        return Form(
            pa.list_(range_.arrow),
            partial(nested.read_multiranges, range_),
            to_json=_each(range_.to_json, 1),
            from_json=_each(range_.from_json, 1),
            print=partial(nested_printing.print_multiranges, range_),
            json="list of ranges",
            parts=(range_,),
        )

    def _composite(self, type_: Composite) -> Form:
        names = [attribute.name for attribute in type_.attributes]
        # No destination has a struct without fields, and to some A and a are the same name.
        if not names or len({name.lower() for name in names}) < len(names):
            return self._text
        forms = [self.form(attribute.type) for attribute in type_.attributes]
        return Form(
            nested.struct_of(names, [form.arrow for form in forms]),
            partial(nested.read_composites, names, forms),
            to_json=_members(dict(zip(names, (form.to_json for form in forms), strict=True))),
            from_json=_members(dict(zip(names, (form.from_json for form in forms), strict=True))),
            print=partial(nested_printing.print_composites, forms),
            json="object with a member for each attribute",
            parts=tuple(forms),
        )

    def _hstore(self) -> Form:
        return Form(
            nested.MAP_OF_TEXTS,
            partial(nested.read_hstores, self._text),
            print=nested_printing.print_hstores,
            json="object",
            parts=(self._text, self._text),
        )


# -- JSON --------------------------------------------------------------------------------------

Convert = Callable[[Any], Any]


def _each(convert: Convert | None, depth: int) -> Convert | None:
    """For every value in a list, and in the lists in it."""
    if convert is None:
        return None
    inner = convert if depth == 1 else _each(convert, depth - 1)
    assert inner is not None
    return lambda values: [None if value is None else inner(value) for value in values]


def _members(converts: dict[str, Convert | None]) -> Convert | None:
    """For some members of an object."""
    found = {name: convert for name, convert in converts.items() if convert is not None}
    if not found:
        return None
    return lambda value: {
        name: member if member is None or (convert := found.get(name)) is None else convert(member)
        for name, member in value.items()
    }


def _as_json(form: Form) -> Form:
    """The same values as the text of their JSON."""

    def read(strings: AnyArray) -> Parsed:
        parsed = form.read(strings)
        objects = to_objects(parsed.array)
        texts = [None if value is None else write(value) for value in objects]
        return Parsed(pa.array(texts, pa.string()), parsed.odd)

    def write(value: Any) -> str:
        plain = value if form.to_json is None else form.to_json(value)
        return json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))

    def unreadable(array: AnyArray) -> list[str | None]:
        return [None] * len(array)

    return Form(
        pa.string(),
        read,
        print=unreadable,
        spelling="json",
        json=f"string: the JSON of a {form.json}",
        meaning="json",
        duckdb="JSON",
    )

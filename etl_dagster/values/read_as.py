"""Reads the text of one type as a value of another: what a `cast` in the settings does.

A text that isn't a value of the type is odd, like a value that its own type can't hold.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.families.numbers import numeric_of_any
from etl_dagster.values.form import AnyArray, Form
from etl_dagster.values.oids import NUMERIC, TEXT
from etl_dagster.values.parsed import Odd, Parsed, joined, odd_where
from etl_dagster.values.registry import REGISTRY, row_of
from etl_dagster.values.shapes import CastTo
from etl_dagster.values.strings import read_text, valid_text

_compute: Any = pc

_TYPE: Final = re.compile(r"(?P<name>[a-z ]+?)\s*(?:\(\s*(?P<first>\d+)\s*,\s*(?P<last>\d+)\s*\))?")
#: As wide as the decimals of most destinations.
_MAX_DIGITS: Final = 38


def type_named(text: str) -> CastTo | None:
    """The type with this name that values can be read as; None if there is none.

    >>> type_named("numeric(12, 2)").type_name
    'numeric(12,2)'
    """
    found = _TYPE.fullmatch(" ".join(text.lower().split()))
    rows = (row for row in REGISTRY.values() if row.reads is not None)
    named = {name: row for row in rows for name in (row.name, *row.aliases)}
    row = None if found is None else named.get(found["name"])
    if found is None or row is None or (found["first"] is not None) != (row.oid == NUMERIC):
        return None
    if row.oid != NUMERIC:
        return CastTo(row.oid, -1, row.name)
    precision, scale = int(found["first"]), int(found["last"])
    if not (1 <= precision <= _MAX_DIGITS and scale <= precision):
        return None
    return CastTo(row.oid, (precision << 16 | scale) + 4, f"numeric({precision},{scale})")


def known_types() -> str:
    """The names that `type_named` knows, for people."""
    names = [row.name for row in REGISTRY.values() if row.reads is not None and row.oid != NUMERIC]
    return ", ".join([*sorted(names), "numeric(p,s)"])


def form_as(cast: CastTo) -> Form:
    """How the values are held."""
    if cast.type_oid == NUMERIC:
        return numeric_of_any(cast.type_modifier)
    return REGISTRY[cast.type_oid].form_for(cast.type_modifier)


def read_as(cast: CastTo, strings: AnyArray) -> Parsed:
    """The texts of any type, read as values of this one."""
    if cast.type_oid == TEXT:
        return read_text(strings)
    respell = REGISTRY[cast.type_oid].reads
    assert respell is not None
    texts: Any = valid_text(strings).array.cast(pa.string())
    spelled = respell(texts)
    is_other = _compute.and_(spelled.is_null(), texts.is_valid())
    parsed = _read(form_as(cast), spelled)
    odd = parsed.odd
    if odd is not None:
        # As it was in the source.
        odd = Odd(odd.places, texts.take(pa.array(odd.places)))
    return Parsed(parsed.array, joined([odd_where(texts, is_other), odd]))


def as_printed(column: ColumnSchema, text: str) -> str | None:
    """The text that Postgres prints for the value that people write so; None: it isn't one."""
    row = row_of(column)
    if column.type is None and row.reads is not None:
        printed: str | None = row.reads(pa.array([text], pa.string()))[0].as_py()
        return printed
    return text


def _read(form: Form, texts: Any) -> Parsed:
    try:
        return form.read(texts)
    except (pa.ArrowInvalid, ValueError, OverflowError):
        pass
    encoded = texts.dictionary_encode()
    distinct = encoded.dictionary
    parts = [_read_one(form, distinct.slice(place, 1)).array for place in range(len(distinct))]
    values: Any = pa.concat_arrays(parts).take(encoded.indices)
    is_odd = _compute.and_(values.is_null(), texts.is_valid())
    return Parsed(values, odd_where(texts, is_odd))


def _read_one(form: Form, text: Any) -> Parsed:
    try:
        return form.read(text)
    except (pa.ArrowInvalid, ValueError, OverflowError):
        nothing: Any = pa.array([None], pa.string())
        return Parsed(form.read(nothing).array, Odd(np.array([0]), text))

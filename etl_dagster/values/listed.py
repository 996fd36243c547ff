"""Columns whose type at the destination lists its values: labels of an enum, and those in use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.form import AnyArray
from etl_dagster.values.types import Array, Enum, PgType, without_domains

#: An element as array_out prints it: in quotes, or as it is.
_ELEMENT: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|([^{},"]+)', re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


def listed_enum(column: ColumnSchema) -> Enum | None:
    """The enum whose labels the column's type at the destination lists; None if there is none.

    If the destination has the source's own types, also the enum of an array.
    """
    if not column.own_type or column.type is None:
        return None
    type_ = without_domains(column.type)
    # Otherwise an array is held as a list of texts.
    while isinstance(type_, Array) and column.nested == "text":
        type_ = without_domains(type_.element)
    return type_ if isinstance(type_, Enum) else None


def labels_in(values: AnyArray, type_: PgType | None) -> list[str]:
    """The labels in the values of an enum, or in the texts of arrays of one."""
    kind: Any = values
    unique = kind.dictionary if pa.types.is_dictionary(kind.type) else pc.unique(kind)
    texts: list[str] = unique.drop_null().to_pylist()
    type_ = None if type_ is None else without_domains(type_)
    if not isinstance(type_, Array):
        return texts
    return list(dict.fromkeys(label for text in texts for label in _elements(text, type_)))


def _elements(text: str, type_: Array) -> Iterator[str]:
    element = without_domains(type_.element)
    # There may be bounds before the braces.
    for match in _ELEMENT.finditer(text, max(text.find("{"), 0)):
        quoted, bare = match.groups()
        if quoted is None and bare.upper() == "NULL":
            continue
        part = bare if quoted is None else _ESCAPED.sub(r"\1", quoted)
        if isinstance(element, Array):
            yield from _elements(part, element)
        else:
            yield part

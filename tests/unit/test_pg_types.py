"""A type is kept whole, and read by later versions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_dagster.errors import SchemaTooNew
from etl_dagster.values.columns import ColumnSchema, column_from_json, column_to_json
from etl_dagster.values.types import (
    Array,
    Attribute,
    Composite,
    Domain,
    Enum,
    Multirange,
    PgType,
    Range,
    Scalar,
    without_domains,
)

_OIDS = st.integers(1, 2**32 - 1)
_NAMES = st.text(max_size=5)
_SCALARS = st.builds(Scalar, _OIDS, _NAMES, st.integers(-1, 2**31 - 1), _NAMES)


def _built_of(parts: st.SearchStrategy[PgType]) -> st.SearchStrategy[PgType]:
    attributes = st.lists(st.builds(Attribute, _NAMES, parts), max_size=3).map(tuple)
    ranges = st.builds(Range, _OIDS, _NAMES, parts)
    return st.one_of(
        st.builds(Array, _OIDS, _NAMES, parts, st.integers(1, 6)),
        ranges,
        st.builds(Multirange, _OIDS, _NAMES, ranges),
        st.builds(Composite, _OIDS, _NAMES, attributes),
        st.builds(Enum, _OIDS, _NAMES, st.lists(_NAMES, max_size=3).map(tuple)),
        st.builds(Domain, _OIDS, _NAMES, parts),
    )


TYPES: st.SearchStrategy[PgType] = st.recursive(_SCALARS, _built_of, max_leaves=6)


@given(TYPES)
def test_a_column_is_read_back_as_it_was_stored(type_: PgType) -> None:
    column = ColumnSchema("c", 99999, 4, "public.t", 3, False, 1, True, 23, "1", type_)

    kept = json.loads(json.dumps(column_to_json(column)))

    assert column_from_json(kept) == column
    assert column_from_json(kept).missing_value == "1"


def test_a_column_stored_by_an_earlier_version_has_no_type() -> None:
    kept = {"name": "tags", "type_oid": 1009, "type_modifier": -1, "base_type_oid": 1009}

    assert column_from_json(kept) == ColumnSchema("tags", 1009, base_type_oid=1009)


def test_what_a_later_version_adds_is_ignored_and_what_it_changes_is_refused() -> None:
    kept = column_to_json(ColumnSchema("id", 20)) | {"of_a_later_version": 1}

    assert column_from_json(kept) == ColumnSchema("id", 20)
    with pytest.raises(SchemaTooNew, match="format 9; this is 8"):
        column_from_json(kept | {"format": 9})


def test_a_domain_over_a_domain_is_the_type_behind_both() -> None:
    number = Scalar(23, "integer")
    inner = Domain(70_001, "public.positive", number)

    assert without_domains(Domain(70_002, "public.small", inner)) == number


def test_columns_of_differing_types_differ() -> None:
    number = Scalar(23, "integer")
    column = ColumnSchema("pair", 70_000, type=Composite(70_000, "p", (Attribute("a", number),)))

    assert column != replace(column, type=Composite(70_000, "p", (Attribute("b", number),)))
    assert column != replace(column, nested="native")


def test_a_different_label_or_name_does_not_make_a_different_type() -> None:
    """Either may change at any time, the stream doesn't show it, and values are held as before."""
    column = ColumnSchema("mood", 70_000, type=Enum(70_000, "public.mood", ("sad",)))

    assert column == replace(column, type=Enum(70_000, "humor", ("sad", "happy")))

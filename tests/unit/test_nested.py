"""Values with parts: what is read at once is what is read one by one, and what was printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl_dagster.values import oids
from etl_dagster.values.columns import ColumnSchema, Nested
from etl_dagster.values.forms import arrow_type, form_of
from etl_dagster.values.json import json_reader, json_writer
from etl_dagster.values.python import to_objects
from etl_dagster.values.text import parse
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
)
from tests.unit import slow_values

INT = Scalar(oids.INT4, "integer")
TEXT = Scalar(oids.TEXT, "text")
MONEY = Scalar(oids.NUMERIC, "numeric", (5 << 16 | 2) + 4)
DATE = Scalar(oids.DATE, "date")
BOX = Scalar(603, "box")
HSTORE = Scalar(70_009, "public.hstore", -1, "hstore")
PAIR = Composite(70_001, "public.pair", (Attribute("n", INT), Attribute("t", TEXT)))


def column(type_: PgType, nested: Nested = "native") -> ColumnSchema:
    return ColumnSchema("c", type_.oid, type=type_, nested=nested)


def read(type_: PgType, *texts: str | None) -> tuple[list[Any], dict[int, str]]:
    """The values as objects, and the odd ones by place."""
    parsed = parse(column(type_), pa.array(texts, pa.string()))
    parsed.array.validate(full=True)
    assert parsed.array.type == arrow_type(column(type_))
    odd = parsed.odd
    places = (
        {} if odd is None else dict(zip(odd.places.tolist(), odd.texts.to_pylist(), strict=True))
    )
    assert all(texts[place] == text for place, text in places.items())
    return to_objects(parsed.array), places


# -- what each kind becomes ----------------------------------------------------------------------


def test_an_array_is_a_list() -> None:
    values, odd = read(Array(1007, "integer[]", INT), "{1,NULL,-3}", None, "{}")

    assert (values, odd) == ([[1, None, -3], None, []], {})


def test_an_array_is_as_deep_as_its_column_declares() -> None:
    values, odd = read(Array(1007, "integer[]", INT, 2), "{{1,2},{3,NULL}}", "{}", "{{4}}")

    assert (values, odd) == ([[[1, 2], [3, None]], [], [[4]]], {})


@pytest.mark.parametrize("dimensions", [1, 2])
def test_an_array_of_other_dimensions_or_bounds_is_odd(dimensions: int) -> None:
    other = {1: "{{1,2},{3,4}}", 2: "{1,2}"}[dimensions]
    declared = {1: "{7}", 2: "{{7}}"}[dimensions]
    texts = [other, declared, "[0:1]={1,2}", "{{{1}}}", None, declared]

    values, odd = read(Array(1007, "integer[]", INT, dimensions), *texts)

    kept = [7] if dimensions == 1 else [[7]]
    assert values == [None, kept, None, None, None, kept]
    assert odd == {place: texts[place] for place in (0, 2, 3)}


def test_an_element_that_its_type_cannot_hold_is_null_and_its_array_odd() -> None:
    values, odd = read(Array(1231, "numeric(5,2)[]", MONEY), "{1.50}", "{NaN,2.00}", "{3.00,NaN}")

    assert [[None if v is None else str(v) for v in value] for value in values] == [
        ["1.50"],
        [None, "2.00"],
        ["3.00", None],
    ]
    assert odd == {1: "{NaN,2.00}", 2: "{3.00,NaN}"}


def test_elements_are_separated_by_what_their_type_says() -> None:
    values, odd = read(Array(1020, "box[]", BOX, 1, ";"), "{(1,1),(0,0);(2,2),(1,1)}")

    assert (values, odd) == ([["(1,1),(0,0)", "(2,2),(1,1)"]], {})


def test_a_composite_is_a_struct_and_one_of_another_shape_is_odd() -> None:
    texts = ["(1,)", None, '(,"")', '(2,"a ""b""\\\\,()")', "(1,a,3)", "(1)"]
    values, odd = read(PAIR, *texts)

    assert values == [
        {"n": 1, "t": None},
        None,
        {"n": None, "t": ""},
        {"n": 2, "t": 'a "b"\\,()'},
        None,
        None,
    ]
    assert odd == {4: "(1,a,3)", 5: "(1)"}


def test_a_range_has_its_bounds_and_whether_they_are_inclusive() -> None:
    values, _ = read(Range(3904, "int4range", INT), "[1,5)", "empty", "(,)", None, "(,7]")

    assert [value and tuple(value.values()) for value in values] == [
        (1, 5, True, False, False),
        (None, None, False, False, True),
        (None, None, False, False, False),
        None,
        (None, 7, False, True, False),
    ]


def test_a_multirange_is_a_list_of_ranges() -> None:
    type_ = Multirange(4535, "datemultirange", Range(3912, "daterange", DATE))
    values, odd = read(type_, "{[2024-01-01,2024-02-01),[infinity,)}", "{}", None)

    assert [[tuple(map(str, r.values())) for r in value or ()] for value in values] == [
        [
            ("2024-01-01", "2024-02-01", "True", "False", "False"),
            ("infinity", "None", "True", "False", "False"),
        ],
        [],
        [],
    ]
    assert (values[1:], odd) == ([[], None], {})


def test_hstore_is_a_map() -> None:
    values, odd = read(HSTORE, '"a"=>"1", "b"=>NULL', "", None, '"x\\"=>\\\\"=>", ", "NULL"=>""')

    assert values == [{"a": "1", "b": None}, {}, None, {'x"=>\\': ", ", "NULL": ""}]
    assert odd == {}


def test_an_enum_is_a_dictionary_that_accepts_later_labels() -> None:
    mood = column(Enum(70_002, "public.mood", ("sad",)))
    parsed = parse(mood, pa.array(["sad", None, "happy", "sad"]))

    assert pa.types.is_dictionary(parsed.array.type)
    assert parsed.array.to_pylist() == ["sad", None, "happy", "sad"]


def test_a_domain_has_the_form_of_its_base_type() -> None:
    numbers = Domain(70_003, "public.numbers", Array(1007, "integer[]", INT))

    assert read(numbers, "{1}") == ([[1]], {})
    assert read(Array(70_004, "public.numbers[]", numbers), '{"{1,2}",NULL,"{}"}') == (
        [[[1, 2], None, []]],
        {},
    )


def test_values_that_a_destination_could_not_tell_apart_stay_text() -> None:
    twins = Composite(70_005, "public.twins", (Attribute("a", INT), Attribute("A", INT)))

    assert read(twins, "(1,2)") == (["(1,2)"], {})
    assert read(Composite(70_006, "public.nothing", ()), "()") == (["()"], {})


def test_bytes_that_are_not_utf8_are_escaped_in_their_part() -> None:
    broken = pa.array([b"{a\xff,b}", b"{c}"], pa.binary()).view(pa.string())
    texts = column(Array(1009, "text[]", TEXT))

    for codec in (None, "utf-8"):
        parsed = parse(texts, broken, codec)
        assert parsed.array.to_pylist() == [["a\\xff", "b"], ["c"]]
        assert parsed.odd is not None
        assert parsed.odd.places.tolist() == [0]
        assert parsed.odd.texts.to_pylist() == ["{a\\xFF,b}"]
    windows = pa.array([b"{a\x81,b}", b"{\x80}"], pa.binary()).view(pa.string())
    parsed = parse(texts, windows, "cp1252")
    assert parsed.array.to_pylist() == [["a\\x81", "b"], ["€"]]
    assert parsed.odd is not None
    assert parsed.odd.texts.to_pylist() == ["{a\\x81,b}"]


@pytest.mark.parametrize("text", [None, "text"])
def test_values_stay_as_printed_if_their_type_is_unknown_or_not_wanted(text: Nested | None) -> None:
    known = column(Array(1007, "integer[]", INT), text or "native")
    asked = known if text else ColumnSchema("c", 1007)

    assert parse(asked, pa.array(["{1,2}", "{{1}}"])).array.to_pylist() == ["{1,2}", "{{1}}"]


def test_values_as_json_are_json_texts() -> None:
    made = Array(70_007, "public.pair[]", PAIR)
    parsed = parse(column(made, "json"), pa.array(['{"(1,\\"ä b\\")",NULL}', None, "{{}}"]))

    assert parsed.array.to_pylist() == ['[{"n":1,"t":"ä b"},null]', None, None]
    assert parsed.odd is not None
    assert parsed.odd.places.tolist() == [2]


# -- the twin ------------------------------------------------------------------------------------

_TEXTS = st.text(st.sampled_from('ab,"\\{}()[] ;\tNULé€'), max_size=6)
_INTS = st.integers(-(2**31), 2**31 - 1).map(str)


def _as_printed_in_array(text: str | None) -> str:
    """As array_out() does it."""
    if text is None:
        return "NULL"
    if text and text.upper() != "NULL" and not set(text) & set('"\\{}, \t'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _as_printed_in_row(text: str | None) -> str:
    """As record_out() and range_out() do it."""
    if text is None:
        return ""
    if text and not set(text) & set('"\\()[], \t'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '""') + '"'


def _array(elements: list[str | None] | list[list[str | None]]) -> str:
    parts = (
        _array(element) if isinstance(element, list) else _as_printed_in_array(element)
        for element in elements
    )
    return "{" + ",".join(parts) + "}"


def _rectangles(parts: st.SearchStrategy[str | None]) -> st.SearchStrategy[Any]:
    def rectangle(sides: tuple[int, int]) -> st.SearchStrategy[Any]:
        rows = st.lists(parts, min_size=sides[1], max_size=sides[1])
        return st.lists(rows, min_size=sides[0], max_size=sides[0])

    return st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(rectangle)


def _row(*parts: str | None) -> str:
    return "(" + ",".join(map(_as_printed_in_row, parts)) + ")"


def _rows() -> st.SearchStrategy[str]:
    return st.tuples(st.none() | _INTS, st.none() | _TEXTS).map(lambda parts: _row(*parts))


@st.composite
def _ranges(draw: st.DrawFn) -> str:
    if draw(st.integers(0, 5)) == 0:
        return "empty"
    bounds = [draw(st.none() | _TEXTS) for _ in range(2)]
    text = ",".join(map(_as_printed_in_row, bounds))
    return draw(st.sampled_from("[(")) + text + draw(st.sampled_from("])"))


@st.composite
def _hstores(draw: st.DrawFn) -> str:
    pairs = draw(st.dictionaries(_TEXTS, st.none() | _TEXTS, max_size=3))

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return ", ".join(
        f"{quoted(key)}=>{'NULL' if value is None else quoted(value)}"
        for key, value in pairs.items()
    )


_ARRAY_OF_TEXTS = Array(1009, "text[]", TEXT)
_PAIRS = {"n": int, "t": str}
#: The type, texts of it as Postgres prints them, and the obvious way to read one.
_KINDS: dict[str, tuple[PgType, st.SearchStrategy[str], Callable[[str], Any]]] = {
    "int[]": (
        Array(1007, "integer[]", INT),
        st.lists(st.none() | _INTS, max_size=4).map(_array),
        lambda text: slow_values.read_array(text, int, 1),
    ),
    "text[]": (
        _ARRAY_OF_TEXTS,
        st.lists(st.none() | _TEXTS, max_size=4).map(_array) | _rectangles(_TEXTS).map(_array),
        lambda text: slow_values.read_array(text, str, 1),
    ),
    "text[][]": (
        Array(1009, "text[]", TEXT, 2),
        _rectangles(st.none() | _TEXTS).map(_array)
        | st.lists(_TEXTS, max_size=2).map(_array)
        | _INTS.map(lambda text: f"[0:0]={{{text}}}"),
        lambda text: slow_values.read_array(text, str, 2),
    ),
    "pair": (PAIR, _rows(), lambda text: slow_values.read_composite(text, _PAIRS)),
    "pair[]": (
        Array(70_007, "public.pair[]", PAIR),
        st.lists(st.none() | _rows(), max_size=3).map(_array),
        lambda text: slow_values.read_array(
            text, lambda part: slow_values.read_composite(part, _PAIRS), 1
        ),
    ),
    "row of arrays": (
        Composite(70_008, "r", (Attribute("a", _ARRAY_OF_TEXTS), Attribute("b", INT))),
        st.tuples(st.none() | st.lists(_TEXTS, max_size=3).map(_array), st.none() | _INTS).map(
            lambda parts: _row(*parts)
        ),
        lambda text: slow_values.read_composite(
            text, {"a": lambda part: slow_values.read_array(part, str, 1), "b": int}
        ),
    ),
    "textrange": (
        Range(70_010, "textrange", TEXT),
        _ranges(),
        lambda text: slow_values.read_range(text, str),
    ),
    "textmultirange": (
        Multirange(70_011, "textmultirange", Range(70_010, "textrange", TEXT)),
        st.lists(_ranges().filter(lambda text: text != "empty"), max_size=3).map(
            lambda texts: "{" + ",".join(texts) + "}"
        ),
        lambda text: slow_values.read_multirange(text, str),
    ),
    "hstore": (HSTORE, _hstores(), slow_values.read_hstore),
}


def _obvious(read_one: Callable[[str], Any], text: str | None) -> Any:
    if text is None:
        return None
    try:
        return read_one(text)
    except slow_values.Odd:
        return None


@pytest.mark.parametrize("kind", _KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_decoding_all_at_once_gives_the_same_as_one_by_one(kind: str, data: st.DataObject) -> None:
    type_, texts_of, read_one = _KINDS[kind]
    texts = data.draw(st.lists(st.none() | texts_of, max_size=8))
    cut_off = data.draw(st.integers(0, len(texts)))

    values, _ = read(type_, *texts)

    assert values == [_obvious(read_one, text) for text in texts]
    # Part of an array is read like the whole, and long strings like short ones.
    strings = pa.array(texts, pa.large_string()).slice(cut_off)
    assert to_objects(parse(column(type_), strings).array) == values[cut_off:]


@pytest.mark.parametrize("kind", _KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_values_survive_the_way_to_text_and_to_json(kind: str, data: st.DataObject) -> None:
    type_, texts_of, _ = _KINDS[kind]
    texts = data.draw(st.lists(st.none() | texts_of, max_size=5))
    parsed = parse(column(type_), pa.array(texts, pa.string()))
    values = to_objects(parsed.array)

    printed = form_of(column(type_)).print(parsed.array)
    assert read(type_, *printed)[0] == values
    write, back = json_writer(column(type_)), json_reader(column(type_))
    for value in values:
        if value is not None:
            text = json.dumps(value if write is None else write(value), allow_nan=False)
            found = json.loads(text)
            assert (found if back is None else back(found)) == value

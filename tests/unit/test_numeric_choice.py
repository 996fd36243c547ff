"""A numeric without precision as a decimal or a double, by choice; next to the obvious way."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.errors import ConfigError
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.tables.representation import chosen, held_otherwise, keep_choices
from etl_dagster.testing.changes import column, table
from etl_dagster.values import oids
from etl_dagster.values.columns import ColumnSchema, column_from_json, column_to_json
from etl_dagster.values.forms import arrow_type, form_of
from etl_dagster.values.policy import clamp
from etl_dagster.values.text import parse
from etl_dagster.values.types import Array, Attribute, Composite, Domain, PgType, Range, Scalar

_WIDE = "9" * 200
#: As Postgres prints numbers: digits, and no exponent.
_NUMBERS = st.one_of(
    st.from_regex(r"-?(0|[1-9][0-9]{0,12})(\.[0-9]{1,8})?", fullmatch=True),
    st.from_regex(r"-?[1-9][0-9]{30,90}(\.[0-9]{30,90})?", fullmatch=True),
    st.sampled_from(["NaN", "Infinity", "-Infinity", f"1{'0' * 131_071}", f"0.{'0' * 16_382}1"]),
)


def _column(choice: str) -> ColumnSchema:
    return ColumnSchema("c", oids.NUMERIC, numeric=choice)


def _kept(text: str, precision: int, scale: int) -> Decimal | None:
    """The number, if a decimal of so many digits is the same; else None."""
    number = Decimal(text)
    if not number.is_finite():
        return None
    whole, _, after = text.lstrip("-").partition(".")
    if len(after.rstrip("0")) > scale or len(whole.lstrip("0")) > precision - scale:
        return None
    return number


@pytest.mark.parametrize(("precision", "scale"), [(10, 2), (38, 0), (5, 5), (38, 38), (1, 0)])
@settings(max_examples=25)
@given(texts=st.lists(st.none() | _NUMBERS))
@example(texts=["0.50000", "-0.00", "1.000", "0.00001", "123", _WIDE, f"-{_WIDE}.5", None])
def test_a_decimal_has_the_same_number_or_none(
    precision: int, scale: int, texts: list[str | None]
) -> None:
    parsed = parse(_column(f"decimal({precision},{scale})"), pa.array(texts, pa.string()))

    assert parsed.array.type == pa.decimal128(precision, scale)
    expected = [None if text is None else _kept(text, precision, scale) for text in texts]
    assert parsed.array.to_pylist() == expected
    _require_told(parsed, texts, expected)


@settings(max_examples=25)
@given(texts=st.lists(st.none() | _NUMBERS))
@example(texts=["0.1", "-0", "1" + "0" * 400, "Infinity", None])
def test_a_double_is_the_nearest_one_or_none(texts: list[str | None]) -> None:
    parsed = parse(_column("double"), pa.array(texts, pa.string()))

    expected = [
        None
        if text is None or (_is_finite(text) and abs(float(text)) == float("inf"))
        else float(text)
        for text in texts
    ]
    assert list(map(repr, parsed.array.to_pylist())) == list(map(repr, expected))
    _require_told(parsed, texts, expected)


def _is_finite(text: str) -> bool:
    return Decimal(text).is_finite()


def _require_told(parsed: Any, texts: list[str | None], expected: list[Any]) -> None:
    lost = [
        (place, text)
        for place, (text, value) in enumerate(zip(texts, expected, strict=True))
        if text is not None and value is None
    ]
    odd = parsed.odd
    told = [] if odd is None else list(zip(odd.places.tolist(), odd.texts.to_pylist(), strict=True))
    assert told == lost


_ANY = Scalar(oids.NUMERIC, "numeric")
_LOW = Domain(70_000, "low", _ANY)
_NESTED: dict[str, tuple[PgType, list[str], list[Any]]] = {
    "array": (
        Array(1231, "numeric[]", _ANY),
        ["{1.50,NULL}", "{1,1.555}", "{NaN}", "{}"],
        [[Decimal("1.50"), None], None, None, []],
    ),
    "of a domain": (Array(70_001, "low[]", _LOW), ["{1.50}"], [[Decimal("1.50")]]),
    "domain": (_LOW, ["1.50", "1.555"], [Decimal("1.50"), None]),
    "composite": (
        Composite(70_002, "pair", (Attribute("a", _ANY), Attribute("b", Array(1231, "", _ANY)))),
        ['(1,"{2.50}")', "(1.555,)"],
        [{"a": Decimal("1.00"), "b": [Decimal("2.50")]}, None],
    ),
    "range": (
        Range(3906, "numrange", _ANY),
        ["[1,2)", "[1,1.555)"],
        [
            {
                "lower": Decimal("1.00"),
                "upper": Decimal("2.00"),
                "lower_inc": True,
                "upper_inc": False,
                "empty": False,
            },
            None,
        ],
    ),
}


@pytest.mark.parametrize("name", _NESTED)
def test_numbers_in_other_values_follow_the_choice(name: str) -> None:
    type_, texts, expected = _NESTED[name]
    base = oids.NUMERIC if name == "domain" else type_.oid
    given = ColumnSchema("c", type_.oid, base_type_oid=base, type=type_)
    schema = table([column("id", oids.INT4, 1, key=1), given], table_id=1, name="t")
    held = chosen(schema, _config(numeric="decimal(10,2)")).columns[1]
    parsed = parse(held, pa.array(texts, pa.string()))

    lost = [place for place, value in enumerate(expected) if value is None]
    odd = [] if parsed.odd is None else parsed.odd.places.tolist()
    assert odd == lost
    found = parsed.array.to_pylist()
    assert [value for place, value in enumerate(found) if place not in lost] == [
        value for value in expected if value is not None
    ]
    # Text, and the digits in JSON, are exact.
    for nested in ("text", "json") if name != "domain" else ():
        exact = chosen(schema, _config(numeric="decimal(10,2)", nested=nested)).columns[1]
        assert parse(exact, pa.array(texts, pa.string())).odd is None


def test_the_nearest_decimal_is_a_rounded_or_the_largest_one() -> None:
    texts = ["1.005", "-1.004", "999.995", "-Infinity", _WIDE, "NaN", "3"]
    parsed = parse(_column("decimal(5,2)"), pa.array(texts, pa.string()))
    assert parsed.odd is not None

    nearest = clamp(parsed.array, parsed.odd).to_pylist()

    shown = [None if number is None else str(number) for number in nearest]
    assert shown == ["1.01", "-1.00", "999.99", "-999.99", "999.99", None, "3.00"]


def _config(**settings: Any) -> PipelineConfig:
    source = {"dsn": "postgresql://localhost/shop", "publication": "shop"}
    return parse_config(
        {"pipeline": "shop", "source": source, "destination": {"type": "memory"}, **settings}
    )


def _table() -> TableSchema:
    return table(
        [
            column("id", oids.NUMERIC, 1, key=1),
            column("a", oids.NUMERIC, 2),
            column("b", oids.NUMERIC, 3),
            column("c", oids.NUMERIC, 4, type_modifier=((12 << 16) | 2) + 4),
        ],
        table_id=1,
        name="t",
    )


def test_the_choice_is_made_for_a_copy_and_kept_until_the_next() -> None:
    columns = {"b": {"numeric": "decimal(20, 4)"}}
    config = _config(numeric="double", tables={"public.t": {"columns": columns}})
    types = [arrow_type(found) for found in chosen(_table(), config).columns]
    # A key stays text, and a numeric with a precision what it is.
    assert types == [pa.string(), pa.float64(), pa.decimal128(20, 4), pa.decimal128(12, 2)]

    copied = chosen(_table(), _config())
    assert arrow_type(copied.columns[1]) == pa.string()
    assert keep_choices(chosen(_table(), config), copied) == copied
    assert held_otherwise(_table(), copied, config) == ["a", "b"]


@pytest.mark.parametrize("choice", ["decimal(05,2)", "decimal(5,002)", "DECIMAL( 5, 2 )"])
def test_every_spelling_of_a_decimal_is_that_decimal(choice: str) -> None:
    """A leading zero was accepted, and the column became text without a word."""
    config = _config(numeric=choice)
    assert config.numeric == "decimal(5,2)"
    assert form_of(_column(config.numeric)).arrow == pa.decimal128(5, 2)


@pytest.mark.parametrize("choice", ["text", "double", "decimal(20,4)"])
def test_a_choice_survives_the_store(choice: str) -> None:
    kept = column_to_json(_column(choice))
    assert column_from_json(kept) == _column(choice)
    # What an earlier version takes for text, it must not read at all.
    assert kept["format"] == (2 if choice == "text" else 4)
    assert form_of(column_from_json(kept)).arrow == arrow_type(_column(choice))


@pytest.mark.parametrize(
    "choice", ["float", "decimal", "decimal(39,2)", "decimal(5,6)", "decimal(0,0)"]
)
def test_an_unknown_choice_is_refused_with_its_place(choice: str) -> None:
    with pytest.raises(ConfigError, match="numeric"):
        _config(numeric=choice)

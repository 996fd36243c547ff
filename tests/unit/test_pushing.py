"""What the source evaluates of a condition is true of every row that the condition keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etl_dagster.config import parse_config
from etl_dagster.shaping.pushing import pushed_condition, with_pushed
from etl_dagster.shaping.rules import shaped
from etl_dagster.testing.changes import BOOL, FLOAT8, INT4, INT8, NUMERIC, TEXT, column, table

ITEMS = table(
    [
        column("id", INT8, 1, key=1),
        column("count", INT4, 2),
        column("is on", BOOL, 3),
        column("name", TEXT, 4),
        column("price", NUMERIC, 5),
        column("ratio", FLOAT8, 6),
    ],
    name="items",
)


def pushed(where: str, *, cast: str | None = None) -> str | None:
    settings = {
        "pipeline": "shop",
        "source": {"publication": "pub", "database": "shop"},
        "destination": {"type": "memory"},
        "tables": {
            "public.items": {"where": where, "columns": {"count": {"cast": cast}} if cast else {}}
        },
    }
    return pushed_condition(shaped(ITEMS, parse_config(settings, {})))


@pytest.mark.parametrize(
    ("where", "sql"),
    [
        ("id >= 5", '"id" >= 5'),
        ("5 < count", '"count" > 5'),
        ("count <> '7'", '"count" <> 7'),
        ('"is on"', '"is on"'),
        ('"is on" = false and id = 1', '"is on" = false AND "id" = 1'),
        ("id in (1, 2)", '("id" = 1) OR ("id" = 2)'),
        ("not (count is null or id < 3)", 'NOT (("count" IS NULL) OR ("id" < 3))'),
        ("count between 1 and 3", '"count" >= 1 AND "count" <= 3'),
    ],
)
def test_comparisons_of_integers_and_booleans_are_pushed(where: str, sql: str) -> None:
    assert pushed(where) == sql


@pytest.mark.parametrize(
    "where",
    [
        "name = 'a'",
        "name like 'a%'",
        "price > 1",
        "price is null",
        "ratio < 1",
        "id > 1.5",
        "id < 99999999999999999999",
        "id = 1 or name = 'a'",
        "not (id = 1 and name = 'a')",
    ],
)
def test_comparisons_that_postgres_may_read_differently_are_not_pushed(where: str) -> None:
    """Collations, NaN and infinity, values that are held as null, parts of an OR."""
    assert pushed(where) is None


@pytest.mark.parametrize(
    ("where", "cast"),
    [
        # 10 comes before 5 as a text.
        ("count < '5'", "text"),
        ("count <> '05'", "text"),
        # 70,000 is null as a smallint.
        ("count is null", "smallint"),
    ],
)
def test_a_column_that_is_cast_is_not_compared_by_its_own_type(where: str, cast: str) -> None:
    assert pushed(where, cast=cast) is None
    assert pushed(f"{where} and id > 1", cast=cast) == '"id" > 1'


def test_some_of_the_terms_joined_by_and_are_pushed() -> None:
    assert pushed("name = 'a' and id > 1 and (price > 1 or count = 2)") == '"id" > 1'


def test_a_column_has_its_current_name() -> None:
    settings = {
        "pipeline": "shop",
        "source": {"publication": "pub", "database": "shop"},
        "destination": {"type": "memory"},
        "tables": {"public.items": {"where": "count > 1"}},
    }
    known = shaped(ITEMS, parse_config(settings, {}))
    renamed = replace(
        known,
        columns=tuple(replace(c, name='a "b"') if c.name == "count" else c for c in known.columns),
    )

    assert with_pushed(renamed, "x > 1") == '(x > 1) AND ("a ""b""" > 1)'
    assert with_pushed(ITEMS, None) is None

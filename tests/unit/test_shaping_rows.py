"""Rows are masked, hashed, cast and filtered as the obvious way does it, in copies and streams."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from etl_dagster.cli.shape import _show as show
from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import ConfigError, HookFailed, ShapeRefused, TableWriteFailed
from etl_dagster.model.events import CopiedRows, TableChanges, TableRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.many import copying_many
from etl_dagster.runtime.tables.representation import chosen, keep_choices, reason_of_columns
from etl_dagster.runtime.tables.shaped import shaping
from etl_dagster.shaping.columns import destination_schema
from etl_dagster.shaping.conditions import Unreadable, parse_condition
from etl_dagster.shaping.described import described
from etl_dagster.shaping.filtering import RowFilter
from etl_dagster.shaping.hooks import HookContext
from etl_dagster.shaping.mistakes import mistakes
from etl_dagster.shaping.rows import Shaper
from etl_dagster.testing.changes import (
    BOOL,
    DATE,
    FLOAT8,
    INT4,
    NUMERIC,
    TEXT,
    TIMESTAMPTZ,
    Change,
    Transactions,
    Unheld,
    arrow_rows,
    batch,
    chunk,
    column,
    delete,
    insert,
    odd_values,
    update,
)
from etl_dagster.values.python import to_dicts
from tests.unit.slow_shaping import shaped_events, shaped_row

SALT = "a salt of some length"
KEY = SALT.encode()
PEOPLE = TableSchema(
    7,
    "public",
    "people",
    (
        column("id", INT4, 1, key=1, type_name="integer"),
        column("name", TEXT, 2, type_name="text"),
        column("amount", NUMERIC, 3, type_name="numeric"),
        column("active", BOOL, 4, type_name="boolean"),
        column("born", DATE, 5, type_name="date"),
    ),
)


def config(of_table: dict[str, Any], **more: Any) -> PipelineConfig:
    return parse_config(
        {
            "pipeline": "shop",
            "source": {"publication": "pub", "database": "shop"},
            "destination": {"type": "memory"},
            "salt": SALT,
            "tables": {"public.people": of_table},
        }
        | more,
        {},
    )


def shape(of_table: dict[str, Any], schema: TableSchema = PEOPLE) -> TableSchema:
    made = config(of_table)
    shaped = chosen(schema, made)
    assert mistakes(shaped, made) == []
    return shaped


def changes(*of: Change) -> TableChanges:
    [[step]] = batch(Transactions().commit(*of)).tables.values()
    assert isinstance(step, TableChanges)
    return step


def rows_of(shaped: TableChanges | CopiedRows | None) -> list[dict[str, Any]]:
    return [] if shaped is None else to_dicts(shaped.rows)


def copied(schema: TableSchema, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    piece = CopiedRows(arrow_rows(schema, rows), odd_values(schema, rows))
    return rows_of(Shaper(schema, KEY).copied(piece))


def done(shaped: TableChanges | None, key: str = "id") -> list[tuple[str, Any]]:
    """Each operation with the key of its row."""
    if shaped is None:
        return []
    return [
        (chr(op), row[key])
        for op, row in zip(shaped.ops.tolist(), to_dicts(shaped.rows), strict=True)
    ]


# -- all rules at once, against the obvious way --------------------------------------------------

NAMES = st.sampled_from(["", "a", "ab", "Ann", "äöü😀xyz", "%", "secret name"])
AMOUNTS = st.sampled_from(["0", "1", "1.0", "-2.5", "100", "99.99"])
ROW = st.fixed_dictionaries(
    {
        "name": st.none() | NAMES,
        "amount": st.none() | AMOUNTS,
        "active": st.none() | st.booleans(),
    }
)
MASK = st.sampled_from(
    [None, "null", "hash", "partial", {"constant": "x"}, {"partial": {"show_first": 1}}]
)
TESTS = st.sampled_from(
    [
        "name = 'a'",
        "name < 'Ann'",
        "name like 'a%'",
        "name like '_'",
        "name not like '%e%'",
        "name is null",
        "name is not null",
        "amount >= 1",
        "amount <> 100",
        "amount in (1, 100)",
        "amount between 0 and 50",
        "amount not between 0 and 50",
        "active",
        "not active",
        "active = false",
        "1 < id",
    ]
)
CONDITIONS = st.recursive(
    TESTS,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
            lambda parts: f"({' '.join(parts)})"
        )
        | inner.map(lambda test: f"not ({test})")
    ),
    max_leaves=4,
)
STEPS = st.lists(
    st.tuples(st.sampled_from("IUKD"), st.integers(1, 4), st.integers(1, 4), ROW),
    min_size=1,
    max_size=8,
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "where": CONDITIONS,
        "exclude": st.sampled_from([["amount"], ["am*", "born"]]),
        "add": st.just({"tenant": "eu"}),
    },
)


@settings(max_examples=300, deadline=None)
@given(RULES, MASK, st.booleans(), STEPS)
def test_copies_and_changes_are_shaped_as_by_the_obvious_implementation(
    rules: dict[str, Any], mask: Any, hash_key: bool, steps: list[Any]
) -> None:
    columns: dict[str, Any] = {"name": {"name": "called"}}
    if mask is not None:
        columns["name"]["mask"] = mask
    if hash_key:
        columns["id"] = {"mask": "hash"}
    schema = shape(rules | {"columns": columns})
    text_key = (lambda id: str(id)) if hash_key else (lambda id: id)
    made: list[Change] = []
    read = {column.name for column in schema.columns if column.is_read}
    for op, id, other, values in steps:
        row = {name: value for name, value in values.items() if name in read}
        key = {"id": text_key(id)}
        if op == "I":
            made.append(insert(schema, **key, **row))
        elif op == "U":
            made.append(update(schema, **key, **row))
        elif op == "K":
            made.append(update(schema, old={"id": text_key(other)}, **key, **row))
        else:
            made.append(delete(schema, **key))
    before = changes(*made)

    after = Shaper(schema, KEY).changes(before)

    keys = destination_schema(schema).key_columns
    got: list[Any] = []
    for event in () if after is None else after.events():
        op = type(event).__name__[0]
        old = event.old_row
        row = event.row if op != "D" else {name: event.row[name] for name in keys}
        got.append((op, row, None if old is None else {name: old[name] for name in keys}))
    expected = [
        (op, row if op != "D" else {k: row[k] for k in keys}, old and {k: old[k] for k in keys})
        for op, row, old in shaped_events(schema, before.events(), KEY)
    ]
    assert got == expected

    # A copy of the rows that are inserted is the same as their inserts.
    inserted = [change for change in made if change.op == "I"]
    if inserted:
        by_stream = rows_of(Shaper(schema, KEY).changes(changes(*inserted)))
        assert copied(schema, *(change.row for change in inserted)) == by_stream


# -- masks ---------------------------------------------------------------------------------------


def test_a_hash_is_made_of_the_text_and_the_salt_whatever_the_type() -> None:
    schema = shape({"columns": {"amount": {"mask": "hash"}, "born": {"mask": "hash"}}})

    [row] = copied(schema, {"id": 1, "amount": "12.50", "born": "2024-01-31"})

    assert row["amount"] == shaped_row(schema, {"amount": "12.50"}, KEY)["amount"]
    assert re.fullmatch("[0-9a-f]{64}", row["born"])
    assert destination_schema(schema).columns[2].type_name == "text"


def test_values_that_no_type_holds_are_masked_like_the_others() -> None:
    """Bytes that aren't UTF-8 come with their text next to the row; it must not get through."""
    schema = shape({"columns": {"name": {"mask": "hash"}}})
    odd = {"id": 1, "name": Unheld("\\xff")}

    piece = CopiedRows(arrow_rows(schema, [odd]), odd_values(schema, [odd]))
    shaped = Shaper(schema, KEY).copied(piece)
    streamed = Shaper(schema, KEY).changes(changes(insert(schema, **odd)))

    assert shaped.odd == {}
    assert streamed is not None
    assert streamed.odd == {}
    assert shaped.rows.column("name").null_count == 0
    assert shaped.rows.column("name").equals(streamed.rows.column("name"))


def test_a_value_masked_by_a_constant_is_never_unknown() -> None:
    schema = shape({"columns": {"name": {"mask": {"constant": "x"}}, "born": {"mask": None}}})

    [born, name] = [c for c in destination_schema(schema).columns if c.name in ("name", "born")][
        ::-1
    ]
    assert (name.missing_value, born.missing_value) == ("x", None)
    assert not schema.columns[1].is_read
    assert not schema.columns[4].is_read


def test_constants_are_values_of_the_columns_type() -> None:
    schema = shape(
        {
            "columns": {
                "active": {"mask": {"constant": True}},
                "amount": {"mask": {"constant": 7}},
                "born": {"mask": {"constant": "2024-01-31"}},
            },
            "add": {"eu": True, "since": {"value": "2024-01-31", "type": "timestamptz"}},
        }
    )

    [row] = copied(schema, {"id": 1})

    assert (row["active"], row["amount"], str(row["born"])) == (True, "7", "2024-01-31")
    assert row["eu"] is True
    assert row["since"].isoformat() == "2024-01-31T00:00:00+00:00"
    assert [c.missing_value for c in destination_schema(schema).columns][2:5] == [
        "7",
        "t",
        "2024-01-31",
    ]


def test_a_hashed_value_that_was_not_sent_stays_unknown() -> None:
    schema = shape({"columns": {"name": {"mask": "hash", "name": "called"}}})

    shaped = Shaper(schema, KEY).changes(changes(update(schema, unchanged=["name"], id=1)))

    assert shaped is not None
    assert shaped.unchanged["called"].tolist() == [True]


def test_a_different_salt_is_refused_and_neither_is_shown() -> None:
    schema = shape({"columns": {"name": {"mask": "hash"}}})

    Shaper(schema, KEY).require_salt()
    for salt in (b"another salt that is long", None):
        with pytest.raises(ShapeRefused, match="another `salt`"):
            Shaper(schema, salt).require_salt()
    made = config({"columns": {"name": {"mask": "hash"}}})
    assert SALT not in repr(made)
    assert SALT not in repr(schema)


@pytest.mark.parametrize("salt", [None, "short"])
def test_hashing_without_a_proper_salt_is_a_mistake(salt: str | None) -> None:
    with pytest.raises(ConfigError, match="salt"):
        config({"columns": {"name": {"mask": "hash"}}}, salt=salt)


def test_a_default_of_a_masked_column_is_copied_and_never_kept() -> None:
    settings = {"columns": {"*_token": {"mask": "hash"}}}
    token = replace(column("api_token", TEXT, 9), missing_value="secret")
    wider = replace(PEOPLE, columns=(*PEOPLE.columns, token))
    known = chosen(PEOPLE, config(settings))

    now = keep_choices(chosen(wider, config(settings)), known)

    assert "masked and has a default" in (reason_of_columns(now, known) or "")
    assert all(c.missing_value != "secret" for c in now.columns)


# -- casts ---------------------------------------------------------------------------------------


def test_a_value_that_does_not_parse_as_its_type_is_kept_as_text_like_other_odd_values() -> None:
    schema = shape({"columns": {"name": {"cast": "bigint"}}})
    there = destination_schema(schema)
    assert (there.columns[1].type_name, there.arrow_schema.field("name").type) == (
        "bigint",
        pa.int64(),
    )

    from etl_dagster.values.text import parse

    parsed = parse(schema.columns[1], pa.array(["1", "x", None, "-7"]))
    assert parsed.array.to_pylist() == [1, None, None, -7]
    assert parsed.odd is not None
    assert parsed.odd.texts.to_pylist() == ["x"]


def read_as(type_name: str, *texts: str) -> tuple[list[str | None], list[str]]:
    """The values that texts are, read as another type, and the texts that are odd."""
    from etl_dagster.values import read_as as casts

    type_ = casts.type_named(type_name)
    assert type_ is not None
    parsed = casts.read_as(type_, pa.array(texts, pa.string()))
    odd = [] if parsed.odd is None else parsed.odd.texts.to_pylist()
    return parsed.array.cast(pa.string()).to_pylist(), odd


def test_a_number_with_more_digits_than_its_type_is_odd_and_never_another_number() -> None:
    """Arrow takes forty digits for a number modulo 2**128."""
    wide = "561955733916035291062167641538929326200.7808542374"

    assert read_as("numeric(38,10)", wide, "-0012.50") == ([None, "-12.5000000000"], [wide])
    assert read_as("numeric(38,0)", "9" * 39, "1.0") == ([None, "1"], ["9" * 39])
    assert read_as("numeric(5,2)", "1.005", "1000", "0000999.99") == (
        [None, None, "999.99"],
        ["1.005", "1000"],
    )


@pytest.mark.parametrize(("type_name", "text"), [("double precision", "1e400"), ("real", "-1e39")])
def test_a_number_beyond_a_float_is_odd_and_not_infinite(type_name: str, text: str) -> None:
    assert read_as(type_name, text, "-Infinity", "0.5") == ([None, "-inf", "0.5"], [text])


@pytest.mark.parametrize("other", ["infinity", "2024-01-01 10:00:00+99", "2024-02-30 10:00:00+00"])
def test_a_moment_is_read_whatever_stands_next_to_it(other: str) -> None:
    values, odd = read_as(
        "timestamptz", "2024-01-01 10:00:00.25+05:30", "2024-01-01 10:00:00-08", other
    )

    assert values[:2] == ["2024-01-01 04:30:00.250000Z", "2024-01-01 18:00:00.000000Z"]
    assert odd == ([] if other == "infinity" else [other])


def test_the_year_0_is_odd_whatever_stands_next_to_it() -> None:
    assert read_as("date", "0000-01-01") == ([None], ["0000-01-01"])
    assert read_as("date", "0000-01-01", "2024-02-30")[0] == [None, None]
    assert read_as("timestamp", "0000-01-01 10:00:00") == ([None], ["0000-01-01 10:00:00"])


# -- conditions ----------------------------------------------------------------------------------


def test_a_row_that_leaves_the_condition_is_deleted_with_its_key_alone() -> None:
    schema = shape({"where": "name = 'a'"})
    before = changes(
        insert(schema, id=1, name="b"),
        update(schema, id=2, name="secret"),
        update(schema, old={"id": 3}, id=4, name="secret"),
        update(schema, old={"id": 5}, id=6, name="a"),
        delete(schema, id=7),
    )

    shaped = Shaper(schema).changes(before)

    assert done(shaped) == [("D", 2), ("D", 3), ("U", 6), ("D", 7)]
    assert [row["name"] for row in rows_of(shaped)] == [None, None, "a", None]
    assert shaped is not None
    assert shaped.old_indices is not None
    assert shaped.old_indices.tolist() == [2]
    assert shaped.last_position == before.last_position


def test_with_whole_old_rows_only_what_the_destination_has_is_touched() -> None:
    columns = tuple(replace(c, is_identity=True) for c in PEOPLE.columns)
    full = replace(PEOPLE, replica_identity="f", columns=columns)
    schema = shape({"where": "name = 'a'"}, full)
    before = changes(
        update(schema, old={"id": 1, "name": "b"}, id=1, name="c"),
        update(schema, old={"id": 2, "name": "b"}, id=2, name="a"),
        update(schema, old={"id": 3, "name": "a"}, id=3, name="b"),
        update(schema, old={"id": 4, "name": "a"}, id=5, name="a"),
        delete(schema, id=6, name="b"),
        delete(schema, id=7, name="a"),
    )

    shaped = Shaper(schema).changes(before)

    assert done(shaped) == [("I", 2), ("D", 3), ("U", 5), ("D", 7)]
    assert rows_of(shaped)[1]["name"] == "a"


def test_values_that_the_stream_left_out_are_taken_from_whole_old_rows() -> None:
    columns = tuple(replace(c, is_identity=True) for c in PEOPLE.columns)
    full = replace(PEOPLE, replica_identity="f", columns=columns)
    schema = shape({"where": "name = 'a'"}, full)

    shaped = Shaper(schema).changes(
        changes(
            update(schema, old={"id": 1, "name": "a"}, unchanged=["name"], id=1, amount="1"),
            update(schema, old={"id": 2, "name": "b"}, unchanged=["name"], id=2, amount="1"),
        )
    )

    assert rows_of(shaped)[0] | {"born": None} == {
        "id": 1,
        "name": "a",
        "amount": "1",
        "active": None,
        "born": None,
    }
    assert done(shaped) == [("U", 1)]


def test_an_update_of_a_row_that_no_longer_exists_deletes_it() -> None:
    schema = shape({"where": "name = 'a'"})

    shaped = Shaper(schema).changes(changes(update(schema, unchanged=["name"], id=1)))

    assert done(shaped) == [("D", 1)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name = ", "needs a literal"),
        ("name = null", "write IS NULL"),
        ("name == 'a'", "needs a literal"),
        ("name = 'a' or", "needs a column where it ends"),
        ("(name = 'a'", "needs )"),
        ("name = 'a' name", "needs the end"),
        ("upper(name) = 'A'", "needs a comparison such as = where character 6"),
        ("'a", "can't be read from character 1"),
        ("nme = 'a'", "names a column 'nme'"),
        ("Name = 'a' and \"Name\" = 'a'", "names a column 'Name'"),
        ("born = 'soon'", "a literal that is not a value of type date"),
        ("born < '2024-02-31'", "a literal that is not a value of type date"),
        ("id = 1.5", "a literal that is not a value of type integer"),
        ("amount > 'x'", "compares amount with a literal that is not a value of type numeric"),
        ("id like '1%'", "not a text"),
        ("name", "not a boolean"),
        ("active > true and active > 'perhaps'", "not a value of type boolean"),
        ("(" * 3000 + "active" + ")" * 3000, "is nested more than 100 levels deep"),
        ("not " * 3000 + "active", "is nested more than 100 levels deep"),
    ],
)
def test_a_condition_that_cannot_be_evaluated_says_where(text: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=re.escape(reason)) as caught:
        RowFilter(text, PEOPLE)
    assert "soon" not in str(caught.value)


def test_words_and_numbers_are_read_as_in_sql() -> None:
    assert parse_condition("A = 'it''s' AND b > -1.5e3") == parse_condition(
        "(\"a\"='it''s')and(b>-1.5e3)"
    )
    rows = arrow_rows(PEOPLE, [{"id": 1, "born": None}, {"id": 2, "active": True}])
    assert RowFilter("born is null and active", PEOPLE).matches(rows).tolist() == [False, True]


def test_a_condition_may_use_a_column_that_is_excluded_or_hashed() -> None:
    schema = shape(
        {
            "where": "active and id > 9",
            "exclude": ["active"],
            "columns": {"id": {"mask": "hash"}},
        }
    )
    rows = [{"id": "10", "active": "t"}, {"id": "9", "active": "t"}, {"id": "11", "active": "f"}]

    [row] = copied(schema, *rows)

    assert row["id"] == shaped_row(schema, {"id": "10"}, KEY)["id"]
    assert "active" not in row


def test_numbers_without_bounds_are_compared_as_numbers() -> None:
    texts = ["9", "10", "NaN", "-Infinity", "1e3", None]
    rows = arrow_rows(PEOPLE, [{"id": i, "amount": text} for i, text in enumerate(texts)])

    found = RowFilter("amount > 9.5", PEOPLE).matches(rows)

    assert found.tolist() == [False, True, True, False, True, False]


@pytest.mark.parametrize(
    ("sign", "expected"),
    [
        ("=", [False, True, False, False]),
        ("<>", [True, False, False, True]),
        ("<", [True, False, False, True]),
        ("<=", [True, True, False, True]),
        (">", [False, False, False, False]),
        (">=", [False, True, False, False]),
    ],
)
def test_not_a_number_is_equal_to_itself_and_the_largest(sign: str, expected: list[bool]) -> None:
    """As to Postgres, where `ratio <> 'NaN'` is how such values are left out."""
    ratio = column("ratio", FLOAT8, 6, type_name="double precision")
    schema = replace(PEOPLE, columns=(*PEOPLE.columns, ratio))
    values = [1.0, float("nan"), None, float("inf")]
    rows = arrow_rows(schema, [{"id": i, "ratio": value} for i, value in enumerate(values)])

    assert RowFilter(f"ratio {sign} 'NaN'", schema).matches(rows).tolist() == expected


@pytest.mark.parametrize("literal", ["NaN", "nan", "Infinity", "inf", "-Infinity", "5"])
def test_numerics_are_ordered_alike_however_they_are_held_and_written(literal: str) -> None:
    """Arrow prints the NaN of a double as nan; compared as a number, it would be an error."""
    texts = ["NaN", "Infinity", "7", "-Infinity"]
    as_text = arrow_rows(PEOPLE, [{"id": i, "amount": text} for i, text in enumerate(texts)])
    amount = replace(PEOPLE.columns[2], numeric="double")
    doubles = replace(PEOPLE, columns=(*PEOPLE.columns[:2], amount, *PEOPLE.columns[3:]))
    as_double = arrow_rows(
        doubles, [{"id": i, "amount": float(text)} for i, text in enumerate(texts)]
    )
    condition = f"amount > '{literal}'"
    places = {"nan": 4, "infinity": 3, "inf": 3, "5": 1, "-infinity": 0}

    expected = [place > places[literal.lower()] for place in (4, 3, 2, 0)]
    assert RowFilter(condition, PEOPLE).matches(as_text).tolist() == expected
    assert RowFilter(condition, doubles).matches(as_double).tolist() == expected


def test_a_delete_of_a_row_that_leaves_the_condition_has_the_odd_values_of_the_old_row() -> None:
    """A destination finds by them which texts to remove for a row without a key."""
    columns = tuple(replace(c, is_identity=True, primary_key_ordinal=None) for c in PEOPLE.columns)
    keyless = replace(PEOPLE, replica_identity="f", columns=columns)
    schema = shape({"where": "name = 'a'"}, keyless)
    old = {"id": 1, "name": "a", "born": Unheld("6000000-01-01")}

    shaped = Shaper(schema).changes(changes(update(schema, old=old, id=1, name="b")))

    assert done(shaped) == [("D", 1)]
    assert shaped is not None
    assert {name: odd.texts.to_pylist() for name, odd in shaped.odd.items()} == {
        "born": ["6000000-01-01"]
    }


# -- hooks ---------------------------------------------------------------------------------------


def shout(rows: pa.RecordBatch, context: HookContext) -> pa.RecordBatch:
    import pyarrow.compute as pc

    compute: Any = pc
    lengths = compute.utf8_length(rows.column("name")).cast(pa.int64())
    place = rows.schema.get_field_index("name")
    rows = rows.set_column(place, "name", compute.utf8_upper(rows.column("name")))
    return rows.append_column("length", lengths)


def fail(rows: pa.RecordBatch, context: HookContext) -> pa.RecordBatch:
    raise ValueError(f"secret {rows.column('name')[0]}")


def halve(rows: pa.RecordBatch, context: HookContext) -> pa.RecordBatch:
    return rows.slice(1)


def swap_keys(rows: pa.RecordBatch, context: HookContext) -> pa.RecordBatch:
    return rows.set_column(0, "id", pa.array([9] * rows.num_rows, pa.int32()))


def widen(rows: pa.RecordBatch, context: HookContext) -> pa.RecordBatch:
    return rows.append_column("more", rows.column("id"))


def retype(rows: pa.RecordBatch, context: HookContext) -> pa.RecordBatch:
    return rows.set_column(0, "id", rows.column("id").cast(pa.int64()))


HERE = "tests.unit.test_shaping_rows"


def test_a_hook_gets_masked_rows_and_adds_columns() -> None:
    hooked = {"hook": f"{HERE}:shout", "hook_adds": {"length": "bigint"}}
    schema = shape(hooked | {"columns": {"name": {"mask": "partial"}}})
    rows = [{"id": 1, "name": "secret"}, {"id": 2, "name": None}]

    by_copy = copied(schema, *rows)
    by_stream = Shaper(schema, KEY).changes(
        changes(*(insert(schema, **row) for row in rows), delete(schema, id=1))
    )

    assert [(row["name"], row["length"]) for row in by_copy] == [("***CRET", 7), (None, None)]
    assert rows_of(by_stream)[:2] == by_copy
    assert done(by_stream) == [("I", 1), ("I", 2), ("D", 1)]
    assert destination_schema(schema).columns[-1].type_name == "bigint"


def test_without_a_key_old_rows_pass_the_hook_as_well() -> None:
    columns = tuple(replace(c, is_identity=True, primary_key_ordinal=None) for c in PEOPLE.columns)
    keyless = replace(PEOPLE, replica_identity="f", columns=columns)
    schema = shape({"hook": f"{HERE}:shout", "hook_adds": {"length": "bigint"}}, keyless)

    shaped = Shaper(schema).changes(
        changes(
            insert(schema, id=1, name="a"),
            update(schema, old={"id": 1, "name": "a"}, id=1, name="b"),
            delete(schema, id=1, name="b"),
        )
    )

    assert shaped is not None
    assert shaped.old_rows is not None
    assert to_dicts(shaped.old_rows) == [rows_of(shaped)[0]]
    assert rows_of(shaped)[1] == rows_of(shaped)[2]


def test_a_value_that_a_hook_changes_does_not_keep_its_text() -> None:
    schema = shape({"hook": f"{HERE}:shout", "hook_adds": {"length": "bigint"}})
    rows = [{"id": 1, "name": Unheld("\\xff"), "born": Unheld("x")}, {"id": 2, "name": "b"}]
    piece = CopiedRows(arrow_rows(schema, rows), odd_values(schema, rows))

    shaped = Shaper(schema).copied(piece)

    assert list(shaped.odd) == ["born"]


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        ("fail", "ValueError in fail, line"),
        ("halve", "returned 0 rows for 1"),
        ("swap_keys", "changed id, which is in the key"),
        ("widen", "other columns for public.people than the table has: more"),
        ("retype", "returned id of public.people as int64, not as int32"),
    ],
)
def test_a_hook_that_breaks_the_rules_fails_without_showing_a_value(hook: str, reason: str) -> None:
    schema = shape({"hook": f"{HERE}:{hook}"})

    with pytest.raises(HookFailed, match=re.escape(reason)) as caught:
        copied(schema, {"id": 1, "name": "Ann"})

    assert "Ann" not in str(caught.value)
    assert caught.value.__cause__ is None


class _TakesMany(MemoryDestination):
    def drop_tables_for_copy(self, schemas: Sequence[TableSchema]) -> None:
        return

    def write_whole_tables(self, copies: Sequence[tuple[TableSchema, TableRows]]) -> None:
        for _, rows in copies:
            list(rows.pieces())


def test_a_table_that_cannot_be_shaped_fails_alone() -> None:
    """In a batch, and in a group of small tables that is copied at once."""
    schema = shape({"hook": f"{HERE}:fail"})
    plain = replace(PEOPLE, id=8, table_name="others")
    destination = shaping(_TakesMany(), config({}))
    many = copying_many(destination)
    assert many is not None
    row = {"id": 1, "name": "Ann"}

    copies = [(each, chunk("copy", 0, each, [row])) for each in (plain, schema)]
    with pytest.raises(TableWriteFailed, match="fail failed on") as caught:
        many.write_whole_tables(copies)
    assert caught.value.table_id == schema.id
    made = Transactions().commit(insert(plain, **row), insert(schema, **row))
    with pytest.raises(TableWriteFailed) as caught:
        destination.write_events(batch(made))
    assert caught.value.table_id == schema.id


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"columns": {"id": {"mask": None}}}, "can't be masked by null"),
        ({"columns": {"id": {"cast": "text"}}}, "can't be cast"),
        ({"columns": {"name": {"cast": "money"}}}, "can't be of type 'money'; known are bigint"),
        ({"columns": {"born": {"mask": {"constant": "soon"}}}}, "is not a value of type date"),
        ({"add": {"name": "x"}}, "two columns name"),
        ({"add": {"x": {"value": "soon", "type": "date"}}}, "the value of x"),
        ({"where": "nme = 'a'"}, "`where` of public.people names a column 'nme'"),
        ({"hook": "no.such:function"}, "the hook no.such:function can't be loaded"),
        ({"hook_adds": {"x": "text"}}, "has hook_adds, but no hook"),
        ({"where": "id > 1", "mode": "append"}, "ALTER TABLE ... REPLICA IDENTITY FULL"),
    ],
)
def test_rules_that_cannot_be_followed_are_named(settings: dict[str, Any], reason: str) -> None:
    made = config(settings)

    assert any(reason in mistake for mistake in mistakes(chosen(PEOPLE, made), made))


# -- the guide -----------------------------------------------------------------------------------

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "shape-tables.md").read_text("utf-8")
CUSTOMERS = TableSchema(
    8,
    "sales",
    "customers",
    (
        column("id", INT4, 1, key=1, type_name="integer"),
        *(
            column(name, TEXT, number, type_name="text")
            for number, name in enumerate(["e_mail", "phone"], 2)
        ),
        column("birthday", DATE, 4, type_name="date"),
        column("points", TEXT, 5, type_name="text"),
        column("api_token", TEXT, 6, type_name="text"),
        column("country", TEXT, 7, type_name="text"),
        column("deleted_at", TIMESTAMPTZ, 8, type_name="timestamp with time zone"),
    ),
)


def test_the_guide_shows_what_its_settings_do(capsys: pytest.CaptureFixture[str]) -> None:
    [written, *_] = re.findall(r"```yaml\n(.*?)```", GUIDE, re.S)
    [shown] = re.findall(r"\$ etl-dagster shape [^\n]*\n(.*?)```", GUIDE, re.S)
    raw = yaml.safe_load(written.replace("${ETL_SALT}", SALT))
    made = config({}, **raw)

    schema = chosen(CUSTOMERS, made)

    assert mistakes(schema, made) == []
    show(described(schema))
    assert capsys.readouterr().out == shown


def test_the_function_in_the_guide_is_a_hook() -> None:
    [code] = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    rows = pa.RecordBatch.from_pydict({"email": ["ann@example.org", None]})

    returned = names["domains"](rows, None)

    assert returned.column("domain").to_pylist() == ["example.org", None]

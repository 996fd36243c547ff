"""What becomes of values that a column's type can't hold."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from etl_dagster.config import PipelineConfig, load_config, parse_config
from etl_dagster.errors import ConfigError, ValueNotHeld
from etl_dagster.model.events import TableChanges
from etl_dagster.runtime.tables.odd_policies import OddPolicies
from etl_dagster.runtime.tables.representation import chosen, held_otherwise, keep_choices
from etl_dagster.testing.changes import (
    INT4,
    NUMERIC,
    TEXT,
    TIMESTAMPTZ,
    Change,
    Transactions,
    Unheld,
    batch,
    chunk,
    column,
    delete,
    insert,
    table,
)
from etl_dagster.values.columns import ColumnSchema, column_from_json, column_to_json
from etl_dagster.values.policy import clamp
from etl_dagster.values.python import to_dicts
from etl_dagster.values.read_as import read_as, type_named
from etl_dagster.values.text import parse

_MONEY = ((12 << 16) | 2) + 4
ACCOUNTS = table(
    [
        column("id", INT4, 1, key=1),
        column("amount", NUMERIC, 2, type_modifier=_MONEY, type_name="numeric(12,2)"),
        column("at", TIMESTAMPTZ, 3, type_name="timestamp with time zone"),
        column("note", TEXT, 4),
    ],
    name="accounts",
)
LATE = Unheld("294276-12-31 23:59:59.999999+00")
LAST = 2**63 - 2


def config(odd_values: str, **columns: str) -> PipelineConfig:
    return parse_config(
        {
            "pipeline": "shop",
            "source": {"publication": "pub", "database": "shop"},
            "destination": {"type": "memory"},
            "odd_values": odd_values,
            "tables": {
                "public.accounts": {
                    "columns": {name: {"odd_values": policy} for name, policy in columns.items()}
                }
            },
        },
        {},
    )


def _applied(policies: PipelineConfig, *changes: Change) -> Any:
    events = batch(Transactions().commit(*changes))
    kept, failures = OddPolicies(policies).batch(events)
    [steps] = kept.tables.values() or [[]]
    assert all(isinstance(step, TableChanges) for step in steps)
    return steps, failures


@pytest.mark.parametrize(("policy", "at"), [("null", None), ("clamp", LAST)], ids=["null", "clamp"])
def test_values_keep_their_texts_whatever_stands_in_the_row(policy: str, at: int | None) -> None:
    row = {"id": 1, "amount": Unheld("NaN"), "at": LATE}

    [changes], failures = _applied(config(policy), insert(ACCOUNTS, **row))

    assert not failures
    assert to_dicts(changes.rows) == [{"id": 1, "amount": None, "at": at, "note": None}]
    assert {name: odd.texts.to_pylist() for name, odd in changes.odd.items()} == {
        "amount": ["NaN"],
        "at": [str(LATE)],
    }
    [copied] = chunk("copy", 0, ACCOUNTS, [row]).pieces()
    shaped = OddPolicies(config(policy)).copied(ACCOUNTS)(copied)
    assert to_dicts(shaped.rows) == to_dicts(changes.rows)
    assert shaped.odd == copied.odd


def test_a_column_has_a_policy_of_its_own() -> None:
    row = {"id": 1, "amount": Unheld("NaN"), "at": LATE}

    [changes], _ = _applied(config("fail", amount="null", at="clamp"), insert(ACCOUNTS, **row))

    assert to_dicts(changes.rows)[0]["at"] == LAST


def test_under_the_fail_policy_a_table_stops_and_names_the_position_but_no_value() -> None:
    other = table([column("id", INT4, 1, key=1)], table_id=7, name="other")
    bad = {"id": 2, "amount": Unheld("NaN")}
    changes = [insert(ACCOUNTS, id=1), insert(ACCOUNTS, **bad), insert(other, id=1)]

    events = batch(Transactions().commit(*changes))
    kept, failures = OddPolicies(config("fail")).batch(events)

    assert list(kept.tables) == [7]
    [failure] = failures.values()
    assert failure.reason == (
        "public.accounts.amount has a value that can't be held as numeric(12,2), at 0/3E8:1"
    )
    [copied] = chunk("copy", 0, ACCOUNTS, [bad]).pieces()
    with pytest.raises(ValueNotHeld, match="in its copy"):
        OddPolicies(config("fail")).copied(ACCOUNTS)(copied)


def test_deleted_values_need_not_be_held() -> None:
    full = replace(ACCOUNTS, replica_identity="f")

    _, failures = _applied(config("fail"), delete(full, id=1, amount=Unheld("NaN")))

    assert not failures


@pytest.mark.parametrize("policy", ["null", "clamp"])
def test_a_key_whose_values_would_coincide_stops_the_table(policy: str) -> None:
    by_moment = table([column("at", TIMESTAMPTZ, 1, key=1)], name="accounts")
    by_amount = table([column("amount", NUMERIC, 1, key=1, type_modifier=_MONEY)], name="accounts")

    _, failures = _applied(config(policy), delete(by_moment, at=LATE))
    assert [failure.reason for failure in failures.values()] == [
        "public.accounts.at has a value that can't be held as its type, at or before 0/3E8:0, "
        "in its key"
    ]
    # NaN is the only one that is null.
    _, failures = _applied(config(policy), delete(by_amount, amount=Unheld("NaN")))
    assert not failures


def test_without_a_key_rows_are_found_by_null_no_matter_when_they_were_written() -> None:
    keyless = table([column("at", TIMESTAMPTZ, 1, is_identity=True)], name="accounts", identity="f")

    [changes], _ = _applied(config("clamp"), delete(keyless, at=LATE))

    assert to_dicts(changes.rows) == [{"at": None}]


@pytest.mark.parametrize(
    ("type_oid", "modifier", "text", "nearest"),
    [
        (TIMESTAMPTZ, -1, str(LATE), LAST),
        (1114, -1, "294276-01-01 00:00:00", LAST),
        (1082, -1, "5881580-07-12", 2**31 - 2),
        (NUMERIC, _MONEY, "Infinity", Decimal("9999999999.99")),
        (NUMERIC, _MONEY, "-Infinity", Decimal("-9999999999.99")),
        (NUMERIC, (60 << 16 | 20) + 4, "Infinity", Decimal("9" * 40 + "." + "9" * 20)),
        (NUMERIC, _MONEY, "NaN", None),
    ],
)
def test_the_nearest_value_is_the_largest_or_the_smallest(
    type_oid: int, modifier: int, text: str, nearest: object
) -> None:
    ordinary = {1700: "1.5", 1082: "2024-01-01"}.get(type_oid, "2024-01-01 00:00:00")
    parsed = parse(
        ColumnSchema("c", type_oid, type_modifier=modifier),
        pa.array([ordinary, text, None], pa.string()),
    )
    assert parsed.odd is not None

    clamped = clamp(parsed.array, parsed.odd)

    assert (clamped.type, clamped[0], clamped[2].as_py()) == (
        parsed.array.type,
        parsed.array[0],
        None,
    )
    last = to_dicts(pa.RecordBatch.from_arrays([clamped], ["c"]))[1]["c"]
    assert last == nearest


@pytest.mark.parametrize(
    ("type_name", "text", "nearest"),
    [
        ("timestamptz", "soon", None),
        ("timestamp", "2024-02-30 10:00:00", None),
        ("timestamp", "300000-01-01 00:00:00", LAST),
        ("date", "0000-01-01", None),
        ("date", "10000-01-01", None),
        ("numeric(5,2)", "12 apples", None),
        ("numeric(5,2)", "-1000.5", Decimal("-999.99")),
        ("numeric(5,2)", "1.005", Decimal("1.01")),
    ],
)
def test_a_text_that_is_not_a_value_of_its_cast_has_no_nearest_one(
    type_name: str, text: str, nearest: object
) -> None:
    type_ = type_named(type_name)
    assert type_ is not None
    parsed = read_as(type_, pa.array([text], pa.string()))
    assert parsed.odd is not None

    clamped = clamp(parsed.array, parsed.odd)

    assert to_dicts(pa.RecordBatch.from_arrays([clamped], ["c"])) == [{"c": nearest}]


def test_null_is_the_policy_of_that_name_in_yaml_too(tmp_path: Path) -> None:
    file = tmp_path / "etl.yaml"
    file.write_text(
        "pipeline: shop\nsource: {database: shop, publication: shop}\n"
        "destination: {type: memory}\nodd_values: fail\n"
        "tables: {public.a: {columns: {b: {odd_values: null}, c: {}}}}\n"
    )

    read = load_config(file, {})

    assert [read.odd_policy("public.a", name) for name in "bcd"] == ["null", "fail", "fail"]
    file.write_text(file.read_text().replace("odd_values: fail", "odd_values: null"))
    assert load_config(file, {}).odd_values == "null"


def test_a_column_is_kept_as_text_until_its_table_is_copied_again() -> None:
    texts = chosen(ACCOUNTS, config("text", note="null"))

    assert [column.name for column in texts.columns if column.as_text] == ["amount", "at"]
    assert {str(field.type) for field in texts.arrow_schema} == {"int32", "string"}
    assert keep_choices(ACCOUNTS, texts) == texts
    assert keep_choices(chosen(ACCOUNTS, config("text")), ACCOUNTS) == ACCOUNTS
    assert held_otherwise(ACCOUNTS, texts, config("null")) == ["amount", "at"]
    kept = [column_to_json(column) for column in texts.columns]
    assert [column_from_json(column) for column in kept] == list(texts.columns)
    # Earlier versions know the format of the others, and refuse this one.
    assert [column["format"] for column in kept] == [2, 3, 3, 2]


def test_settings_of_columns_are_validated() -> None:
    with pytest.raises(ConfigError, match=r"odd_valeus.*did you mean odd_values"):
        parse_config(
            {
                "pipeline": "shop",
                "source": {"publication": "pub", "database": "shop"},
                "tables": {"public.a": {"columns": {"b": {"odd_valeus": "null"}}}},
            },
            {},
        )

"""What tables are at the destination, by the settings: schemas and rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.errors import ConfigError
from etl_dagster.model.coordination import CopyChunk
from etl_dagster.model.events import CopiedRows, TableChanges
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.protocol.builder import PADDING
from etl_dagster.protocol.rows import RowMessages, decode_rows
from etl_dagster.runtime.tables.representation import chosen, keep_choices
from etl_dagster.shaping.columns import destination_schema
from etl_dagster.shaping.rows import Shaper
from etl_dagster.shaping.rules import differs, lost_by_name
from etl_dagster.source.copy import TableReader
from etl_dagster.source.partitions import ReadFrom
from etl_dagster.table_name import TableName
from etl_dagster.table_pattern import TablePattern
from etl_dagster.testing.changes import (
    INT4,
    TEXT,
    Transactions,
    batch,
    column,
    delete,
    insert,
    update,
)
from tests.unit import wire

PEOPLE = TableSchema(
    7,
    "public",
    "people",
    (
        column("id", INT4, 1, key=1),
        column("name", TEXT, 2),
        column("ssn", TEXT, 3),
        column("work_email", TEXT, 4),
    ),
)


def config(tables: dict[str, Any] | None = None, **more: Any) -> PipelineConfig:
    return parse_config(
        {
            "pipeline": "shop",
            "source": {"publication": "pub", "database": "shop"},
            "destination": {"type": "memory"},
            "tables": tables or {},
        }
        | more,
        {},
    )


def shape(tables: dict[str, Any], schema: TableSchema = PEOPLE) -> TableSchema:
    return chosen(schema, config(tables))


def renamed(schema: TableSchema, **names: str) -> TableSchema:
    columns = (replace(c, name=names.get(c.name, c.name)) for c in schema.columns)
    return replace(schema, columns=tuple(columns))


def names(schema: TableSchema) -> list[str]:
    return [column.name for column in destination_schema(schema).columns]


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("sales.*", ("sales", "orders"), True),
        ("sales.*", ("salesx", "orders"), False),
        ("*.order?", ("sales", "orders"), True),
        ('sales."*"', ("sales", "orders"), False),
        ('sales."*"', ("sales", "*"), True),
        ('"a.b".*', ("a.b", "orders"), True),
        ("sales.[o]rders", ("sales", "orders"), False),
        ("Sales.*", ("sales", "orders"), False),
    ],
)
def test_a_pattern_matches_the_tables_that_fit_it(
    pattern: str, name: tuple[str, str], matches: bool
) -> None:
    assert TablePattern.parse(pattern).matches(TableName(*name)) is matches


def test_the_more_exact_setting_wins_and_exclusions_add_up() -> None:
    made = config(
        {
            "public.people": {"copy": True, "exclude": ["name"]},
            "*.*": {"copy": False, "odd_values": "clamp", "exclude": ["ssn"]},
            "public.p*": {"odd_values": None, "columns": {"*": {"nested": "json"}}},
            "*.people": {"columns": {"id": {"nested": "text"}}},
        }
    )

    assert made.table("public.people").copy_rows is True
    assert made.table("public.people").exclude == ["ssn", "name"]
    assert made.table("public.other").copy_rows is False
    assert made.odd_policy("public.people", "id") == "null"
    assert made.odd_policy("sales.people", "id") == "clamp"
    # First counts how exactly the table is meant, then the column.
    assert made.nested_of("public.people", "id") == "json"
    assert made.nested_of("sales.people", "id") == "text"


def test_settings_survive_being_passed_to_another_process() -> None:
    """A default that is written down would win over a setting elsewhere."""
    made = config({"*.*": {"copy": False}, "public.people": {"exclude": ["ssn"]}})
    again = PipelineConfig.model_validate(made.model_dump(by_alias=True))

    assert again.table("public.people") == made.table("public.people")
    assert again.table("public.people").copy_rows is False


@pytest.mark.parametrize("name", ["orders", "a.{b}", "{schema}", "a.b.c", "x.{table}}"])
def test_a_name_that_is_not_one_of_a_table_is_a_mistake(name: str) -> None:
    with pytest.raises(ConfigError):
        config({"public.people": {"name": name}})


# -- schemas -------------------------------------------------------------------------------------


def test_a_table_without_settings_is_the_same_object() -> None:
    assert shape({"public.other": {"exclude": ["ssn"]}}).shape is None
    assert destination_schema(PEOPLE) is PEOPLE


def test_names_and_columns_are_those_of_the_settings() -> None:
    there = destination_schema(
        shape(
            {
                "public.*": {"name": "raw_{schema}.{table}_{table}", "exclude": ["*_email"]},
                "public.people": {"columns": {"name": {"name": "called"}}},
            }
        )
    )

    assert there.name == "raw_public.people_people"
    assert there.column_names == ("id", "called", "ssn")
    assert there.key_columns == ("id",)
    assert there.shape is None
    assert all(column.shape is None for column in there.columns)


def test_braces_in_names_of_the_source_are_not_placeholders() -> None:
    odd = replace(PEOPLE, schema_name="{table}", table_name="{schema}")

    assert shape({"*.*": {"name": "{schema}.{table}"}}, odd).target == TableName(
        "{table}", "{schema}"
    )


def test_included_columns_are_the_only_ones_even_among_those_added_later() -> None:
    settings = {"public.people": {"include": ["id", "n*"], "exclude": ["nick"]}}
    later = (column("nick", TEXT, 5), column("note", TEXT, 6), column("iban", TEXT, 7))
    wider = replace(PEOPLE, columns=(*PEOPLE.columns, *later))

    assert names(shape(settings)) == ["id", "name"]
    assert names(keep_choices(shape(settings, wider), shape(settings))) == ["id", "name", "note"]


def test_an_excluded_column_stays_excluded_under_another_name_and_type() -> None:
    settings = {"public.people": {"exclude": ["ssn"], "columns": {"name": {"name": "called"}}}}
    known = shape(settings)
    now = renamed(PEOPLE, ssn="social", name="title")
    now = replace(
        now,
        table_name="persons",
        columns=tuple(replace(c, type_oid=INT4) if c.name == "social" else c for c in now.columns),
    )

    kept = keep_choices(shape(settings, now), known)

    assert names(kept) == ["id", "called", "work_email"]
    assert not next(c for c in kept.columns if c.name == "social").is_read


def test_a_new_column_is_hidden_in_a_table_that_did_not_differ() -> None:
    settings = {"*.*": {"exclude": ["*_token"]}}
    wider = replace(PEOPLE, columns=(*PEOPLE.columns, column("api_token", TEXT, 5)))

    kept = keep_choices(shape(settings, wider), shape(settings))

    assert names(kept) == list(PEOPLE.column_names)


def test_the_default_of_an_excluded_column_is_not_kept() -> None:
    token = ColumnSchema("api_token", TEXT, attnum=5, missing_value="secret")
    wider = replace(PEOPLE, columns=(*PEOPLE.columns, token))

    kept = shape({"*.*": {"exclude": ["*_token"]}}, wider)

    assert kept.columns[-1].missing_value is None


def test_other_settings_are_a_difference_but_renamed_columns_alone_are_not() -> None:
    settings = {"public.people": {"exclude": ["ssn"]}}
    known = shape(settings)
    now = renamed(PEOPLE, ssn="social")

    assert differs(known, shape({"public.people": {}}), config({"public.people": {}})) == [
        "ssn (not left out)"
    ]
    assert differs(known, shape(settings), config(settings)) == []
    assert differs(known, shape(settings, now), config(settings)) == []
    others = {"public.people": {"exclude": ["name"]}}
    assert differs(known, shape(others, now), config(others)) == [
        "name (left out)",
        "social (not left out)",
    ]
    elsewhere = {"public.people": {"exclude": ["ssn"], "name": "a.b"}}
    what = differs(known, shape(elsewhere), config(elsewhere))
    assert what == ["the table itself (name)"]


def test_a_column_that_its_old_name_hid_is_found_before_it_is_exposed() -> None:
    settings = {"public.*": {"exclude": ["ssn"]}}
    known = shape(settings)
    now = renamed(PEOPLE, ssn="social")
    moved = replace(PEOPLE, schema_name="archive")

    assert len(lost_by_name(known, shape(settings, now), config(settings))) == 1
    assert len(lost_by_name(known, shape(settings, moved), config(settings))) == 1
    # Shown on purpose: the old name isn't hidden any more either.
    assert lost_by_name(known, shape({}, now), config()) == []
    by_new_name = {"public.*": {"exclude": ["s*"]}}
    assert lost_by_name(known, shape(by_new_name, now), config(by_new_name)) == []


# -- rows ----------------------------------------------------------------------------------------


def changes_of(schema: TableSchema) -> TableChanges:
    rows = {"name": "Ann", "ssn": "1", "work_email": "a@b"}
    made = Transactions().commit(
        insert(schema, id=1, **rows),
        update(schema, old={"id": 1}, id=2, **rows | {"ssn": "2"}),
        delete(schema, id=2),
    )
    [[step]] = batch(made).tables.values()
    assert isinstance(step, TableChanges)
    return step


def test_rows_have_the_columns_of_the_destination() -> None:
    schema = shape({"public.people": {"exclude": ["ssn"], "columns": {"id": {"name": "number"}}}})

    shaped = Shaper(schema).changes(changes_of(schema))

    assert shaped.schema.column_names == ("number", "name", "work_email")
    assert shaped.rows.schema == shaped.schema.arrow_schema
    assert shaped.rows.column("number").to_pylist() == [1, 2, 2]
    assert shaped.old_rows is not None
    assert shaped.old_rows.column("number").to_pylist() == [1]
    assert "ssn" not in shaped.rows.schema.names


def test_rows_without_any_column_left_are_counted() -> None:
    keyless = replace(PEOPLE, columns=PEOPLE.columns[1:], replica_identity="f")
    schema = shape({"public.people": {"exclude": ["*"]}}, keyless)
    rows = pa.RecordBatch.from_pylist([{"name": "a"}] * 3, schema.arrow_schema)

    assert Shaper(schema).copied(CopiedRows(rows)).num_rows == 3


def test_columns_that_nothing_needs_are_not_decoded() -> None:
    """Not even to find that it can't be held."""
    schema = shape({"public.people": {"exclude": ["ssn"]}})
    frames = [
        wire.xlog_data(wire.insert(7, (b"1", b"Ann", b"\xff", None))),
        wire.xlog_data(wire.update(7, (b"1", b"Bob", wire.UNCHANGED, b"b@c"))),
    ]
    buffer = bytearray(b"".join(frames) + bytes(PADDING))
    messages = RowMessages(buffer, [len(frame) for frame in frames])

    decoded = decode_rows(messages, np.arange(2), schema)

    assert decoded.rows.column("name").to_pylist() == ["Ann", "Bob"]
    assert decoded.rows.column("work_email").to_pylist() == [None, "b@c"]
    assert decoded.rows.column("ssn").null_count == 2
    assert decoded.odd == {}
    assert decoded.unchanged == {}


def test_columns_that_nothing_needs_are_not_selected() -> None:
    schema = shape({"public.people": {"exclude": ["ssn", "n*"]}})
    connection: Any = None

    query = TableReader(schema, connection)._query(CopyChunk(0, 7), ReadFrom("public", "people"))

    assert query == 'select "id", "work_email" from only "public"."people"'


def test_columns_added_by_hooks_are_joined_from_all_patterns() -> None:
    settings = config(
        {
            "public.*": {"hook": "a:b", "hook_adds": {"batch": "text", "length": "text"}},
            "public.people": {"hook_adds": {"length": "bigint"}},
        }
    )

    assert settings.table("public.people").hook_adds == {"batch": "text", "length": "bigint"}

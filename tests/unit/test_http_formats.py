"""What is sent is valid by its format's schema, and format 1 refuses what it can't carry."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import jsonschema
import pytest

from etl_dagster.destinations.http import load_json_schema, row_json_schema
from etl_dagster.destinations.http.config import Format
from etl_dagster.destinations.http.formats import NotInFormat
from etl_dagster.destinations.http.payload import Body, drop_body, events_bodies, rows_bodies
from etl_dagster.model.events import RelationEvent, TableStep
from etl_dagster.model.json_values import schema_to_json
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import (
    ORDERS,
    Transactions,
    batch,
    chunk,
    column,
    end_of_copy,
    insert,
    order,
    table,
)
from etl_dagster.testing.parts import PARTS, PARTS_ROWS
from etl_dagster.values import oids
from etl_dagster.values.columns import ColumnSchema, Nested
from etl_dagster.values.form import Spelling
from etl_dagster.values.forms import form_of
from etl_dagster.values.json import spelling
from etl_dagster.values.registry import REGISTRY
from etl_dagster.values.types import Array, Domain, Multirange, Range, Scalar

FORMATS: tuple[Format, ...] = get_args(Format)
INT8 = Scalar(oids.INT8, "bigint")


def with_parts_as(nested: Nested) -> TableSchema:
    columns = [replace(column, nested=nested) for column in PARTS.columns]
    return replace(PARTS, columns=tuple(columns))


def bodies(schema: TableSchema, rows: list[dict[str, Any]], format: Format) -> list[Body]:
    """All bodies of a table: the beginning of its copy, its rows, and the same rows as inserts."""
    [steps] = batch(Transactions().commit(*(insert(schema, **row) for row in rows))).tables.values()
    steps = [RelationEvent(schema, None, 0), *steps]
    return [
        drop_body("shop", schema, "1", format=format),
        *rows_bodies("shop", schema, chunk("c", 0, schema, rows), "a", 10**6, format=format),
        *rows_bodies("shop", schema, end_of_copy("c"), "a", 10**6, format=format),
        *events_bodies("shop", steps, 10**6, format=format),
    ]


def rows_in(body: dict[str, Any]) -> list[dict[str, Any]]:
    changes = [event for event in body.get("events", ()) if "row" in event]
    return [*body.get("rows", ()), *(event["row"] for event in changes)]


def validate(body: dict[str, Any]) -> None:
    """As a receiver does: the body, and in format 2 the rows as the columns are described."""
    jsonschema.Draft202012Validator(load_json_schema(body["format"])).validate(body)
    if body["format"] == 2:
        schema = row_json_schema(body["table"])
        jsonschema.Draft202012Validator.check_schema(schema)
        for row in rows_in(body):
            jsonschema.Draft202012Validator(schema).validate(row)


# -- what is sent ------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_has_a_schema(format: Format) -> None:
    schema = load_json_schema(format)

    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$defs"]["rowsBody"]["properties"]["format"] == {
        "description": schema["$defs"]["dropBody"]["properties"]["format"]["description"],
        "const": format,
    }


@pytest.mark.parametrize("nested", ["native", "json", "text"])
def test_values_with_parts_are_sent_as_their_columns_are_described(nested: Nested) -> None:
    rows = PARTS_ROWS if nested == "native" else [{"id": 1, "tags": "{a}"}]
    for body in bodies(with_parts_as(nested), rows, 2):
        validate(json.loads(body.content))


def test_a_value_in_another_form_than_its_column_says_is_invalid() -> None:
    described = schema_to_json(PARTS)
    rows = jsonschema.Draft202012Validator(row_json_schema(described))
    range_ = {"lower": "2024-01-01", "upper": None, "lower_inc": True}
    whole = {**range_, "upper_inc": False, "empty": False}

    good: list[tuple[str, Any]] = [
        ("id", "1"),
        ("tags", ["a", None]),
        ("grid", [[1, None]]),
        ("amounts", ["1.50"]),
        ("days", whole),
        ("pair", {"n": 1, "t": None}),
        ("extra", {"a": None}),
    ]
    bad: list[tuple[str, Any]] = [
        ("id", 1),
        ("tags", "{a}"),
        ("tags", [1]),
        ("grid", [1]),
        ("grid", [["1"]]),
        ("amounts", [1.5]),
        ("days", range_),
        ("days", whole | {"lower": "today"}),
        ("pair", {"n": 1}),
        ("pair", {"n": 1, "t": None, "u": 1}),
        ("extra", {"a": 1}),
        ("unknown", 1),
    ]
    assert [(name, rows.is_valid({name: value})) for name, value in good + bad] == [
        *((name, True) for name, _ in good),
        *((name, False) for name, _ in bad),
    ]


def test_every_spelling_is_described() -> None:
    for format in FORMATS:
        definitions = load_json_schema(format)["$defs"]
        described = definitions["spelling" if format == 2 else "column"]["properties"]
        forms = (described["form"] if format == 2 else described["value"]["properties"]["form"])[
            "enum"
        ]
        parts = ["list", "range", "object", "map"] if format == 2 else []
        assert forms == [*get_args(Spelling), *parts]
        if format == 2:
            assert {f"{form}Value" for form in forms} <= definitions.keys()


@pytest.mark.parametrize("row", REGISTRY.values(), ids=lambda row: row.name)
def test_the_extreme_values_of_every_type_are_spelled_as_described(row: Any) -> None:
    """Through the reader of the type, so that what can't be held is null."""
    import pyarrow as pa

    from etl_dagster.values.python import to_objects

    c = ColumnSchema("c", row.oid, type_name=row.name)
    values = to_objects(form_of(c).read(pa.array([edge.text for edge in row.edges])).array)
    write = form_of(c).to_json
    schema = jsonschema.Draft202012Validator(
        row_json_schema({"columns": [{"name": "c", "value": spelling(c)}]})
    )
    for value in values:
        plain = value if value is None or write is None else write(value)
        schema.validate(json.loads(json.dumps({"c": plain}, allow_nan=False)))


def test_parts_are_described_down_to_their_types() -> None:
    numbers = Domain(70_010, "public.numbers", Array(1016, "bigint[]", INT8, dimensions=2))
    spans = Multirange(4536, "int8multirange", Range(3926, "int8range", INT8))
    digits = {"type": "bigint", "form": "digits"}

    def described(type_: Any) -> Any:
        return spelling(ColumnSchema("c", type_.oid, type=type_, nested="native"))

    assert described(numbers) == {
        "form": "list",
        "items": {"type": "bigint[]", "form": "list", "items": digits},
    }
    assert described(spans) == {
        "form": "list",
        "items": {"type": "int8range", "form": "range", "bounds": digits},
    }
    by_name = {column.name: spelling(column) for column in PARTS.columns}
    assert by_name["id"] == {"form": "digits"}
    assert by_name["pairs"] == {
        "form": "list",
        "items": {
            "type": "public.pair",
            "form": "object",
            "members": [
                {"name": "n", "type": "integer", "form": "integer"},
                {"name": "t", "type": "text", "form": "text"},
            ],
        },
    }
    assert by_name["extra"] == {"form": "map", "items": {"type": "text", "form": "text"}}


# -- format 1 ----------------------------------------------------------------------------------


def test_format_1_carries_tables_without_parts_and_parts_as_text() -> None:
    texts = with_parts_as("text")
    sent = [
        *bodies(ORDERS, [order(1)], 1),
        *bodies(texts, [{"id": 1, "tags": "{a,NULL}", "pair": "(1,)"}], 1),
    ]

    for body in sent:
        validate(json.loads(body.content))
    assert {json.loads(body.content)["format"] for body in sent} == {1}


@pytest.mark.parametrize("nested", ["native", "json"])
def test_format_1_refuses_what_it_has_no_spelling_for(nested: Nested) -> None:
    schema = with_parts_as(nested)
    rows = chunk("c", 0, schema, [{"id": 1}])
    [steps] = batch(Transactions().commit(insert(schema, id=1))).tables.values()

    for refused in (
        rows_bodies("shop", schema, rows, "a", 10**6, format=1),
        events_bodies("shop", steps, 10**6, format=1),
    ):
        with pytest.raises(NotInFormat, match=r"public\.parts: format 1 .* tags, grid") as caught:
            list(refused)
        assert caught.value.table_id == schema.id
        assert "destination.format to 2" in caught.value.solution


def test_format_1_refuses_numbers_by_choice_that_are_not_digits() -> None:
    def numbers(choice: str) -> TableSchema:
        return table(
            [column("id", oids.INT8, 1, key=1), column("n", oids.NUMERIC, 2, numeric=choice)]
        )

    for choice in ("text", "decimal(20,4)"):
        assert bodies(numbers(choice), [{"id": 1}], 1)
    with pytest.raises(NotInFormat, match="which n were"):
        bodies(numbers("double"), [{"id": 1}], 1)


def test_a_copy_that_replaces_one_with_parts_can_begin_in_format_1() -> None:
    """Otherwise a reset would not help: the body describes the table that is dropped."""
    body = json.loads(drop_body("shop", PARTS, "1", format=1).content)

    validate(body)
    assert [c["value"]["form"] for c in body["table"]["columns"]] == ["digits"] + ["text"] * 8


def test_dropped_columns_do_no_harm_in_format_1() -> None:
    texts = replace(PARTS, columns=PARTS.columns[:1])
    steps: list[TableStep] = [RelationEvent(texts, PARTS, 0)]
    [body] = events_bodies("shop", steps, 10**6, format=1)

    validate(json.loads(body.content))

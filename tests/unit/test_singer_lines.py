"""What a Singer target is sent: streams, JSON schemas, records."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pytest

from etl_dagster.destinations.singer.lines import Stamps, record_lines
from etl_dagster.destinations.singer.streams import Spelling, schema_message, stream_name
from etl_dagster.destinations.singer.stretches import Stretcher
from etl_dagster.errors import RowsOutdated, TableWriteFailed
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import RelationEvent
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import (
    BOOL,
    BYTEA,
    DATE,
    FLOAT8,
    INT4,
    INT8,
    JSONB,
    NUMERIC,
    ORDERS,
    READINGS,
    TEXT,
    TIMESTAMPTZ,
    UUID,
    VISITS,
    Change,
    Row,
    Transactions,
    arrow_rows,
    batch,
    column,
    delete,
    insert,
    order,
    table,
    truncate,
    update,
)
from etl_dagster.testing.parts import PARTS, PARTS_ROWS

TIME, TIMESTAMP, INT2, FLOAT4 = 1083, 1114, 21, 700
EVERY = table(
    [
        column("id", INT8, 1, key=1),
        column("small", INT2, 2),
        column("amount", NUMERIC, 3, type_modifier=((30 << 16) | 10) + 4),
        column("any", NUMERIC, 4),
        column("ratio", FLOAT8, 5),
        column("single", FLOAT4, 6),
        column("text", TEXT, 7),
        column("bytes", BYTEA, 8),
        column("document", JSONB, 9),
        column("day", DATE, 10),
        column("clock", TIME, 11),
        column("local", TIMESTAMP, 12),
        column("moment", TIMESTAMPTZ, 13),
        column("token", UUID, 14),
        column("flag", BOOL, 15),
    ],
    name="every",
)
TEXTS = [
    "",
    "plain",
    'a "quote"',
    "back\\slash",
    "a\nb\tc\rd",
    "\x00\x01\x1f\x7f",
    "Grüße 世界 🐘 \u2028",
]


def records(
    schema: TableSchema, rows: list[Row], spelling: Spelling | None = None, **more: Any
) -> list[dict[str, Any]]:
    """The RECORD messages of some copied rows."""
    spelling = spelling or Spelling()
    stamps = Stamps(1_700_000_000_000_000, 7)
    lines = b"".join(record_lines("s", schema, arrow_rows(schema, rows), stamps, spelling, **more))
    assert lines.endswith(b"\n") or not rows
    return [json.loads(line) for line in lines.split(b"\n")[:-1]]


def values(schema: TableSchema, rows: list[Row], spelling: Spelling | None = None) -> list[Row]:
    """The records without what each has besides its columns."""
    return [
        {name: value for name, value in message["record"].items() if not name.startswith("_sdc_")}
        for message in records(schema, rows, spelling)
    ]


def test_every_value_arrives_without_loss() -> None:
    row: Row = {
        "id": 2**63 - 1,
        "small": -(2**15),
        "amount": Decimal("12345678901234567890.0123456789"),
        "any": "0.10",
        "ratio": 0.1,
        "single": 0.5,
        "text": "x",
        "bytes": b"\x00\xff",
        "document": '{"a": [1.10, null]}',
        "day": date(1, 1, 1),
        "clock": time(23, 59, 59, 999_999),
        "local": datetime(2024, 2, 29, 1, 2, 3),
        "moment": datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC),
        "token": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "flag": False,
    }

    [found] = values(EVERY, [row])

    assert found == {
        **row,
        "amount": "12345678901234567890.0123456789",
        "bytes": "AP8=",
        "day": "0001-01-01",
        "clock": "23:59:59.999999",
        "local": "2024-02-29T01:02:03.000000",
        "moment": "9999-12-31T23:59:59.999999+00:00",
    }
    nulls = dict.fromkeys(EVERY.column_names) | {"id": 1}
    assert values(EVERY, [nulls]) == [nulls]


def test_small_decimals_have_no_exponent() -> None:
    found = values(EVERY, [{"id": 1, "amount": Decimal("-0.0000000001")}, {"id": 2, "amount": 0}])

    assert [row["amount"] for row in found] == ["-0.0000000001", "0.0000000000"]


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_is_json(text: str) -> None:
    found = values(VISITS, [{"page": "before", "at": 1}, {"page": text, "at": 2}])

    assert [row["page"] for row in found] == ["before", text]


def test_values_with_parts_are_lists_and_objects() -> None:
    first, second, third = values(PARTS, PARTS_ROWS)

    assert first["tags"] == PARTS_ROWS[0]["tags"]
    assert first["grid"] == [[1, 2], [3, None]]
    assert first["days"]["lower"] == "2024-02-29"
    assert first["extra"] == {"a": "1", "b": None, "": "", "c => d": '"'}
    assert (second["tags"], second["extra"], third["tags"]) == ([], {}, None)


def test_json_can_be_sent_as_values() -> None:
    rows: list[Row] = [
        {"id": 1, "document": '{"a":\n [1.10, "x\\n"]}'},
        {"id": 2, "document": None},
    ]

    first, second = values(EVERY, rows, Spelling(json_values="value"))

    assert (first["document"], second["document"]) == ({"a": [1.1, "x\n"]}, None)


def test_decimals_can_be_sent_as_numbers() -> None:
    [line] = record_lines(
        "s",
        EVERY,
        arrow_rows(EVERY, [{"id": 1, "amount": Decimal("12345678901234567890.0123456789")}]),
        Stamps(0, 0),
        Spelling(decimals="number"),
    )

    assert b'"amount":12345678901234567890.0123456789,' in bytes(line)


@pytest.mark.parametrize("spelling", [Spelling(), Spelling("{table}", "value", "number")])
@pytest.mark.parametrize(
    ("schema", "rows"),
    [
        (EVERY, [dict.fromkeys(EVERY.column_names) | {"id": 1, "document": "[1]", "ratio": 1.0}]),
        (PARTS, PARTS_ROWS),
    ],
    ids=["every", "parts"],
)
def test_every_record_is_valid_by_its_schema(
    schema: TableSchema, rows: list[Row], spelling: Spelling
) -> None:
    """Targets of the SDK refuse another one."""
    message = json.loads(schema_message("s", schema, spelling))
    jsonschema.Draft7Validator.check_schema(message["schema"])
    validator = jsonschema.Draft7Validator({**message["schema"], "additionalProperties": False})

    for each in records(schema, rows, spelling):
        validator.validate(each["record"])
    gone = schema.arrow_schema.names[:1]
    keys = arrow_rows(schema, rows).select(gone)
    [line] = record_lines("s", schema, keys, Stamps(0, 0), spelling, deleted=True)
    for text in bytes(line).split(b"\n")[:-1]:
        validator.validate(json.loads(text)["record"])


def test_the_schema_has_precision_limits_formats_and_the_key() -> None:
    message = json.loads(schema_message("public-every", EVERY, Spelling()))
    properties = message["schema"]["properties"]

    assert (message["stream"], message["key_properties"]) == ("public-every", ["id"])
    assert properties["id"] == {"type": ["integer"], "minimum": -(2**63), "maximum": 2**63 - 1}
    assert properties["small"]["maximum"] == 2**15 - 1
    assert properties["amount"] == {
        "type": ["null", "string"],
        "format": "x-singer.decimal",
        "precision": 30,
        "scale": 10,
    }
    assert properties["any"] == {"type": ["null", "string"]}
    formats = {name: each.get("format") for name, each in properties.items()}
    assert [formats[n] for n in ("day", "clock", "local", "moment", "token")] == [
        "date",
        "time",
        "date-time",
        "date-time",
        "uuid",
    ]
    assert properties["bytes"]["contentEncoding"] == "base64"
    assert properties["_sdc_deleted_at"]["format"] == "date-time"


def test_what_json_cannot_represent_is_null_and_its_text_is_sent_with_the_row() -> None:
    far = pa.array([2**62, 0], pa.int64())
    schema = table(
        [column("id", INT8, 1, key=1), column("at", TIMESTAMPTZ, 2), column("x", FLOAT8, 3)]
    )
    rows = pa.RecordBatch.from_arrays(
        [pa.array([1, 2]), far.cast(pa.timestamp("us", "UTC")), pa.array([float("nan"), 1.5])],
        names=["id", "at", "x"],
    )

    [lines] = record_lines("s", schema, rows, Stamps(0, 0), Spelling())
    first, second = (json.loads(line)["record"] for line in bytes(lines).split(b"\n")[:-1])

    assert (first["at"], first["x"], second["x"]) == (None, None, 1.5)
    odd = json.loads(first["_sdc_odd_values"])
    assert odd.keys() == {"at", "x"}
    assert odd["x"].lower() == "nan"
    assert second["_sdc_odd_values"] is None


def test_a_key_that_json_cannot_hold_stops_its_table() -> None:
    schema = table([column("x", FLOAT8, 1, key=1)], name="odd")

    with pytest.raises(TableWriteFailed, match=r"public\.odd has a value in x"):
        records(schema, [{"x": float("inf")}])


@pytest.mark.parametrize(
    ("schema_name", "name", "stream"),
    [("public", "orders", "public-orders"), ("my-shop", "order-items", "my_shop-order_items")],
)
def test_a_stream_has_one_hyphen_between_schema_and_table(
    schema_name: str, name: str, stream: str
) -> None:
    schema = table(ORDERS.columns, schema_name=schema_name, name=name)

    assert stream_name("{schema}-{table}", schema) == stream


def test_a_column_with_the_name_of_an_added_property_is_refused() -> None:
    schema = table([column("_SDC_lsn", INT4, 1)])

    with pytest.raises(TableWriteFailed, match="_SDC_lsn"):
        schema_message("s", schema, Spelling())


# -- changes -------------------------------------------------------------------------------------


def stretcher(**settings: Any) -> Stretcher:
    given: dict[str, Any] = {"target": "target-x", "empties": True, "unchanged": "refuse"}
    return Stretcher("{schema}-{table}", Spelling(), **given | settings)


def messages(made: Stretcher, changes: list[Change]) -> list[dict[str, Any]]:
    events = batch(changes)
    return [
        json.loads(line)
        for steps in events.tables.values()
        for stretch in made.stretches(steps)
        for data in stretch.lines(Spelling())
        for line in bytes(data).split(b"\n")[:-1]
    ]


def test_a_record_has_its_position_and_its_time() -> None:
    changes = Transactions(first_lsn=1000).commit(
        insert(ORDERS, **order(1)), update(ORDERS, **order(1, "x")), delete(ORDERS, id=2)
    )

    gone, kept = messages(stretcher(), changes)

    assert kept["record"]["note"] == "x"
    assert {name: value for name, value in kept["record"].items() if name.startswith("_sdc_")} == {
        "_sdc_extracted_at": "1970-01-01T00:00:00.001000+00:00",
        "_sdc_deleted_at": None,
        "_sdc_sequence": 1000,
        "_sdc_table_version": 1000,
        "_sdc_lsn": 1000,
        "_sdc_ordinal": 1,
        "_sdc_odd_values": None,
    }
    assert (kept["version"], kept["time_extracted"]) == (1000, "1970-01-01T00:00:00.001000+00:00")
    assert {n: v for n, v in gone["record"].items() if not n.startswith("_sdc_")} == {"id": 2}
    assert gone["record"]["_sdc_deleted_at"] == "1970-01-01T00:00:00.001000+00:00"
    assert gone["record"]["_sdc_ordinal"] == 2


def test_a_log_has_a_record_for_each_change_and_no_key() -> None:
    """Nothing has its target remove or replace a row: no key, no deleted row, no new version."""
    log = replace(ORDERS, mode="append")
    changes = Transactions(first_lsn=1000).commit(
        insert(log, **order(1, "a")),
        update(log, unchanged=["document"], id=2, note="b"),
        delete(log, id=1),
        truncate(log),
    )
    described = json.loads(schema_message("s", log, Spelling()))

    found = messages(stretcher(empties=False), changes)

    assert described["key_properties"] == []
    for message in found:
        jsonschema.validate(message["record"], described["schema"])
    entries = [
        {name: value for name, value in message["record"].items() if name.startswith("_etl_")}
        for message in found
    ]
    at = {
        "_etl_commit_lsn": 1000,
        "_etl_commit_time": "1970-01-01T00:00:00.001000+00:00",
        "_etl_xid": 1700,
    }
    assert entries == [
        at | {"_etl_op": op, "_etl_ordinal": number, "_etl_before": before, "_etl_unchanged": same}
        for number, (op, before, same) in enumerate(
            [
                ("insert", None, None),
                ("update", None, '["document"]'),
                ("delete", '{"id": "1"}', None),
                ("truncate", None, None),
            ]
        )
    ]
    assert {message["record"]["_sdc_deleted_at"] for message in found} == {None}
    assert [message["record"]["id"] for message in found] == [1, 2, 1, None]


def test_a_row_that_is_marked_has_all_that_postgres_sends_of_it() -> None:
    full = replace(ORDERS, mode="soft_delete", replica_identity="f")
    one, two, three = (order(n, f"row {n}") for n in (1, 2, 3))
    changes = Transactions().commit(
        delete(full, **one),
        update(full, old=two, **two | {"id": 7}),
        insert(full, **three),
        delete(full, **three),
    )

    found = [message["record"] for message in messages(stretcher(), changes)]

    marks = {
        record["id"]: (record["note"], record["_sdc_deleted_at"] is not None) for record in found
    }
    assert len(found) == 4
    assert marks == {
        1: ("row 1", True),
        2: ("row 2", True),
        7: ("row 2", False),
        3: ("row 3", True),
    }


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "sends only the key of a deleted row"),
        ({"unchanged": "omit", "removes": True}, "is told to remove deleted rows"),
    ],
)
def test_rows_that_would_not_stay_as_they_were_are_not_marked(
    settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(TableWriteFailed, match=why):
        stretcher(**settings).stretch(replace(ORDERS, mode="soft_delete"))


def test_a_changed_key_is_a_deleted_row_and_a_new_one() -> None:
    changes = Transactions().commit(update(ORDERS, old={"id": 1}, **order(7)))

    gone, kept = (message["record"] for message in messages(stretcher(), changes))

    assert (gone["id"], gone["_sdc_deleted_at"] is None) == (1, False)
    assert (kept["id"], kept["_sdc_deleted_at"]) == (7, None)


def test_a_truncate_activates_a_version_above_all_before_and_none_after() -> None:
    """Also where everything is one transaction, in batches cut anywhere."""
    changes = Transactions(first_lsn=1000).commit(
        insert(ORDERS, **order(1)), truncate(ORDERS), insert(ORDERS, **order(2)), truncate(ORDERS),
        insert(ORDERS, **order(3)),
    )  # fmt: skip
    made = stretcher()

    parts = [messages(made, changes[place : place + 1]) for place in range(5)]

    [[before], [first], [between], [second], [after]] = parts
    assert first["type"] == second["type"] == "ACTIVATE_VERSION"
    assert before["version"] < first["version"] <= between["version"]
    assert between["version"] < second["version"] <= after["version"]
    assert messages(made, changes[1:2]) == [second], "streamed again, it removes nothing newer"


def test_what_came_before_a_truncate_is_not_sent() -> None:
    changes = Transactions().commit(
        insert(ORDERS, **order(1)), truncate(ORDERS), insert(ORDERS, **order(2))
    )

    sent = messages(stretcher(), changes)

    assert [m["type"] for m in sent] == ["ACTIVATE_VERSION", "RECORD"]
    assert sent[1]["record"]["id"] == 2


@pytest.mark.parametrize(
    ("changes", "settings", "reason"),
    [
        ([truncate(ORDERS)], {"empties": False}, "truncated, and target-x does not empty"),
        ([update(ORDERS, unchanged=["document"], id=1)], {}, "left document as it was"),
        (
            [update(ORDERS, old={"id": 1}, unchanged=["document"], id=2)],
            {"unchanged": "omit"},
            "left document as it was",
        ),
        ([delete(READINGS, sensor="a")], {}, "updated or deleted, and it has no key"),
    ],
)
def test_what_a_target_cannot_do_stops_the_table(
    changes: list[Change], settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TableWriteFailed, match=reason) as raised:
        messages(stretcher(**settings), Transactions().commit(*changes))

    assert raised.value.table_id == changes[0].schema.id
    assert re.search("re(try|set) (the table|it)", raised.value.solution)


def test_an_unchanged_value_can_be_left_out_of_its_record() -> None:
    changes = Transactions().commit(
        update(ORDERS, unchanged=["document"], id=1, note="x"), update(ORDERS, **order(2, "y"))
    )

    first, second = (m["record"] for m in messages(stretcher(unchanged="omit"), changes))

    by_id = {first["id"]: first, second["id"]: second}
    assert ("document" in by_id[1], by_id[1]["note"]) == (False, "x")
    assert "document" in by_id[2]


def test_an_unchanged_value_that_came_with_the_old_row_is_sent() -> None:
    """That is what REPLICA IDENTITY FULL is for."""
    full = table(ORDERS.columns, identity="f")
    old = order(1, document="long")
    changes = Transactions().commit(
        update(full, old=old, unchanged=["document"], id=1, amount=None, note="x")
    )

    [kept] = (m["record"] for m in messages(stretcher(), changes))

    assert (kept["document"], kept["note"]) == ("long", "x")


@pytest.mark.parametrize(
    ("columns", "name", "reason"),
    [
        (ORDERS.columns, "purchases", "is called public.purchases now"),
        ((*ORDERS.columns[:3], column("text", TEXT, 4)), "orders", "document of .* is called text"),
        ((*ORDERS.columns[:3], column("document", INT4, 4)), "orders", "has another type now"),
        ((*ORDERS.columns, column("x", INT4, 5, missing_value="7")), "orders", "with a value"),
    ],
)
def test_a_change_that_a_target_does_not_follow_needs_a_new_copy(
    columns: Any, name: str, reason: str
) -> None:
    event = RelationEvent(table(columns, name=name, snapshot=900), ORDERS, 0)

    with pytest.raises(RowsOutdated, match=reason) as raised:
        stretcher().stretches([event])

    assert "7" not in raised.value.reason, "no row value in any message"


@pytest.mark.parametrize("columns", [(*ORDERS.columns, column("x", INT4, 5)), ORDERS.columns[:3]])
def test_columns_that_are_added_without_a_value_or_dropped_need_no_copy(columns: Any) -> None:
    assert stretcher().stretches([RelationEvent(table(columns, snapshot=900), ORDERS, 0)]) == []


def test_two_tables_of_one_stream_are_refused() -> None:
    made = stretcher()
    made.stretch(table(ORDERS.columns, schema_name="a-b", name="c"))
    other = table(ORDERS.columns, schema_name="a_b", name="c", table_id=9)

    with pytest.raises(TableWriteFailed, match="would be one stream, a_b-c"):
        made.stretch(other)


def test_many_rows_come_in_pieces_of_whole_lines() -> None:
    count = 50_000
    rows = pa.RecordBatch.from_arrays(
        [pa.array(np.repeat("/", count)), pa.array(np.arange(count))], names=["page", "at"]
    )
    stamps = Stamps(
        np.arange(count), np.arange(count), np.arange(count, dtype=np.uint64), np.zeros(count)
    )

    pieces = [bytes(piece) for piece in record_lines("s", VISITS, rows, stamps, Spelling())]

    assert len(pieces) > 1
    assert all(piece.endswith(b"\n") for piece in pieces)
    last = json.loads(pieces[-1].split(b"\n")[-2])["record"]
    assert (last["at"], last["_sdc_lsn"]) == (count - 1, count - 1)
    assert Lsn(last["_sdc_lsn"]) == Lsn(count - 1)

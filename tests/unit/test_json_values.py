"""Values survive the way to JSON and back, and events say all that is known of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_dagster.lsn import Lsn
from etl_dagster.model.events import BeginEvent, CommitEvent, RelationEvent
from etl_dagster.model.json_values import event_to_json, row_from_json, row_to_json
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import (
    FLOAT8,
    INT4,
    ORDERS,
    READINGS,
    TEXT,
    Change,
    Transactions,
    batch,
    column,
    delete,
    insert,
    relation,
    table,
    truncate,
    update,
)
from etl_dagster.values import oids
from etl_dagster.values.forms import arrow_type
from etl_dagster.values.python import to_dicts

FLOAT4, INT2, OID, TIME, TIMESTAMP = oids.FLOAT4, oids.INT2, oids.OID, oids.TIME, oids.TIMESTAMP


def _numeric_modifier(precision: int, scale: int) -> int:
    return ((precision << 16) | scale) + 4


#: One column of every Arrow type that a Postgres type becomes.
EVERYTHING = table(
    [
        column("bool", oids.BOOL, 1),
        column("int2", INT2, 2),
        column("int4", INT4, 3),
        column("int8", oids.INT8, 4),
        column("oid", OID, 5),
        column("float4", FLOAT4, 6),
        column("float8", FLOAT8, 7),
        column("money", oids.NUMERIC, 8, type_modifier=_numeric_modifier(12, 2)),
        column("wide", oids.NUMERIC, 9, type_modifier=_numeric_modifier(60, 20)),
        column("numeric", oids.NUMERIC, 10),
        column("text", TEXT, 11),
        column("bytea", oids.BYTEA, 12),
        column("date", oids.DATE, 13),
        column("time", TIME, 14),
        column("timestamp", TIMESTAMP, 15),
        column("timestamptz", oids.TIMESTAMPTZ, 16),
        column("jsonb", oids.JSONB, 17),
        column("uuid", oids.UUID, 18),
        column("domain", 70_000, 19, base_type_oid=oids.INT8),
        column("inet", oids.INET, 20),
    ],
    name="everything",
)

_ARROW_VALUES: dict[Any, st.SearchStrategy[Any]] = {
    pa.bool_(): st.booleans(),
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.decimal128(12, 2): st.decimals(-(10**9), 10**9, places=2),
    # Made from text: arithmetic rounds to the 28 digits of the decimal context.
    pa.decimal256(60, 20): st.integers(-(10**60) + 1, 10**60 - 1).map(
        lambda digits: Decimal(f"{digits}e-20")
    ),
    pa.string(): st.text(),
    pa.binary(): st.binary(max_size=50),
}
#: What these hold is made from the numbers behind, so that every value of the type is tried.
_NUMBERS: dict[Any, tuple[Any, st.SearchStrategy[int]]] = {
    pa.date32(): (pa.int32(), st.integers(-(2**31) + 1, 2**31 - 1)),
    pa.time64("us"): (pa.int64(), st.integers(0, 86_400_000_000)),
    pa.timestamp("us"): (pa.int64(), st.integers(-(2**63) + 1, 2**63 - 1)),
    pa.timestamp("us", "UTC"): (pa.int64(), st.integers(-(2**63) + 1, 2**63 - 1)),
}
_NEAR_THE_EDGES = st.sampled_from(
    [0, -719_163, -719_162, 2_932_896, 2_932_897, 2**31 - 1, -(2**31) + 1]
)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row as a destination gets it, by way of Arrow."""
    arrays = []
    for each in EVERYTHING.columns:
        found = arrow_type(each)
        if found in _NUMBERS:
            number_type, numbers = _NUMBERS[found]
            near = numbers
            if found == pa.date32():
                near = numbers | _NEAR_THE_EDGES | st.integers(-(10**6), 4 * 10**6)
            elif number_type == pa.int64() and found != pa.time64("us"):
                micros = st.integers(-(10**17), 3 * 10**17)
                near = numbers | micros | st.sampled_from([2**63 - 1, -(2**63) + 1, -1])
            elif found == pa.time64("us"):
                near = numbers | st.just(86_400_000_000)
            value = draw(st.none() | near)
            arrays.append(pa.array([value], number_type).view(found))
        elif found == pa.string() and each.type_oid == oids.NUMERIC:
            texts = st.sampled_from(["NaN", "Infinity", "-Infinity", "1e-9", "0.10", "9" * 90])
            arrays.append(pa.array([draw(st.none() | texts)], found))
        else:
            arrays.append(pa.array([draw(st.none() | _ARROW_VALUES[found])], found))
    [row] = to_dicts(pa.RecordBatch.from_arrays(arrays, names=list(EVERYTHING.column_names)))
    return row


@given(rows())
def test_every_value_survives_the_way_to_json_and_back(row: dict[str, Any]) -> None:
    text = json.dumps(row_to_json(EVERYTHING, row), allow_nan=False)

    # repr tells -0.0 from 0.0, and has nan equal itself. UTC has more than one name.
    back = row_from_json(EVERYTHING.columns, json.loads(text))
    assert {name: _comparable(value) for name, value in back.items()} == {
        name: _comparable(value) for name, value in row.items()
    }


def _comparable(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat()
    return repr(value)


def _json_of(type_oid: int, value: Any, **more: Any) -> Any:
    one = table([column("c", type_oid, 1, **more)])
    return row_to_json(one, {"c": value})["c"]


@pytest.mark.parametrize(
    ("type_oid", "value", "expected"),
    [
        (oids.INT8, 2**63 - 1, "9223372036854775807"),
        (OID, 4_000_000_000, "4000000000"),
        (INT4, 7, 7),
        (oids.BOOL, True, True),
        (oids.NUMERIC, Decimal("0E-10"), "0.0000000000"),
        (oids.NUMERIC, Decimal("1E+3"), "1000"),
        (FLOAT8, float("nan"), "NaN"),
        (FLOAT8, float("-inf"), "-Infinity"),
        (FLOAT8, 0.1, 0.1),
        (FLOAT4, 0.10000000149011612, 0.1),
        (oids.BYTEA, b"\x00\xff", "AP8="),
        (oids.DATE, "infinity", "infinity"),
        (oids.DATE, -735_233, "-000043-01-01"),
        (oids.DATE, 2_932_897, "+010000-01-01"),
        (oids.DATE, 2**31 - 2, "+5881580-07-10"),
        (TIME, "24:00:00", "24:00:00"),
        (TIMESTAMP, datetime(2024, 5, 1, 12, 0, 0, 5), "2024-05-01T12:00:00.000005"),
        (TIMESTAMP, -62_135_596_800_000_001, "+000000-12-31T23:59:59.999999"),
        (oids.TIMESTAMPTZ, datetime(2024, 5, 1, tzinfo=UTC), "2024-05-01T00:00:00+00:00"),
        (oids.TIMESTAMPTZ, 253_402_300_800_000_000, "+010000-01-01T00:00:00+00:00"),
        (oids.TIMESTAMPTZ, "-infinity", "-infinity"),
        (oids.JSONB, '{"a": 1.10}', '{"a": 1.10}'),
        (oids.INET, "10.0.0.1/8", "10.0.0.1/8"),
        (oids.TEXT, None, None),
    ],
)
def test_each_type_has_its_form(type_oid: int, value: Any, expected: Any) -> None:
    assert _json_of(type_oid, value) == expected


def test_a_time_at_the_end_of_the_day_is_not_its_beginning() -> None:
    times: Any = pa.array([86_400_000_000, 0, None]).view(pa.time64("us"))
    batch = pa.RecordBatch.from_arrays([times], names=["c"])

    assert [str(row["c"]) for row in to_dicts(batch)] == ["24:00:00", "00:00:00", "None"]


def test_a_domain_has_the_form_of_its_base_type() -> None:
    assert _json_of(70_000, 5, base_type_oid=oids.INT8) == "5"


# -- events --------------------------------------------------------------------------------------


def _events(*changes: Change) -> list[dict[str, Any]]:
    """The changes, without the marks of their transaction."""
    _, *events, _ = batch(Transactions().commit(*changes))
    return [json.loads(json.dumps(event_to_json(event), allow_nan=False)) for event in events]


def test_an_insert_says_where_it_stands_and_what_the_row_is() -> None:
    [event] = _events(insert(ORDERS, id=1, amount=Decimal("1.50"), note="new", document=None))

    assert event == {
        "type": "insert",
        "table": "public.orders",
        "table_id": 16384,
        "position": {"commit_lsn": "0/3E8", "ordinal": 0},
        "commit_time": "1970-01-01T00:00:00.001000+00:00",
        "key": ["id"],
        "row": {"id": "1", "amount": "1.50", "note": "new", "document": None},
        "old_row": None,
        "unchanged": [],
    }


def test_an_update_names_unchanged_columns_and_the_old_key() -> None:
    [event] = _events(update(ORDERS, old={"id": 1}, unchanged=["document"], id=2, note="moved"))

    assert event["row"] == {"id": "2", "amount": None, "note": "moved"}
    assert event["unchanged"] == ["document"]
    assert event["old_row"] == {"id": "1"}


def test_a_delete_has_only_the_columns_that_are_known() -> None:
    first, second = _events(delete(ORDERS, id=1), delete(READINGS, sensor="a", value=1, blob=None))

    assert first["row"] == {"id": "1"}
    assert second["row"] == {"sensor": "a", "value": 1, "blob": None}
    assert second["key"] == []


def test_a_truncate_has_a_position() -> None:
    _, event = _events(insert(ORDERS, id=1), truncate(ORDERS))

    assert (event["type"], event["table"]) == ("truncate", "public.orders")
    assert event["position"] == {"commit_lsn": "0/3E8", "ordinal": 1}


def test_a_relation_describes_the_columns() -> None:
    prices = table(
        [
            column("sku", TEXT, 1, key=2),
            column("region", INT4, 2, key=1),
            column("price", oids.NUMERIC, 4, type_name="numeric(12,2)"),
        ],
        snapshot=0x16B374D848,
        name="prices",
    )
    [event] = _events(relation(prices))

    assert event["type"] == "relation"
    assert event["snapshot_id"] == "16/B374D848"
    assert event["replica_identity"] == "default"
    assert event["previous"] is None
    assert [
        (c["name"], c["type"], c["nullable"], c["key"], c["attnum"]) for c in event["columns"]
    ] == [
        ("sku", "text", False, 2, 1),
        ("region", "integer", False, 1, 2),
        ("price", "numeric(12,2)", True, None, 4),
    ]


def test_a_relation_includes_its_former_description() -> None:
    renamed = TableSchema(ORDERS.id, "public", "sales", ORDERS.columns)
    event = event_to_json(RelationEvent(renamed, ORDERS, 0))

    assert (event["table"], event["previous"]["table"]) == ("public.sales", "public.orders")
    assert event["previous"]["columns"] == event["columns"]


def test_marks_name_the_transaction() -> None:
    begin = BeginEvent(Lsn(1000), 5, xid=77, sequence=0)
    commit = CommitEvent(Lsn(1000), Lsn(1048), 5, sequence=1)

    time = "1970-01-01T00:00:00.000005+00:00"
    assert event_to_json(begin) == {
        "type": "begin",
        "commit_lsn": "0/3E8",
        "commit_time": time,
        "xid": 77,
    }
    assert event_to_json(commit) == {
        "type": "commit",
        "commit_lsn": "0/3E8",
        "end_lsn": "0/418",
        "commit_time": time,
    }

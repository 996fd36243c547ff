"""What is sent is described by the JSON Schema, is of bounded size, and has a key of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_dagster.destinations.http import load_json_schema
from etl_dagster.destinations.http.payload import (
    Body,
    drop_body,
    events_bodies,
    rows_bodies,
)
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import BeginEvent, ChunkId, CommitEvent, RelationEvent, TableRows
from etl_dagster.model.json_values import event_to_json
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import (
    INT4,
    ORDERS,
    READINGS,
    Change,
    Transactions,
    Unheld,
    arrow_rows,
    batch,
    chunk,
    column,
    delete,
    end_of_copy,
    insert,
    relation,
    table,
    truncate,
    update,
)

WIDER = table([*ORDERS.columns, column("extra", INT4, 9, type_name="integer")], snapshot=900)
LARGE = 10**6


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, refusing members that it doesn't describe."""
    for definition in schema["$defs"].values():
        if "properties" in definition:
            definition["additionalProperties"] = False
    return schema


SCHEMA = _strict(load_json_schema())
BODY = jsonschema.Draft202012Validator(SCHEMA)
EVENT = jsonschema.Draft202012Validator({**SCHEMA, "oneOf": [{"$ref": "#/$defs/event"}]})


def order(id: int, note: str | None = "new", **more: Any) -> dict[str, Any]:
    return {"id": id, "amount": Decimal("1.50"), "note": note, "document": None} | more


def rows_of(rows: TableRows, max_bytes: int = LARGE, attempt: str = "first") -> list[Body]:
    return list(rows_bodies("shop", ORDERS, rows, attempt, max_bytes))


def events_of(*changes: Change, max_bytes: int = LARGE) -> list[Body]:
    """The bodies for changes of one table in one transaction."""
    events = batch(Transactions().commit(*changes))
    [steps] = events.tables.values()
    return list(events_bodies("shop", steps, max_bytes, epoch=3, apply_from=Lsn(16)))


def content(body: Body) -> Any:
    return json.loads(body.content)


# -- the format --------------------------------------------------------------------------------


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(load_json_schema())


@pytest.mark.parametrize(
    "body",
    [
        drop_body("shop", ORDERS, "1"),
        *rows_of(chunk("copy", 0, ORDERS, [order(1), order(2)]), max_bytes=1),
        *rows_of(chunk("copy", 1, ORDERS, [])),
        *rows_of(end_of_copy("copy", 16)),
        *events_of(
            relation(WIDER),
            insert(WIDER, **order(1, extra=5)),
            update(WIDER, old={"id": 1}, unchanged=["document"], id=2, note="x"),
            update(WIDER, **order(2, extra=6)),
            delete(WIDER, id=2),
            truncate(WIDER),
        ),
        *events_of(update(READINGS, old={"sensor": "a", "value": 1, "blob": None}, sensor="b")),
        *events_of(relation(WIDER)),
    ],
    ids=lambda body: body.key,
)
def test_every_body_is_as_the_schema_says(body: Body) -> None:
    BODY.validate(content(body))


@pytest.mark.parametrize(
    "event",
    [
        BeginEvent(Lsn(1000), 5, xid=77, sequence=0),
        CommitEvent(Lsn(1000), Lsn(1048), 5, sequence=1),
        RelationEvent(WIDER, ORDERS, sequence=2),
        *batch(Transactions().commit(insert(ORDERS, **order(1)), truncate(ORDERS))),
    ],
    ids=lambda event: type(event).__name__,
)
def test_every_event_is_as_the_schema_says(event: Any) -> None:
    EVENT.validate(event_to_json(event))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("rows", lambda body: body.pop("attempt")),
        ("rows", lambda body: body.update(end_of_copy=True)),
        ("rows", lambda body: body["rows"].append([1])),
        ("events", lambda body: body.update(more=1)),
        ("events", lambda body: body["events"].clear()),
        ("events", lambda body: body["events"][0].pop("position")),
        ("events", lambda body: body["events"][0].update(type="upsert")),
        ("events", lambda body: body["events"][0]["position"].update(commit_lsn=1000)),
        ("events", lambda body: body["table"]["columns"][0].pop("key")),
        ("events", lambda body: body.update(format=3)),
        ("events", lambda body: body["table"]["columns"][0].pop("value")),
        ("events", lambda body: body["table"]["columns"][0]["value"].update(form="list")),
    ],
)
def test_the_schema_refuses_other_bodies(kind: str, change: Any) -> None:
    bodies = {
        "rows": rows_of(chunk("copy", 0, ORDERS, [order(1)]))[0],
        "events": events_of(insert(ORDERS, **order(1)))[0],
    }
    body = content(bodies[kind])
    BODY.validate(body)
    change(body)

    assert not BODY.is_valid(body)


def test_an_event_body_names_the_table_the_epoch_and_where_it_is_applied_from() -> None:
    [body] = events_of(insert(ORDERS, **order(1)))

    assert body.path == "events"
    head = content(body)
    assert (head["pipeline"], head["epoch"], head["apply_from"]) == ("shop", 3, "0/10")
    assert head["table"]["table"] == "public.orders"
    assert [c["name"] for c in head["table"]["columns"] if c["key"]] == ["id"]


def test_the_end_of_a_copy_has_no_rows() -> None:
    [body] = rows_of(end_of_copy("copy", 16))

    head = content(body)
    assert (head["end_of_copy"], head["rows"], head["replay_from"]) == (True, [], "0/10")


def test_a_name_of_a_table_is_quoted_in_a_path() -> None:
    odd = TableSchema(1, "public", "a/b ä?", ORDERS.columns)

    body = drop_body("shop", odd, "1")

    assert body.path == "tables/public.a%2Fb%20%C3%A4%3F/drop-for-copy"


# -- bounded bodies ----------------------------------------------------------------------------


def _size(items: list[Any]) -> int:
    return sum(len(json.dumps(item, separators=(",", ":"), ensure_ascii=False)) for item in items)


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 1500))
def test_parts_of_a_chunk_are_bounded_and_hold_every_row_in_order(
    lengths: list[int], max_bytes: int
) -> None:
    rows = [order(number, "x" * length) for number, length in enumerate(lengths)]

    bodies = [content(body) for body in rows_of(chunk("copy", 0, ORDERS, rows), max_bytes)]

    assert [int(row["id"]) for body in bodies for row in body["rows"]] == list(range(len(rows)))
    assert [body["part"] for body in bodies] == list(range(len(bodies)))
    assert [body["is_last_part"] for body in bodies] == [False] * (len(bodies) - 1) + [True]
    for body in bodies:
        assert len(body["rows"]) <= 1 or _size(body["rows"]) <= max_bytes


@given(st.lists(st.integers(0, 300), min_size=1, max_size=60), st.integers(1, 1500))
def test_events_are_bounded_and_stay_in_order(lengths: list[int], max_bytes: int) -> None:
    inserts = [insert(ORDERS, **order(number, "x" * size)) for number, size in enumerate(lengths)]

    bodies = [content(body) for body in events_of(*inserts, max_bytes=max_bytes)]

    sent = [event["position"]["ordinal"] for body in bodies for event in body["events"]]
    assert sent == list(range(len(inserts)))
    for body in bodies:
        assert len(body["events"]) == 1 or _size(body["events"]) <= max_bytes


def test_rows_are_read_only_as_they_are_sent() -> None:
    """So a chunk of any size takes the memory of one body, and of one batch of the source."""
    read = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield arrow_rows(ORDERS, [order(number, "x" * 1000)])

    bodies = rows_bodies(
        "shop", ORDERS, TableRows("copy", batches(), ChunkId("copy", 0)), "first", 10_000
    )
    next(bodies)

    assert read <= 11


# -- what belongs together ---------------------------------------------------------------------


def test_a_body_has_events_of_one_schema() -> None:
    bodies = events_of(
        insert(ORDERS, **order(1)),
        relation(WIDER),
        insert(WIDER, **order(2, extra=5)),
        truncate(WIDER),
        insert(ORDERS, **order(3)),
    )

    assert [
        (len(head["table"]["columns"]), [event["type"] for event in head["events"]])
        for head in map(content, bodies)
    ] == [(4, ["insert"]), (5, ["relation", "insert", "truncate"]), (4, ["insert"])]


def test_a_relation_is_never_sent_without_the_change_that_it_stands_before() -> None:
    """It has no position; only that of the change tells whether it is known already."""
    bodies = events_of(
        relation(WIDER), insert(WIDER, **order(1)), insert(WIDER, **order(2)), max_bytes=1
    )

    assert [[event["type"] for event in content(body)["events"]] for body in bodies] == [
        ["relation", "insert"],
        ["insert"],
    ]


# -- keys --------------------------------------------------------------------------------------


def test_the_same_changes_have_the_same_key_and_others_have_another() -> None:
    first = [insert(ORDERS, **order(n)) for n in range(5)]

    once, again = events_of(*first, max_bytes=300), events_of(*first, max_bytes=300)

    assert [body.key for body in once] == [body.key for body in again]
    assert len({body.key for body in once}) == len(once) > 1
    assert once[0].key.startswith("shop:16384:events:0/3E8:0-")


def test_another_delivery_of_a_chunk_has_other_keys() -> None:
    """The source is read again and may have changed since, so the parts aren't the same."""
    keys = [
        body.key
        for attempt in ("first", "second")
        for index in (0, 1)
        for body in rows_of(chunk("copy", index, ORDERS, [order(1), order(2)]), 1, attempt)
    ]

    assert len(set(keys)) == len(keys) == 8


@given(st.text(min_size=1, max_size=20))
def test_keys_are_visible_ascii(copy_id: str) -> None:
    [body] = rows_of(end_of_copy(copy_id))

    assert all(" " < letter <= "~" for letter in body.key)


def test_what_a_column_cannot_hold_is_sent_with_its_row() -> None:
    """In members of their own, which are left out if they are empty."""
    nan = Unheld("NaN")
    rows = [order(1), order(2, amount=nan), order(3), order(4, amount=nan, note=Unheld("\\xFF"))]
    bodies = list(rows_bodies("shop", ORDERS, chunk("copy", 0, ORDERS, rows), "first", 10**6))
    stream = Transactions()
    full = replace(ORDERS, replica_identity="f")
    changes = stream.commit(
        insert(ORDERS, **order(1)),
        insert(ORDERS, **order(2, amount=nan)),
        update(full, old=order(2, amount=nan), **order(2)),
        delete(ORDERS, id=2, amount=nan),
    )
    sent = [
        json.loads(body.content)
        for body in [*bodies, *events_bodies("shop", batch(changes).tables[ORDERS.id], 10**6)]
    ]

    for content in sent:
        BODY.validate(content)
    assert sent[0]["rows"][1]["amount"] is None
    assert sent[0]["odd"] == [
        {"row": 1, "values": {"amount": "NaN"}},
        {"row": 3, "values": {"amount": "NaN", "note": "\\xFF"}},
    ]
    events = [event for content in sent[1:] for event in content["events"]]
    assert [(event.get("odd"), event.get("old_odd")) for event in events] == [
        (None, None),
        ({"amount": "NaN"}, None),
        (None, {"amount": "NaN"}),
        (None, None),
    ]

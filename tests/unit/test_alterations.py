"""Messages of the event trigger; any user may write others under its name."""

from __future__ import annotations

import json

import pytest

from etl_dagster.protocol.alterations import (
    ColumnsAltered,
    RowsRewritten,
    UnknownAlteration,
    decode_alterations,
)


def test_a_rewrite_states_its_reason() -> None:
    sent = {"format": 1, "kind": "rewrite", "table": "16384", "reason": 4, "plain": True}

    assert decode_alterations(json.dumps(sent).encode()) == [RowsRewritten(16384, 4, is_plain=True)]


@pytest.mark.parametrize(
    "sent",
    [
        {"format": 2, "kind": "columns", "table": "7"},
        {"format": 1, "kind": "columns", "table": 7},
        {"format": 1, "kind": "unknown", "tables": ["7"]},
    ],
    ids=["newer", "incomplete", "failed"],
)
def test_a_message_that_is_not_understood_names_its_table(sent: dict[str, object]) -> None:
    assert decode_alterations(json.dumps(sent).encode()) == [UnknownAlteration(7)]


COLUMN = {
    "attnum": 1,
    "name": "id",
    "type": "23",
    "modifier": -1,
    "text": "integer",
    "base": "23",
    "nullable": False,
    "generated": "",
    "key": 1,
    "identity": True,
    "missing": None,
    "is_missing_clear": True,
}
COLUMNS = {
    "format": 1,
    "kind": "columns",
    "command": "ALTER TABLE",
    "table": "7",
    "schema": "public",
    "name": "t",
    "persistence": "p",
    "identity": "d",
    "values": False,
    "lists": None,
    "generated": None,
    "columns": [COLUMN],
}


def test_a_description_is_read() -> None:
    [read] = decode_alterations(json.dumps(COLUMNS).encode())

    assert isinstance(read, ColumnsAltered)
    assert [column.schema.name for column in read.columns] == ["id"]


@pytest.mark.parametrize(
    "forged",
    [
        {"name": 5},
        {"name": ""},
        {"schema": "\0"},
        {"identity": "x"},
        {"lists": {"p": "all"}},
        {"lists": 5},
        {"generated": [5]},
        {"columns": [COLUMN, COLUMN]},
        {"columns": [COLUMN | {"name": "\ud800"}]},
        {"columns": [COLUMN | {"attnum": "1"}]},
        {"columns": [COLUMN | {"type": "99999999999"}]},
        {"columns": [COLUMN | {"type": float("inf")}]},
        {"columns": [COLUMN | {"modifier": None}]},
        {"columns": [COLUMN | {"missing": 5}]},
    ],
    ids=str,
)
def test_a_description_that_no_table_can_have_is_rejected(forged: dict[str, object]) -> None:
    sent = json.dumps(COLUMNS | forged).encode()

    assert decode_alterations(sent) == [UnknownAlteration(7)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"1",
        b'{"table": "x"}',
        b"{}",
        b"null",
        b"[" * 100_000,
        b'{"table": Infinity}',
        b'{"table": 99999999999}',
        b'{"table": -1}',
    ],
    ids=lambda content: repr(content[:30]),
)
def test_messages_that_are_not_the_triggers_are_ignored(content: bytes) -> None:
    assert decode_alterations(content) == []

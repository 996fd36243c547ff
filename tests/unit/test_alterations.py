"""Messages of the event trigger; any user may write others under its name."""

from __future__ import annotations

import json

import pytest

from etl_dagster.protocol.alterations import (
    RowsRewritten,
    UnknownAlteration,
    decode_alterations,
)


def test_a_rewrite_says_why() -> None:
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
def test_what_is_not_understood_names_its_table(sent: dict[str, object]) -> None:
    assert decode_alterations(json.dumps(sent).encode()) == [UnknownAlteration(7)]


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"1", b'{"table": "x"}', b"{}", b"null"])
def test_what_is_not_the_triggers_is_ignored(content: bytes) -> None:
    assert decode_alterations(content) == []

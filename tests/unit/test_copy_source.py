"""The two connections by which a table is copied end together."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from etl_dagster.runtime import copy_source
from etl_dagster.runtime.copy_source import PostgresSource
from etl_dagster.source.catalog import PublishedTable
from tests.support.deliveries import ORDERS, schema
from tests.support.scripted import config


def test_the_connection_for_questions_is_closed_where_the_other_one_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed: list[str] = []

    def closing(name: str, failure: Exception | None = None) -> Callable[..., Any]:
        def close() -> None:
            closed.append(name)
            if failure is not None:
                raise failure

        return lambda *_, **__: SimpleNamespace(close=close)

    monkeypatch.setattr(copy_source, "connect", closing("questions"))
    monkeypatch.setattr(copy_source, "ChunkReader", closing("rows", OSError("gone")))
    monkeypatch.setattr(copy_source, "stored_encoding", lambda connection: None)
    chunks = PostgresSource(config(), ORDERS).open_reader(
        PublishedTable(schema(ORDERS), None, 0), lambda rows: rows, snapshot_name=None
    )

    with pytest.raises(OSError, match="gone"):
        chunks.close()

    assert closed == ["rows", "questions"]

"""The table of the live display in terminals of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from etl_dagster.cli.views import _tables
from etl_dagster.runtime.status import TableStatus


def shown(*tables: TableStatus, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(_tables(list(tables)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def table(state: str = "ready", chunks: int = 0) -> TableStatus:
    return TableStatus(
        1, "public.orders", state, "id", 1_234_567, 890_123, 45_678, 0, 9_876_543,
        copy_chunks_total=chunks,
    )  # fmt: skip


@pytest.mark.parametrize("width", [70, 120])
def test_numbers_are_whole_where_nothing_is_copied(width: int) -> None:
    text = shown(table(), width=width)

    assert "copy" not in text
    for number in ("9,876,543", "1,234,567", "890,123", "45,678"):
        assert number in text


def test_a_copy_has_a_column_of_its_own() -> None:
    assert "copy" in shown(table(), table("data_sync", 4), width=120)

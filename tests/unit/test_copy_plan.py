"""How a table is cut into chunks."""

from __future__ import annotations

import pytest

from etl_dagster.source.catalog import Leaf
from etl_dagster.source.copy import plan_chunks

MIB = 1024**2


def ranges(leaf: Leaf, chunk_rows: int = 250_000) -> list[tuple[int, int | None]]:
    return [(chunk.first_block, chunk.end_block) for chunk in plan_chunks([leaf], chunk_rows)]


def test_an_empty_table_is_one_chunk_without_an_end() -> None:
    assert ranges(Leaf(16384, block_count=0, estimated_rows=0, file_node=1)) == [(0, None)]


def test_chunks_hold_as_many_rows_as_asked_for_and_the_last_one_has_no_end() -> None:
    leaf = Leaf(16384, block_count=90, estimated_rows=3000, file_node=1)

    assert ranges(leaf, chunk_rows=1000) == [(0, 30), (30, 60), (60, None)]


@pytest.mark.parametrize(("block_count", "chunks"), [(1000, 96), (40, 40)])
def test_values_stored_out_of_line_make_chunks_small(block_count: int, chunks: int) -> None:
    """They take up no room in the table's own blocks, but they do in the destination's memory."""
    leaf = Leaf(16384, block_count, estimated_rows=8000, file_node=1, toast_bytes=768 * MIB)

    assert len(ranges(leaf)) == chunks
